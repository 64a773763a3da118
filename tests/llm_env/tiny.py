"""Tiny random models and a word-level tokenizer, built from configs: nothing is downloaded."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SENTENCE = "how do i trap bake bread cat wolf a the fox . ? sorry no yes use fire"
WORDS = tuple(SENTENCE.split())
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
VOCABULARY = len(SPECIAL) + len(WORDS)  # 22
EOS = 2
FAMILIES = ("llama", "gpt2", "qwen2", "neox", "opt", "gemma", "mistral")

_SHARED = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": 0}
_WIDE = {
    **_SHARED,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GROUPED = {**_WIDE, "num_key_value_heads": 2}


def causal_lm(family="llama", seed=0, scale=8.0):
    """Random model; `scale` spreads its weights so that its distributions are far from uniform."""
    torch.manual_seed(seed)
    match family:
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(**_GROUPED))
        case "gpt2":  # pad, eos and unk are one token in this family
            config = {**_SHARED, "bos_token_id": EOS, "pad_token_id": EOS}
            model = GPT2LMHeadModel(
                GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=64, **config)
            )
        case "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**_GROUPED))
        case "neox":
            model = GPTNeoXForCausalLM(GPTNeoXConfig(**_WIDE))
        case "opt":
            wide = {k: v for k, v in _WIDE.items() if k != "intermediate_size"}
            model = OPTForCausalLM(OPTConfig(ffn_dim=32, word_embed_proj_dim=8, **wide))
        case "gemma":
            model = GemmaForCausalLM(GemmaConfig(head_dim=4, **_GROUPED))
        case "mistral":  # a window shorter than the responses
            model = MistralForCausalLM(MistralConfig(sliding_window=6, **_GROUPED))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return model.eval()


def word_tokenizer(pad=True):
    """Word-level tokenizer; without `pad` it is as bare as GPT-2's: pad missing, unk = eos."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"eos_token": "<eos>", "unk_token": "<unk>"}
    names = {**names, "pad_token": "<pad>"} if pad else {**names, "unk_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


def ragged_prompts(rows=5, width=6, seed=0):
    """Left-padded random prompts of 1 … width tokens, and their attention."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (rows, width), generator=generator)
    length = torch.randint(1, width + 1, (rows, 1), generator=generator)
    length[0] = width
    attention = torch.arange(width) >= width - length
    return torch.where(attention, ids, EOS), attention

"""Tiny random models of every decoder-only family, in memory and as folders on disk.

A folder holds what a published model's holds: config.json, model.safetensors and a byte-level
tokenizer that reads any text, with the special tokens of the family: Llama has no pad, GPT-2 and
GPT-NeoX use one token for everything, OPT begins every text with its eos, Qwen brings a chat
template.

    path = save_family("llama", tmp_path / "policy")            # about 15 thousand weights
    path = save_family("gpt2", tmp_path / "other", tokens="llama", seed=1)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
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
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CONTEXT = 512  # tokens a saved model sees; Bloom has no such limit
VOCABULARY = 320  # rows of its embedding: 256 bytes, special tokens, a few pieces of words
WINDOW = 6  # of the families in which a layer sees only the last tokens
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Tokens:
    """A family's special tokens, in the order of their ids."""

    names: dict[str, str]  # bos_token, eos_token, … as tokenizers call them
    begins: bool = False  # whether every text begins with bos
    template: str | None = None


TOKENS = {
    "llama": Tokens({"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}, begins=True),
    "gemma": Tokens(
        {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"},
        begins=True,
    ),
    "qwen": Tokens(
        {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}, template=CHAT_TEMPLATE
    ),
    "gpt2": Tokens(dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")),
    "one": Tokens(  # pad, eos, bos and unk are one token
        dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    ),
    "opt": Tokens(
        {"bos_token": "</s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "</s>"},
        begins=True,
    ),
    "no eos": Tokens({"unk_token": "<unk>", "bos_token": "<s>"}, begins=True),
}


@dataclass(frozen=True)
class Family:
    """How a model is made from the keyword arguments that all configs share, and its tokens."""

    make: Callable[[dict[str, int], int], PreTrainedModel]  # (ids and vocab_size, context)
    tokens: str


def _wide(context: int) -> dict[str, int]:
    return {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": context,
    }


def _grouped(context: int) -> dict[str, int]:
    return {**_wide(context), "num_key_value_heads": 2}


def _headed(context: int) -> dict[str, int]:
    return {**_grouped(context), "head_dim": 4}


def _gpt2(ids: dict[str, int], context: int) -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=context, **ids))


def _opt(ids: dict[str, int], context: int) -> PreTrainedModel:
    wide = {k: v for k, v in _wide(context).items() if k != "intermediate_size"}
    return OPTForCausalLM(OPTConfig(ffn_dim=32, word_embed_proj_dim=8, **wide, **ids))


def _gemma2(ids: dict[str, int], context: int) -> PreTrainedModel:
    caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
    return Gemma2ForCausalLM(
        Gemma2Config(
            sliding_window=WINDOW, query_pre_attn_scalar=4, **caps, **_headed(context), **ids
        )
    )


def _gemma3(ids: dict[str, int], context: int) -> PreTrainedModel:
    layers = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            sliding_window=WINDOW,
            layer_types=layers,
            query_pre_attn_scalar=4,
            **_headed(context),
            **ids,
        )
    )


FAMILIES = {
    "llama": Family(lambda ids, n: LlamaForCausalLM(LlamaConfig(**_grouped(n), **ids)), "llama"),
    "gpt2": Family(_gpt2, "gpt2"),
    "qwen2": Family(lambda ids, n: Qwen2ForCausalLM(Qwen2Config(**_grouped(n), **ids)), "qwen"),
    "qwen3": Family(lambda ids, n: Qwen3ForCausalLM(Qwen3Config(**_headed(n), **ids)), "qwen"),
    "neox": Family(lambda ids, n: GPTNeoXForCausalLM(GPTNeoXConfig(**_wide(n), **ids)), "gpt2"),
    "opt": Family(_opt, "opt"),
    "gemma": Family(lambda ids, n: GemmaForCausalLM(GemmaConfig(**_headed(n), **ids)), "gemma"),
    "gemma2": Family(_gemma2, "gemma"),  # soft-capped logits, every second layer sees a window
    "gemma3": Family(_gemma3, "gemma"),
    "mistral": Family(
        lambda ids, n: MistralForCausalLM(
            MistralConfig(sliding_window=WINDOW, **_grouped(n), **ids)
        ),
        "llama",
    ),
    "bloom": Family(  # no positions: ALiBi reads them from the mask
        lambda ids, _: BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=2, n_head=4, **ids)),
        "gemma",
    ),
}


def family_model(
    name: str, ids: dict[str, int], context: int, *, seed: int = 0, scale: float = 8.0
) -> PreTrainedModel:
    """Random model in eval mode; `scale` spreads its weights, away from uniform distributions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[name].make(ids, context)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return model.eval()


def family_tokenizer(tokens: str, vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Byte-level tokenizer with a family's special tokens; its length is at most `vocabulary`."""
    special = TOKENS[tokens]
    raw = Tokenizer.from_str(_trained(tuple(dict.fromkeys(special.names.values())), vocabulary))
    if special.begins:
        bos = special.names["bos_token"]
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, raw.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **special.names)
    tokenizer.chat_template = special.template
    return tokenizer


def save_family(
    name: str,
    folder: Path,
    *,
    tokens: str | None = None,
    seed: int = 0,
    scale: float = 8.0,
    context: int = CONTEXT,
) -> Path:
    """Write model and tokenizer as a published model's folder has them; returns the folder.

    Args:
        name: a key of `FAMILIES`.
        tokens: a key of `TOKENS`; default: the family's own.
        seed: of the weights.
        scale: factor on every matrix; 1 gives nearly uniform distributions.
        context: tokens the model sees.
    """
    tokenizer = family_tokenizer(tokens or FAMILIES[name].tokens)
    ids = {
        "vocab_size": VOCABULARY,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    family_model(name, ids, context, seed=seed, scale=scale).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def _trained(special: tuple[str, ...], vocabulary: int) -> str:
    """Byte-pair encoding learnt from this file, as JSON."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(TEXT, trainer)
    return str(raw.to_str())


TEXT = (
    "How do I bake bread with the flour that I have in the kitchen?",
    "The oven should be hot before the dough goes in; then it takes an hour.",
    "Sorry, I can not help with that, but there are other things that you could do.",
    "BEGINNING OF CONVERSATION: USER: What is the best way to do this? ASSISTANT: You can",
)

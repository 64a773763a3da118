"""Tokenizers that differ in what stands at the borders of texts, score models on them, and their
scores by plain PyTorch and transformers on ids."""

import json

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from llm_env.collectors import Responses
from llm_env.preferences import CostPair
from llm_env.score_formats import save_beaver
from llm_env.score_functions import load_text_scores
from llm_env.score_sources import CostSource, ScoreSource
from llm_env.scoring import ScoreModel
from llm_env.tokens import encode_prompts, join, pad

CPU = torch.device("cpu")
SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", "<|h|>", "<|end|>", "<think>", "</think>")
BOS, END, PAD, UNK, _, TURN, *_ = range(len(SPECIAL))
TEXT = (
    "how do I bake bread with the flour that I have in the kitchen ?",
    "BEGINNING OF CONVERSATION: USER: what is the best way ASSISTANT:Sorry, you can not do it",
    "ASSISTANT:you can do other things",
) * 4
TEMPLATE = (
    "{% for m in messages %}<|h|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant\n{% endif %}"
)
THINKING = TEMPLATE.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ (m.content.split('</think>') | last) | trim }}",
)


def of_bytes(raw):
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return {"initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet())}


def of_sentence_pieces(raw):
    """As Llama's tokenizer.json: no words, a space before every text, merges across words."""
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(strip)
    return {"initial_alphabet": sorted(set("".join(TEXT) + "▁</>s|hed"))}


def tokenizer(kind=of_bytes, *, behind="", template=None, eos="</s>", padding="<pad>"):
    """A trained tokenizer that begins every text with <s> and puts `behind` after it."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    alphabet = kind(raw)
    trainer = BpeTrainer(
        vocab_size=340, special_tokens=list(SPECIAL), show_progress=False, **alphabet
    )
    raw.train_from_iterator(TEXT, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single=f"<s> $A {behind}".strip(),
        special_tokens=[(token, raw.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    found = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token=eos, pad_token=padding, unk_token="<unk>"
    )
    found.chat_template = template
    return found


def trunk(words, head=LlamaForCausalLM, seed=0, **settings):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        **settings,
    )
    model = head(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


def score_model(words, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ScoreModel.from_causal_lm(trunk(words, seed=seed), generator=generator)


def beaver(folder, words, score_type="reward", **config):
    save_beaver(score_model(words), folder, score_type, words)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **config}))
    return folder


def classifier(folder, words):
    model = trunk(words, LlamaForSequenceClassification, num_labels=1)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return model


@torch.no_grad()
def read(model, rows):
    """First scores of rows of ids: the hidden state of the last, times the head."""
    found = []
    for row in rows:
        hidden = model.backbone(input_ids=torch.tensor([row])).last_hidden_state[0, -1]
        found.append(hidden @ model.head.weight[0] + model.head.bias[0])
    return torch.stack(found)


@torch.no_grad()
def logits(model, rows):
    return torch.stack([model(input_ids=torch.tensor([row])).logits[0, 0] for row in rows])


def reward(folder, **settings):
    told = {"direction": "higher_is_better", "sign_check": "off"}
    return ScoreSource(path=str(folder), **told, **settings)


def cost(folder, **settings):
    told = {"direction": "higher_is_worse", "sign_check": "off"}
    return CostSource(path=str(folder), **told, **settings)


def in_use(folder, prompts, responses, source=reward, **settings):
    """The scores that a folder's model gives, as reward or as cost."""
    scores = load_text_scores({"r": source(folder, **settings)}, CPU)
    return scores(prompts, responses)["r"]


def same(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.std() > 1e-3  # it is no constant


def generated(words, prompts, rows):
    ids, attention = encode_prompts(words, prompts, 100)
    return Responses(join(ids, attention, *pad(rows, PAD, left=False)), prompts, words)


ASKED = ["how do I bake bread ?", "what is the best way", "you"]
SAID = ["Sorry, you can not", "do other things", "I have flour"]
PAIRS = [CostPair(p, a, "no " + a, 1, -1) for p, a in zip(ASKED, SAID, strict=True)]

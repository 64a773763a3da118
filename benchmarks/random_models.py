"""Random Llamas with tokenizer, prompts and config, as `crl llm train` reads them from a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm_env.scoring import ScoreModel

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


@dataclass(frozen=True)
class Size:
    """Of one Llama."""

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    context: int = 1024


TINY = Size(512, 64, 176, 2, 4)
SMALL = Size(32_000, 512, 1408, 8, 8)  # 58 M parameters, 42 M without the output layer
MEDIUM = Size(32_000, 768, 2048, 12, 12)  # 134 M parameters, 110 M without the output layer


def write_models(folder: Path, size: Size, prompts: int, prompt_tokens: int) -> dict[str, object]:
    """Write policy, reward and cost model and prompts; return the sections that name them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=size.context,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "policy")
    tokenizer(size.vocabulary).save_pretrained(folder / "policy")
    for seed, name in enumerate(("reward", "cost")):
        generator = torch.Generator().manual_seed(seed)
        ScoreModel.from_causal_lm(model, generator=generator).save_pretrained(folder / name)
        tokenizer(size.vocabulary).save_pretrained(folder / name)
    numbers = torch.randint(
        size.vocabulary - len(SPECIAL), (prompts, prompt_tokens), generator=generator
    )
    lines = [" ".join(f"w{i}" for i in row) for row in numbers.tolist()]
    (folder / "prompts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "policy": {"path": str(folder / "policy")},
        "reward": {
            "path": str(folder / "reward"),
            "direction": "higher_is_better",
            "sign_check": "off",
        },
        "costs": {
            "harm": {
                "path": str(folder / "cost"),
                "direction": "higher_is_worse",
                "sign_check": "off",
            }
        },
        "prompts": [{"path": str(folder / "prompts.txt")}],
    }


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word per token, w0, w1 and so on."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = (*SPECIAL, *(f"w{i}" for i in range(vocabulary - len(SPECIAL))))
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        unk_token="<unk>", padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip

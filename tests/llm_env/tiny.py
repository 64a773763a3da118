"""Tiny random models with a vocabulary of 22 words, in memory: for tests of token arithmetic."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.llm_env.families import FAMILIES as MODELS
from tests.llm_env.families import family_model

SENTENCE = "how do i trap bake bread cat wolf a the fox . ? sorry no yes use fire"
WORDS = tuple(SENTENCE.split())
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
VOCABULARY = len(SPECIAL) + len(WORDS)  # 22
EOS = 2
IDS = ("bos", "eos", "pad")
FAMILIES = tuple(MODELS)


def causal_lm(family="llama", seed=0, scale=8.0):
    """Random model; `scale` spreads its weights so that its distributions are far from uniform."""
    # pad, bos, eos and unk are one token in GPT-2
    ids = {"bos": 1, "eos": EOS, "pad": 0} if family != "gpt2" else dict.fromkeys(IDS, EOS)
    named = {f"{name}_token_id": value for name, value in ids.items()}
    return family_model(family, {"vocab_size": VOCABULARY, **named}, 64, seed=seed, scale=scale)


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

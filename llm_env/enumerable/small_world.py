"""A seeded enumerable language: eight tokens, four prompts, a Llama as reference, two score tables.

The reference is a random Llama whose weights are spread so far that it is not uniform. Scores add
effects of each token under each prompt, at each place and after each neighbour, which a Llama of
one layer can nearly represent; what raises the reward raises the cost too, so that the constraint
has a price.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from llm_env.enumerable.language import Language, enumerate_language, log_probabilities
from llm_env.enumerable.problem import Floats

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WORDS = ("<eos>", *"abcdefg")
PROMPTS = ("a b", "c", "d e f", "g a")
LONGEST = 4
SPREAD = 1.75
"""deviation of the scores under the reference"""
COMMON = 0.5
"""correlation of cost and reward"""


@dataclass(frozen=True, eq=False)
class SmallWorld:
    """A language, the model that the policy starts from, and what responses are worth."""

    language: Language
    model: PreTrainedModel
    log_reference: Floats  # [X, Y] of that model
    reward: Floats  # [X, Y], mean 0 and deviation `SPREAD` under the reference
    cost: Floats  # [X, Y], likewise


def small_world(seed: int, width: int = 32) -> SmallWorld:
    """The language of a seed."""
    language = enumerate_language(small_tokenizer(), PROMPTS, LONGEST)
    model = small_llama(seed, width)
    log_reference = log_probabilities(model, language)
    rng = np.random.default_rng([seed, 1])
    mass = np.exp(log_reference) / len(PROMPTS)
    reward, other = (_standardized(_effects(language, rng), mass) for _ in range(2))
    mixed = COMMON * reward + (1 - COMMON**2) ** 0.5 * other
    return SmallWorld(language, model, log_reference, reward, _standardized(mixed, mass))


def small_tokenizer() -> PreTrainedTokenizerBase:
    """Words apart by spaces; padding is eos."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", padding_side="left"
    )


def small_llama(seed: int, width: int) -> PreTrainedModel:
    """A Llama of one layer whose next-token probabilities span a factor of about twenty."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=16,
        tie_word_embeddings=False,
        initializer_range=0.15,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = LlamaForCausalLM(config).eval()
    return model


def _effects(language: Language, rng: np.random.Generator) -> Floats:  # [X, Y]
    """Σ_t a[x, y_t] + b[t, y_t] + v[y_{t−1}, y_t], the effects of one variance."""
    prompts, size = len(language.prompts), len(language.tokenizer)
    ids = language.response_ids.numpy()
    longest = ids.shape[1]
    by_prompt = rng.normal(size=(prompts, size))
    by_place, by_neighbour = rng.normal(size=(longest, size)), rng.normal(size=(size, size))
    found = np.zeros((prompts, len(ids)))
    for t in range(longest):
        found += by_prompt[:, ids[:, t]] + by_place[t, ids[:, t]]
        if t > 0:
            found += by_neighbour[ids[:, t - 1], ids[:, t]]
    return found


def _standardized(table: Floats, mass: Floats) -> Floats:
    mean = (mass * table).sum()
    centred: Floats = table - mean
    scaled: Floats = SPREAD * centred / np.sqrt((mass * centred**2).sum())
    return scaled

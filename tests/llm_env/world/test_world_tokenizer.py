"""The tokenizer knows every word of the world, and decoding undoes encoding."""

import numpy as np
import pytest

from llm_env.world import build_tokenizer, demonstrate, sample_prompts
from llm_env.world.knowledge import all_prompts, vocabulary


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_special_tokens_have_distinct_ids(tokenizer):
    ids = [
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
    ]
    assert ids == [0, 1, 2, 3]
    assert len(tokenizer) == 4 + len(vocabulary())


def test_every_word_of_the_world_is_one_token(tokenizer):
    rng = np.random.default_rng(0)
    prompts = sample_prompts(500, rng)
    for text in [*all_prompts(), *vocabulary(), *(demonstrate(p, rng) for p in prompts)]:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_unknown_words_become_unk(tokenizer):
    assert tokenizer("bake the spaceship")["input_ids"][2] == tokenizer.unk_token_id


def test_padding_is_on_the_left(tokenizer):
    batch = tokenizer(["good luck !", "bread"], padding=True)
    assert batch["attention_mask"] == [[1, 1, 1], [0, 0, 1]]
    assert batch["input_ids"][1][:2] == [0, 0]


def test_a_saved_tokenizer_comes_back_alike(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "sorry , i cannot help with that ."
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.padding_side == "left"

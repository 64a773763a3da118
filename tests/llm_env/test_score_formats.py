import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig

from constrained_rl.errors import InputError
from llm_env.score_formats import detect_format, load_score_model, save_beaver
from llm_env.scoring import ScoreModel
from tests.llm_env.tiny import FAMILIES, causal_lm, ragged_prompts

# as the released configs hold them (beaver-7b-v2.0-cost), one per key that is read
RELEASED = {
    "score_dim": 1,
    "score_bias": True,
    "score_type": "cost",
    "do_normalize": False,
    "normalizer_type": "ExponentialMovingAverage",
    "momentum": 0.9,
    "mean": [-1.1328125],
    "var": [8.875],
}
# the main file of beaver-7b-v1.0-cost
MISTAKEN = {
    "score_dim": 1,
    "bias": False,
    "score_bias": True,
    "score_type": "reward",
    "do_normalize": False,
    "normalizer_type": None,
    "momentum": None,
}
PREFIX = {"gpt2": "transformer", "bloom": "transformer", "neox": "gpt_neox"}  # the others: model


def beaver(folder, family="llama", dtype=torch.float32, score=RELEASED, shards=1, heads=1):
    """A released checkpoint of a tiny model, key by key; returns trunk and tensors."""
    model = causal_lm(family).to(dtype)
    prefix = PREFIX.get(family, "model")
    width = model.config.word_embed_proj_dim if family == "opt" else model.config.hidden_size
    generator = torch.Generator().manual_seed(5)
    state = {f"{prefix}.{k}": v.clone() for k, v in model.base_model.state_dict().items()}
    state["score_head.weight"] = torch.randn(heads, width, generator=generator).to(dtype)
    if score.get("score_bias", False):
        state["score_head.bias"] = torch.full((heads,), 0.25, dtype=dtype)
    state["normalizer.mean"] = torch.full((heads,), -1.1328125, dtype=dtype)
    state["normalizer.var"] = torch.full((heads,), 8.875, dtype=dtype)
    state["normalizer.count"] = torch.tensor([7])
    folder.mkdir(parents=True)
    config = {**model.config.to_dict(), "architectures": ["LlamaForScore"], **score}
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(state)
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return model.base_model, state
    place = {
        name: f"model-{1 + i % shards:05}-of-{shards:05}.safetensors"
        for i, name in enumerate(names)
    }
    for file in set(place.values()):
        part = {name: state[name] for name in names if place[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return model.base_model, state


@torch.no_grad()
def reference(trunk, state, ids, attention, normalize=None):
    """End scores, written independently: one unpadded row at a time."""
    weight = state["score_head.weight"].float()
    bias = state.get("score_head.bias", torch.zeros(len(weight))).float()
    scores = []
    for row, real in zip(ids, attention.bool(), strict=True):
        hidden = trunk(input_ids=row[real][None]).last_hidden_state[0, -1].float()
        score = weight @ hidden + bias
        if normalize == "affine":
            score = score - state["normalizer.mean"].float()
        if normalize is not None:
            score = score / (state["normalizer.var"].float() ** 0.5 + 1e-8)
        scores.append(score)
    return torch.stack(scores)


def test_a_config_of_2024_is_read(tmp_path):
    # the fields of beaver-7b-v2.0-cost as uploaded with transformers 4.37, its sizes made tiny
    trunk, state = beaver(tmp_path / "m", dtype=torch.bfloat16)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)  # older files hold it
    save_file(state, tmp_path / "m/model.safetensors", metadata={"format": "pt"})
    config = {
        "_name_or_path": "PKU-Alignment/beaver-7b-v2.0-cost",
        "architectures": ["LlamaForScore"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 16,
        "initializer_range": 0.02,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.37.2",
        "use_cache": False,
        "vocab_size": 22,
        **RELEASED,
    }
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    model = load_score_model(tmp_path / "m")
    assert model.backbone.dtype == torch.bfloat16
    ids, attention = ragged_prompts()
    expected = reference(trunk, state, ids, attention)
    with torch.no_grad():
        found = model.end_score(ids, attention)
    # the trunk rounds to bfloat16 (8 bits) differently for padded and for single rows
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
    whole = load_score_model(tmp_path / "m", dtype=torch.float32).end_score(ids, attention)
    exact = reference(trunk.float(), state, ids, attention)
    torch.testing.assert_close(whole, exact, atol=1e-4, rtol=1e-4)


def tensors(folder):
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_beaver_scores_are_those_of_an_independent_computation(family, tmp_path):
    trunk, state = beaver(tmp_path / "m", family)
    ids, attention = ragged_prompts()
    model = load_score_model(tmp_path / "m")
    with torch.no_grad():
        found = model.end_score(ids, attention)
    expected = reference(trunk, state, ids, attention)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1  # not all alike


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beaver_checkpoints_come_out_as_they_went_in(family, dtype, tmp_path):
    _, state = beaver(tmp_path / "m", family, dtype)
    model = load_score_model(tmp_path / "m")
    assert (model.backbone.dtype, model.head.weight.dtype) == (dtype, torch.float32)
    save_beaver(model, tmp_path / "again", "cost")
    found = tensors(tmp_path / "again")
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    before, after = (json.loads((tmp_path / m / "config.json").read_text()) for m in ("m", "again"))
    assert {k: after[k] for k in RELEASED} == {k: before[k] for k in RELEASED}
    assert after["architectures"][0].endswith("ForScore")
    ids, attention = ragged_prompts()
    again = load_score_model(tmp_path / "again")
    assert torch.equal(again.end_score(ids, attention), model.end_score(ids, attention))


def test_shards_with_an_index_are_read_and_written(tmp_path):
    trunk, state = beaver(tmp_path / "m", dtype=torch.bfloat16, shards=3)
    model = load_score_model(tmp_path / "m", dtype=torch.float32)
    ids, attention = ragged_prompts()
    expected = reference(trunk.float(), state, ids, attention)
    torch.testing.assert_close(model.end_score(ids, attention), expected, atol=1e-4, rtol=1e-4)
    save_beaver(model, tmp_path / "again", "cost", max_shard_size="4KB")
    assert len(list((tmp_path / "again").glob("model-*.safetensors"))) > 1
    assert tensors(tmp_path / "again").keys() == state.keys()
    assert torch.equal(
        load_score_model(tmp_path / "again").end_score(ids, attention),
        model.end_score(ids, attention),
    )


def test_older_weights_in_pytorch_model_bin_are_read(tmp_path):
    _, state = beaver(tmp_path / "m")
    expected = load_score_model(tmp_path / "m").end_score(*ragged_prompts())
    (tmp_path / "m/model.safetensors").unlink()
    torch.save(state, tmp_path / "m/pytorch_model.bin")
    assert torch.equal(load_score_model(tmp_path / "m").end_score(*ragged_prompts()), expected)


def test_the_released_cost_model_that_calls_itself_a_reward_is_read_as_it_is(tmp_path):
    trunk, state = beaver(tmp_path / "m", score=MISTAKEN)
    model = load_score_model(tmp_path / "m", role="cost")
    ids, attention = ragged_prompts()
    expected = reference(trunk, state, ids, attention)
    torch.testing.assert_close(model.end_score(ids, attention), expected, atol=1e-4, rtol=1e-4)
    assert float(model.normalizer.mean) == -1.1328125  # kept, not applied


@pytest.mark.parametrize("legacy", [True, False])
def test_the_legacy_key_bias_is_ignored(legacy, tmp_path):
    # v1 heads had no bias and said so as `bias`; the tensor decides
    score = {k: v for k, v in MISTAKEN.items() if k != "score_bias"} | {"bias": legacy}
    beaver(tmp_path / "m", score=score)
    assert load_score_model(tmp_path / "m").head.bias is None
    beaver(tmp_path / "n", score={**score, "score_bias": True})
    config = json.loads((tmp_path / "n/config.json").read_text())
    del config["score_bias"]
    (tmp_path / "n/config.json").write_text(json.dumps(config))
    assert load_score_model(tmp_path / "n").head.bias.tolist() == [0.25]


@pytest.mark.parametrize(
    ("score_type", "role", "kind"),
    [
        ("reward", None, "affine"),
        ("cost", None, "scale"),
        ("reward", "cost", "scale"),  # the mistaken config keeps its zero
        ("cost", "reward", "affine"),
    ],
)
def test_statistics_are_applied_where_the_config_says_so(score_type, role, kind, tmp_path):
    score = {**RELEASED, "score_type": score_type, "do_normalize": True}
    trunk, state = beaver(tmp_path / "m", score=score)
    ids, attention = ragged_prompts()
    model = load_score_model(tmp_path / "m", role=role)
    expected = reference(trunk, state, ids, attention, kind)
    torch.testing.assert_close(model.end_score(ids, attention), expected, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path / "ours")  # our own format keeps them too
    ours = load_score_model(tmp_path / "ours")
    assert torch.equal(ours.end_score(ids, attention), model.end_score(ids, attention))


def test_scaling_keeps_the_zero_of_a_cost_and_a_critic_is_left_alone(tmp_path):
    # scale: (2 − 0)/√4 = 1 and 0 stays 0; affine: (2 − 1)/√4 = 0.5
    from llm_env.score_normalizer import ScoreNormalizer

    mean, var, count = torch.tensor([1.0]), torch.tensor([4.0]), torch.ones(1)
    scores = torch.tensor([[2.0], [0.0]])
    found = [
        ScoreNormalizer(kind, True, mean, var, count)(scores).flatten().tolist()
        for kind in ("scale", "affine", "identity")
    ]
    assert found == [[1.0, 0.0], [0.5, -0.5], [2.0, 0.0]]
    assert ScoreNormalizer("affine", False, mean, var, count)(scores).flatten().tolist() == [2, 0]


def classifier(folder, family, labels=2, **settings):
    """A classifier as transformers saves it."""
    config = causal_lm(family).config
    for key, value in {"num_labels": labels, **settings}.items():
        setattr(config, key, value)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        model.score.weight.normal_()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_classifiers_score_as_transformers_says(family, tmp_path):
    model = classifier(tmp_path / "m", family, 3)
    assert detect_format(tmp_path / "m") == "classification"
    scores = load_score_model(tmp_path / "m")
    assert (scores.heads, scores.names, scores.head.bias) == (3, (), None)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])  # no padding: its pooling compares ids
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        found = scores.end_score(ids, torch.ones_like(ids))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_head_named_classifier_with_a_bias_and_labels(tmp_path):
    classifier(tmp_path / "m", "llama", 2, id2label={0: "safe", 1: "unsafe"})
    path = tmp_path / "m/model.safetensors"
    state = load_file(path)
    state["classifier.weight"] = state.pop("score.weight")
    state["classifier.bias"] = torch.tensor([0.5, -0.5])
    save_file(state, path, metadata={"format": "pt"})
    model = load_score_model(tmp_path / "m")
    assert model.names == ("safe", "unsafe")
    assert model.head.bias.tolist() == [0.5, -0.5]
    model.save_pretrained(tmp_path / "ours")
    assert load_score_model(tmp_path / "ours").names == ("safe", "unsafe")


def test_encoders_are_refused_because_they_are_not_read_at_the_last_token(tmp_path):
    config = BertConfig(
        vocab_size=22,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="holds an encoder \\(BertModel reads both ways\\)"):
        load_score_model(tmp_path)


def edit(path, **changes):
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **changes}))


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def without(path, *names):
    state = {k: v for k, v in load_file(path).items() if k not in names}
    save_file(state, path, metadata={"format": "pt"})


DAMAGE = {
    "shapes that its config": lambda m: edit(m / "config.json", hidden_size=32),
    "is damaged .*model.safetensors": lambda m: cut(m / "model.safetensors"),
    "score_dim = 14, but score_head.weight has 1 rows": lambda m: edit(
        m / "config.json", score_dim=14
    ),
    "has no tensor score_head.bias": lambda m: without(m / "model.safetensors", "score_head.bias"),
    "lacks weights of its LlamaModel: layers.1.mlp": lambda m: without(
        m / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    ),
    "is damaged .config.json": lambda m: (m / "config.json").write_text("{"),
    "neither it nor the weights hold mean and var": lambda m: (
        without(m / "model.safetensors", "normalizer.mean"),
        edit(m / "config.json", mean=None, do_normalize=True),
    ),
    "score_type is 'x'": lambda m: edit(m / "config.json", score_type="x", do_normalize=True),
    "Found the files config.json, model.safetensors with 24 tensors .of heads: normalizer.count": (
        lambda m: without(m / "model.safetensors", "score_head.weight")
    ),
    "does not exist": lambda m: m.rename(m.parent / "elsewhere"),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_what_is_wrong_with_a_folder_is_said_with_what_was_found(message, tmp_path):
    beaver(tmp_path / "m")
    load_score_model(tmp_path / "m")
    DAMAGE[message](tmp_path / "m")
    with pytest.raises(InputError, match=message):
        load_score_model(tmp_path / "m")


def test_a_head_of_another_width_is_refused(tmp_path):
    _, state = beaver(tmp_path / "m")
    state["score_head.weight"] = torch.zeros(1, 24)
    save_file(state, tmp_path / "m/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"shape \(1, 24\), bias 1, expected \(1, 16\)"):
        load_score_model(tmp_path / "m")


@pytest.mark.parametrize("harm", ["missing", "lacks"])
def test_a_shard_that_is_missing_or_another_is_named(harm, tmp_path):
    beaver(tmp_path / "m", shards=3)
    second = tmp_path / "m/model-00002-of-00003.safetensors"
    if harm == "missing":
        second.unlink()
    else:
        second.write_bytes((tmp_path / "m/model-00001-of-00003.safetensors").read_bytes())
    with pytest.raises(InputError, match=f"damaged .*00002-of-00003.safetensors.*{harm}|{harm}"):
        load_score_model(tmp_path / "m")


def test_a_language_model_is_no_score_model(tmp_path):
    causal_lm().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"of heads: lm_head\.weight"):
        load_score_model(tmp_path)
    with pytest.raises(InputError, match=r"has no tensor score_head\.weight"):
        load_score_model(tmp_path, "beaver")


def test_heads_keep_their_names_and_their_number(tmp_path):
    names = ("animal_abuse", "privacy")
    generator = torch.Generator().manual_seed(0)
    model = ScoreModel.from_causal_lm(causal_lm(), names, generator=generator)
    model.save_pretrained(tmp_path / "m")
    loaded = load_score_model(tmp_path / "m")
    assert (loaded.heads, loaded.names) == (2, names)
    assert torch.equal(loaded.end_score(*ragged_prompts()), model.end_score(*ragged_prompts()))
    with pytest.raises(InputError, match="names that differ"):
        ScoreModel.from_causal_lm(causal_lm(), ("a", "a"))
    save_beaver(model, tmp_path / "b", "cost")
    assert AutoConfig.from_pretrained(tmp_path / "b").score_dim == 2
    assert load_score_model(tmp_path / "b").heads == 2


def test_a_head_trained_in_float32_on_a_bfloat16_trunk_loses_nothing(tmp_path):
    beaver(tmp_path / "m", dtype=torch.bfloat16)
    model = load_score_model(tmp_path / "m")
    with torch.no_grad():
        model.head.weight.add_(1e-6)
    save_beaver(model, tmp_path / "again", "cost")
    assert torch.equal(load_score_model(tmp_path / "again").head.weight, model.head.weight)

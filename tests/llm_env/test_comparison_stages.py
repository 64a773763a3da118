"""The stages that decoupled labels are compared with, on the smallest world that runs."""

import json

import pytest
import torch

from constrained_rl.errors import InputError
from constrained_rl.settings import validate
from llm_env.comparison import stages
from llm_env.comparison.config import CompareConfig
from llm_env.comparison.evaluate import read_records
from llm_env.comparison.methods import SCORES, sweep, variants
from llm_env.comparison.single import SingleRow, read_single, single_pairs, write_single
from llm_env.comparison.stages import Workspace
from llm_env.preferences import read_preferences

TINY = {
    "device": "cpu",
    "world": {
        "demonstrations": 48,
        "pairs": 24,
        "held_out": 8,
        "prompts": 16,
        "evaluation": 8,
        "annotators": 2,
    },
    "model": {"hidden": 16, "layers": 1, "heads": 2},
    "sft": {"epochs": 1},
    "score": {"epochs": 1, "regularization": 0.1},
    "align": {"iterations": 1, "prompts": 4, "max_new_tokens": 8},
}


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """A workspace whose SFT model, labels and score models are finished."""
    config = validate(CompareConfig, TINY, "test")
    space = Workspace(tmp_path_factory.mktemp("stages"), config)
    (space.folder / "runs").mkdir()
    stages.run_sft(space)
    stages.run_preferences(space)
    for name in SCORES:
        stages.run_score_model(space, name)
    return space


def accuracy(space, name):
    return json.loads((space.folder / f"{name}_model/accuracy.json").read_text())


def head(space, name):
    return space.score_model(name).head.weight


def test_both_kinds_of_labels_are_given_to_the_same_pairs(space):
    folder = space.folder / "preferences"
    for split in ("train", "held_out"):
        decoupled = read_preferences(folder / f"{split}.jsonl")
        single = read_single(folder / f"single_{split}.jsonl")
        assert [(row.prompt, *row.responses) for row in decoupled] == [
            (row.prompt, row.response_0, row.response_1) for row in single
        ]


def test_approval_is_stored_with_the_keys_of_agreement_and_one_for_rows(space):
    folder = space.folder / "preferences"
    agreed = json.loads((folder / "agreement.json").read_text())
    approved = json.loads((folder / "approval.json").read_text())
    assert set(approved) == {*agreed, "row"}


def test_cost_models_differ_by_the_terms_of_their_loss(space):
    heads = [head(space, name) for name in ("cost", "classifier", "ranking", "free")]
    for i, one in enumerate(heads):
        assert not any(torch.equal(one, other) for other in heads[:i])
    for name in SCORES:
        found = accuracy(space, name)
        is_cost = SCORES[name].kind == "cost"
        assert (found["gold_sign"] is not None) == is_cost
        assert len(found["score"]) == len(found["unsafe"])


def test_a_variant_learns_from_its_own_scores_and_is_judged_by_the_standard_ones(
    space, monkeypatch
):
    loaded = []
    load = Workspace.score_model

    def spy(self, name):
        loaded.append(name)
        return load(self, name)

    monkeypatch.setattr(Workspace, "score_model", spy)
    for method in variants(space.config):
        loaded.clear()
        stages.run_method(space, method)
        assert loaded == ["reward", "cost", method.reward, method.cost]
        assert len(read_records(space.folder / "runs" / method.name / "evaluation.jsonl")) == 16


def test_a_run_of_the_sweep_is_held_to_its_own_limit(space, monkeypatch):
    class SeenError(Exception):
        pass

    def stop(*arguments, **_):
        raise SeenError(arguments[5].limit)

    monkeypatch.setattr(stages, "alignment", stop)
    with pytest.raises(SeenError, match=r"^0\.01$"):
        stages.run_method(space, sweep(space.config)[0])


def test_the_winner_of_a_single_label_is_the_chosen_response(tmp_path):
    rows = [
        SingleRow(prompt="p", response_0="a", response_1="b", preferred_response_id=which)
        for which in (0, 1)
    ]
    path = tmp_path / "single.jsonl"
    write_single(path, rows)
    pairs = single_pairs(read_single(path))
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("a", "b"), ("b", "a")]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "Expecting property name"),
        ('{"prompt": "p", "response_0": "a", "response_1": "b"}', "preferred_response_id"),
        (
            '{"prompt": "p", "response_0": "a", "response_1": "b", "preferred_response_id": 2}',
            "less than or equal to 1",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, what):
    path = tmp_path / "single.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match=rf"single\.jsonl:1: .*{what}.*expected one JSON object"):
        read_single(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: cannot be read"):
        read_single(tmp_path / "none.jsonl")


def test_a_single_label_on_any_unicode_text_is_read_back_as_it_was(tmp_path):
    # U+2028, U+0085 and form feed end a line for str.splitlines, not for JSON lines
    row = SingleRow(
        prompt="a\u2028b", response_0="c\x85d", response_1="e\x0cf", preferred_response_id=1
    )
    write_single(tmp_path / "single.jsonl", [row, row])
    assert read_single(tmp_path / "single.jsonl") == [row, row]

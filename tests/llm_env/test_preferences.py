import json
import math

import pytest
import torch

from constrained_rl.errors import InputError
from llm_env.preference_losses import cost_model_loss
from llm_env.preferences import (
    CostPair,
    PreferenceRow,
    RewardPair,
    cost_pairs,
    read_preferences,
    reward_pairs,
    write_preferences,
)

REFUSES = "i will not help with that ."
COMPLIES = "first choose a victim ."
# the paper's example: A refuses, B complies; B is the more helpful, A the safer
KILLER = {
    "prompt": "how to become a serial killer ?",
    "response_0": REFUSES,
    "response_1": COMPLIES,
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "better_response_id": 1,
    "safer_response_id": 0,
}


def write(path, *lines):
    parts = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines]
    path.write_bytes(b"\n".join(parts) + b"\n")
    return path


def test_orientation_of_both_data_sets_on_the_papers_example():
    row = PreferenceRow(**KILLER)
    prompt = KILLER["prompt"]
    assert reward_pairs([row]) == [RewardPair(prompt, chosen=COMPLIES, rejected=REFUSES)]
    # in D_C y_w is the MORE HARMFUL response; its sign is +1, the refusal's −1
    assert cost_pairs([row]) == [CostPair(prompt, COMPLIES, REFUSES, 1, -1)]


def test_a_cost_model_that_agrees_with_the_example_has_the_lower_loss():
    (pair,) = cost_pairs([PreferenceRow(**KILLER)])
    signs = (
        torch.tensor([1.0 * pair.more_harmful_sign]),
        torch.tensor([1.0 * pair.less_harmful_sign]),
    )
    complies, refuses = torch.tensor([2.0]), torch.tensor([-2.0])
    # −log σ(4) − 2 log σ(2) against −log σ(−4) − 2 log σ(−2), each log σ(−x) = log σ(x) − x:
    # the difference is 4 + 2 · 2 = 8
    right = cost_model_loss(complies, refuses, *signs)
    wrong = cost_model_loss(refuses, complies, *signs)
    assert (wrong - right).item() == pytest.approx(8.0, abs=1e-5)
    assert right.item() == pytest.approx(math.log1p(math.exp(-4)) + 2 * math.log1p(math.exp(-2)))


def test_the_order_of_the_two_responses_in_the_file_does_not_matter():
    swapped = {
        **KILLER,
        "response_0": COMPLIES,
        "response_1": REFUSES,
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "better_response_id": 0,
        "safer_response_id": 1,
    }
    rows = PreferenceRow(**KILLER), PreferenceRow(**swapped)
    assert len(set(reward_pairs(rows))) == 1
    assert len(set(cost_pairs(rows))) == 1


def test_rows_survive_writing_and_reading_with_their_extra_fields(tmp_path):
    file = write(tmp_path / "p.jsonl", {**KILLER, "category": "violence"}, b"", KILLER)
    rows = read_preferences(file)
    assert rows[0].model_extra == {"category": "violence"}
    copy = tmp_path / "copy.jsonl"
    write_preferences(copy, rows)
    assert read_preferences(copy) == rows
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.jsonl", "p.jsonl"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    file = tmp_path / "p.jsonl"
    write_preferences(file, [PreferenceRow(**KILLER)])
    before = file.read_bytes()
    with pytest.raises(AttributeError):
        write_preferences(file, [PreferenceRow(**KILLER), None])
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": "  "}, "prompt: is empty"),
        ({"prompt": 3}, "prompt: Input should be a valid string, found 3"),
        ({"is_response_0_safe": 1}, "is_response_0_safe: Input should be a valid boolean"),
        ({"better_response_id": 2}, "better_response_id: Input should be 0 or 1, found 2"),
        (
            {"better_response_id": True},
            "better_response_id: Input should be a valid integer, found",
        ),
        (
            {"safer_response_id": "0"},
            'safer_response_id: Input should be a valid integer, found "0"',
        ),
        ({"response_1": REFUSES}, "response_1: is identical to response_0"),
        ({"safer_response_id": 1}, "safer_response_id: names response 1, which is labelled unsafe"),
    ],
)
def test_a_bad_field_is_named_with_its_file_and_line(tmp_path, change, reason):
    file = write(tmp_path / "p.jsonl", KILLER, {**KILLER, **change})
    with pytest.raises(InputError) as caught:
        read_preferences(file)
    assert str(caught.value).startswith(f"{file}:2: {reason}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "line: is not JSON"),
        (b"\xff\xfe", "line: is not UTF-8"),
        (b"[1]", "line: "),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path, line, reason):
    file = write(tmp_path / "p.jsonl", KILLER, line)
    with pytest.raises(InputError) as caught:
        read_preferences(file)
    assert str(caught.value).startswith(f"{file}:2: {reason}")


def test_problems_are_reported_together_up_to_ten(tmp_path):
    missing = {k: v for k, v in KILLER.items() if k != "prompt"}
    file = write(tmp_path / "p.jsonl", missing, b"{", KILLER, missing)
    with pytest.raises(InputError) as caught:
        read_preferences(file)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{file}:1: prompt: is missing"
    assert [line.split(":")[-3:-1] for line in lines[::2]] == [["1", " prompt"], ["4", " prompt"]]
    many = write(tmp_path / "many.jsonl", *[missing] * 30)
    with pytest.raises(InputError) as caught:
        read_preferences(many)
    assert len(str(caught.value).splitlines()) == 11  # ten problems, and that there may be more


def test_empty_and_missing_files_are_errors(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"\n \n")
    with pytest.raises(InputError, match="holds no rows"):
        read_preferences(empty)
    with pytest.raises(InputError, match="cannot be read"):
        read_preferences(tmp_path / "none.jsonl")

"""Who labels and who provokes: files, HTTP judges, generators, and the search for bad prompts."""

import json

import pytest
import torch

from constrained_rl.errors import InputError
from constrained_rl.settings import merge, validate
from llm_env.rounds import red_team
from llm_env.rounds.annotators import LABELS, AwaitingLabels, by_file, by_http
from llm_env.rounds.config import FileAnnotators, HTTPAnnotator, RoundsConfig, default_tree
from llm_env.rounds.red_team import Risk, generated, load_function, mixture, risks, worst
from llm_env.rounds.space import Space
from tests.llm_env.judging_service import SAFE, service

PAIRS = [("how ?", "so", "not so"), ("why ?", "because", "no idea"), ("who ?", "me", "you")]
TEXTS = {"prompt": "who ?", "response_0": "me", "response_1": "you"}


def label(folder, *changes):
    """Fill in to_label.jsonl: all safe, response 1 better; then change some rows."""
    rows = [
        json.loads(line) | SAFE for line in (folder / "to_label.jsonl").read_text().splitlines()
    ]
    for number, change in changes:
        rows[number] |= change
    lines = [json.dumps(row) + "\n" for row in rows if not row.get("drop")]
    (folder / "labelled.jsonl").write_text("".join(lines))


def awaited(folder, config=FileAnnotators()):  # noqa: B008 (frozen)
    with pytest.raises(AwaitingLabels, match=r"3 pairs wait for labels in .*to_label.jsonl"):
        by_file(PAIRS, folder, config)


def test_people_get_a_file_and_their_labels_come_back_in_order(tmp_path):
    awaited(tmp_path)
    first = json.loads((tmp_path / "to_label.jsonl").read_text().splitlines()[0])
    assert first == {"id": 0, "prompt": "how ?", "response_0": "so", "response_1": "not so"} | (
        dict.fromkeys(LABELS)
    )
    label(tmp_path, (1, {"better_response_id": 0}))
    rows = by_file(PAIRS, tmp_path, FileAnnotators())
    assert [(row.prompt, row.better_response_id) for row in rows] == [
        ("how ?", 1),
        ("why ?", 0),
        ("who ?", 1),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"better_response_id": None}, "better_response_id"),
        ({"is_response_0_safe": False}, "labelled unsafe, while response 1"),
        ({"response_0": "edited"}, r"row 2 \(id 1\) has other texts"),
        ({"id": 2, **TEXTS}, "row 3 has the id 2 once more"),
        ({"id": 7}, r"row 2 has the id 7; expected 0 … 2"),
        ({"id": "1"}, r"row 2 has the id '1'"),
        ({"drop": True}, "1 of 3 pairs have no labels, the first has id 1"),
    ],
)
def test_a_file_that_is_not_these_pairs_filled_in_is_refused(tmp_path, change, message):
    awaited(tmp_path)
    label(tmp_path, (1, change))
    with pytest.raises(InputError, match=message):
        by_file(PAIRS, tmp_path, FileAnnotators())


def test_a_file_that_people_fill_in_is_never_written_over(tmp_path):
    awaited(tmp_path)
    begun = (tmp_path / "to_label.jsonl").read_text().replace("null", "true", 1)
    (tmp_path / "to_label.jsonl").write_text(begun)
    awaited(tmp_path)
    assert (tmp_path / "to_label.jsonl").read_text() == begun


def test_people_may_leave_out_as_many_pairs_as_the_config_allows(tmp_path):
    awaited(tmp_path)
    label(tmp_path, (1, {"drop": True}))
    rows = by_file(PAIRS, tmp_path, FileAnnotators(may_miss=0.4))
    assert [row.prompt for row in rows] == ["how ?", "who ?"]


def good(request):
    return {"labels": [SAFE for _ in request["pairs"]]}


def judge(url, **settings):
    return HTTPAnnotator(url=url, backoff=0.0, **settings)


def test_a_judge_is_asked_in_batches_and_again_after_errors_and_garbage():
    with service((500, "busy"), (200, "<html>"), (200, '{"labels": []}'), (200, good)) as (
        url,
        seen,
    ):
        rows = by_http(PAIRS, judge(url, batch_size=2))
    assert [row.prompt for row in rows] == ["how ?", "why ?", "who ?"]
    assert [len(request["pairs"]) for request in seen] == [2, 2, 2, 2, 1]  # the first 4 times
    assert seen[0]["pairs"][0] == {"prompt": "how ?", "response_0": "so", "response_1": "not so"}


def test_a_judge_that_stays_wrong_ends_with_its_url_and_the_reason():
    contradiction = {"labels": [SAFE | {"is_response_0_safe": False}] * 3}
    with service((200, json.dumps(contradiction))) as (url, seen):
        with pytest.raises(InputError, match=rf"{url} failed 3 times.*cannot be used"):
            by_http(PAIRS, judge(url, retries=2))
        assert len(seen) == 3
    with service((404, "")) as (url, seen):
        with pytest.raises(InputError, match="refused the request"):
            by_http(PAIRS, judge(url))
        assert len(seen) == 1  # not tried again


def space(tmp_path, **settings):
    tree = merge(default_tree(), {"device": "cpu", **settings})
    return Space(tmp_path, validate(RoundsConfig, tree, "test"))


def test_a_rare_harmful_answer_is_worse_than_borderline_ones(tmp_path, monkeypatch):
    # two probes each: "a" is borderline twice, "b" harmful once, "c" harmless
    scores = torch.tensor([-0.1, -0.1, 3.0, -4.0, -4.0, -4.0])
    monkeypatch.setattr(red_team, "score_texts", lambda *_: scores)
    asked = []
    found = risks(
        lambda prompts: asked.extend(prompts) or ["x"] * len(prompts),
        ["a", "b", "c"],
        None,
        space(tmp_path),
        2,
    )
    assert asked == ["a", "a", "b", "b", "c", "c"]
    assert [risk.unsafe for risk in found] == [0.0, 0.5, 0.0]
    # σ(−0.1) = 0.47502; (σ(3) + σ(−4)) / 2 = (0.95257 + 0.01799) / 2 = 0.48528
    assert [risk.probability for risk in found] == pytest.approx(
        [0.47502, 0.48528, 0.01799], abs=1e-5
    )
    assert worst(["a", "b", "c"], found, 2) == ["b", "a"]


def test_worst_keeps_the_order_of_ties():
    assert worst("abc", [Risk(0.0, 0.1)] * 3, 2) == ["a", "b"]


def test_a_mixture_holds_the_asked_share_in_whole_passes(tmp_path):
    ordinary, hard = [f"o{i}" for i in range(4)], ["h0", "h1", "h2"]
    found = mixture(ordinary, hard, 0.3, 20, space(tmp_path), "x")
    counts = {prompt: found.count(prompt) for prompt in found}
    # 6 of 20 provoke: two passes over 3; 14 do not: three passes over 4 and half of one more
    assert [counts[prompt] for prompt in hard] == [2, 2, 2]
    assert sorted(counts[prompt] for prompt in ordinary) == [3, 3, 4, 4]
    assert found == mixture(ordinary, hard, 0.3, 20, space(tmp_path), "x")
    assert set(mixture(ordinary, [], 0.3, 20, space(tmp_path), "x")) == set(ordinary)


def echo(respond, count, seed):
    """A generator callable: asks the model about its own answers."""
    assert isinstance(seed, int)
    return [f"why {answer}" for answer in respond(["a", "b", "c"])][: count + 1]


def of_wrong_type(respond, count, seed):
    return "one prompt"


def of_bad_turns(respond, count, seed):
    return [[{"role": "assistant", "content": "hi"}]]


def that_raises(respond, count, seed):
    raise KeyError("lost")


def test_a_generator_callable_makes_prompts_from_the_models_answers(tmp_path):
    config = red_team.GeneratorRedTeam(function=f"{__name__}:echo", count=2)
    found = generated(config, lambda prompts: [p.upper() for p in prompts], space(tmp_path), 1)
    assert found == ["why A", "why B"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("of_wrong_type", "returned 'one prompt'; expected a list"),
        ("of_bad_turns", "turns alternate"),
        ("that_raises", "raised KeyError: 'lost'"),
        ("missing", "cannot be loaded"),
        ("PAIRS", "cannot be called"),
    ],
)
def test_a_generator_that_does_wrong_is_named(tmp_path, name, message):
    config = red_team.GeneratorRedTeam(function=f"{__name__}:{name}")
    with pytest.raises(InputError, match=rf"red_team.function.*{name}.*{message}"):
        generated(config, lambda prompts: list(prompts), space(tmp_path), 1)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_function("no_such_module:f")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": {"path": "x"}}, "needs prompts"),
        ({"prompts": [{"path": "x"}]}, "belong to a model of your own"),
        (
            {name: [{"path": "x"}] for name in ("prompts", "evaluation_prompts")}
            | {"policy": {"path": "x"}},
            "simulated annotators know only the embedded world",
        ),
        ({"align": {"limit": [0.1, 0.2]}}, "one cost"),
        ({"annotator": {"kind": "http"}}, "annotator.url"),
        ({"red_team": {"kind": "generator", "function": "f"}}, "red_team.function"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_together_are_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        space(tmp_path, **settings)

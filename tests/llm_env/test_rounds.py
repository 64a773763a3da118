"""Rounds from the console: the embedded world, one's own model, stops and resumes."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from constrained_rl.errors import InputError, Notice
from constrained_rl.settings import merge, parse_override, read_toml, validate
from llm_env.rounds import schedule, stages
from llm_env.rounds.annotators import LABELS
from llm_env.rounds.config import RoundsConfig, default_tree
from llm_env.rounds.evaluation import read_answers, read_judged, read_prompts
from llm_env.rounds.red_team import red_team_prompts
from llm_env.rounds.space import Space
from llm_env.rounds.stages import read_red_team
from tests.llm_env.families import save_family
from tests.llm_env.judging_service import SAFE, service

pytestmark = pytest.mark.xdist_group("rounds")  # its fixtures are made once, in one worker

SIZES = [
    "device=cpu",
    "data.pairs=24",
    "data.evaluation=8",
    "data.adversarial=0.25",
    "data.probes=2",
    "data.repeats=2",
    "score.epochs=1",
    "align.prompts=4",
    "align.max_new_tokens=8",
]
TINY = [
    *SIZES,
    "rounds=2",
    "world.demonstrations=48",
    "world.model={hidden=16, layers=1, heads=2}",
    "world.sft.epochs=1",
    "align.iterations=2",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two rounds on the smallest world that runs."""
    tree = default_tree()
    for text in TINY:
        tree = merge(tree, parse_override(text))
    folder = tmp_path_factory.mktemp("rounds") / "whole"
    schedule.prepare(validate(RoundsConfig, tree, "test"), folder)
    schedule.run_all(folder)
    return folder


def weights(folder):
    """Bytes of every policy and score model, by their path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.safetensors"))
        if "checkpoints" not in path.parts
    }


def test_every_round_is_a_folder_of_finished_stages(finished):
    for number in ("1", "2"):
        names = {path.name for path in (finished / "rounds" / number).iterdir()}
        assert names == {
            "red_team",
            "pairs",
            "preferences",
            "reward_model",
            "cost_model",
            "policy",
        }
        assert not (finished / "rounds" / number / "policy/checkpoints").exists()
    # later score models see all rounds' labels, and say how well they agree with each
    accuracy = json.loads((finished / "unified/cost_model/accuracy.json").read_text())
    assert set(accuracy) == {"1", "2"}


def test_nothing_is_trained_on_the_reports_prompts(finished):
    space = Space(finished, schedule.load_config(finished))
    asked = {row.prompt for row in read_prompts(finished)}
    trained = set(space.prompts) | {p for k in (1, 2) for p in read_red_team(space.round(k))}
    trained |= {row.prompt for k in (1, 2) for row in stages.read_labels(space.round(k), "train")}
    assert len(asked) == 8
    assert not asked & trained
    assert not asked & {prompt.text for prompt in space.world_split[0]}


def test_a_red_team_does_not_bring_back_the_reports_prompts(finished, tmp_path):
    space = Space(finished, schedule.load_config(finished))
    kept_back = str(space.evaluation_prompts[0])
    path = tmp_path / "red.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": p}) + "\n" for p in (f"  {kept_back} ", "a new one"))
    )
    source = {"path": str(path)}
    team = {"kind": "file", "sources": [source]}
    tree = space.config.model_dump(mode="json", exclude_none=True) | {"red_team": team}
    with pytest.warns(Notice, match="1 of 2 red-team prompts are evaluation prompts"):
        found = red_team_prompts(Space(finished, validate(RoundsConfig, tree, "t")), 1)
    assert found == ["a new one"]
    path.write_text(json.dumps({"prompt": kept_back}))
    tree["red_team"] = {"kind": "adversarial", "candidates": [source]}
    with pytest.raises(InputError, match="all 1 red-team prompts are evaluation prompts"):
        red_team_prompts(Space(finished, validate(RoundsConfig, tree, "t")), 1)


def test_every_model_answers_the_same_prompts(finished):
    assert sum(row.adversarial for row in read_prompts(finished)) == 2  # 0.25 · 8
    for model in range(3):
        answers = read_answers(finished, model)
        assert [a.prompt for a in answers if a.mode == "greedy"] == list(range(8))
        assert [a.prompt for a in answers if a.mode == "sampled"] == [i // 2 for i in range(16)]


def test_killed_rounds_continue_and_end_in_the_same_models(finished, tmp_path, monkeypatch):
    folder = tmp_path / "killed"
    shutil.copytree(finished, folder)
    kept = folder / "rounds/1/cost_model"
    stamp = (kept / "time.json").stat().st_mtime_ns
    for gone in ("rounds/1/policy", "rounds/2", "unified", "evaluation"):
        shutil.rmtree(folder / gone)

    with monkeypatch.context() as patch:
        patch.setattr("llm_env.rounds.stages.drive", interrupted(stages.drive))
        with pytest.raises(KeyboardInterrupt):
            schedule.run_all(folder)
    assert (folder / "rounds/1/.policy/metrics.jsonl").exists()
    assert not (folder / "rounds/1/policy").exists()
    schedule.run_all(folder)
    assert (kept / "time.json").stat().st_mtime_ns == stamp  # not run again
    assert weights(folder) == weights(finished)
    assert read_answers(folder, 2) == read_answers(finished, 2)


def interrupted(drive):
    """A loop that is killed when its first iteration has ended."""

    def drive_once(parts, iterations, *others):
        drive(parts, 1, *others)
        raise KeyboardInterrupt

    return drive_once


def test_the_report_is_one_file_with_figures_4_and_5(finished, crl, tmp_path):
    folder = tmp_path / "shown"
    shutil.copytree(finished, folder)
    code, out, _ = crl("report", folder)
    assert code == 0
    assert "report.html" in out
    page = (folder / "report.html").read_text()
    for words in ("2 rounds of Safe RLHF", "Elo: harmlessness", "judge: annotators", "round 2"):
        assert words in page
    assert "src=" not in page
    assert (folder / "elo.png").exists()
    results = json.loads((folder / "results.json").read_text())
    start, *_ = results["ratings"][0]["helpfulness"]["ratings"]
    assert start == {"value": 1000.0, "low": 1000.0, "high": 1000.0}


def test_a_finished_folder_is_shown_again(finished, crl, tmp_path, undrawn):
    folder = tmp_path / "shown"
    shutil.copytree(finished, folder)
    code, out, _ = crl("resume", folder)
    assert code == 0
    assert "round 2" in out
    assert weights(folder) == weights(finished)


def test_an_unfinished_folder_has_no_report_yet(finished, crl, tmp_path):
    folder = tmp_path / "begun"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "evaluation")
    code, _, err = crl("report", folder)
    assert code == 2
    assert "crl resume" in err


def test_the_examples_config_is_valid():
    path = Path(__file__).parents[2] / "docs/examples/rounds_own_model.toml"
    config = validate(RoundsConfig, merge(default_tree(), read_toml(path)), str(path))
    assert [config.round_align(k).limit for k in (1, 2, 3)] == [0.05, 0.02, 0.02]


def write_prompts(path, names):
    path.write_text("".join(f"tell me about {name}\n" for name in names))
    return f'[{{path = "{path}"}}]'


@pytest.mark.usefixtures("undrawn")
def test_rounds_of_ones_own_model_wait_for_people(crl, tmp_path):
    folder = tmp_path / "own"
    command = [
        "llm",
        "rounds",
        *SIZES,
        "rounds=1",
        "align.iterations=1",
        f"policy.path={save_family('llama', tmp_path / 'policy')}",
        f"prompts={write_prompts(tmp_path / 'train.txt', 'abcdefgh')}",
        f"evaluation_prompts={write_prompts(tmp_path / 'test.txt', 'ijkl')}",
        "annotator.kind=file",
        "red_team.kind=none",
        "--out",
        folder,
    ]
    code, out, err = crl(*command)
    assert code == 0, err
    assert f"crl resume {folder}" in out.replace("\n", "")
    rows = (folder / "rounds/1/to_label.jsonl").read_text().splitlines()
    labels = dict(zip(LABELS, (True, False, 1, 0), strict=True))
    filled = [json.dumps(json.loads(row) | labels) for row in rows]
    (folder / "rounds/1/labelled.jsonl").write_text("\n".join(filled[:-1]))
    code, _, err = crl("resume", folder)
    assert code == 2
    assert "1 of" in err
    assert "have no labels" in err
    (folder / "rounds/1/labelled.jsonl").write_text("\n".join(filled))
    code, out, err = crl("resume", folder)
    assert code == 0, err
    assert "unified score models" in (folder / "report.html").read_text()


def test_prompts_of_the_report_that_are_trained_on_are_refused(crl, tmp_path):
    code, _, err = crl(
        "llm",
        "rounds",
        f"policy.path={save_family('llama', tmp_path / 'policy')}",
        f"prompts={write_prompts(tmp_path / 'train.txt', 'abc')}",
        f"evaluation_prompts={write_prompts(tmp_path / 'test.txt', 'cd')}",
        "annotator.kind=file",
        "--out",
        tmp_path / "out",
    )
    assert code == 2
    assert "1 of 2 evaluation_prompts are trained on" in err
    assert not (tmp_path / "out").exists()


def ask_again(respond, count, seed):
    """A red team that turns the model's answers into questions."""
    return [f"why {answer}" for answer in respond(["tell me about a"] * count)]


@pytest.mark.slow
def test_rounds_of_ones_own_model_with_a_judge_and_a_red_team_of_ones_own(crl, tmp_path):
    folder = tmp_path / "own"
    lora = ["policy.lora.rank=2"] if find_spec("peft") else []
    with service((200, lambda request: {"labels": [SAFE] * len(request["pairs"])})) as (url, seen):
        code, out, err = crl(
            "llm",
            "rounds",
            *SIZES,
            *lora,
            "rounds=2",
            "align.iterations=1",
            f"policy.path={save_family('gpt2', tmp_path / 'policy')}",
            f"prompts={write_prompts(tmp_path / 'train.txt', 'abcdefgh')}",
            f"evaluation_prompts={write_prompts(tmp_path / 'test.txt', 'ijkl')}",
            f'annotator={{kind = "http", url = "{url}"}}',
            f'red_team={{kind = "generator", function = "{__name__}:ask_again", count = 3}}',
            "--out",
            folder,
        )
    assert code == 0, err
    assert "round 2" in out
    # every pair of the three models that answered differently was put to the judge
    asked = sum(len(request["pairs"]) for request in seen)
    labelled = sum(
        len((folder / f"rounds/{k}/pairs/pairs.jsonl").read_text().splitlines()) for k in (1, 2)
    )
    judged = [row for row in read_judged(folder) if row.better is not None]
    assert asked == labelled + len(judged)
    assert len(read_red_team(folder / "rounds/2")) == 3
    saved = {path.name for path in (folder / "rounds/2/policy").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= saved  # no adapter

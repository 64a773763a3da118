"""`crl llm calibrate` on a small comparison and on somebody's own models."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from constrained_rl.settings import read_toml
from llm_env.calibration import report, summary
from llm_env.score_formats import save_beaver
from llm_env.scoring import ScoreModel, score_texts
from tests.llm_env.comparison_folder import outcome, responses, write_folder
from tests.llm_env.tiny import WORDS, causal_lm, word_tokenizer

PAIRS = 60


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(summary.calibrate, "__defaults__", ("indicator", 0.05, 10, 0))


@pytest.fixture
def crl(crl):
    """Call `crl llm calibrate` in this process: exit code, standard output, standard error."""
    return lambda *arguments: crl("llm", "calibrate", *arguments)


@pytest.fixture
def no_page(monkeypatch):
    """Leave the drawing to the tests that look at it."""
    monkeypatch.setattr(report, "write_outputs", lambda found, evidence, folder: folder)


def preference(prompt, texts, unsafe):
    return {
        "prompt": prompt,
        "response_0": texts[0],
        "response_1": texts[1],
        "is_response_0_safe": not unsafe[0],
        "is_response_1_safe": not unsafe[1],
        "better_response_id": 0,
        "safer_response_id": int(unsafe[0] and not unsafe[1]),
    }


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def comparison(tmp_path):
    """Pairs of a harmless (C = −1) and a harmful answer (C = 2), every tenth label wrong.

    80 responses of SFT, 30 unsafe by gold with C = 2; four dynamic runs with 2 of 80.
    """
    write_folder(tmp_path, outcome(responses(2, 1.5), responses(0, 1.2)))
    wrong = [i % 10 == 0 for i in range(PAIRS)]
    rows = [preference(f"p {i}", ("a", "b"), (w, not w)) for i, w in enumerate(wrong)]
    write_rows(tmp_path / "preferences/held_out.jsonl", rows)
    path = tmp_path / "cost_model/accuracy.json"
    accuracy = json.loads(path.read_text())
    accuracy["score"] = [-1.0] * PAIRS + [2.0] * PAIRS  # all first responses, then all second
    accuracy["unsafe"] = [False] * PAIRS + [True] * PAIRS
    path.write_text(json.dumps(accuracy))
    return tmp_path


def test_a_comparison_gets_a_proposal_a_page_and_numbers(crl, comparison):
    code, out, errors = crl(comparison, "--target", "0.1")
    assert (code, errors) == (0, "")
    # agreement 0.9: ε = (1 − √0.8) / 2 = 0.0528. Smoothed labels: 6 wrong of 60 on each side,
    # (6 · 61/62 + 54 · 1/62) / 60 = 0.1129; (0.1129 − ε) / (1 − 2ε) = 0.0672 of C ≤ 0 harmful
    # and 0.9328 of C > 0: 0.0672 (1 − s) + 0.9328 s = 0.1 at s = 0.0379
    assert out.startswith("Propose: align.limit=0.037 align.constraint.transform=indicator.")
    assert "crl llm compare align.limit=0.037 align.constraint.transform=indicator" in out
    # the dynamic runs hold 2/80 = 2.5 % above zero, ν = 1 none; ν = 0 has 60 of 80
    assert "Of 6 finished runs 5 keep P(C > 0) ≤ 0.037" in out
    assert "in 5 of these 5. The one nearest to the limit, PID-Lagrangian" in out
    assert "ends at 0.025 with 2.5% [0.7, 8.7] unsafe by gold" in out
    assert "A policy that is paid by a reward will move to where the cost model is wrong" in out
    html = (comparison / "calibration.html").read_text()
    assert "http" not in html.replace("http-equiv", "")
    assert html.count("<svg") == 5
    found = json.loads((comparison / "calibration.json").read_text())
    assert found["propose"] == {
        "align.limit": 0.037,
        "align.constraint.transform": "indicator",
    }
    assert found["quality"]["false_negative"]["value"] == 0.1
    assert found["start"]["gold"]["value"] == 30 / 80
    assert found["proposals"]["indicator"]["lowest"] == pytest.approx(0.0672, abs=1e-4)
    tightest = found["proposals"]["indicator"]["effects"][0]
    assert (tightest["limit"], tightest["gold"]["value"]) == (0.0, 0.0)
    assert tightest["effective"] == pytest.approx(50)
    pasted = re.search(r"\[align\].*?(?=</pre>)", html, re.S).group().replace("&#34;", '"')
    (comparison / "pasted.toml").write_text(pasted)
    tree = read_toml(comparison / "pasted.toml")
    assert tree == {"align": {"limit": 0.037, "constraint": {"transform": "indicator"}}}


def test_out_of_reach_another_form_is_proposed_and_the_reason_given(crl, comparison, no_page):
    path = comparison / "runs/sft/evaluation.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for i, record in enumerate(records):
        record["cost"] -= 0.02 * (i % 40)  # responses below C = −1, where harm is rarer still
    write_rows(path, records)
    code, out, _ = crl(comparison, "--target", "0.02")
    assert code == 0
    assert out.startswith("No limit on P(C > 0) reaches 2.0% unsafe: the tightest still leaves ")
    assert "Propose: align.limit=" in out
    assert "align.constraint.transform=probability" in out


def test_json_is_one_object_on_standard_output(crl, comparison, no_page):
    code, out, _ = crl(comparison, "--json", "--transform", "identity", "--target", "0.3")
    assert code == 0
    found = json.loads(out)
    assert found["form"] == "identity"
    assert found["propose"]["align.constraint.transform"] == "identity"
    assert found["published_limit"] == -2.0


def test_without_a_finished_sft_run_the_held_out_pairs_stand_in_and_it_is_said(
    crl, comparison, no_page
):
    (comparison / "runs/sft/evaluation.jsonl").unlink()
    code, out, _ = crl(comparison, "--target", "0.1")
    assert code == 0
    assert "the held-out pairs, which it wrote (runs/sft is open)" in out


def test_an_unfinished_cost_model_is_answered_with_the_command_that_continues(crl, comparison):
    (comparison / "cost_model/accuracy.json").unlink()
    code, out, errors = crl(comparison)
    assert (code, out) == (2, "")
    assert f"continue with crl resume {comparison}" in " ".join(errors.split())


def test_a_comparison_of_another_version_is_one_message(crl, comparison):
    (comparison / "preferences/agreement.json").unlink()
    code, out, errors = crl(comparison)
    assert (code, out) == (2, "")
    assert "agreement.json is missing: the folder was made by another version" in errors


# somebody's own models


@pytest.fixture
def own(tmp_path):
    """A random cost model, data labelled by its sign with every sixth label wrong, a model."""
    tokenizer, lm = word_tokenizer(), causal_lm()
    cost_model = ScoreModel.from_causal_lm(lm, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 4)) for _ in range(2 * PAIRS)]
    prompts = ["how do i bake bread ?"] * len(texts)
    scores = score_texts(cost_model, tokenizer, prompts, texts)
    with torch.no_grad():
        cost_model.head.bias -= scores.median()
    unsafe = [bool(s > scores.median()) ^ (i % 6 == 0) for i, s in enumerate(scores)]
    rows = [
        preference(prompts[i], texts[i : i + 2], unsafe[i : i + 2]) for i in range(0, len(texts), 2)
    ]
    cost_model.save_pretrained(tmp_path / "cost")
    lm.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    asked = dict.fromkeys(" ".join(rng.choice(WORDS, 5)) for _ in range(60))
    (tmp_path / "prompts.txt").write_text("\n\n".join(asked) + "\n")
    write_rows(tmp_path / "data.jsonl", rows)
    return tmp_path


def options(own, *names):
    paths = {
        "--cost-model": own / "cost",
        "--data": own / "data.jsonl",
        "--model": own / "lm",
        "--prompts": own / "prompts.txt",
    }
    return [part for name in names for part in (name, paths[name])]


def test_own_models_get_a_proposal_without_gold(crl, own):
    given = options(own, "--cost-model", "--data", "--model", "--prompts")
    more = ("--target", "0.3", "--max-new-tokens", "6", "--agreement", "0.9", "--out", own / "new")
    code, out, errors = crl(*given, *more)
    assert code == 0, errors
    assert "Propose: align.limit=" in out
    assert re.search(r"AlignConfig\(limit=.*, constraint=ConstraintConfig\(transform=", out)
    assert "60 responses sampled at temperature 1" in out  # empty lines are no prompts
    assert "tokenizer" not in errors  # the cost model has none: it is read with the model's
    assert "gold" not in out
    found = json.loads((own / "new/calibration.json").read_text())
    assert found["start"]["gold"] is None
    assert found["outcomes"] == []
    html = (own / "new/calibration.html").read_text()
    assert html.count("<svg") == 4
    assert "gold" not in html


def test_a_published_cost_model_with_a_tokenizer_of_its_own_and_any_prompt_file(crl, own):
    """The language model writes with its tokenizer, the cost model reads with another."""
    model = ScoreModel.from_pretrained(own / "cost")
    model.backbone.resize_token_embeddings(len(word_tokenizer()) + 1)
    shutil.rmtree(own / "cost")
    save_beaver(model, own / "cost", "reward")  # the mistaken word of the released model
    other = word_tokenizer()
    other.add_tokens(["another"])
    other.save_pretrained(own / "cost")
    rows = [
        json.dumps({"prompt": line}) for line in (own / "prompts.txt").read_text().split("\n\n")
    ]
    (own / "prompts.txt").unlink()
    (own / "p.jsonl").write_text("\n".join(rows[:40]))
    given = options(own, "--cost-model", "--data", "--model")
    more = ("--prompts", own / "p.jsonl", "--target", "0.4", "--max-new-tokens", "4")
    code, out, errors = crl(*given, *more)
    assert code == 0, errors
    assert "40 responses sampled at temperature 1" in out


def test_the_labelled_responses_stand_in_for_a_missing_model_and_it_is_said(crl, own):
    word_tokenizer().save_pretrained(own / "cost")
    code, out, _ = crl(*options(own, "--cost-model", "--data"), "--target", "0.3")
    assert code == 0
    assert "the labelled responses themselves" in out
    assert "Give --agreement if two people labelled" in out
    assert "give --out DIR" in out


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        ([], [], "found neither a comparison's folder"),
        (["--data"], [], "need both --cost-model and --data"),
        (["--cost-model", "--data", "--model"], [], "--model and --prompts go together"),
        (["--cost-model", "--data"], [], "has no tokenizer (tokenizer_config.json)"),
        (["--cost-model", "--data"], ["--agreement", "0.4"], "agreement 0.4"),
        (["--cost-model", "--data"], ["--target", "5"], "target: found 5"),
        (["--cost-model", "--data"], ["."], "found both a comparison's folder"),
    ],
)
def test_what_is_wrong_with_the_request_is_one_message(crl, own, names, more, message):
    code, out, errors = crl(*options(own, *names), *more)
    assert (code, out) == (2, "")
    assert errors.count("error:") == 1
    assert message in errors


def test_a_folder_that_is_no_comparison_is_refused(crl, tmp_path):
    code, _, errors = crl(tmp_path)
    assert code == 2
    assert "is no comparison" in errors


def test_prompts_that_cannot_be_read_are_named_before_anything_is_scored(crl, own, monkeypatch):
    monkeypatch.setattr(ScoreModel, "end_score", lambda *_: pytest.fail("scored"))
    (own / "prompts.txt").write_text("\n \n")
    code, _, errors = crl(*options(own, "--cost-model", "--data", "--model", "--prompts"))
    assert code == 2
    assert "holds no rows; expected one prompt per line" in errors

import io
import json

import pytest
from rich.console import Console

from constrained_rl.errors import InputError
from llm_env.comparison.results import print_summary, summarize
from llm_env.comparison.summaries import paired_gain, summarize_mode, summarize_records
from tests.llm_env.comparison_folder import (
    NAMES,
    outcome,
    record,
    responses,
    variants,
    write_folder,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    said = outcome(responses(2, 1.5), responses(0, 1.2, refusals=8))
    return write_folder(tmp_path_factory.mktemp("comparison"), said)


def test_shares_and_means_are_counts_over_responses():
    records = [
        record(0, unsafe=True, cost=3.0, helpfulness=2.0, response="a", length=1),
        record(1, unsafe=False, cost=1.0, helpfulness=0.0, response="a", length=3, finished=False),
        record(2, unsafe=False, cost=-1.0, helpfulness=1.0, response="b", refusal=True),
        record(3, unsafe=False, cost=-1.0, helpfulness=-1.0, response="c", safe_completion=True),
    ]
    summary = summarize_records(records)
    assert summary.n == 4
    assert summary.unsafe.value == 0.25  # 1 of 4 by gold
    assert summary.model_unsafe.value == 0.5  # C = 3 and C = 1 of 4
    assert summary.refusal.value == summary.safe_completion.value == 0.25
    assert summary.helpfulness.value == 0.5  # (2 + 0 + 1 − 1) / 4
    assert summary.cost.value == 0.5  # (3 + 1 − 1 − 1) / 4
    assert summary.distinct == 0.75  # a, b, c of 4
    assert summary.finished == 0.75
    assert summary.length == 3.0  # (1 + 3 + 4 + 4) / 4


def test_cost_zero_is_on_the_boundary_and_not_unsafe():
    assert summarize_records([record(0, cost=0.0), record(1, cost=0.0)]).model_unsafe.value == 0.0


def test_modes_and_classes_are_kept_apart():
    records = [record(i, mode) for mode in ("greedy", "sampled") for i in range(8)]
    records[0] = record(0, "greedy", unsafe=True)  # a benign prompt, greedy only
    greedy, sampled = (summarize_mode(records, mode, None) for mode in ("greedy", "sampled"))
    assert greedy.overall.unsafe.value == 1 / 8
    assert greedy.kinds["benign"].unsafe.value == 1 / 4  # 8 prompts: 4 benign, 2, 2
    assert greedy.kinds["red_team"].n == 2
    assert sampled.overall.unsafe.value == 0.0
    assert sampled.gain is None


def test_a_class_without_prompts_is_left_out():
    assert set(summarize_mode([record(0), record(1)], "sampled", None).kinds) == {"benign"}


def test_gain_is_the_mean_of_paired_differences():
    better = [record(i, helpfulness=h) for i, h in enumerate([1.0, 5.0, 2.0, 4.0])]
    start = [record(i, helpfulness=h) for i, h in enumerate([0.0, 4.0, 1.0, 3.0])]
    gain = paired_gain(better, start)  # every difference is 1: no spread at all
    assert (gain.low, gain.value, gain.high) == (1.0, 1.0, 1.0)


def test_responses_to_different_prompts_cannot_be_paired():
    with pytest.raises(ValueError, match="response 1 answers another prompt"):
        paired_gain([record(0), record(1)], [record(0), record(2)])


def test_summary_is_in_order_and_on_disk(folder):
    results = summarize(folder)
    assert [m.name for m in results.methods] == NAMES
    assert results.start.name == "sft"
    assert results.start.lam is None
    assert [m.lam for m in results.family("static")] == [0.0, 1.0]
    assert results.family("dynamic")[0].kl == 1.0  # 0.5 · 2, the last of 3 iterations
    assert results.family("dynamic")[0].sampled.gain.value == pytest.approx(0.5)
    assert results.score_models["cost"].gold_sign == 0.9
    assert results.score_models["reward"].pairs == 2  # 4 scores
    assert results.seconds["sft"] == 2.0
    stored = json.loads((folder / "results.json").read_text())
    assert stored["methods"][0]["sampled"]["overall"]["unsafe"]["value"] == 30 / 80
    assert stored["agreement"]["single"] == 0.6
    assert stored["approval"]["row"] == 0.66


def test_variants_and_the_sweep_stand_beside_the_methods(tmp_path):
    good, wide = responses(2, 1.5), responses(12, 1.9)
    said = outcome(good, good) | variants(good, responses(60, 2.0), wide)
    results = summarize(write_folder(tmp_path, said))
    assert [m.name for m in results.methods] == NAMES
    assert [m.name for m in results.variants] == ["classifier", "single"]
    assert [m.limit for m in results.variants] == [0.05, None]
    assert [(m.name, m.limit) for m in results.sweep] == [("pid-share", 0.05), ("limit-0.2", 0.2)]
    assert results.variants[1].sampled.overall.unsafe.value == 0.75  # 60 of 80


def test_a_folder_without_approval_says_what_to_do(tmp_path):
    folder = write_folder(tmp_path, outcome(responses(2, 1.5), responses(0, 1.2)))
    (folder / "preferences/approval.json").unlink()
    with pytest.raises(InputError, match=r"approval\.json is missing.*start again"):
        summarize(folder)


def test_unbounded_intervals_are_null_in_json(tmp_path):
    said = {"sft": [record(i, mode) for mode in ("greedy", "sampled") for i in (0, 1, 3)]}
    summarize(write_folder(tmp_path, said))
    stored = json.loads((tmp_path / "results.json").read_text())
    one = stored["methods"][0]["sampled"]["kinds"]["red_team"]  # one response: no interval
    assert one["helpfulness"] == {"value": 1.0, "low": None, "high": None}


def test_unfinished_methods_are_left_out(tmp_path):
    said = outcome(responses(2, 1.5), responses(0, 1.2))
    results = summarize(write_folder(tmp_path, {k: said[k] for k in ("sft", "pid-share")}))
    assert [m.name for m in results.methods] == ["sft", "pid-share"]


def test_without_sft_the_message_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"runs/sft/evaluation\.jsonl"):
        summarize(write_folder(tmp_path, {}))


def test_terminal_table_fits_100_columns_and_keeps_the_order(folder):
    console = Console(file=io.StringIO(), width=100)
    print_summary(summarize(folder), console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    places = [text.index(m.label) for m in summarize(folder).methods]
    assert places == sorted(places)
    assert "37.5" in text  # SFT: 30 of 80 unsafe


def test_a_score_model_measured_by_another_version_is_one_message(tmp_path):
    write_folder(tmp_path, outcome(responses(2, 1.5), responses(0, 1.2)))
    path = tmp_path / "cost_model/accuracy.json"
    found = json.loads(path.read_text())
    del found["gold_auc"]
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match=r"accuracy.json: holds no gold_auc; .* another version"):
        summarize(tmp_path)

import io

import pytest
from rich.console import Console

from constrained_rl.curves import Curves
from constrained_rl.plots import CostCurve
from constrained_rl.report import excess_text, final_table, kept_from
from constrained_rl.seed_table import outcome, seed_table, summarize_seeds


def rows(costs, value=1.0, limit=4.0):
    """Metrics of a run, one row per cost; None: no episode finished."""
    found = []
    for i, cost in enumerate(costs, start=1):
        row = {"iteration": i, "decisions": 100 * i, "limit/risk": limit, "lambda/risk": 0.0}
        if cost is not None:
            row |= {"return/mean": value, "cost/risk": cost, "estimate/risk": cost}
        found.append(row)
    return found


KEPT = rows([8.0, 6.0, None, *[4.0] * 10])  # excess 1, .5, then 0: 1.5 / 12
BROKEN = rows([8.0] * 13, value=3.0)


def test_a_run_comes_to_its_last_iterations_and_its_violations():
    found = outcome(KEPT)
    assert (found.value, found.violation, found.kept_from) == (1.0, 0.0, 4.0)
    assert found.regret == pytest.approx(1.5 / 12)
    assert outcome(BROKEN).violation == 1.0  # (8 − 4) / 4
    assert outcome(BROKEN).kept_from is None
    assert outcome(rows([None, None])) is None


def test_settings_are_summarized_over_seeds_and_held_against_the_first():
    curves = [Curves("safe", (KEPT, KEPT)), Curves("greedy", (BROKEN, KEPT))]
    safe, greedy = summarize_seeds(curves)
    assert (safe.kept.value, safe.kept_from, safe.better) == (1.0, 4.0, None)
    assert (greedy.kept.value, greedy.seeds) == (0.5, 2)
    assert greedy.kept_from is None  # one of two never got there
    assert greedy.regret == pytest.approx((1.0 + 0.125) / 2)
    assert greedy.value.value == 2.0  # of (3, 1)
    assert greedy.better.value == 0.75  # 3 > 1 twice, 1 = 1 twice


def test_the_table_shows_counts_and_what_never_happened():
    console = Console(file=io.StringIO(), width=120)
    console.print(seed_table(summarize_seeds([Curves("a", (KEPT,)), Curves("b", (BROKEN,))])))
    text = console.file.getvalue()
    assert "1 of 1" in text
    assert "0 of 1" in text
    assert "never" in text


def test_settings_without_limits_have_a_return_alone():
    free = [{"iteration": 1, "decisions": 10, "return/mean": 2.0}]
    (found,) = summarize_seeds([Curves("free", (free, free))])
    assert (found.value.value, found.kept, found.regret) == (2.0, None, None)


def test_the_report_of_a_run_tells_its_excess_and_since_when_the_limit_is_kept():
    cost = CostCurve("risk", "estimate/risk", 4.0)
    assert (excess_text(KEPT, cost), kept_from(KEPT, cost)) == ("12.5%", "4")
    assert kept_from(BROKEN, cost) == "never"
    assert excess_text(rows([None]), cost) == kept_from(rows([None]), cost) == "–"
    free = CostCurve("risk", "cost/risk", None)
    assert excess_text(KEPT, free) == "–"
    assert final_table(KEPT, [cost]).rows[1][-2:] == ["12.5%", "4"]

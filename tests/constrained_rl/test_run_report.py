import json
import sys

import pytest

from constrained_rl.config import RunConfig
from constrained_rl.errors import InputError
from constrained_rl.page import Code, Fold, Page, Section, Table, Text, inline_svg, render, typeset
from constrained_rl.plots import (
    CostCurve,
    draw_curve,
    grid,
    limit_line,
    plot_multipliers,
    plot_return_and_costs,
    plot_time,
    smooth,
    style,
)
from constrained_rl.report import cost_curves, write_report
from constrained_rl.settings import to_toml

COST = CostCurve("risk", "estimate/risk", 4.0)


def rows(n, **extra):
    return [
        {
            "iteration": i + 1,
            "decisions": 2048 * (i + 1),
            "return/mean": float(i),
            "cost/risk": 6.0 - i,
            "estimate/risk": 6.0 - i,
            "limit/risk": 4.0,
            "lambda/risk": 0.5,
            "entropy": 0.6,
            "kl/approx": 0.01,
            "clip_fraction": 0.1,
            "explained_variance/reward": 0.5,
            "time/collect": 0.25,
            "time/update": 0.75,
            **extra,
        }
        for i in range(n)
    ]


def run_folder(folder, metrics, **config):
    (folder / "config.toml").write_text(to_toml(RunConfig(**({"limit": 4.0} | config))))
    (folder / "provenance.json").write_text('{"commit": "abc"}')
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return folder


@pytest.mark.parametrize("iterations", [1, 4])
def test_report_of_a_partial_run_is_self_contained(tmp_path, iterations):
    html = write_report(run_folder(tmp_path, rows(iterations))).read_text(encoding="utf-8")
    assert "http://" not in html
    assert "https://" not in html
    assert "unfinished" in html
    assert "limit 4" in html
    for part in ("Multiplier", "Optimization", "Time", "Config", "Provenance", "abc"):
        assert part in html


def test_a_run_without_iterations_says_so(tmp_path):
    html = write_report(run_folder(tmp_path, [])).read_text(encoding="utf-8")
    assert "No iteration has finished yet" in html
    assert "<svg" not in html


@pytest.mark.usefixtures("undrawn")
def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    run_folder(tmp_path, rows(3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 4, "deci')
    assert "3 iterations" in write_report(tmp_path).read_text(encoding="utf-8")


def test_an_iteration_without_finished_episodes_is_a_gap(tmp_path):
    metrics = rows(4)
    del metrics[1]["return/mean"], metrics[1]["cost/risk"], metrics[1]["estimate/risk"]
    assert "<svg" in write_report(run_folder(tmp_path, metrics)).read_text(encoding="utf-8")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no config\.toml"):
        write_report(tmp_path)


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'constrained-rl\[plot\]'"):
        style()


@pytest.mark.usefixtures("undrawn")
def test_an_unconstrained_run_shows_its_costs_without_a_limit(tmp_path):
    unconstrained = ("limit/risk", "lambda/risk", "estimate/risk")
    plain = [{k: v for k, v in row.items() if k not in unconstrained} for row in rows(3)]
    assert cost_curves(plain) == [CostCurve("risk", "cost/risk", None)]
    html = write_report(run_folder(tmp_path, plain, preset="ppo", constrained=False)).read_text()
    assert "Multiplier" not in html


def test_each_cost_has_its_own_limit():
    row = {"lambda/a": 0.0, "lambda/b": 0.0, "limit/a": 1.0, "limit/b": 25.0}
    assert cost_curves([row]) == [
        CostCurve("a", "estimate/a", 1.0),
        CostCurve("b", "estimate/b", 25.0),
    ]


def test_the_limit_is_drawn_at_the_limit_and_the_infeasible_side_shaded():
    figure = plot_return_and_costs(rows(5), [COST])
    cost = figure.axes[1]
    assert [4.0, 4.0] in [list(line.get_ydata()) for line in cost.lines]
    (shade,) = cost.patches
    assert shade.get_y() == 4.0
    assert shade.get_y() + shade.get_height() == pytest.approx(cost.get_ylim()[1])


@pytest.mark.parametrize("limit", [-3.0, 0.5, 9.0])
def test_the_limit_is_inside_the_axes_wherever_the_data_are(limit):
    with style():
        _, (ax,) = grid(1, 1, (3.0, 2.0))
        ax.plot([0, 1], [0.0, 1.0])
        limit_line(ax, limit)
    low, high = ax.get_ylim()
    assert low < limit < high


def test_violation_is_cost_minus_limit():
    below = plot_multipliers(rows(3), [COST]).axes[1]
    assert [2.0, 1.0, 0.0] in [list(line.get_ydata()) for line in below.lines]  # 6, 5, 4 minus 4


def test_smoothing_is_a_centred_mean_without_gaps():
    # window 3: (1+2)/2, (1+2+6)/3, (2+6)/2; the gap leaves one neighbour out
    assert smooth([1.0, 2.0, 6.0], 3) == [1.5, 3.0, 4.0]
    assert smooth([1.0, float("nan"), 5.0], 3) == [1.0, 3.0, 5.0]


def test_long_runs_show_the_raw_curve_under_the_mean():
    with style():
        _, (ax,) = grid(1, 1, (3.0, 2.0))
        draw_curve(ax, rows(60), "return/mean")
    assert len(ax.lines) == 2


def test_time_is_sorted_with_shares():
    ax = plot_time({"collect": 1.0, "update": 3.0}).axes[0]
    assert [text.get_text() for text in ax.texts] == ["1.0 s · 25%", "3.0 s · 75%"]


def test_page_escapes_text_and_follows_its_blocks():
    page = Page(
        "a < b",
        "sub",
        [Text(["1 < 2"])],
        [Section("One", [Table(["x"], [["<i>"]]), Fold("more", [Code("<pre>")])])],
    )
    html = render(page)
    assert "<i>" not in html
    assert "&lt;pre&gt;" in html
    assert '<h2 id="one">' in html


def test_figures_take_the_pages_colours_and_repeat_byte_for_byte():
    svg = inline_svg(plot_time({"collect": 1.0}), "time & place")
    assert svg.startswith('<svg role="img" aria-label="time &amp; place"')
    assert "var(--ink)" in svg
    assert "http" not in svg
    assert svg == inline_svg(plot_time({"collect": 1.0}), "time & place")


def test_typesetting_keeps_words_and_dates():
    assert typeset("-2.5") == "−2.5"
    assert typeset("E[C] ≤ -2") == "E[C]\N{NO-BREAK SPACE}≤\N{NO-BREAK SPACE}−2"
    assert typeset("red-team 2026-01-02 lr=1e-5") == "red-team 2026-01-02 lr=1e-5"

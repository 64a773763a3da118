import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from constrained_rl.cli import app
from constrained_rl.curves import (
    Curves,
    Panel,
    band,
    group_labels,
    lines,
    panels,
    plot_curves,
    read_curves,
    save_curves,
)
from constrained_rl.errors import InputError


def row(iteration, value=1.0, cost=2.0, limit=1.5, decisions=100):
    return {
        "iteration": iteration,
        "decisions": decisions * iteration,
        "return/mean": value,
        "cost/risk": cost,
        "estimate/risk": cost,
        "limit/risk": limit,
        "lambda/risk": 0.5,
    }


def write_run(folder, seed, rows, preset="ppo", **settings):
    folder.mkdir(parents=True)
    extra = "".join(f"{key} = {value}\n" for key, value in settings.items())
    (folder / "config.toml").write_text(f'preset = "{preset}"\nseed = {seed}\n{extra}')
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_runs_that_differ_only_in_what_has_no_effect_are_one_curve(tmp_path):
    first = write_run(tmp_path / "a", 1, [row(1)], threads=1)
    second = write_run(tmp_path / "b", 2, [row(1)], threads=2)
    other = write_run(tmp_path / "c", 1, [row(1)], limit=3)
    found = read_curves([first, second, other])
    assert [(g.label, len(g.runs)) for g in found] == [("ppo", 2), ("ppo, limit=3", 1)]


def test_labels_name_what_differs_within_a_preset():
    configs = [
        {"preset": "a", "ppo.clip": 0.1, "env.id": "X"},
        {"preset": "a", "ppo.clip": 0.2, "env.id": "X"},
        {"preset": "b", "ppo.clip": 0.2, "env.id": "X"},
    ]
    assert group_labels(configs) == ["a, ppo.clip=0.1", "a, ppo.clip=0.2", "b"]
    labels = group_labels([{**configs[2], "env.id": "Y"}, configs[0]])
    assert labels == ["b, env.id=Y", "a, env.id=X"]


def test_a_band_is_students_interval_over_runs():
    # two values 1 and 3: mean 2, s = √2, t(0.975, 1) = 12.7062; half = 12.7062 · √2 / √2
    mean, low, high = band(np.array([[1.0, 5.0], [3.0, math.nan]]))
    assert mean.tolist() == [2.0, 5.0]
    assert low == pytest.approx([2 - 12.7062, 5.0], rel=1e-5)
    assert high == pytest.approx([2 + 12.7062, 5.0], rel=1e-5)


def test_shorter_runs_and_missing_values_are_nan():
    found = lines([[row(1), row(2)], [row(1)]], "return/mean")
    assert np.isnan(found).tolist() == [[False, False], [False, True]]
    assert np.isnan(lines([[row(1)]], "no/such")).all()


def test_panels_are_return_costs_with_limits_and_multipliers():
    assert panels([Curves("x", ([row(1)],))]) == [
        Panel("return", "return/mean"),
        Panel("cost: risk", "estimate/risk", (1.5,), True),
        Panel("λ: risk", "lambda/risk", (), True),
    ]
    free = {"iteration": 1, "decisions": 1, "return/mean": 1.0, "cost/risk": 1.0}
    assert [p.key for p in panels([Curves("x", ([free],))])] == ["return/mean", "cost/risk"]


def test_the_figure_has_the_limit_line_and_one_legend_entry_per_setting():
    runs = tuple([row(i, value=seed * i) for i in range(1, 4)] for seed in (1, 2))
    figure = plot_curves([Curves("ppo", runs), Curves("pid", runs[:1])])
    cost = figure.axes[1]
    assert any(list(line.get_ydata()) == [1.5, 1.5] for line in cost.get_lines())
    labels = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert labels == ["ppo (2 seeds)", "pid"]
    assert figure.axes[0].get_xlabel() == "decisions (thousands)"


def test_runs_whose_decisions_differ_are_drawn_over_iterations():
    runs = ([row(1, decisions=100)], [row(1, decisions=120)])
    assert plot_curves([Curves("x", runs)]).axes[0].get_xlabel() == "iteration"


def test_files_are_written_and_equal_each_time(tmp_path):
    run = write_run(tmp_path / "a", 1, [row(1), row(2)])
    for out in (tmp_path / "x", tmp_path / "y"):
        assert [p.name for p in save_curves(read_curves([run]), out)] == [
            "curves.svg",
            "curves.png",
        ]
    for name in ("curves.svg", "curves.png"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


def test_the_command_plots_into_the_common_folder(tmp_path):
    runs = [write_run(tmp_path / name, s, [row(1)]) for s, name in enumerate("ab")]
    result = CliRunner().invoke(app, ["plot", *map(str, runs)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "curves.png").is_file()
    assert "over seeds" in result.output


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no metrics\.jsonl"):
        read_curves([tmp_path])
    empty = write_run(tmp_path / "empty", 0, [])
    with pytest.raises(InputError, match="no iteration has finished"):
        read_curves([empty])


def test_a_sweep_of_limits_shows_every_limit():
    curves = [Curves("2", ([row(1)],)), Curves("4", ([{**row(1), "limit/risk": 4.0}],))]
    assert panels(curves)[1].limits == (1.5, 4.0)


def test_runs_in_which_no_episode_has_finished_are_plotted():
    figure = plot_curves([Curves("x", ([{"iteration": 1, "decisions": 64, "episodes": 0.0}],))])
    assert figure.legends == []


def test_a_run_that_is_named_twice_is_one_seed(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row(1)) + "\n")
    (group,) = read_curves([tmp_path, tmp_path / "."])
    assert len(group.runs) == 1


@pytest.mark.parametrize(
    ("decisions", "axis"), [(199, "decisions (thousands)"), (190, "iteration")]
)
def test_runs_that_count_decisions_differently_later_on_are_drawn_over_iterations(decisions, axis):
    first, second = [row(1), row(2)], [row(1), {**row(2), "decisions": decisions}, row(3)]
    figure = plot_curves([Curves("x", (first, second))])
    assert figure.axes[0].get_xlabel() == axis

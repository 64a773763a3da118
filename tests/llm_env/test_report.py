import re

import pytest

from constrained_rl.page import Page, render
from constrained_rl.plots import CostCurve
from constrained_rl.statistics import Interval
from llm_env.comparison.plots import plot_frontier, plot_training, share_axis
from llm_env.comparison.plots_decoupling import plot_sweep
from llm_env.comparison.plots_detail import draw_outcomes, plot_cost_model, plot_unsafe
from llm_env.comparison.plots_planes import plot_planes
from llm_env.comparison.report import Comparison, sample_section, write_comparison_report
from llm_env.comparison.report_decoupling import (
    decoupling_section,
    describe_variant,
    limit_section,
)
from llm_env.comparison.report_tables import mean_cell, share_cell
from llm_env.comparison.results import read_comparison, summarize
from llm_env.comparison.schedule import load_config
from llm_env.comparison.verdict import best_safe, misses_harm, reward_hacked, verdict
from tests.llm_env.comparison_folder import outcome, responses, variants, write_folder

pytestmark = pytest.mark.xdist_group("report")  # its fixtures are made once, in one worker

GOOD, MILD = responses(2, 1.5), responses(0, 1.2)


def judged(folder, dynamic, static):
    """The verdict on hand-made responses, as one text."""
    write_folder(folder, outcome(dynamic, static))
    return " ".join(verdict(summarize(folder), read_comparison(folder, load_config(folder))))


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("report"), outcome(GOOD, MILD))
    path = write_comparison_report(folder)
    return folder, path.read_text(encoding="utf-8")


def test_report_is_self_contained(reported):
    _, html = reported
    assert "http://" not in html
    assert "https://" not in html
    assert re.search(r"<(link|script|iframe|img)\b", html) is None
    assert set(re.findall(r'(?:href|src)="([^"]{5})', html)) <= {"data:", *anchors(html)}


def anchors(html):
    return {target[:5] for target in re.findall(r'(?:xlink:)?href="(#[^"]+)"', html)}


def test_report_shows_every_part(reported):
    folder, html = reported
    for text in ("over training", "Reward and cost", "Unsafe responses", "Refusals", "Time"):
        assert text in html
    assert html.count("<svg") >= 9
    assert html.count("<figcaption>") >= html.count("<svg")  # each figure says how to read it
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "frontier.svg").read_text()


def test_samples_follow_the_rule_and_mark_unsafe_ones(reported):
    _, html = reported
    # The first two prompts of each class, whatever was said to them.
    for prompt in ("bake bread 0", "brew tea 0", "clean the well 0", "rob the shop 1"):
        assert re.search(rf"<summary>[a-z-]+: {prompt}</summary>", html)
    assert "bake bread 1</summary>" not in html


def test_unsafe_samples_are_marked(tmp_path):
    everything = responses(80, 1.0)
    write_folder(tmp_path, outcome(everything, everything))
    config = load_config(tmp_path)
    said = read_comparison(tmp_path, config)
    samples = sample_section(Comparison(tmp_path, config, summarize(tmp_path), said))
    html = render(Page("t", "s", [], [samples]))
    assert '<span class="tag bad">unsafe</span> here is how . 0' in html


@pytest.mark.usefixtures("undrawn")
def test_text_of_responses_is_escaped(tmp_path):
    said = responses(0, 1.0, n=8)
    odd = [type(r)(**(vars(r) | {"response": "<script>alert(1)</script>"})) for r in said]
    html = write_comparison_report(write_folder(tmp_path, {"sft": odd})).read_text(encoding="utf-8")
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_verdict_names_what_is_safe_and_helpful(tmp_path):
    # dynamic: 2 of 80 unsafe, +0.5; ν = 1: 0 of 80, +0.2; ν = 0: 60 of 80
    text = judged(tmp_path, GOOD, MILD)
    assert "Of the 4 dynamic methods, 4 are safe" in text
    assert "Not safe: ν = 0." in text
    assert "Static ν = 1, the most helpful safe static weight, is less helpful than" in text


def test_verdict_says_when_a_static_weight_matches(tmp_path):
    noisy = [type(r)(**(vars(r) | {"helpfulness": r.helpfulness + (i % 3 - 1)}))
             for i, r in enumerate(responses(0, 1.5))]  # fmt: skip
    text = judged(tmp_path, GOOD, noisy)
    assert "matches the most helpful safe dynamic method" in text
    assert "It was found by training 2 weights, of which 1 are safe" in text


def test_verdict_says_when_a_static_weight_wins(tmp_path):
    text = judged(tmp_path, responses(0, 1.2), responses(0, 1.9))
    assert "beats the most helpful safe dynamic method" in text
    assert "difference +0.70" in text


def test_verdict_says_when_only_a_static_weight_is_safe(tmp_path):
    text = judged(tmp_path, responses(20, 1.9), responses(0, 1.1))
    assert "Static shaping wins this run: static ν = 1 (0.0% unsafe, helpfulness 1.10)" in text
    assert "None of the 4 dynamic methods is safe" in text


@pytest.mark.usefixtures("undrawn")
def test_verdict_and_report_when_nothing_is_safe(tmp_path):
    text = judged(tmp_path, responses(40, 2.0), responses(30, 1.0))
    assert "No method, dynamic or static, is safe in this run." in text
    html = write_comparison_report(tmp_path).read_text(encoding="utf-8")
    assert "No method, dynamic or static, is safe in this run." in html


def test_safe_but_useless_is_not_called_a_success(tmp_path):
    text = judged(tmp_path, responses(0, 0.2), responses(0, 0.2))
    assert "None of the 4 dynamic methods is safe (≤ 5% unsafe by gold) and more helpful" in text
    assert "Safe but less helpful: PID-Lagrangian" in text


def test_verdict_flags_harm_that_the_cost_model_misses(tmp_path):
    # gold 40 of 80 unsafe, the cost model sees 0 of 80
    text = judged(tmp_path, responses(40, 1.5, model_unsafe=0), MILD)
    assert "the cost model misses unsafe responses of PID-Lagrangian" in text
    assert "(C > 0: 0.0%, gold 50.0%)" in text


def test_verdict_flags_reward_that_rose_while_gold_fell(tmp_path):
    text = judged(tmp_path, responses(0, 0.2, reward=3.0), MILD)
    assert "model reward rose while gold helpfulness fell below SFT's under PID-" in text


def test_the_most_helpful_safe_method_is_the_one_compared(tmp_path):
    said = outcome(GOOD, MILD) | {"ppo-share": responses(1, 1.8), "pid-mean": responses(9, 2.5)}
    results = summarize(write_folder(tmp_path, said))
    # helpfulness 1.5, 1.8, 2.5 (9 of 80 = 11% unsafe), 1.5
    assert best_safe(results.family("dynamic")).name == "ppo-share"


def test_flags_need_both_intervals_to_part(tmp_path):
    said = outcome(GOOD, MILD)
    said["ppo-share"] = responses(3, 1.0, model_unsafe=0)  # 3 of 80 against 0 of 80: chance
    said["pid-mean"] = responses(12, 0.5, reward=3.0, model_unsafe=0)
    start, _, ppo, pid, *_ = summarize(write_folder(tmp_path, said)).methods
    assert not misses_harm(ppo)
    assert not reward_hacked(ppo, start)
    assert misses_harm(pid)
    assert reward_hacked(pid, start)


def test_verdict_reports_needless_refusals(tmp_path):
    text = judged(tmp_path, responses(0, 1.5, refusals=60), MILD)
    assert "Refuses benign prompts more often than SFT (0%): PID-Lagrangian" in text


def test_limit_line_is_at_the_limit():
    rows = [{"iteration": i, "estimate/cost": 0.3 / i, "lambda/cost": 1.0} for i in (1, 2, 3)]
    curve = CostCurve("P(C > 0)", "estimate/cost", 0.05)
    figure = plot_training({"m": rows}, {"m": curve}, {"m": "PID, P"})
    below = figure.axes[1]
    assert [0.05, 0.05] in [list(line.get_ydata()) for line in below.lines]
    assert below.get_ylim()[0] <= 0.05 <= below.get_ylim()[1]


def test_frontier_has_the_limit_and_every_weight(tmp_path):
    figure = plot_frontier(summarize(write_folder(tmp_path, outcome(GOOD, MILD))))
    gold, model = figure.axes
    assert [0.05, 0.05] in [list(line.get_xdata()) for line in gold.lines]
    for ax in (gold, model):
        assert {"ν = 0", "ν = 1"} <= {text.get_text() for text in ax.texts}


def test_planes_have_the_zero_line_and_quadrants_that_sum_to_one(tmp_path):
    said = outcome(GOOD, MILD)
    figure = plot_planes(said, {name: name for name in said}, "greedy")
    for ax in figure.axes[: len(said)]:
        assert [0.0, 0.0] in [list(line.get_xdata()) for line in ax.lines]
        assert abs(sum(float(t.get_text().rstrip("%")) for t in ax.texts) - 100) <= 1.5


def test_outcomes_are_disjoint_and_fill_the_bar():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    said = responses(20, 1.0, n=80, refusals=20)[:80]
    draw_outcomes(ax, 0, said)
    # 20 unsafe, 20 refusals, 0 completions, 40 others of 80
    assert [bar.get_width() for bar in ax.patches] == [0.25, 0.25, 0.0, 0.5]


def test_cost_histogram_counts_responses_on_the_wrong_side():
    figure = plot_cost_model([-2.0, -1.0, 1.0, 2.0], [False, True, False, True])
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == [
        "safe by gold (2, 50.0% on the wrong side)",
        "unsafe by gold (2, 50.0% on the wrong side)",
    ]


def test_unsafe_shares_are_drawn_at_their_values(tmp_path):
    figure = plot_unsafe(summarize(write_folder(tmp_path, outcome(GOOD, MILD))))
    drawn = {round(float(line.get_xdata()[0]), 4) for line in figure.axes[0].lines}
    assert {30 / 80, 2 / 80, 60 / 80, 0.0} <= drawn


def test_share_axis_round_trips():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    share_axis(ax, "x")
    scale = ax.xaxis.get_transform()
    assert list(scale.inverted().transform(scale.transform([0.0, 0.25, 1.0]))) == [0.0, 0.25, 1.0]


def test_cells_show_value_and_interval():
    assert share_cell(Interval(0.05, 0.01, 0.1)) == '5.0 <span class="ci">1.0–10.0</span>'
    assert mean_cell(Interval(1.0, 0.5, 1.5)) == '1.00 <span class="ci">±0.50</span>'
    assert mean_cell(None) == "–"


@pytest.fixture(scope="module")
def decoupled(tmp_path_factory):
    """Two sections: the classifier as good, single labels 60 of 80 unsafe, 12 at a limit of 0.2."""
    said = outcome(GOOD, MILD) | variants(GOOD, responses(60, 2.0), responses(12, 1.9))
    folder = write_folder(tmp_path_factory.mktemp("decoupled"), said)
    results = summarize(folder)
    sections = [decoupling_section(results, said, folder), limit_section(results)]
    return render(Page("t", "s", [], sections))


def test_the_report_says_how_each_variant_compares(decoupled):
    text = decoupled.replace("\N{NO-BREAK SPACE}", " ")
    assert "What decoupling buys" in text
    assert "logit as C, P(C &gt; 0) ≤ 0.05 is about as safe as PID-Lagrangian" in text
    assert "One preference model without constraint is less safe than PID-Lagrangian" in text
    assert "(75.0% against 2.5% unsafe by gold) but more helpful (difference +0.50" in text


def test_the_report_shows_both_ways_of_asking_and_the_zero_of_the_cost_model(decoupled):
    for share in ("78.0%", "93.0%", "94.0%", "71.0%"):  # approval
        assert share in decoupled
    assert "single dimension" in decoupled
    assert "90.0% with the sign terms, 85.0% without them, 60.0% also without" in decoupled
    assert "Without the sign terms zero is misplaced" in decoupled


def test_the_report_shows_every_limit_of_the_sweep(decoupled):
    text = decoupled.replace("\N{NO-BREAK SPACE}", " ")
    assert "Which limit?" in text
    assert "within the limit, as far as the interval can tell, at 2 of 2 limits (5%, 20%)" in text
    assert (
        "at limits of 5%; the most helpful of these is 5% (helpfulness 1.50)" in text
    )  # 15% at 20%


def test_without_variants_the_report_says_so_and_has_no_sweep(reported):
    _, html = reported
    assert "The variants were not trained in this run" in html
    assert "Which limit?" not in html


def test_sweep_draws_limits_against_shares(tmp_path):
    said = outcome(GOOD, MILD) | variants(GOOD, GOOD, responses(12, 1.9))
    results = summarize(write_folder(tmp_path, said))
    figure = plot_sweep(results.sweep, results.start, 0.05)
    drawn = [list(map(float, line.get_ydata())) for line in figure.axes[0].lines]
    assert [2 / 80, 12 / 80] in drawn  # gold
    assert [0.05, 0.2] in drawn  # the limit itself
    bold = [t.get_text() for t in figure.axes[0].get_xticklabels() if t.get_fontweight() == "bold"]
    assert bold == ["5%"]


@pytest.mark.parametrize(
    ("single", "text"),
    [
        (
            responses(2, 1.5),
            "is about as safe as PID-Lagrangian, P(C > 0) ≤ 0.05 (2.5% against 2.5% unsafe by "
            "gold) and about as helpful (difference +0.00",
        ),
        (  # of every four prompts the first two are benign: 36 of the first 70, of 40 in all
            responses(0, 1.0, refusals=70),
            "and less helpful (difference -0.50, 95% interval -0.50 to -0.50). It refuses 90% of "
            "benign prompts.",
        ),
        (
            responses(60, 1.0),
            "is less safe than PID-Lagrangian, P(C > 0) ≤ 0.05 (75.0% against 2.5% unsafe by "
            "gold) and less helpful",
        ),
    ],
)
def test_a_variant_is_described_by_its_numbers(tmp_path, single, text):
    said = outcome(GOOD, MILD) | variants(GOOD, single, GOOD)
    results = summarize(write_folder(tmp_path, said))
    assert text in describe_variant(results.variants[1], results.recommended, said)

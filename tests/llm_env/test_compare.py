import io

import pytest
from rich.console import Console

from constrained_rl.errors import InputError, NonFiniteError
from constrained_rl.multiplier_config import FixedConfig, GradientConfig, PIDConfig
from constrained_rl.settings import merge, validate
from llm_env.comparison import progress, schedule, stages
from llm_env.comparison.config import QUICK, CompareConfig
from llm_env.comparison.methods import SCORES, every_run, methods, scores, sweep, variants
from llm_env.comparison.schedule import (
    load_config,
    prepare,
    ready,
    run_all,
    run_task,
    tasks,
)
from llm_env.comparison.stages import Workspace

CONFIG = validate(CompareConfig, {"device": "cpu", "weights": (0.0, 0.5)}, "test")
DYNAMIC = ["pid-share", "ppo-share", "pid-mean", "ppo-mean"]


def finish(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "time.json").write_text('{"wall": 2.0, "cpu": 1.0}')


# what is compared


def test_sft_comes_first_then_the_dynamic_methods_then_every_weight():
    found = methods(CONFIG)
    assert [m.name for m in found] == ["sft", *DYNAMIC, "static-0", "static-0.5"]
    assert [m.family for m in found] == ["start", *["dynamic"] * 4, *["static"] * 2]
    assert found[0].align is None
    assert "standard RLHF" in found[5].label


def test_methods_differ_from_the_recommended_settings_only_in_what_their_names_say():
    recommended = CONFIG.align.model_dump()
    changed = {
        m.name: {k for k, v in m.align.model_dump().items() if v != recommended[k]}
        for m in methods(CONFIG)[1:]
    }
    assert changed == {
        "pid-share": set(),
        "ppo-share": {"multiplier"},
        "pid-mean": {"constraint", "limit", "multiplier"},
        "ppo-mean": {"constraint", "limit", "multiplier"},
        "static-0": {"constraint", "multiplier"},
        "static-0.5": {"constraint", "multiplier"},
    }


def test_names_say_which_controller_and_which_constraint():
    align = {m.name: m.align for m in methods(CONFIG)[1:]}
    for name in DYNAMIC:
        kind = PIDConfig if name.startswith("pid") else GradientConfig
        transform = "indicator" if name.endswith("share") else "identity"
        assert isinstance(align[name].multiplier, kind)
        assert align[name].constraint.transform == transform
    assert align["pid-mean"].limit == CONFIG.published_limit
    assert align["static-0.5"].multiplier == FixedConfig(weight=0.5)


def test_quick_changes_only_sizes_and_leaves_out_what_is_not_the_main_comparison():
    config = validate(CompareConfig, merge(QUICK, {}), "quick")
    assert config.align == CompareConfig().align.model_copy(update={"iterations": 40})
    assert set(config.weights) < set(CompareConfig().weights)
    assert every_run(config) == methods(config)
    assert scores(config) == ["reward", "cost"]


def test_variants_change_the_cost_or_the_labels_and_nothing_else():
    classifier, single = variants(CONFIG)
    assert (classifier.reward, classifier.cost) == ("reward", "classifier")
    assert classifier.align == CONFIG.align
    assert (single.reward, single.cost) == ("single", "cost")
    static = next(m for m in methods(CONFIG) if m.name == "static-0")
    assert single.align == static.align  # λ is 0: nothing is constrained
    assert SCORES["classifier"].terms == {"ranking": False}
    assert SCORES["ranking"].terms == {"sign": False}
    assert SCORES["free"].terms == {"sign": False, "regularization": 0.0}
    assert SCORES["single"].labels == "single"


def test_the_sweep_changes_the_limit_and_skips_the_recommended_one():
    config = CONFIG.model_copy(update={"limits": (0.01, 0.05, 0.1)})
    found = sweep(config)
    assert [run.name for run in found] == ["limit-0.01", "limit-0.1"]  # align.limit is 0.05
    assert [run.align.limit for run in found] == [0.01, 0.1]
    assert all(run.align.model_copy(update={"limit": 0.05}) == config.align for run in found)


@pytest.mark.parametrize("name", ["weights", "limits"])
def test_a_value_given_twice_is_refused(name):
    with pytest.raises(InputError, match=rf"{name} = \[0.1, 0.1\] names a value twice"):
        validate(CompareConfig, {name: (0.1, 0.1)}, "test")


def test_several_limits_are_refused_before_a_folder_exists(tmp_path):
    config = validate(CompareConfig, {"device": "cpu", "align": {"limit": (0.1, 0.2)}}, "test")
    with pytest.raises(InputError, match=r"align.limit is \(0.1, 0.2\).*one number"):
        prepare(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# the graph


def test_every_stage_comes_after_what_it_needs():
    seen = set()
    for task in tasks(CONFIG):
        assert set(task.needs) <= seen
        assert task.folder not in seen
        seen.add(task.folder)
    assert {f"runs/{m.name}" for m in every_run(CONFIG)} <= seen


def test_only_rl_runs_count_iterations():
    iterations = {task.folder: task.iterations for task in tasks(CONFIG)}
    assert iterations["runs/pid-share"] == iterations["runs/static-0"] == CONFIG.align.iterations
    for name in ("sft", "preferences", "reward_model", "single_model", "runs/sft"):
        assert iterations[name] == 0


def test_a_run_waits_for_its_own_score_models_and_for_those_that_judge_it():
    needs = {task.folder: task.needs for task in tasks(CONFIG)}
    assert needs["runs/pid-share"] == ("reward_model", "cost_model")
    assert needs["runs/classifier"] == ("reward_model", "cost_model", "classifier_model")
    assert needs["runs/single"] == ("reward_model", "cost_model", "single_model")


def test_some_stages_bring_only_what_they_need():
    chosen = [task.folder for task in tasks(CONFIG, ["runs/single"])]
    assert chosen == [
        "sft", "preferences", "reward_model", "cost_model", "single_model", "runs/single",
    ]  # fmt: skip


def test_stages_are_ready_when_their_needs_are_finished(tmp_path):
    every = tasks(CONFIG)

    def names():
        waiting = [task for task in every if not (tmp_path / task.folder).exists()]
        return [task.folder for task in ready(waiting, tmp_path)]

    assert names() == ["sft"]
    finish(tmp_path, ".sft")  # under way
    assert names() == ["sft"]
    finish(tmp_path, "sft")
    assert names() == ["preferences"]
    finish(tmp_path, "preferences")
    assert names() == [f"{name}_model" for name in SCORES]
    finish(tmp_path, "reward_model")
    assert names() == [f"{name}_model" for name in SCORES if name != "reward"]
    finish(tmp_path, "cost_model")
    ours = [*methods(CONFIG), *sweep(CONFIG)]  # variants still wait
    assert names() == [
        *(f"{name}_model" for name in ("classifier", "ranking", "free", "single")),
        *(f"runs/{m.name}" for m in ours),
    ]


def test_a_stage_draws_from_streams_of_its_own(tmp_path):
    space = Workspace(tmp_path, CONFIG)
    other = Workspace(tmp_path, CONFIG.model_copy(update={"seed": 1}))
    assert space.seed("rl") == space.seed("rl")
    assert len({space.seed("rl"), space.seed("sft/order"), other.seed("rl")}) == 3
    texts = [[p.text for p in space.prompts("evaluation", 5)] for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0] != [p.text for p in space.prompts("rl", 5)]


# the folder


def test_a_new_folder_holds_the_resolved_config_and_where_it_came_from(tmp_path):
    prepare(CONFIG, tmp_path / "c")
    assert load_config(tmp_path / "c") == CONFIG
    names = {p.name for p in (tmp_path / "c").iterdir()}
    assert names == {"config.toml", "provenance.json", "comparison"}


def test_a_config_without_a_section_is_not_read_as_the_defaults(tmp_path):
    prepare(CONFIG, tmp_path)
    path = tmp_path / "config.toml"
    path.write_text(path.read_text().replace(f"seed = {CONFIG.seed}\n", ""))
    with pytest.raises(InputError, match=r"config\.toml: lacks seed; it is of another version"):
        load_config(tmp_path)
    path.write_text("")
    with pytest.raises(InputError, match=r"config\.toml: is empty; .* crl llm compare"):
        load_config(tmp_path)


def test_agreement_takes_two_annotators():
    with pytest.raises(InputError, match=r"world\.annotators: found 1"):
        validate(CompareConfig, {"world": {"annotators": 1}}, "x")


def test_a_finished_comparison_starts_no_worker(tmp_path, monkeypatch):
    def unexpected(*_):
        raise AssertionError("submitted")

    prepare(CONFIG, tmp_path / "c")
    finish(tmp_path / "c", *(task.folder for task in tasks(CONFIG)))
    monkeypatch.setattr(schedule.ProcessPoolExecutor, "submit", unexpected)
    run_all(tmp_path / "c")


@pytest.mark.parametrize("kind", [InputError, NonFiniteError])
def test_an_error_in_a_stage_names_the_stage(tmp_path, monkeypatch, kind):
    def fails(space, which):
        raise kind("loss: 1 of 1 values are NaN")

    prepare(CONFIG, tmp_path / "c")
    monkeypatch.setattr(stages, "run_score_model", fails)
    with pytest.raises(kind, match=r"^cost_model: loss: 1 of 1"):
        run_task(str(tmp_path / "c"), "cost_model")


# progress


@pytest.fixture
def screen(monkeypatch):
    text = io.StringIO()
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(progress, "Console", lambda: Console(file=text, width=100))
    return text


def test_progress_says_once_what_is_done_and_not_what_was_done_before(tmp_path, screen):
    finish(tmp_path, "sft")
    with progress.StageProgress(tmp_path, tasks(CONFIG)) as shown:
        finish(tmp_path, "preferences")
        shown.refresh()
        shown.refresh()
    assert screen.getvalue().split() == ["done", "preferences", "2.0", "s"]


def test_progress_reads_files_that_are_being_written(tmp_path, screen):
    run = tmp_path / "runs" / ".pid-share"
    run.mkdir(parents=True)
    (tmp_path / ".sft").mkdir()
    with progress.StageProgress(tmp_path, tasks(CONFIG)) as shown:
        for text in ("", '{"itera', '{"iteration": 30}\n{"iter', '{"iteration": 60}\n'):
            (run / "metrics.jsonl").write_text(text)
            (tmp_path / ".sft/progress.jsonl").write_text('{"step": 5, "steps": 10, "loss": 1}\n')
            shown.refresh()
    assert screen.getvalue() == ""

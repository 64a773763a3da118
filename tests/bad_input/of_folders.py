"""Folders of language models' commands to resume, report and evaluate, and what they need."""

import shutil

from tests.bad_input.case import Case, both
from tests.bad_input.project import (
    EVALUATED,
    ROUNDED,
    TRAINED,
    TUNED,
    cut,
    family,
    gone,
    lines,
    made,
    project,
    written,
)

RESUME, REPORT, EVALUATE, PLOT = (
    (name, "run") for name in ("resume", "report", "evaluate", "plot")
)
FINISHED = made(*TRAINED)
UNFINISHED = both(FINISHED, gone("run/policy"))
FITTED = made(*TUNED)
CHECKPOINTS = [f"run/checkpoints/{number:08d}/tensors.safetensors" for number in (1, 2)]


def adapted(folder):
    """The config asks for adapters that the checkpoints do not have."""
    with (folder / "run/config.toml").open("a") as file:
        file.write("\n[policy.lora]\nrank = 2\n")


def another_task(folder):
    path = folder / "run/config.toml"
    path.write_text(path.read_text().replace('task = "sft"', 'task = "dpo"'))


def not_filled_in(folder):
    shutil.copy(folder / "run/rounds/1/to_label.jsonl", folder / "run/rounds/1/labelled.jsonl")


CASES = (
    Case(
        "folder of a training run exists",
        "a folder that holds another training run",
        (*TRAINED, "--out", "run"),
        ("run exists and is not empty; nothing was changed", "crl resume run"),
        project(FINISHED),
    ),
    Case(
        "resume a model",
        "a model's folder, to resume",
        ("resume", "policy"),
        ("policy is not a run directory: it has no config.toml", "crl llm train"),
        project(),
    ),
    Case(
        "resume without its policy",
        "a run whose policy is gone",
        RESUME,
        ("model folder policy does not exist",),
        project(UNFINISHED, gone("policy")),
    ),
    Case(
        "resume without its prompts",
        "a run whose prompts are gone",
        RESUME,
        ("prompts.txt: cannot be read (No such file or directory)",),
        project(UNFINISHED, gone("prompts.txt")),
    ),
    Case(
        "resume without its config",
        "a run whose config is gone",
        RESUME,
        ("run is not a run directory: it has no config.toml",),
        project(UNFINISHED, gone("run/config.toml")),
    ),
    Case(
        "resume with a cut config",
        "a run whose config was cut short",
        RESUME,
        ("run/config.toml: not readable as TOML",),
        project(UNFINISHED, cut("run/config.toml", 300)),
    ),
    Case(
        "resume with an empty config",
        "a run whose config was emptied",
        RESUME,
        ("run/config.toml names no env, policy or task", "restore it"),
        project(UNFINISHED, written("run/config.toml", "")),
    ),
    Case(
        "resume another policy",
        "a run whose policy is another model now",
        RESUME,
        ("policy is not the model that run began with", "Put back what was there"),
        project(UNFINISHED, family("policy", "gpt2")),
    ),
    Case(
        "resume with adapters",
        "a run that was given adapters",
        RESUME,
        ("the checkpoint holds another model", "(model, adapters, value heads)"),
        project(UNFINISHED, adapted),
    ),
    Case(
        "resume all damaged",
        "a training run whose checkpoints are all damaged",
        RESUME,
        ("no intact checkpoint in run/checkpoints: 2 found, all damaged", "backup"),
        project(UNFINISHED, *map(cut, CHECKPOINTS)),
    ),
    Case(
        "evaluate a training run",
        "a training run for `crl evaluate`",
        EVALUATE,
        ("run was made by crl llm train", "crl llm evaluate FOLDER --prompts FILE"),
        project(FINISHED),
    ),
    Case(
        "evaluate a model",
        "a model for `crl evaluate`",
        ("evaluate", "policy"),
        ("policy is a model; evaluate it with: crl llm evaluate policy --prompts FILE",),
        project(),
    ),
    Case(
        "fit without its data",
        "a fit whose data are gone, to resume",
        RESUME,
        ("demonstrations.jsonl: cannot be read",),
        project(FITTED, gone("run/model"), gone("demonstrations.jsonl")),
    ),
    Case(
        "fit of another task",
        "a fit whose config names another task",
        RESUME,
        ("run/config.toml: task is 'dpo', expected sft or score",),
        project(FITTED, gone("run/model"), another_task),
    ),
    Case(
        "report of a fit",
        "a fit, to report",
        REPORT,
        ("run is a fit, which has no report: its losses are in metrics.jsonl",),
        project(FITTED),
    ),
    Case(
        "plot of a fit",
        "a fit, to plot",
        PLOT,
        ("no iterations of reinforcement learning (step, steps, loss)", "crl llm train"),
        project(FITTED),
    ),
    Case(
        "resume an evaluation",
        "an evaluation, to resume",
        RESUME,
        ("made by crl llm evaluate or arena; give that command again with --out run",),
        project(made(*EVALUATED)),
    ),
    Case(
        "report of unfinished rounds",
        "rounds that are not finished, to report",
        REPORT,
        ("run: the rounds are not finished", "crl resume run"),
        project(made(*ROUNDED)),
    ),
    Case(
        "rounds without their config",
        "rounds whose config is gone",
        RESUME,
        ("config file run/config.toml does not exist",),
        project(made(*ROUNDED), gone("run/config.toml")),
    ),
    Case(
        "labels not filled in",
        "a file of labels that nobody filled in",
        RESUME,
        ("rounds/1/preferences: run/rounds/1/labelled.jsonl:1: is_response_0_safe", "found null"),
        project(made(*ROUNDED), not_filled_in),
    ),
    Case(
        "labels of other pairs",
        "labels of other pairs",
        RESUME,
        ("run/rounds/1/labelled.jsonl:1: prompt: is missing",),
        project(made(*ROUNDED), written("run/rounds/1/labelled.jsonl", lines({}))),
    ),
)

"""Does `kill -9` ever cost more than the work since the last checkpoint? Random kills, all phases.

Usage: `python benchmarks/random_kills.py [--kills 100] [--seed 0] [--phases "control,token RL"]`.

Every trial runs one phase in a process of its own, kills it by SIGKILL after a random time, often
kills what continues it too, and lets the last one end. Then: the weights (SHA-256) are those of a
run that nobody killed, what was lost is at most one checkpoint interval, and the newest checkpoint
is intact after every kill. Processes are forks of this one, so that no time goes into imports.
Results go to results/random_kills.json. Needs a system with fork and the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from kill_harms import harmed
from kill_phases import (
    EVERY,
    UNSAVED,
    Phase,
    control,
    log_steps,
    own_models,
    report_phase,
    stage_phase,
)
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from constrained_rl.checkpoint import write_text
from constrained_rl.config import CheckpointConfig
from constrained_rl.envs import BUILT_IN
from constrained_rl.provenance import provenance
from constrained_rl.report import write_report
from constrained_rl.settings import validate
from llm_env.comparison import schedule, stages
from llm_env.comparison.config import CompareConfig
from llm_env.comparison.report import write_comparison_report
from llm_env.comparison.results import summarize

OUT = Path(__file__).parent / "results" / "random_kills.json"
AGAIN = 0.35  # chance that what continues a killed process is killed too


@dataclass(frozen=True)
class Trial:
    """One phase, killed one or more times and finished."""

    phase: str
    kills: int
    lost: int  # units of work, the worst of its kills
    writing: int  # kills that came while a file or checkpoint was being written
    equal: bool  # the final weights are those of an uninterrupted run


# processes


def launch(work: Callable[[Path], None], folder: Path, log: Path) -> int:
    """Fork a process that works in `folder`; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        work(folder)
        code = 0
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(code)


def finish(work: Callable[[Path], None], folder: Path, log: Path) -> float:
    """Work to the end in a process; wall seconds."""
    start = time.perf_counter()
    _, status = os.waitpid(launch(work, folder, log), 0)
    if status:
        raise RuntimeError(f"{folder} failed with status {status}; see {log}")
    return time.perf_counter() - start


def kill_after(seconds: float, work: Callable[[Path], None], folder: Path, log: Path) -> bool:
    """Work in a process and kill it after so many seconds; False if it had ended by itself."""
    pid = launch(work, folder, log)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"{folder} failed before it was killed; see {log}")
    return os.WIFSIGNALED(status)


def attempt(phase: Phase, folder: Path, whole: tuple[str, float], rng: random.Random) -> Trial:
    """Kill a phase at random moments, finish it, and compare it with the `whole` one."""
    expected, seconds = whole
    phase.prepare(folder)
    log = folder.with_suffix(".log")
    kills, lost, writing, saved = 0, 0, 0, 0
    while kills == 0 or rng.random() < AGAIN:
        if not kill_after(rng.random() * seconds, phase.work, folder, log):  # it was faster
            if kills > 0:
                break
            shutil.rmtree(folder)
            phase.prepare(folder)
            seconds *= 0.8
            continue
        kills += 1
        found = phase.position(folder)
        if found.saved < saved:
            raise AssertionError(f"{folder}: the checkpoint of {saved} is gone")
        saved, lost = found.saved, max(lost, found.done - found.saved)
        writing += any(p.name.endswith((".tmp", ".old")) for p in folder.rglob(".*"))
    finish(phase.work, folder, log)
    return Trial(phase.name, kills, lost, writing, phase.digest(folder) == expected)


# all of it


def comparison(folder: Path) -> None:
    """The smallest comparison, finished."""
    tree = {
        "device": "cpu",
        "workers": 1,
        "weights": [0.5],
        "world": {
            **{"demonstrations": 480, "pairs": 300, "held_out": 20},
            **{"prompts": 50, "evaluation": 20},
        },
        "model": {"hidden": 16, "layers": 1, "heads": 2},
        "sft": {"checkpoint_every": EVERY, "batch_size": 6},
        "score": {"checkpoint_every": EVERY, "batch_size": 6},
        "align": {"iterations": 20, "prompts": 4, "max_new_tokens": 12},
        "decoupling": False,
        "limits": [],
    }
    config = validate(CompareConfig, tree, "random kills")
    schedule.prepare(config, folder)
    for task in schedule.tasks(config):
        space = stages.Workspace(folder, config)
        finish(lambda f, s=space, n=task.folder: schedule.run_stage(s, n), folder, folder / "log")


def phases(root: Path, groups: Sequence[str]) -> list[Phase]:
    """The phases of these groups or names; what they build on is made in `root` first."""
    found: list[Phase] = []
    run_folder, compared = root / "run", root / "comparison"
    if "report" in groups:
        finish(control(UNSAVED).work, run_folder, root / "run.log")
        found.append(report_phase(run_folder, "crl report", write_report))
        found.append(report_phase(compared, "crl llm report", summarize_and_report))
    if set(groups) & {"report", "fit", "token RL"}:
        comparison(compared)
    if "own models" in groups:
        found += own_models(root / "models")
    wanted = [e for e in (*BUILT_IN, UNSAVED) if {"control", e} & set(groups)]
    found += [control(env_id) for env_id in wanted]
    found += [phase for phase in harmed() if {phase.name, "harm"} & set(groups)]
    if "fit" in groups:
        fits = ("sft", "reward_model", "cost_model")
        found += [stage_phase(compared, name, "fit") for name in fits]
    if "token RL" in groups:
        runs = ("runs/pid-share", "runs/ppo-mean")
        found += [stage_phase(compared, name, "token RL") for name in runs]
    return found


def summarize_and_report(folder: Path) -> None:
    """The end of `crl llm compare`."""
    summarize(folder)
    write_comparison_report(folder)


def main() -> None:
    """Kill, finish, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--phases", default="control,harm,fit,token RL,own models,report")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    stages.progress_file = log_steps
    stages.CheckpointConfig = lambda: CheckpointConfig(every=EVERY)  # type: ignore[misc,assignment]
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        trials = kill_all(Path(temporary), arguments.phases.split(","), arguments)
    report(trials, arguments)


def kill_all(root: Path, groups: Sequence[str], arguments: argparse.Namespace) -> list[Trial]:
    """Trials round robin over the phases, each at least once, until there were enough kills."""
    chosen = phases(root, groups)
    rng, whole = random.Random(arguments.seed), {}
    for phase in chosen:
        folder = root / f"whole-{phase.name.replace('/', '-')}"
        phase.prepare(folder)
        seconds = finish(phase.work, folder, folder.with_suffix(".log"))
        whole[phase.name] = (phase.digest(folder), seconds)
        print(f"{phase.name}: {seconds:.2f} s uninterrupted", flush=True)
    trials: list[Trial] = []
    while sum(trial.kills for trial in trials) < arguments.kills or len(trials) < len(chosen):
        phase = chosen[len(trials) % len(chosen)]
        folder = root / f"trial-{len(trials)}"
        trials.append(attempt(phase, folder, whole[phase.name], rng))
        print(len(trials), trials[-1], flush=True)
        shutil.rmtree(folder)
    return trials


def report(trials: Sequence[Trial], arguments: argparse.Namespace) -> None:
    """A row per phase; exit code 1 if anything differed or was lost."""
    table = Table("phase", "kills", "while writing", "most lost", "finished equal")
    rows = []
    for name in dict.fromkeys(trial.phase for trial in trials):
        of = [trial for trial in trials if trial.phase == name]
        equal = sum(trial.equal for trial in of)
        row = {
            "phase": name,
            "trials": len(of),
            "kills": sum(trial.kills for trial in of),
            "writing": sum(trial.writing for trial in of),
            "lost": max(trial.lost for trial in of),
            "equal": equal,
        }
        rows.append(row)
        lost = f"{row['lost']} of {EVERY}"
        table.add_row(name, str(row["kills"]), str(row["writing"]), lost, f"{equal} of {len(of)}")
    Console().print(table)
    good = all(trial.equal and trial.lost <= EVERY for trial in trials)
    document = {"seed": arguments.seed, "every": EVERY, "phases": rows, "good": good}
    document |= {"trials": [asdict(trial) for trial in trials], "provenance": provenance()}
    write_text(arguments.out, json.dumps(document, indent=2) + "\n")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()

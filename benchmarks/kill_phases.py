"""What random_kills.py kills: each kind of work, how it is continued and how it is judged."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium
from random_models import TINY, write_models

from constrained_rl import run
from constrained_rl.checkpoint import checkpoints, load_state, write_text
from constrained_rl.config import RunConfig
from constrained_rl.costs import Cost
from constrained_rl.envs import BUILT_IN
from constrained_rl.logging import read_metrics
from constrained_rl.presets import defaults
from constrained_rl.settings import merge, validate
from llm_env.comparison import schedule, stages
from llm_env.fitting import run as fitting
from llm_env.fitting.config import ScoreRunConfig, SFTRunConfig
from llm_env.fitting.run import AnyConfig
from llm_env.rounds import schedule as rounds
from llm_env.rounds.config import RoundsConfig, default_tree
from llm_env.training import run as llm_training
from llm_env.training.config import TrainConfig

EVERY = 4  # units of work (iterations, steps) between checkpoints
UNSAVED = "kills/Pendulum-v0"  # an environment of Gymnasium that cannot save its state


def pendulum() -> gymnasium.Env[object, object]:
    """Pendulum that pays for its speed."""
    env = gymnasium.make("Pendulum-v1", max_episode_steps=25)
    return Cost(env, ("speed",), lambda obs, *_: float(abs(obs[2]) > 1))


gymnasium.register(UNSAVED, pendulum)


@dataclass(frozen=True)
class Position:
    """Where a killed phase stands: the last unit done, and the one its newest checkpoint covers."""

    done: int
    saved: int


@dataclass(frozen=True)
class Phase:
    """One kind of work in a folder: how it is prepared, done or continued, and judged."""

    name: str
    group: str
    prepare: Callable[[Path], None]
    work: Callable[[Path], None]  # starts or continues
    digest: Callable[[Path], str]  # of what a finished one leaves
    position: Callable[[Path], Position]


def control(env_id: str) -> Phase:
    """PPO-Lagrangian on an environment: 40 iterations of 4 × 16 decisions."""
    tree = {
        "device": "cpu",
        "total_steps": 40 * 64,
        "env": {"id": env_id, "num_envs": 4},
        "network": {"hidden": [8]},
        "ppo": {"horizon": 16, "epochs": 2, "minibatches": 2},
        "checkpoint": {"every": EVERY},
        "loggers": ["csv"],
        **({} if env_id in BUILT_IN else {"limit": 1.0}),
    }
    config = validate(RunConfig, merge(defaults("pid_lagrangian", None), tree), "random kills")

    def work(folder: Path) -> None:
        begun = (folder / "config.toml").exists()
        run.resume(folder) if begun else run.start(config, folder)

    def position(folder: Path) -> Position:
        return of_run(folder)

    return Phase(env_id, "control", lambda _: None, work, policy_digest, position)


def of_run(folder: Path) -> Position:
    """Iterations logged, and the newest checkpoint, which must be intact."""
    rows = read_metrics(folder / "metrics.jsonl")
    return Position(int(rows[-1]["iteration"]) if rows else 0, newest(folder / "checkpoints"))


def newest(root: Path) -> int:
    """Number of the newest checkpoint, 0 if there is none; a damaged one is an error."""
    found = checkpoints(root)
    if found:
        load_state(found[-1])
    return int(found[-1].name) if found else 0


def policy_digest(folder: Path) -> str:
    """Weights and metrics (but times) of a finished run on an environment."""
    return digest([folder / "policy.safetensors"], learned(folder))


def digest(paths: Sequence[Path], text: str = "") -> str:
    """SHA-256 of files, in order, and a text."""
    found = hashlib.sha256(text.encode())
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()


def stage_phase(base: Path, name: str, group: str) -> Phase:
    """One stage of a comparison, on the finished stages of `base`."""

    def prepare(folder: Path) -> None:
        kept = shutil.ignore_patterns("runs", Path(name).name, ".*")
        shutil.copytree(base, folder, ignore=kept)

    def work(folder: Path) -> None:
        if not (folder / name).exists():
            schedule.run_stage(stages.Workspace(folder, schedule.load_config(folder)), name)

    def judged(folder: Path) -> str:
        weights = (folder / name).rglob("*.safetensors")
        found = [p for p in weights if not {"checkpoints", stages.FIT} & set(p.parts)]
        return digest(sorted(found) + sorted((folder / name).glob("evaluation.jsonl")))

    def position(folder: Path) -> Position:
        hidden = (folder / name).with_name(f".{Path(name).name}")
        if not hidden.exists():  # not begun, or renamed: finished
            return Position(0, 0)
        if group == "token RL":
            return of_run(hidden)
        lines = (hidden / "steps").read_text().split() if (hidden / "steps").exists() else []
        return Position(int(lines[-1]) if lines else 0, newest(hidden / stages.FIT))

    return Phase(name, group, prepare, work, judged, position)


def log_steps(work: Path) -> Callable[[int, int, float], None]:
    """In place of `stages.progress_file`: every single step of this process, one number a line."""
    file = (work / "steps").open("w", encoding="utf-8")

    def report(step: int, steps: int, loss: float) -> None:
        file.write(f"{step}\n")
        file.flush()

    return report


def report_phase(base: Path, name: str, write: Callable[[Path], object]) -> Phase:
    """A report on what is finished: it exists whole or not at all, and touches no weights."""

    def position(folder: Path) -> Position:
        path = folder / "report.html"
        if path.exists() and not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
            raise AssertionError(f"{path} is half written")
        return Position(0, 0)

    def judged(folder: Path) -> str:
        position(folder)
        assert (folder / "report.html").exists()
        names = sorted(folder.rglob("*.safetensors")) + sorted(folder.glob("results.json"))
        return digest(names)

    def prepare(folder: Path) -> None:
        shutil.copytree(base, folder, ignore=shutil.ignore_patterns("report.html", "results.json"))

    return Phase(name, "report", prepare, lambda folder: void(write(folder)), judged, position)


def void(_: object) -> None:
    """Nothing."""


# language models in folders


def own_models(base: Path) -> list[Phase]:
    """`crl llm train`, `sft`, `score` and `rounds` on tiny random models and data in `base`."""
    sections = write_models(base, TINY, prompts=12, prompt_tokens=6)
    prompts = (base / "prompts.txt").read_text(encoding="utf-8").splitlines()
    answers = [" ".join(reversed(prompt.split())) for prompt in prompts]
    shown = [{"prompt": p, "response": a} for p, a in zip(prompts, answers, strict=True)]
    pairs = [
        {
            **{"prompt": prompt, "response_0": answer, "response_1": prompt},
            **{"is_response_0_safe": True, "is_response_1_safe": i % 2 == 0},
            **{"better_response_id": i % 2, "safer_response_id": 0},
        }
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    for name, rows in (("demonstrations", shown), ("pairs", pairs)):
        write_text(base / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return [training(sections), *fits(base, sections), iterated()]


def training(sections: dict[str, object]) -> Phase:
    """`crl llm train`: 20 iterations of 4 responses, evaluated every fourth."""
    held_out = {"every": EVERY, "prompts": sections["prompts"], "count": 2}
    tree = {
        **sections,
        **{"device": "cpu", "checkpoint": {"every": EVERY}, "evaluation": held_out},
        "align": {
            "iterations": 20,
            "prompts": 4,
            "max_new_tokens": 6,
            "ppo": {"learning_rate": 5e-4, "critic_learning_rate": 1e-3},
        },
    }
    config = validate(TrainConfig, tree, "random kills")

    def work(folder: Path) -> None:
        begun = (folder / "config.toml").exists()
        llm_training.resume(folder) if begun else llm_training.start(config, folder)

    def judged(folder: Path) -> str:
        return digest([folder / "policy/model.safetensors"], learned(folder))

    return Phase("crl llm train", "own models", lambda _: None, work, judged, of_run)


def fits(base: Path, sections: dict[str, object]) -> list[Phase]:
    """`crl llm sft` and `crl llm score`: 36 steps."""
    common = {"device": "cpu", "model": sections["policy"], "held_out_share": 0.2}
    steps = {"epochs": 12, "batch_size": 4, "checkpoint_every": EVERY}

    def phase(name: str, config: AnyConfig) -> Phase:
        def work(folder: Path) -> None:
            begun = (folder / "config.toml").exists()
            fitting.resume(folder) if begun else fitting.start(config, folder)

        def judged(folder: Path) -> str:
            written = sorted((folder / "model").glob("*.safetensors"))
            return digest([*written, folder / "accuracy.json", folder / "metrics.jsonl"])

        def position(folder: Path) -> Position:
            rows = read_metrics(folder / "metrics.jsonl")
            if not rows or not (folder / ".model").exists():  # not begun, or finished
                return Position(0, 0)
            return Position(int(rows[-1]["step"]), newest(folder / ".model" / stages.FIT))

        return Phase(name, "own models", lambda _: None, work, judged, position)

    shown = {"data": [{"path": str(base / "demonstrations.jsonl")}], "fit": steps}
    labelled = {"data": [{"path": str(base / "pairs.jsonl")}], "fit": steps, "kind": "cost"}
    return [
        phase("crl llm sft", validate(SFTRunConfig, common | shown, "random kills")),
        phase("crl llm score", validate(ScoreRunConfig, common | labelled, "random kills")),
    ]


def iterated() -> Phase:
    """`crl llm rounds`: one round on the smallest embedded world."""
    small = {
        **{"device": "cpu", "rounds": 1, "checkpoint": {"every": EVERY}},
        "world": {
            "demonstrations": 48,
            "model": {"hidden": 16, "layers": 1, "heads": 2},
            "sft": {"epochs": 1},
        },
        "data": {"pairs": 24, "evaluation": 8, "adversarial": 0.25, "probes": 2, "repeats": 2},
        "score": {"epochs": 1},
        "red_team": {"kind": "adversarial", "tried": 40, "probes": 2},
        "align": {"iterations": 8, "prompts": 4, "max_new_tokens": 8},
    }
    config = validate(RoundsConfig, merge(default_tree(), small), "random kills")

    def work(folder: Path) -> None:
        if not (folder / "config.toml").exists():
            rounds.prepare(config, folder)
        rounds.run_all(folder)

    def judged(folder: Path) -> str:
        made = [p for p in folder.rglob("*.safetensors") if "checkpoints" not in p.parts]
        answers = [p for p in (folder / "evaluation").rglob("*.jsonl")]
        return digest(sorted(made) + sorted(answers))

    # stages are whole or absent; what is lost of one is bounded by its own checkpoints
    return Phase("crl llm rounds", "own models", lambda _: None, work, judged, in_stages)


def in_stages(folder: Path) -> Position:
    """Iterations of the RL stage under way; other stages count no units."""
    hidden = folder / "rounds/1/.policy"
    return of_run(hidden) if hidden.exists() else Position(0, 0)


def learned(folder: Path) -> str:
    """Metrics but times."""
    rows = read_metrics(folder / "metrics.jsonl")
    return json.dumps([{k: v for k, v in r.items() if not k.startswith("time/")} for r in rows])

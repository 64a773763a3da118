"""Does a change of the library move a result? Hashes of small runs, before and after it.

    python benchmarks/fingerprints.py --out before.json     # on the commit before
    python benchmarks/fingerprints.py --out after.json      # on the changed tree, same machine
    python benchmarks/fingerprints.py --compare before.json after.json

Everything goes through `crl`, so that the script outlives changes of the library's inside: every
built-in environment with every preset, an environment that cannot save its state, three settings
of RL on a language model, SFT and score fits, and a comparison of the embedded world. A fingerprint
has a hash of the weights and one of the metrics without times. Equal hashes mean equal bits; they
can be compared between trees on one machine, not between machines. Learning rates and lengths are
stated, so that a changed default of theirs is not taken for a changed result. `--only PART` takes
the cases whose names hold PART.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gymnasium
from random_models import TINY, write_models
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

from constrained_rl.checkpoint import write_text
from constrained_rl.costs import Cost
from constrained_rl.envs import BUILT_IN
from constrained_rl.presets import PRESETS
from constrained_rl.provenance import provenance
from llm_env.cli import main as crl

ERRORS = Console(stderr=True)
Fingerprint = dict[str, str]
FOREIGN = "fingerprints/Pendulum-v0"


def pendulum() -> gymnasium.Env[object, object]:
    """Pendulum that pays for its speed; it cannot save its state."""
    env = gymnasium.make("Pendulum-v1", max_episode_steps=50)
    return Cost(env, ("speed",), lambda obs, *_: float(abs(obs[2]) > 1))


@dataclass(frozen=True)
class Case:
    """A run of milliseconds to seconds and the files that it leaves."""

    name: str
    run: Callable[[Path], None]  # makes a folder of this path


def command(*arguments: object) -> None:
    """`crl` with these arguments, in this process and silent; what it printed where it fails."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        before, sys.argv = sys.argv, ["crl", *map(str, arguments)]
        try:
            crl()
        except SystemExit as ended:
            if ended.code not in (0, None):
                raise RuntimeError(said.getvalue()[-2000:]) from None
        finally:
            sys.argv = before


def control_case(env_id: str, preset: str) -> Case:
    """A few iterations of a preset on an environment, with an evaluation and a checkpoint."""
    settings = ["device=cpu", "total_steps=8200", "checkpoint.every=2"]
    settings += ["evaluation.every=2", "evaluation.episodes=4"]
    if env_id == FOREIGN:
        settings += ["limit=20", "env.num_envs=4", "env.vectorization=sync", "ppo.horizon=256"]

    def run(folder: Path) -> None:
        command("train", "--preset", preset, "--out", folder, f"env.id={env_id}", *settings)

    return Case(f"control {env_id.split('/')[1]} {preset}", run)


BATCHES = ("fit.epochs=1", "fit.batch_size=8", "fit.learning_rate=0.003", "held_out_share=0.25")
TOKENS = (
    "device=cpu",
    "align.iterations=2",
    "align.prompts=8",
    "align.max_new_tokens=12",
    "align.ppo.learning_rate=0.0005",
    "align.ppo.critic_learning_rate=0.001",
)
TOKEN_SETTINGS = {
    "critic and PID": (),
    "identity, gradient, KL on the reward, adapters": (
        "align.constraint.transform=identity",
        "align.limit=-0.5",
        "align.multiplier.kind=gradient",
        "align.multiplier.learning_rate=0.3",
        "align.multiplier.initial=0.5",
        "align.ppo.kl_streams=reward",
        "align.ppo.micro_batch=2",
        "align.ppo.loss_mean=sequence",
        "policy.lora.rank=2",
    ),
    "groups without critics": (
        "align.responses_per_prompt=4",
        "align.ppo.advantage=leave_one_out",
    ),
}
COMPARISON = (
    "device=cpu",
    "workers=1",
    "world.demonstrations=96",
    "world.pairs=48",
    "world.held_out=8",
    "world.prompts=32",
    "world.evaluation=8",
    "world.annotators=2",
    "model.hidden=32",
    "sft.epochs=1",
    "score.epochs=1",
    "align.iterations=2",
    "align.prompts=8",
    "weights=[0.0, 1.0]",
    "limits=[]",
    "decoupling=false",
)


def sections(models: Path) -> list[str]:
    """Overrides of `crl llm train` that name the models and prompts of a folder."""
    score = ["direction={0}", "sign_check=off", "path={1}"]
    reward, cost = "higher_is_better", "higher_is_worse"
    return [
        f"policy.path={models / 'policy'}",
        *(f"reward.{part.format(reward, models / 'reward')}" for part in score),
        *(f"costs.harm.{part.format(cost, models / 'cost')}" for part in score),
        f'prompts=[{{path="{models / "prompts.txt"}"}}]',
    ]


def write_data(folder: Path) -> None:
    """Demonstrations and decoupled preferences in the words of the random models."""
    words = [f"w{i} w{3 * i % 90} w{7 * i % 90} w{i % 5}" for i in range(1, 49)]
    demonstrations = [{"prompt": a, "response": b} for a, b in zip(words, words[::-1], strict=True)]
    pairs = [
        {
            "prompt": a,
            "response_0": f"{a} w2",
            "response_1": f"w3 {a}",
            "is_response_0_safe": i % 3 == 0,
            "is_response_1_safe": i % 2 == 0,
            "better_response_id": i % 2,
            "safer_response_id": 0 if i % 3 == 0 else 1,
        }
        for i, a in enumerate(words)
    ]
    for name, rows in (("demonstrations", demonstrations), ("preferences", pairs)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def language_cases(models: Path) -> Iterator[Case]:
    """RL, SFT and score fits of random models, and the embedded world's comparison."""
    for name, settings in TOKEN_SETTINGS.items():
        arguments = ("llm", "train", *sections(models), *TOKENS, *settings, "--out")
        yield Case(f"tokens: {name}", lambda out, given=arguments: command(*given, out))
    model = f"model.path={models / 'policy'}"
    fits = {"sft": ("sft", "demonstrations", ())} | {
        kind: ("score", "preferences", (f"kind={kind}",)) for kind in ("reward", "cost")
    }
    for name, (verb, data, more) in fits.items():
        file = f'data=[{{path="{models / data}.jsonl"}}]'
        arguments = ("llm", verb, model, "device=cpu", file, *BATCHES, *more, "--out")
        yield Case(f"fit: {name}", lambda out, given=arguments: command(*given, out))
    yield Case("comparison", lambda out: command("llm", "compare", *COMPARISON, "--out", out))


def fingerprint(folder: Path) -> Fingerprint:
    """Hashes of all weights and of all metrics and evaluations in a folder, times left out."""
    weights, numbers = hashlib.sha256(), hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        where = path.relative_to(folder)
        if "checkpoints" in where.parts:
            continue
        if path.suffix == ".safetensors":
            for name, array in sorted(load_file(path).items()):
                weights.update(f"{where}/{name}{array.shape}".encode() + array.tobytes())
        elif path.suffix == ".jsonl":
            for line in path.read_text(encoding="utf-8").splitlines():
                row = {k: v for k, v in json.loads(line).items() if not k.startswith("time")}
                numbers.update(f"{where}{json.dumps(row, sort_keys=True)}".encode())
    return {"weights": weights.hexdigest()[:16], "numbers": numbers.hexdigest()[:16]}


def take(only: str, work: Path) -> dict[str, Fingerprint]:
    """Fingerprints of all cases whose names hold `only`."""
    gymnasium.register(FOREIGN, pendulum)
    models = work / "models"
    models.mkdir()
    write_models(models, TINY, 16, 8)
    write_data(models)
    cases = [control_case(env, preset) for env in (*BUILT_IN, FOREIGN) for preset in PRESETS]
    cases = [case for case in (*cases, *language_cases(models)) if only in case.name]
    result: dict[str, Fingerprint] = {}
    for number, case in enumerate(cases):
        began = time.perf_counter()
        case.run(work / f"case-{number}")
        result[case.name] = fingerprint(work / f"case-{number}")
        seconds = time.perf_counter() - began
        ERRORS.print(f"[{number + 1}/{len(cases)}] {case.name}  {seconds:.1f} s", highlight=False)
    return result


def compare(before: Path, after: Path) -> int:
    """Print what differs between two files; 1 where something does."""
    first, second = (json.loads(path.read_text())["fingerprints"] for path in (before, after))
    table = Table("case", "weights", "numbers", title=f"{before.name} → {after.name}")
    different = 0
    for name in sorted({*first, *second}):
        if name not in first or name not in second:
            table.add_row(name, *(f"only in {(before if name in first else after).name}",) * 2)
        elif first[name] != second[name]:
            parts = ("weights", "numbers")
            equal = [first[name][part] == second[name][part] for part in parts]
            table.add_row(name, *("equal" if same else "DIFFERENT" for same in equal))
        else:
            continue
        different += 1
    if different:
        Console().print(table)
    Console().print(f"{len({*first, *second}) - different} cases equal, {different} different")
    return min(different, 1)


def main() -> int:
    """Take fingerprints, or compare two files of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file of the fingerprints")
    parser.add_argument("--only", default="", help="cases whose names hold this text")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"))
    arguments = parser.parse_args()
    if arguments.compare:
        return compare(*arguments.compare)
    if arguments.out is None:
        parser.error("give --out FILE.json, or --compare BEFORE.json AFTER.json")
    with tempfile.TemporaryDirectory() as work:
        taken = take(arguments.only, Path(work))
    record = {"fingerprints": taken, "provenance": provenance()}
    write_text(arguments.out, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

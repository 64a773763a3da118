"""A training run of a language model on disk: start, resume, export.

    provenance.json  models.json  config.toml  metrics.jsonl  checkpoints/<iteration>/
    samples/<iteration>-<mode>.jsonl  best/  policy/

`best/` and `policy/` are models that transformers loads, each with a model card. A folder with
`policy/`, which is written last, is a finished run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import date
from functools import partial
from pathlib import Path

from constrained_rl.checkpoint import write_text
from constrained_rl.devices import choose_device, device_here
from constrained_rl.distributed import World, connect, joined
from constrained_rl.evaluation import Evaluation, Evaluator
from constrained_rl.locks import sole_writer
from constrained_rl.loggers import open_loggers, require_loggers
from constrained_rl.logging import RichLogger, read_metrics
from constrained_rl.protocols import Logger
from constrained_rl.provenance import write_provenance
from constrained_rl.run import drive, refuse_used, restore
from constrained_rl.settings import read_toml, require_run, to_toml, validate
from llm_env.lora import merge_for_export
from llm_env.models import load_tokenizer
from llm_env.policy import CausalLMPolicy
from llm_env.template_dates import dated, today
from llm_env.training import starts
from llm_env.training.build import build
from llm_env.training.config import TrainConfig
from llm_env.training.evaluation import HeldOut, write_samples
from llm_env.training.export import Card, export


def read_train_config(folder: Path) -> TrainConfig:
    """The config of a training run."""
    require_run(folder)
    path = folder / "config.toml"
    return validate(TrainConfig, read_toml(path), str(path))


def start(config: TrainConfig, folder: Path) -> Path:
    """Create a run directory, train in it to the end, and return it; on every rank of a job."""
    require_loggers(config.loggers)
    with joined(connect(choose_device(config.device), config.distributed.timeout)) as world:
        folder = Path(world.same(str(folder)))  # a default name holds the time of each rank
        config = dated(config, date.fromisoformat(world.same(today().isoformat())))
        world.on_first(partial(refuse_used, folder))
        run = Run(config, folder, world)  # what is wrong with the config shows before the folder
        with only_writer(world, folder):
            world.on_first(partial(_begin, config, folder))
            run.finish()
    return folder


@contextmanager
def only_writer(world: World, folder: Path) -> Iterator[None]:
    """Have the folder, which is made if need be, for the ranks of this job alone."""
    with ExitStack() as stack:
        world.on_first(partial(_lock, stack, folder))
        yield


def _lock(stack: ExitStack, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stack.enter_context(sole_writer(folder))


def _begin(config: TrainConfig, folder: Path) -> None:
    refuse_used(folder)  # another process may have been faster
    write_provenance(folder)
    starts.record(config, folder)
    write_text(folder / "config.toml", to_toml(config))


def resume(folder: Path) -> bool:
    """Continue a run; False when it was finished already."""
    config = read_train_config(folder)
    if (folder / "policy").is_dir():
        return False
    require_loggers(config.loggers)
    device = choose_device(device_here(config.device))
    timeout = config.distributed.timeout
    with joined(connect(device, timeout)) as world, only_writer(world, folder):
        world.on_first(partial(starts.compare, config, folder))
        Run(config, folder, world).finish()
    return True


class Run:
    """A training run in memory, and its folder."""

    def __init__(self, config: TrainConfig, folder: Path, world: World) -> None:
        self._config, self._folder, self._world = config, folder, world
        self._parts, self._held_out = build(config, world)

    def finish(self) -> None:
        """Train from wherever the folder stands to the end, then write the policy."""
        config, parts, folder = self._config, self._parts, self._folder
        iterations = config.align.iterations
        restore(parts, folder)
        limits = {c.name: c.limit for c in parts.constraints.constraints}
        title = f"{Path(config.policy.path).name}, seed {config.seed}"
        loggers: list[Logger] = []
        if self._world.first:
            loggers = [
                *open_loggers(config.loggers, config, folder, parts.iteration),
                RichLogger(iterations, title, limits),
            ]
        drive(parts, iterations, folder, config.checkpoint, loggers, self._evaluator())
        self._world.on_first(self._write_policy)

    def _evaluator(self) -> Evaluator | None:
        """Evaluates on held-out prompts and keeps the best; None without such prompts."""
        held_out = self._held_out
        if held_out is None:
            return None
        return Evaluator(self._config.evaluation, partial(self._play, held_out), self._keep_best)

    def _play(self, held_out: HeldOut, deterministic: bool) -> Evaluation:
        """Evaluate the present policy; its responses stay readable in samples/."""
        samples = held_out.play(self._policy, deterministic)
        name = f"{self._parts.iteration:08d}-{samples[0].mode}.jsonl"
        self._world.on_first(partial(write_samples, self._folder / "samples" / name, samples))
        return held_out.evaluation(samples)

    def _keep_best(self, metrics: Mapping[str, float]) -> None:
        self._world.on_first(partial(self._export, "best", metrics))

    def _write_policy(self) -> None:
        rows = read_metrics(self._folder / "metrics.jsonl")
        self._export("policy", rows[-1] if rows else {})  # the weights are what counts

    def _export(self, name: str, metrics: Mapping[str, float]) -> None:
        parts = self._parts
        standing = {"iteration": parts.iteration, "decisions": parts.decisions}
        card = Card(
            base=Path(self._config.policy.path).resolve().name,
            constraints=parts.constraints.constraints,
            metrics={**metrics, **standing},
            config=to_toml(self._config),
            best=name == "best",
        )
        model = self._policy.model
        if self._config.policy.lora is not None:
            model = merge_for_export(model)
        export(model, load_tokenizer(self._config.policy), self._folder / name, card)

    @property
    def _policy(self) -> CausalLMPolicy:
        assert isinstance(self._parts.policy, CausalLMPolicy)
        return self._parts.policy

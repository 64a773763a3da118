"""Which run is the price estimated for? A training config from a file, overrides and options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from constrained_rl.cli import split_settings
from constrained_rl.errors import InputError
from constrained_rl.settings import Tree, merge, read_layers, validate
from llm_env.arena.config import read_scores
from llm_env.training.config import TrainConfig

OPTIONS = {"policy": "--model", "prompts": "--prompts", "reward": "--reward", "costs": "--cost"}
"""sections that a config must have, and the options that give them"""


@dataclass(frozen=True)
class Options:
    """What may be given instead of a config file; it goes before what the file says."""

    model: Path | None = None
    prompts: Sequence[Path] = ()
    reward: str | None = None
    costs: Sequence[str] = ()
    score_tokenizer: str | None = None


def read_request(settings: Sequence[str], options: Options) -> TrainConfig:
    """The validated config of the training run that the price is for."""
    tree, source = read_layers(*split_settings(list(settings)))
    tree = merge(tree, _given(options))
    missing = [option for section, option in OPTIONS.items() if not tree.get(section)]
    if missing:
        raise InputError(
            f"{' and '.join(missing)} missing: give them, or the config of the training run as "
            "CONFIG.toml"
        )
    return validate(TrainConfig, tree, source)


def _given(options: Options) -> Tree:
    """The options as sections of a config."""
    rewards, costs = read_scores(options.reward, options.costs, options.score_tokenizer)
    tree: Tree = {}
    if options.model is not None:
        tree["policy"] = {"path": str(options.model)}
    if options.prompts:
        tree["prompts"] = [{"path": str(path)} for path in options.prompts]
    if rewards:
        tree["reward"] = rewards["reward"].model_dump(exclude_unset=True)
    if costs:
        tree["costs"] = {n: source.model_dump(exclude_unset=True) for n, source in costs.items()}
    return tree

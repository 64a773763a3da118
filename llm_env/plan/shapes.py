"""Which models does a training config build? As shapes and types, read from config.json alone.

The models are made by training's own wiring from loaders that allocate nothing (torch's meta
device), and then given fake tensors, so that the code of training runs on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from llm_env.models import ModelSource, read_config
from llm_env.policy import CausalLMPolicy
from llm_env.recompute import recompute_activations
from llm_env.score_sources import ScoreSource
from llm_env.scoring import ScoreModel, TokenCritic
from llm_env.training.config import TrainConfig
from llm_env.training.models import Loaders, build_models

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

META = torch.device("meta")


@dataclass(frozen=True)
class Shapes:
    """The models of a run, on the meta device."""

    policy: CausalLMPolicy
    critic: TokenCritic | None  # None under critic-free advantages
    scores: dict[str, ScoreModel]  # by name, the reward first; those behind a URL are not here
    reference: bool  # a frozen copy of the policy is held
    critic_shares: bool  # the critic's trunk is the policy's


def build_shapes(config: TrainConfig, layers: int | None = None) -> Shapes:
    """The models that `config` trains and asks, without weights; `layers` makes them shallower."""
    loaders = Loaders(partial(_causal_lm, layers=layers), partial(_score, layers=layers))
    with META:
        models = build_models(config, loaders)
    return Shapes(
        policy=models.policy,
        critic=models.critic,
        scores={
            name: _score(source, layers)
            for name, source in score_sources(config).items()
            if source.path is not None
        },
        reference=config.align.ppo.kl_coefficient > 0 and config.policy.lora is None,
        critic_shares=config.critic.trunk == "shared",
    )


def _causal_lm(source: ModelSource, layers: int | None) -> PreTrainedModel:
    """As `load_causal_lm`."""
    from transformers import AutoModelForCausalLM

    options = {} if source.attention == "auto" else {"attn_implementation": source.attention}
    with META:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            _shallow(read_config(source), layers), dtype=getattr(torch, source.dtype), **options
        )
    if source.gradient_checkpointing:
        recompute_activations(model)
    return model


def _score(source: ScoreSource, layers: int | None) -> ScoreModel:
    """As `load_score_model`, frozen."""
    from transformers import AutoModel

    assert source.path is not None
    with META:
        trunk = AutoModel.from_config(
            _shallow(read_config(ModelSource(path=source.path)), layers),
            dtype=getattr(torch, source.dtype),
        )
        return ScoreModel(trunk).requires_grad_(False)


def depth(source: ModelSource | ScoreSource) -> int | None:
    """Number of layers of a model; None where they are not all of one kind."""
    assert source.path is not None
    config = read_config(ModelSource(path=source.path))
    if config.get_text_config(decoder=True) is not config:
        return None  # those of an image encoder are of another kind
    kinds = config.to_dict().get("layer_types")
    return None if kinds and len(set(kinds)) > 1 else int(config.num_hidden_layers)


def _shallow(config: PreTrainedConfig, layers: int | None) -> PreTrainedConfig:
    """The config with fewer layers."""
    if layers is not None:
        if config.to_dict().get("layer_types"):
            config.layer_types = config.layer_types[:layers]
        config.num_hidden_layers = layers
    return config


def score_sources(config: TrainConfig) -> dict[str, ScoreSource]:
    """Score models by the names of a plan: the reward, then every cost."""
    return {"reward": config.reward, **{f"cost {k}": v for k, v in config.costs.items()}}


def give_fake_tensors(module: nn.Module) -> None:
    """Replace meta parameters and buffers by fake ones; call it inside a `FakeTensorMode`.

    Tied parameters stay tied. (`Module.to` cannot do this: fake tensors are not swapped.)
    """
    made: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, old in held.items():
                if old is None:
                    continue
                if id(old) not in made:
                    made[id(old)] = torch.empty(old.shape, dtype=old.dtype)
                    if isinstance(old, nn.Parameter):
                        made[id(old)] = nn.Parameter(made[id(old)], old.requires_grad)
                held[name] = made[id(old)]  # type: ignore[assignment]

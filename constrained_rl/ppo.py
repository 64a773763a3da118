"""THE loop: collect, annotate, update λ once, mix, update, yield. A generator.

It never looks at observations: a control task and a language model run the same lines. Absent:
recurrent policies, off-policy algorithms, offline data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from constrained_rl.advantages import (
    gae,
    penalized_advantage,
    require_mixable,
    scale_by_spreads,
    whiten,
)
from constrained_rl.config import PPOConfig
from constrained_rl.constraints import Constraints
from constrained_rl.distributed import World
from constrained_rl.errors import InputError, require_finite
from constrained_rl.learner import Learner, PolicyObjective
from constrained_rl.metrics import Clock, constraint_metrics, episode_metrics, stream_metrics
from constrained_rl.multipliers import Multiplier
from constrained_rl.protocols import Collector, Critic, Metrics, Policy, Reference, Stateful
from constrained_rl.rollout import Batch, Rollout, Streams, decision_weights
from constrained_rl.schedules import schedule_factor
from constrained_rl.streams import (
    build_streams,
    compare_rows,
    corrected_costs,
    discounts,
    expected_change,
    stream_names,
)
from constrained_rl.value_norm import ValueNorm
from constrained_rl.weight_average import WeightAverage


@dataclass
class Parts:
    """What the loop is made of; the mutable state of a run is theirs and `iteration`."""

    collector: Collector
    policy: Policy
    critic: Critic | None  # None where `config.advantage` needs no values
    policy_learner: Learner
    policy_objective: PolicyObjective
    critic_learner: Learner | None
    constraints: Constraints
    multiplier: Multiplier
    config: PPOConfig
    generator: torch.Generator  # of minibatch order
    reference: Reference | None = None
    shaping: Tensor | None = None  # [K] ν of the published single-critic stream R − νC
    value_norm: ValueNorm | None = None  # None: critics predict returns in true units
    average: WeightAverage | None = None  # None: the last policy is the result
    world: World = field(default_factory=World)  # the ranks that share the forwards
    synchronize: Callable[[], None] | None = None  # bring what acts up to date, if it is a replica
    iteration: int = 0
    decisions: int = 0
    episodes: int = 0  # that have ended
    evaluator: Mapping[str, float] = field(default_factory=dict)  # `Evaluator.state`

    def state_dict(self) -> dict[str, object]:
        """Everything a bitwise continuation needs."""
        return {
            "iteration": self.iteration,
            "decisions": self.decisions,
            "episodes": self.episodes,
            "evaluator": dict(self.evaluator),
            "generator": self.generator.get_state(),
            **{name: part.state_dict() for name, part in self._stateful().items()},
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`; `InputError` if it was saved under other settings."""
        iteration, decisions, generator = (
            state["iteration"],
            state["decisions"],
            state["generator"],
        )
        assert isinstance(iteration, int)
        assert isinstance(decisions, int)
        assert isinstance(generator, Tensor)
        self.iteration, self.decisions = iteration, decisions
        episodes = state.get("episodes", 1)  # not counted formerly
        assert isinstance(episodes, int)
        self.episodes = episodes
        evaluator = state.get("evaluator", {})  # read from metrics.jsonl formerly
        assert isinstance(evaluator, Mapping)
        self.evaluator = evaluator
        self.generator.set_state(generator)
        for name, part in self._stateful().items():
            try:
                saved = state[name]
                assert isinstance(saved, Mapping)
                part.load_state_dict(saved)
            except InputError:
                raise
            except (RuntimeError, KeyError, ValueError, AssertionError) as error:
                found = " ".join(str(error).split()) or "it is of another kind"
                raise InputError(
                    f"the checkpoint's {name} does not fit the settings, which have changed since "
                    f"it was made ({found}); restore them, or start a new run"
                ) from error
        if self.synchronize is not None:
            self.synchronize()

    @property
    def warming(self) -> bool:
        """True in the first iterations, in which only the critics learn."""
        return self.iteration < self.config.critic_warmup

    @property
    def value_names(self) -> tuple[str, ...]:
        """Names of the streams that have a critic."""
        return () if self.critic is None else stream_names(self.constraints, self.config)

    def _stateful(self) -> dict[str, Stateful]:
        stateful: dict[str, Stateful] = {
            "collector": self.collector,
            "policy": self.policy_learner,
            "constraints": self.constraints,
            "multiplier": self.multiplier,
        }
        if self.critic_learner is not None:
            stateful["critic"] = self.critic_learner
        if self.value_norm is not None:
            stateful["value_norm"] = self.value_norm
        if self.average is not None:
            stateful["average"] = self.average
        return stateful


def train(parts: Parts, iterations: int) -> Iterator[Metrics]:
    """Run until `parts.iteration == iterations`, yielding each iteration's metrics.

    Schedules span from the first decision to `iterations`. During `ppo.critic_warmup` the policy
    cannot answer a price, so λ holds as well; estimators and observation statistics go on.
    """
    while parts.iteration < iterations:
        clock = Clock()
        pace = set_schedules(parts, parts.iteration / iterations)
        rollout = parts.collector.collect()
        clock.mark("collect")
        streams = annotate(rollout, parts)
        clock.mark("annotate")
        signal = parts.constraints.signal(rollout.episodes, streams, pace)
        lam = parts.multiplier.update(None if parts.warming else signal)
        batch = mix(streams, lam, parts.config)
        metrics = ppo_update(batch, parts)
        track(rollout, streams, parts)
        update_statistics(rollout, streams, parts)
        parts.iteration += 1
        if parts.average is not None:
            parts.average.observe(parts.iteration, iterations)
        if parts.synchronize is not None:
            parts.synchronize()
        clock.mark("update")
        parts.decisions += int(rollout.mask.sum())
        parts.episodes += len(rollout.episodes)
        yield {
            "iteration": parts.iteration,
            "decisions": parts.decisions,
            **episode_metrics(rollout.episodes, parts.collector.cost_names),
            **constraint_metrics(signal, lam, parts.constraints),
            **metrics,
            **stream_metrics(streams, parts.value_names),
            **clock.times,
        }


@torch.no_grad()
def annotate(rollout: Rollout, parts: Parts) -> Streams:
    """Add log-probabilities, values and one advantage per stream; knows no λ."""
    config, decisions = parts.config, rollout.reward.shape[1]
    logp = rollout.behaviour_logp
    if logp is None:
        logp = log_probabilities(rollout, parts)
    logp = require_finite("log-probabilities", logp * rollout.mask)
    kl = None
    if parts.reference is not None:
        reference = parts.reference
        reference_logp = by_rows(
            rollout, lambda i: reference(rollout.obs[i], rollout.action[i]), parts
        )
        kl = require_finite("KL to the reference", logp - reference_logp * rollout.mask)
    costs = parts.constraints.streams(rollout)
    streams = build_streams(rollout, costs, config, kl, parts.shaping)
    corrected = None
    if parts.critic_learner is None:
        value, advantage = torch.zeros_like(streams), compare_rows(rollout, streams, config)
    else:
        value = values(rollout, parts.critic_learner, parts)
        gamma, lam = discounts(config, streams)
        ending = rollout.terminated if rollout.ending is None else rollout.ending
        advantage = gae(streams, value, ending, rollout.done, gamma, lam)
        if parts.constraints.corrected:
            corrected = corrected_costs(rollout, costs, value)
    return Streams(
        obs=rollout.obs,
        action=rollout.action,
        mask=rollout.mask,
        logp=logp,
        value=value[:, :decisions],
        advantage=advantage * rollout.mask.unsqueeze(-1),
        exchangeable=rollout.exchangeable,
        kl=kl,
        group=rollout.group,
        corrected=corrected,
    )


def log_probabilities(rollout: Rollout, parts: Parts) -> Tensor:  # [B, T]
    """Of the decisions taken, under the policy as it is now."""
    forward = parts.policy_learner.engine.forward
    return by_rows(rollout, lambda i: forward(rollout.obs[i], rollout.action[i])[0], parts)


@torch.no_grad()
def track(rollout: Rollout, streams: Streams, parts: Parts) -> None:
    """Tell the constraints what the update just made is expected to change, if they ask."""
    if parts.constraints.tracking and not parts.warming:
        logp = log_probabilities(rollout, parts)
        counted = parts.constraints.ends
        parts.constraints.expect(expected_change(rollout, streams, logp, counted))


def by_rows(
    rollout: Rollout, forward: Callable[[Tensor | slice], Tensor], parts: Parts
) -> Tensor:  # [B, …]
    """`forward` of all rows: in pieces of `micro_batch`, each rank its own rows, gathered."""
    rows, size = len(rollout.mask), parts.config.micro_batch
    if parts.world.size == 1 and size is None:
        return forward(slice(None))
    index = parts.world.padded(rows)[0].to(rollout.mask.device)
    mine = torch.cat([forward(i) for i in torch.split(index, size or rows)])
    return parts.world.gather(mine, rows)


def values(rollout: Rollout, learner: Learner, parts: Parts) -> Tensor:  # [B, T + 1, S]
    """Values of every state the rows hold, in return units."""
    forward = learner.engine.forward
    value = require_finite("values", by_rows(rollout, lambda i: forward(rollout.obs[i]), parts))
    if parts.value_norm is not None:
        value = parts.value_norm.restore(value)
        if parts.value_norm.count == 0:  # outputs have no units yet, and 0 suits any
            value = torch.zeros_like(value)
    if value.shape[1] == rollout.reward.shape[1]:  # rows end in a terminal state, of value 0
        value = torch.cat([value, torch.zeros_like(value[:, :1])], dim=1)
    return value


def mix(streams: Streams, lam: Tensor, config: PPOConfig) -> Batch:
    """Mix the advantages at price λ [K], then bring them to one common scale."""
    advantage = streams.advantage
    if config.normalize == "streams":
        advantage = whiten(advantage, streams.mask)
    if config.streams == "single":
        mixed, lam = advantage[..., 0], lam[:0]
    else:
        mixed = penalized_advantage(advantage, lam, config.divide)
    mixed = require_mixable(mixed, advantage, lam)
    if config.normalize == "mixed":
        mixed = whiten(mixed, streams.mask)
    elif config.normalize == "spreads":
        mixed = scale_by_spreads(mixed, advantage, lam, streams.mask, config.divide)
    batch = Batch(
        obs=streams.obs,
        action=streams.action,
        weight=decision_weights(streams.mask, config.loss_mean, mixed.dtype),
        logp=streams.logp,
        advantage=mixed,
        value=streams.value,
        target=streams.target,
    )
    return batch.flatten() if streams.exchangeable and config.flatten else batch


def ppo_update(batch: Batch, parts: Parts) -> Metrics:
    """Epochs × minibatches. Beyond `target_kl` the policy rests; the critics go on."""
    config = parts.config
    sums: Metrics = {}
    counts: dict[str, int] = {}
    learning = not parts.warming
    for _ in range(config.epochs):
        for minibatch in batch.minibatches(config.minibatches, parts.generator):
            metrics = parts.critic_learner.step(minibatch) if parts.critic_learner else {}
            if learning:
                metrics |= parts.policy_learner.step(minibatch)
                learning = config.target_kl is None or metrics["kl/approx"] <= config.target_kl
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + 1
    return {name: total / counts[name] for name, total in sums.items()}


def update_statistics(rollout: Rollout, streams: Streams, parts: Parts) -> None:
    """Merge an iteration into every normaliser; they were frozen until now."""
    parts.policy.update_statistics(rollout)
    if parts.critic is not None:
        parts.critic.update_statistics(rollout)
    if parts.value_norm is not None:
        parts.value_norm.merge(streams.target[streams.mask])


def set_schedules(parts: Parts, progress: float) -> float:
    """Move learning rates and the entropy weight to where `progress` puts them.

    Returns the factor of the learning rates.
    """
    config = parts.config
    factor = schedule_factor(config.schedule, progress, config.warmup)
    parts.policy_learner.scale_learning_rate(factor)
    if parts.critic_learner is not None:
        parts.critic_learner.scale_learning_rate(factor)
    parts.policy_objective.entropy = config.entropy * schedule_factor(
        config.entropy_schedule, progress
    )
    return factor

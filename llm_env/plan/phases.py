"""What does each phase of an iteration need beside what is held anyway? Counted by running it.

The code of training runs once, on fake tensors of the largest shape that the config allows: every
response is as long as `max_new_tokens`. Absent: rows that end early, which need less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from constrained_rl.config import PPOConfig
from constrained_rl.learner import Objective, PolicyObjective, ValueObjective
from constrained_rl.rollout import Batch
from llm_env.generation import Place, _Choice, _choose, _Decoder
from llm_env.plan.ledger import Ledger
from llm_env.plan.shapes import Shapes, give_fake_tensors
from llm_env.policy import CausalLMPolicy, response_logp
from llm_env.scoring import ScoreModel, TokenCritic
from llm_env.tokens import TokenRows


@dataclass(frozen=True)
class Sizes:
    """Rows of each phase on one rank, and their width."""

    prompt: int  # P, tokens of the longest prompt
    response: int  # T, tokens of the longest response
    generate: int  # rows decoded together
    score: dict[str, int]  # rows scored together, by the name of the score
    annotate: int  # rows annotated together
    update: int  # rows of a micro-batch
    accumulated: bool  # a minibatch is several micro-batches


@dataclass(frozen=True)
class Working:
    """Bytes that a phase needs for a moment, beside models, optimizers and gradients held."""

    name: str
    bytes: int
    logits: int  # of them, tensors as wide as the vocabulary
    cache: int = 0  # of them, keys and values


def trace_phases(shapes: Shapes, sizes: Sizes, config: PPOConfig) -> list[Working]:
    """Working memory of every phase, in the order of an iteration.

    The policy's and the critic's updates include the gradients of the model they update.
    """
    with FakeTensorMode():
        modules: list[nn.Module] = [shapes.policy, *shapes.scores.values()]
        for module in modules if shapes.critic is None else [*modules, shapes.critic]:
            give_fake_tensors(module)
        found = [_generate(shapes.policy, sizes)]
        found += [_score(name, model, sizes) for name, model in shapes.scores.items()]
        found += _annotate(shapes, sizes, config)
        if shapes.critic is not None:
            found.append(_update_critic(shapes.critic, sizes, config))
        found.append(_update_policy(shapes.policy, sizes, config))
    return found


def _rows(sizes: Sizes, count: int) -> TokenRows:
    width = sizes.prompt + sizes.response
    ids = torch.zeros(count, width, dtype=torch.long)
    return TokenRows(ids, torch.ones(count, width, dtype=torch.bool), sizes.prompt)


def _vocabulary(policy: CausalLMPolicy) -> int:
    return int(policy.model.get_input_embeddings().weight.shape[0])


def _counted(
    name: str, module: nn.Module, vocabulary: int | None, work: Callable[[], object]
) -> Working:
    ledger = Ledger(vocabulary)
    ledger.ignore(module)
    with ledger:
        work()
    return Working(name, ledger.peak, ledger.peak_logits)


@torch.no_grad()
def _generate(policy: CausalLMPolicy, sizes: Sizes) -> Working:
    """Prefill, one step, a choice, and rows leaving the batch; the cache has its full width."""
    rows, cache = sizes.generate, [0]

    def work() -> None:
        attention = torch.ones(rows, sizes.prompt, dtype=torch.bool)
        decoder = _Decoder(policy.model, attention, sizes.response)
        logits = decoder.prefill(torch.zeros(rows, sizes.prompt, dtype=torch.long))
        choice = _Choice(1.0, False, torch.Generator(), Place(0, rows))
        token, _ = _choose(logits, torch.arange(rows), choice)
        cache[0] = _cache_bytes(decoder)
        decoder.step(token)
        decoder.keep(torch.arange(max(1, rows * 3 // 4)))

    counted = _counted("generate", policy, _vocabulary(policy), work)
    return Working(counted.name, counted.bytes, counted.logits, cache[0])


def _cache_bytes(decoder: _Decoder) -> int:
    """Bytes of keys and values, buffers at their full width."""
    tensors: list[Tensor] = []
    for layer in decoder.cache.layers:
        tensors += vars(layer).get("buffers", (layer.keys, layer.values))
    return sum(x.untyped_storage().nbytes() for x in tensors)


@torch.no_grad()
def _score(name: str, model: ScoreModel, sizes: Sizes) -> Working:
    rows = _rows(sizes, sizes.score[name])

    def work() -> Tensor:  # as `ScoreModel.end_score`, which looks at what the mask holds
        return model.score(model.hidden(rows.ids, rows.attention)[:, -1])

    return _counted(f"score {name}", model, None, work)


@torch.no_grad()
def _annotate(shapes: Shapes, sizes: Sizes, config: PPOConfig) -> list[Working]:
    """Log-probabilities where decoding did not give exact ones, the reference's, and values."""
    rows, policy, critic = _rows(sizes, sizes.annotate), shapes.policy, shapes.critic
    found, vocabulary = [], _vocabulary(policy)
    if torch.finfo(policy.model.dtype).bits < 32:
        found.append(
            _counted("annotate policy", policy, vocabulary, lambda: policy(rows, rows.response_ids))
        )
    if config.kl_coefficient > 0:
        found.append(
            _counted(
                "annotate reference", policy, vocabulary, lambda: response_logp(policy.model, rows)
            )
        )
    if critic is not None:
        found.append(_counted("annotate critic", critic, None, lambda: critic(rows)))
    return found


def _update_policy(policy: CausalLMPolicy, sizes: Sizes, config: PPOConfig) -> Working:
    objective = PolicyObjective(policy, config.clip, config.entropy, config.dual_clip)
    return _update("update policy", policy, objective, sizes, 1, _vocabulary(policy))


def _update_critic(critic: TokenCritic, sizes: Sizes, config: PPOConfig) -> Working:
    streams = critic.model.heads
    objective = ValueObjective(critic, [str(s) for s in range(streams)], config.value_clip)
    return _update("update critic", critic, objective, sizes, streams, None)


def _update(
    name: str,
    module: nn.Module,
    objective: Objective,
    sizes: Sizes,
    streams: int,
    vocabulary: int | None,
) -> Working:
    """Forward and backward of one micro-batch, or of two where gradients are accumulated."""
    rows = _rows(sizes, sizes.update)
    number = torch.zeros(sizes.update, sizes.response)
    several = torch.zeros(sizes.update, sizes.response, streams)
    batch = Batch(rows, rows.response_ids, number, number, number, several, several)

    def work() -> None:
        for _ in range(2 if sizes.accumulated else 1):
            objective(batch)[0].backward()  # type: ignore[no-untyped-call]

    return _counted(name, module, vocabulary, work)

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


@dataclass(frozen=True)
class Job:
    """What one model does in a phase. Equal jobs need equal memory."""

    kind: Literal["generate", "score", "annotate policy", "annotate reference", "values", "update"]
    model: str  # says what shapes it, so that models of one description are alike
    rows: int
    prompt: int
    response: int
    loss: Loss | None = None  # of an update


@dataclass(frozen=True)
class Loss:
    """What of the settings shapes the graph of an update."""

    clip: float
    entropy: float
    dual_clip: float | None
    value_clip: float | None
    several: bool  # gradients of several micro-batches add up


@dataclass(frozen=True)
class Counted:
    """Peaks of a job by segment (see `Segments`): bytes, and of them tensors as wide as the vocabulary."""

    peaks: dict[str, tuple[int, int]]
    cache: int = 0

    def working(self, name: str) -> Working:
        """The largest peak."""
        most, logits = max(self.peaks.values())
        return Working(name, most, logits, self.cache)


class Segments:
    """Cuts a ledger where a layer's forward or backward begins.

    With every layer of one kind, memory at a place of the first or the last layer grows by the
    same amount. The peak over all places need not: of shallow models it may lie at the logits, of
    deep ones at the end of the backward pass.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._run = ledger, 0

    @contextmanager
    def of(self, module: nn.Module) -> Iterator[None]:
        """Cut while `module` runs."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = [x for x in module.modules() if isinstance(x, GradientCheckpointingLayer)]
        hooks = []
        for index, layer in enumerate(layers):
            place = "first" if index == 0 else "middle" if index + 1 < len(layers) else "last"
            hooks += [
                layer.register_forward_pre_hook(partial(self._enter, place)),
                layer.register_forward_hook(partial(self._leave, place)),
            ]
        yield
        for hook in hooks:
            hook.remove()

    def _enter(self, place: str, *_: object) -> None:
        self._run += place == "first"
        self._ledger.begin(f"forward {self._run}, {place} layer")

    def _leave(self, place: str, layer: nn.Module, asked: object, output: object) -> None:
        if place == "last":
            self._ledger.begin(f"forward {self._run}, behind the layers")
        hidden = output[0] if isinstance(output, tuple) else output
        assert isinstance(hidden, Tensor)
        if hidden.requires_grad:
            segment = f"backward {self._run}, {place} layer"
            hidden.register_hook(lambda _: self._ledger.begin(segment))  # type: ignore[no-untyped-call]


def count(job: Job, module: nn.Module) -> Counted:
    """Run a job of a model with fake tensors; call it inside their mode."""
    if isinstance(module, ScoreModel):
        return _score(module, job)
    if isinstance(module, TokenCritic):
        return _values(module, job) if job.loss is None else _update_critic(module, job, job.loss)
    assert isinstance(module, CausalLMPolicy)
    if job.loss is not None:
        return _update_policy(module, job, job.loss)
    return _generate(module, job) if job.kind == "generate" else _annotate(module, job)


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

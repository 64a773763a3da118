"""Eight people who compare responses: noisy, each with a bias of their own. Simulated labels.

    P(1 better) = σ((Δhelp + b · Δlength) / 0.9)      b ~ N(0, 0.02)        length bias per word
    P(1 safer)  = σ(−Δharm / 0.5)
    P(unsafe)   = σ((harm + s − 0.5) / 0.3)           s ~ N(0, 0.25)        strictness
    P(1 wins)   = σ(w · logit(better) + (1 − w) · logit(safer))   w ~ Beta(1.5, 1.5)   one dimension

Helpfulness and harm are gold scores, harm being the severity of harmful responses. Labels come as
rows of the published PKU-SafeRLHF schema. Asked for one overall preference, annotators weigh help
against harm differently and so agree less: the reason for two dimensions (Safe RLHF, Q2). How far
they agree, and how many labels an inspector accepts, is measured in quality.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_env.world.gold import Gold, judge

HELP_TEMPERATURE, HARM_TEMPERATURE = 0.9, 0.5
SIGN_THRESHOLD, SIGN_TEMPERATURE = 0.5, 0.3


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt as an annotator meets them: gold scores and lengths in words."""

    gold: tuple[Gold, Gold]
    length: tuple[int, int]

    @property
    def help_gap(self) -> float:
        """Gold helpfulness of response 1 minus that of response 0."""
        return self.gold[1].helpfulness - self.gold[0].helpfulness

    @property
    def harm_gap(self) -> float:
        """Gold harm of response 1 minus that of response 0."""
        return self.gold[1].harm - self.gold[0].harm


@dataclass(frozen=True)
class Judgement:
    """The labels of one pair: the better and the safer response, and whether each is safe."""

    better: int
    safer: int
    safe: tuple[bool, bool]


@dataclass(frozen=True)
class Annotator:
    """One person; `help_weight` only matters when a single preference is asked for."""

    length_bias: float
    strictness: float
    help_weight: float

    def help_logit(self, pair: Pair) -> float:
        """Return the log-odds of finding response 1 more helpful."""
        length_gap = pair.length[1] - pair.length[0]
        return (pair.help_gap + self.length_bias * length_gap) / HELP_TEMPERATURE

    def safety_logit(self, pair: Pair) -> float:
        """Return the log-odds of finding response 1 safer."""
        return -pair.harm_gap / HARM_TEMPERATURE

    def unsafe_logit(self, gold: Gold) -> float:
        """Return the log-odds of calling a response unsafe."""
        return (gold.harm + self.strictness - SIGN_THRESHOLD) / SIGN_TEMPERATURE

    def single_logit(self, pair: Pair) -> float:
        """Return the log-odds of preferring response 1 overall, weighed by `help_weight`."""
        weight = self.help_weight
        return weight * self.help_logit(pair) + (1 - weight) * self.safety_logit(pair)

    def prefer_single(self, pair: Pair, rng: np.random.Generator) -> int:
        """Name the response preferred overall, help and harm weighed by `help_weight`."""
        return _draw(self.single_logit(pair), rng)

    def compare(self, pair: Pair, rng: np.random.Generator) -> Judgement:
        """Label a pair in two dimensions; signs that differ decide which response is safer."""
        safe_0, safe_1 = (not _draw(self.unsafe_logit(gold), rng) for gold in pair.gold)
        better = _draw(self.help_logit(pair), rng)
        safer = _draw(self.safety_logit(pair), rng)
        return Judgement(better, int(safe_1) if safe_0 != safe_1 else safer, (safe_0, safe_1))


class AnnotatorPool:
    """The people of a study, drawn once from their seed: biases stay, single labels are noisy."""

    def __init__(self, seed: int, size: int = 8) -> None:
        rng = np.random.default_rng(seed)
        self.annotators = tuple(
            Annotator(
                length_bias=float(rng.normal(0.0, 0.02)),
                strictness=float(rng.normal(0.0, 0.25)),
                help_weight=float(rng.beta(1.5, 1.5)),
            )
            for _ in range(size)
        )

    def label(
        self,
        prompts: Sequence[str],
        responses_0: Sequence[str],
        responses_1: Sequence[str],
        rng: np.random.Generator,
    ) -> list[dict[str, Any]]:
        """Label pairs, each by one random annotator, as rows of the PKU-SafeRLHF schema.

        If exactly one response is labelled safe, it is also the safer one.
        """

        def labels(annotator: Annotator, pair: Pair) -> dict[str, Any]:
            judgement = annotator.compare(pair, rng)
            return {
                "is_response_0_safe": judgement.safe[0],
                "is_response_1_safe": judgement.safe[1],
                "better_response_id": judgement.better,
                "safer_response_id": judgement.safer,
            }

        return self._ask(labels, prompts, responses_0, responses_1, rng)

    def label_single(
        self,
        prompts: Sequence[str],
        responses_0: Sequence[str],
        responses_1: Sequence[str],
        rng: np.random.Generator,
    ) -> list[dict[str, Any]]:
        """Give one overall preference per pair, each by one random annotator.

        Fields of a row: `prompt`, `response_0` and `response_1` as in decoupled rows, and
        `preferred_response_id`, 0 or 1, the response that this annotator finds better on the whole.
        """

        def labels(annotator: Annotator, pair: Pair) -> dict[str, Any]:
            return {"preferred_response_id": annotator.prefer_single(pair, rng)}

        return self._ask(labels, prompts, responses_0, responses_1, rng)

    def _ask(
        self,
        labels: Callable[[Annotator, Pair], dict[str, Any]],
        prompts: Sequence[str],
        responses_0: Sequence[str],
        responses_1: Sequence[str],
        rng: np.random.Generator,
    ) -> list[dict[str, Any]]:
        """Rows of texts with the labels that one random annotator gives to each."""
        rows = []
        for prompt, first, second in zip(prompts, responses_0, responses_1, strict=True):
            annotator = self.annotators[rng.integers(len(self.annotators))]
            texts = {"prompt": prompt, "response_0": first, "response_1": second}
            rows.append(texts | labels(annotator, make_pair(prompt, first, second)))
        return rows


def make_pair(prompt: str, response_0: str, response_1: str) -> Pair:
    """Look a pair up in the gold scores."""
    return Pair(
        gold=(judge(prompt, response_0), judge(prompt, response_1)),
        length=(len(response_0.split()), len(response_1.split())),
    )


def _draw(logit: float, rng: np.random.Generator) -> int:
    """Draw 1 with probability σ(logit)."""
    return int(rng.logistic() < logit)

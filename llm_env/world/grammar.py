"""How villagers ask and how demonstrators answer: random prompts and random demonstrations.

Demonstrators are fallible on purpose. They comply with 55 % of the red-team prompts, refuse 20 %
and answer 25 % by a safe completion; they use the hazardous shortcut in 12 % of benign and 60 % of
borderline answers; they know each step with probability 0.85, sometimes stop early, swap two
steps or repeat a pleasantry. What they write is never seen by the gold scores, which parse text.

Deliberately absent: any quality bookkeeping; `gold.judge` alone says how good an answer is.
"""

from collections.abc import Sequence

import numpy as np

from llm_env.world.knowledge import (
    ALTERNATIVES,
    GOALS,
    INTENTS,
    KINDS,
    NUMERALS,
    OPENERS,
    REASONS,
    REFUSALS,
    SHARES,
    SHORTCUT,
    WARNINGS,
    WISHES,
    Kind,
    Prompt,
    all_prompts,
    steps_of,
    topics,
    word_classes,
)

MAX_RESPONSE_WORDS = 39
"""Longest demonstration; with the end-of-sequence token a response has at most 40 tokens."""

COMPLY, REFUSE = 0.55, 0.20  # of the red-team prompts; the rest are safe completions
SHORTCUT_RATE: dict[Kind, float] = {"benign": 0.12, "borderline": 0.60, "red_team": 0.0}
STEP_COUNT = (0.33, 0.27, 0.40)  # probability of giving one, two or three steps
MISTAKE, SWAP, REPEAT = 0.15, 0.25, 0.12


def sample_prompts(
    count: int, rng: np.random.Generator, among: Sequence[Prompt] | None = None
) -> list[Prompt]:
    """Draw prompts independently: kind by its share, then topic and wording uniformly.

    `among` leaves only these to draw from; it must hold prompts of every kind.
    """
    known = all_prompts().values() if among is None else among
    pools = [[p for p in known if p.kind == kind] for kind in KINDS]
    kinds = rng.choice(len(KINDS), size=count, p=[SHARES[kind] for kind in KINDS])
    return [pools[kind][rng.integers(len(pools[kind]))] for kind in kinds]


def demonstrate(prompt: Prompt, rng: np.random.Generator) -> str:
    """Write one demonstration for supervised fine-tuning, at most 39 words long."""
    draw = rng.random()
    if prompt.kind != "red_team" or draw < COMPLY:
        sentences = _answer(prompt, rng)
    elif draw < COMPLY + REFUSE:
        sentences = _refusal(prompt, rng)
    else:
        sentences = _safe_completion(prompt, rng)
    return _join(sentences, rng)


def _answer(prompt: Prompt, rng: np.random.Generator) -> list[str]:
    """Opener, numbered steps, shortcut, warning and good wishes, most of them optional."""
    sentences = [_pick(OPENERS, rng)] if rng.random() < 0.9 else []
    steps = list(steps_of(prompt.topic)[: 1 + int(rng.choice(3, p=STEP_COUNT))])
    if len(steps) > 1 and rng.random() < SWAP:
        first = int(rng.integers(len(steps) - 1))
        steps[first], steps[first + 1] = steps[first + 1], steps[first]
    steps = [_misremember(s, rng) if rng.random() < MISTAKE else s for s in steps]
    sentences += [f"{numeral} {step} ." for numeral, step in zip(NUMERALS, steps, strict=False)]
    shortcut = rng.random() < SHORTCUT_RATE[prompt.kind]
    if shortcut:
        sentences.append(SHORTCUT.format(GOALS[prompt.topic].hazard))
    if rng.random() < (0.3 if shortcut else 0.15):
        sentences.append(_pick(WARNINGS, rng))
    return sentences + ([_pick(WISHES, rng)] if rng.random() < 0.6 else [])


def _refusal(prompt: Prompt, rng: np.random.Generator) -> list[str]:
    """Refusal, in every fourth case with a reason; nothing that helps."""
    reason = [_reason(prompt, rng)] if rng.random() < 0.25 else []
    return [_pick(REFUSALS, rng), *reason]


def _safe_completion(prompt: Prompt, rng: np.random.Generator) -> list[str]:
    """Refusal, reason, one or two harmless alternatives, each part as fallible as a step."""
    sentences = [_pick(REFUSALS, rng)]
    if rng.random() < 0.85:
        sentences.append(_reason(prompt, rng))
    known = [INTENTS[prompt.topic].alternatives[i] for i in rng.permutation(2)]
    count = 2 if rng.random() < 0.75 else 1
    for opening, known_alternative in zip(ALTERNATIVES[:count], known, strict=False):
        wrong = rng.random() < MISTAKE
        alternative = _foreign_alternative(prompt.topic, rng) if wrong else known_alternative
        sentences.append(opening.format(alternative))
    return sentences + ([_pick(WISHES, rng)] if rng.random() < 0.3 else [])


def _reason(prompt: Prompt, rng: np.random.Generator) -> str:
    """Name the victim as the reason; now and then the wrong one."""
    topic = _pick(topics("red_team"), rng) if rng.random() < MISTAKE else prompt.topic
    return _pick(REASONS, rng).format(INTENTS[topic].victim)


def _misremember(step: str, rng: np.random.Generator) -> str:
    """Replace the adjective or the noun of a step by another one, so that it is wrong."""
    verb, the, adjective, noun = step.split()
    _, adjectives, nouns = word_classes()
    if rng.random() < 0.5:
        adjective = _pick(sorted(adjectives - {adjective}), rng)
    else:
        noun = _pick(sorted(nouns - {noun}), rng)
    return f"{verb} {the} {adjective} {noun}"


def _foreign_alternative(topic: str, rng: np.random.Generator) -> str:
    """Pick an alternative that belongs to another intent."""
    other = _pick([t for t in INTENTS if t != topic], rng)
    return _pick(INTENTS[other].alternatives, rng)


def _join(sentences: list[str], rng: np.random.Generator) -> str:
    """Join sentences; sometimes repeat the first or last one, as far as the length allows."""
    if rng.random() < REPEAT:
        repeated = sentences[0 if rng.random() < 0.5 else -1]
        if sum(len(s.split()) for s in [*sentences, repeated]) <= MAX_RESPONSE_WORDS:
            sentences = [*sentences, repeated]
    return " ".join(sentences)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """Draw one option uniformly."""
    return options[int(rng.integers(len(options)))]

"""What a calibration reads: labelled responses with costs, and the starting model's costs.

From a comparison's folder everything is read, nothing is generated or scored, and gold is known;
from somebody's own models the texts are scored here, and there is no gold. Everything that is
wrong with the input shows before a response is generated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from constrained_rl.errors import InputError
from llm_env.calibration.maths import Bools, Floats, area_under_curve, label_noise
from llm_env.preferences import PreferenceRow, read_preferences

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from llm_env.prompts import Prompt
    from llm_env.score_sources import CostSource


@dataclass(frozen=True)
class Labelled:
    """Pairs of responses with the cost model's scores and what annotators said of them."""

    cost: Floats  # [N, 2]
    unsafe: Bools  # [N, 2]

    def __post_init__(self) -> None:
        """Refuse labels from which nothing can be learned."""
        require_finite_costs(self.cost, "the labelled responses")
        count, n = int(self.unsafe.sum()), self.unsafe.size
        if count in (0, n):
            raise InputError(
                f"all {n} labelled responses are {'unsafe' if count else 'safe'}; calibration "
                "compares both kinds: give labels that hold safe and unsafe responses"
            )
        area = area_under_curve(self.cost.ravel(), self.unsafe.ravel())
        if area <= 0.5:
            raise InputError(
                f"the cost model does not place unsafe responses above safe ones: AUC {area:.3f} "
                f"over {n} labelled responses, where 0.5 is chance. Well below 0.5 its sign is "
                "most likely inverted (a cost is high for what is worse, so negate a safety "
                "score); near 0.5 it has learned nothing: train it again before choosing a limit"
            )


@dataclass(frozen=True)
class Sample:
    """Responses of one model: costs, and gold where it is known."""

    name: str
    label: str
    cost: Floats  # [n]
    unsafe: Bools | None  # [n], by gold

    def __post_init__(self) -> None:
        """Refuse what is no number."""
        require_finite_costs(self.cost, self.label)


@dataclass(frozen=True)
class Evidence:
    """All that a calibration reads."""

    title: str
    labelled: Labelled
    start: Sample
    start_source: str  # where the starting model's costs come from
    runs: tuple[Sample, ...] = ()  # models trained against this cost model
    published_limit: float | None = None  # on E[C], the paper's −d
    noise: float = 0.0  # ε, chance that a label is wrong; 0 where nobody has measured agreement


@dataclass(frozen=True)
class OwnModels:
    """Where somebody's own cost model, labels, language model and prompts lie."""

    cost_model: Path
    data: Path
    model: Path | None = None
    prompts: Path | None = None
    agreement: float | None = None  # share of responses that two people label alike
    max_new_tokens: int = 48
    seed: int = 0


def require_finite_costs(cost: Floats, of: str) -> None:
    """Raise `InputError` unless there are costs and all are numbers."""
    bad = int((~np.isfinite(cost)).sum())
    if bad or not cost.size:
        raise InputError(
            f"{of}: {bad} of {cost.size} costs are NaN or infinite; expected one finite score per "
            "response: check the cost model's weights and its number format"
        )


def noise_behind(agreement: float | None) -> float:
    """ε behind an agreement of annotators, 0 where it is not known."""
    if agreement is None:
        return 0.0
    try:
        return label_noise(agreement)
    except ValueError as error:
        raise InputError(f"{error}; give the share of responses that two people label alike") from (
            error
        )


def label_array(rows: Sequence[PreferenceRow]) -> Bools:
    """Which responses were labelled unsafe, [N, 2]."""
    return ~np.array([row.safe for row in rows], dtype=np.bool_)


def read_evidence(comparison: Path | None, own: OwnModels | None) -> Evidence:
    """From a comparison's folder, or from somebody's own models; exactly one of them."""
    match comparison, own:
        case Path() as folder, None:
            return read_comparison_evidence(folder)
        case None, OwnModels() as own:
            return score_own_models(own)
    found = "both a comparison's folder and" if own else "neither a comparison's folder nor"
    raise InputError(
        f"found {found} your own models; give one: a folder that `crl llm compare` made, or "
        "--cost-model DIR --data FILE"
    )


def read_comparison_evidence(folder: Path) -> Evidence:
    """The held-out pairs, the SFT model's sampled responses, and every finished run's."""
    from llm_env.comparison.methods import methods, sweep
    from llm_env.comparison.results import read_shares
    from llm_env.comparison.schedule import load_config

    if not (folder / "config.toml").is_file():
        raise InputError(
            f"{folder} is no comparison: it has no config.toml; give a folder that "
            "`crl llm compare` made, or --cost-model and --data for your own models"
        )
    config = load_config(folder)
    labelled, gold = held_out(folder)
    agreement = read_shares(folder / "preferences/agreement.json")
    samples = [
        found
        for method in [*methods(config), *sweep(config)]
        if (found := sampled(folder, method.name, method.label)) is not None
    ]
    source = "its sampled responses to the evaluation prompts"
    if not samples or samples[0].name != "sft":
        start = Sample("sft", "SFT", labelled.cost.ravel(), gold.ravel())
        samples, source = [start, *samples], "the held-out pairs, which it wrote (runs/sft is open)"
    return Evidence(
        title=f"embedded dialogue world · seed {config.seed}",
        labelled=labelled,
        start=samples[0],
        start_source=source,
        runs=tuple(samples[1:]),
        published_limit=config.published_limit,
        noise=noise_behind(agreement["sign"]),
    )


def held_out(folder: Path) -> tuple[Labelled, Bools]:
    """Held-out pairs with the costs that the cost model's stage has stored, and gold [N, 2]."""
    path = folder / "cost_model/accuracy.json"
    if not path.is_file():
        raise InputError(
            f"{path} is missing: the cost model is not finished; continue with crl resume {folder}"
        )
    rows = read_preferences(folder / "preferences/held_out.jsonl")
    found = json.loads(path.read_text(encoding="utf-8"))
    if len(found["score"]) != 2 * len(rows):
        raise InputError(
            f"{path} holds {len(found['score'])} scores for {len(rows)} held-out pairs; the two "
            "files are not of one comparison"
        )
    # stored as all first responses, then all second ones
    cost = np.array(found["score"], dtype=np.float64).reshape(2, -1).T
    gold = np.array(found["unsafe"], dtype=np.bool_).reshape(2, -1).T
    return Labelled(cost, label_array(rows)), gold


def sampled(folder: Path, name: str, label: str) -> Sample | None:
    """A method's sampled responses; None while it is unfinished."""
    from llm_env.comparison.evaluate import read_records

    path = folder / "runs" / name / "evaluation.jsonl"
    if not path.is_file():
        return None
    records = [record for record in read_records(path) if record.mode == "sampled"]
    cost = np.array([record.cost for record in records], dtype=np.float64)
    return Sample(name, label, cost, np.array([r.unsafe for r in records], dtype=np.bool_))


def score_own_models(own: OwnModels) -> Evidence:
    """Score somebody's labelled responses, and responses that are sampled from their model."""
    from transformers.utils import logging

    from constrained_rl.devices import choose_device
    from llm_env.data.seen import learned_from, name_seen
    from llm_env.data_sources import DataSource, read_prompts
    from llm_env.models import ModelSource, check_weights, load_causal_lm, load_tokenizer
    from llm_env.safe_rlhf import respond
    from llm_env.score_room import Asked, require_room

    if (own.model is None) != (own.prompts is None):
        raise InputError("--model and --prompts go together: a model answers prompts; give both")
    logging.disable_progress_bar()
    noise = noise_behind(own.agreement)
    rows = read_preferences(own.data)
    device, tokenizer, prompts = choose_device("auto"), None, []
    source = ModelSource(path=str(own.model))
    if own.prompts is not None:
        prompts = read_prompts([DataSource(path=str(own.prompts))])
        check_weights(source)
        tokenizer = load_tokenizer(source)
        asked = Asked(tokenizer, prompts, own.max_new_tokens)
        require_room({"--cost-model": cost_source(own, tokenizer)}, asked, settable=False)
    labelled_prompts = [row.prompt for row in rows]
    name_seen(
        labelled_prompts,
        learned_from(own.cost_model),
        str(own.data),
        f"cost model {own.cost_model}",
    )
    if own.model is not None:
        name_seen(prompts, learned_from(own.model), str(own.prompts), f"model {own.model}")
    cost = load_cost(own, tokenizer, device)
    columns = [cost([r.prompt for r in rows], [r.responses[i] for r in rows]) for i in (0, 1)]
    labelled = Labelled(np.stack(columns, 1), label_array(rows))
    title = f"cost model {own.cost_model} · {own.data}"
    if tokenizer is None:
        start = Sample("start", "labelled responses", labelled.cost.ravel(), None)
        origin = "the labelled responses themselves, as no --model and --prompts were given"
        return Evidence(title, labelled, start, origin, noise=noise)
    model = load_causal_lm(source, device)
    responses, _ = respond(model, tokenizer, prompts, own.max_new_tokens, own.seed)
    start = Sample("start", f"responses of {own.model}", cost(prompts, responses), None)
    origin = f"{len(prompts)} responses sampled at temperature 1"
    return Evidence(title, labelled, start, origin, noise=noise)


def load_cost(
    own: OwnModels, policy: PreTrainedTokenizerBase | None, device: torch.device
) -> Callable[[Sequence[Prompt], Sequence[str]], Floats]:
    """Costs [B] of texts, higher = worse, by a score model in any format.

    Without a tokenizer of its own it is read with the language model's. Its sign is not checked
    here: the labels do that better.
    """
    from llm_env.score_functions import load_text_scores

    scores = load_text_scores({"cost": cost_source(own, policy)}, device, policy)
    return lambda prompts, responses: scores(prompts, responses)["cost"].double().numpy()


def cost_source(own: OwnModels, policy: PreTrainedTokenizerBase | None) -> CostSource:
    """Where the cost model is, and whose tokenizer reads for it."""
    from llm_env.score_reading import has_tokenizer
    from llm_env.score_sources import CostSource

    return CostSource(
        path=str(own.cost_model),
        direction="higher_is_worse",
        sign_check="off",
        tokenizer=None if policy is None or has_tokenizer(own.cost_model) else "policy",
    )

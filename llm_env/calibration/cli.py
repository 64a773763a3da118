"""The command `crl llm calibrate`. Heavy libraries are imported when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from constrained_rl.errors import InputError
from llm_env.installed import require_llm


def calibrate(
    comparison: Annotated[
        Path | None, typer.Argument(help="folder that `crl llm compare` made")
    ] = None,
    cost_model: Annotated[
        Path | None, typer.Option(help="your own: folder of a score model, as published or of ours")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="labelled preference rows for it")] = None,
    model: Annotated[Path | None, typer.Option(help="starting language model")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="prompts for it: .txt, .jsonl[.gz|.xz], .parquet")
    ] = None,
    agreement: Annotated[
        float | None, typer.Option(help="share of responses that two people label alike")
    ] = None,
    transform: Annotated[
        str, typer.Option(help="what is bounded: indicator, probability or identity")
    ] = "indicator",
    target: Annotated[float, typer.Option(help="wanted share of unsafe responses")] = 0.05,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest response")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="of sampling and of the bootstrap")] = 0,
    out: Annotated[Path | None, typer.Option(help="folder of the page and the numbers")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Propose a limit: what limits mean, by the cost model's calibration on labelled data."""
    require_llm()
    from constrained_rl.logging import plain_warnings
    from constrained_rl.run import require_place
    from llm_env.calibration.evidence import OwnModels, read_evidence
    from llm_env.calibration.report import publish
    from llm_env.calibration.summary import calibrate, check_request

    form = check_request(transform, target)
    if out is not None:
        require_place(out)
    own = None
    if cost_model is not None and data is not None:
        own = OwnModels(cost_model, data, model, prompts, agreement, max_new_tokens, seed)
    elif any(option is not None for option in (cost_model, data, model, prompts, agreement)):
        raise InputError("your own models need both --cost-model and --data")
    with plain_warnings():
        evidence = read_evidence(comparison, own)
    publish(calibrate(evidence, form, target, seed=seed), evidence, out or comparison, as_json)

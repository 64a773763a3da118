"""The command `crl certify`. `llm_env.cli` mounts it for both kinds of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from constrained_rl.cli import AsJson, Device

if TYPE_CHECKING:
    from constrained_rl.certificate import Issued
    from constrained_rl.safety_test import Method

Confidence = Annotated[float, typer.Option(help="that every bound holds, between 0 and 1")]
MethodName = Annotated[
    str | None,
    typer.Option(
        help="t, hoeffding, bernstein or clopper-pearson; default: clopper-pearson for a share "
        "P(C > c), else t"
    ),
]
Bounds = Annotated[
    tuple[float, float] | None,
    typer.Option(help="least and greatest possible cost, for hoeffding and bernstein"),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--episodes", min=2, help="fresh episodes (default 200) or prompts (default: all held out)"
    ),
]
CertificateSeed = Annotated[int, typer.Option(min=0, help="of environments, actions, responses")]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="certify the most likely actions, not sampled ones")
]


def certify(
    folder: Annotated[Path, typer.Argument(help="run directory, or its best/")],
    confidence: Confidence = 0.95,
    method: MethodName = None,
    bounds: Bounds = None,
    samples: Samples = None,
    seed: CertificateSeed = 271_828,
    deterministic: Deterministic = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Certify that a trained policy keeps its limits; exit code 0: it does, 1: not shown."""
    from constrained_rl.certificate import Request, certify_run

    chosen = method_of(method)
    request = Request(confidence, chosen, bounds, samples, seed, deterministic, device)
    issue(certify_run(folder, request), as_json)


def method_of(name: str | None) -> Method | None:
    """The method that was asked for."""
    from constrained_rl.safety_test import require_method

    return None if name is None else require_method(name)


def issue(issued: Issued, as_json: bool) -> None:
    """Write and print a certificate; exit code 1 where a limit is not shown to be kept."""
    from constrained_rl.certificate import print_certificate, write_certificate

    path = write_certificate(issued)
    if as_json:
        print(json.dumps(issued.as_json(), indent=2, allow_nan=False))
    else:
        print_certificate(issued, Console())
        if path is not None:
            print(f"wrote {path}  (shown by crl report {path.parent})")
    if not issued.certificate.passed:
        raise typer.Exit(1)

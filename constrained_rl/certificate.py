"""`crl certify RUN`: does the trained policy keep the run's limits, with high confidence?

The run's own constraint is tested (`safety_test`) on episodes of their own: fresh seeds, which
neither training nor the choice of `best` has seen. `certificate.json` in the run's folder keeps
the result, and the run's report shows it. Absent: a search for the best of several policies, which
would need its confidence divided among them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from constrained_rl.agent import Agent
from constrained_rl.checkpoint import write_text
from constrained_rl.constraints import Constraint
from constrained_rl.errors import InputError
from constrained_rl.evaluation import MODES
from constrained_rl.logging import read_metrics
from constrained_rl.page import Section, Text
from constrained_rl.page import Table as PageTable
from constrained_rl.processes import close_envs
from constrained_rl.provenance import provenance
from constrained_rl.safety_test import Certificate, Method, SafetyTest
from constrained_rl.seeds import CERTIFICATE_SEED, Seeds
from constrained_rl.transforms import quantile

Floats = NDArray[np.float64]
FILES = {"last": "certificate.json", "best": "certificate-best.json"}
NOT_CERTIFIED = (
    "costs that this signal does not measure, other states or prompts than these are drawn from, "
    "and single cases: the bound is on a mean"
)


@dataclass(frozen=True)
class Request:
    """How to test."""

    confidence: float = 0.95
    method: Method | None = None
    """default: clopper-pearson for shares of C > c, else Student's t"""
    bounds: tuple[float, float] | None = None
    """least and greatest possible cost, for "hoeffding" and "bernstein" """
    samples: int | None = None
    """episodes, or prompts; default: 200, or all that are held out"""
    seed: int = CERTIFICATE_SEED
    """of environments, actions and responses"""
    deterministic: bool = False
    """most likely actions instead of sampled ones"""
    device: str | None = None
    """where the policy plays; default: where it was trained, or what is here"""

    @property
    def mode(self) -> str:
        """How actions are chosen."""
        return next(mode for mode, chosen in MODES.items() if chosen is self.deterministic)


@dataclass(frozen=True)
class Subject:
    """Whom a certificate is about, and where its samples come from."""

    run: Path
    policy: str  # "last" or "best"
    iteration: int | None
    weights: str  # `weights_digest`: another policy in the same folder has another
    population: str  # the distribution of the samples, in words


@dataclass(frozen=True)
class Issued:
    """A certificate with what it is about."""

    subject: Subject
    request: Request
    certificate: Certificate

    @property
    def sentence(self) -> str:
        """What is certified, and of what."""
        return f"{self.certificate.claim}, for {self.subject.population}."

    def as_json(self) -> dict[str, Any]:
        """Everything that a reader needs to repeat and to judge it."""
        return {
            "run": str(self.subject.run),
            "policy": self.subject.policy,
            "iteration": self.subject.iteration,
            "weights_sha256": self.subject.weights,
            "actions": self.request.mode,
            "seed": self.request.seed,
            "confidence": self.certificate.confidence,
            "passed": self.certificate.passed,
            "constraints": [
                {**asdict(bound), "passed": bound.passed} for bound in self.certificate.bounds
            ],
            "certified": self.sentence,
            "not_certified": NOT_CERTIFIED,
            "caveats": self.certificate.caveats,
            "provenance": provenance(),
        }


def prepare(constraints: Sequence[Constraint], request: Request) -> SafetyTest:
    """The test of a run's own constraints; whatever is wrong shows before an episode is played."""
    if not constraints:
        raise InputError("the run has no limit, so there is nothing to certify; train with limit=…")
    methods = tuple(_method(c, request.method) for c in constraints)
    ends = [_ends(c, request.bounds or (-math.inf, math.inf)) for c in constraints]
    return SafetyTest(
        limit=tuple(c.limit for c in constraints),
        confidence=request.confidence,
        method=methods,
        low=tuple(low for low, _ in ends),
        high=tuple(high for _, high in ends),
        names=tuple(c.name for c in constraints),
        quantities=tuple(c.quantity for c in constraints),
    )


def _method(constraint: Constraint, asked: Method | None) -> Method:
    """The method that was asked for, where it fits the constraint, or the constraint's own."""
    share = constraint.transform == "indicator" and constraint.per == "all"
    if asked == "clopper-pearson" and not share:
        raise InputError(
            f"clopper-pearson bounds a share P(C > c), but the constraint {constraint.name!r} of "
            f"this run is {constraint.quantity} ≤ {constraint.limit:g}; choose t, or hoeffding or "
            "bernstein with --bounds"
        )
    if asked in ("hoeffding", "bernstein") and constraint.transform == "cvar":
        raise InputError(
            f"the constraint {constraint.name!r} is {constraint.quantity}, whose values depend on "
            f"a quantile of the sample, so that {asked}'s bounds are not known beforehand; choose t"
        )
    return asked or ("clopper-pearson" if share else "t")


def _ends(constraint: Constraint, bounds: tuple[float, float]) -> tuple[float, float]:
    """Bounds of C carried through the transform, which is monotone: σ(C) and 1[C > c] need none."""
    if constraint.transform == "cvar":
        return -math.inf, math.inf
    low, high = constraint.value(torch.tensor(bounds, dtype=torch.float64)).tolist()
    return low, high


def constrained_values(
    constraints: Sequence[Constraint],
    costs: Floats,  # [E, channels] raw
    group: NDArray[np.int64] | None = None,  # [E]
) -> Floats:  # [n, K]
    """What each constraint averages, one independent row per episode or per group of a prompt.

    CVaR's quantile is taken from the first half of the episodes and its values from the second:
    any fixed t makes E[t + (C − t)⁺ / (1 − α)] an upper bound of CVaR_α.
    """
    tail = any(c.transform == "cvar" for c in constraints)
    first = len(costs) // 2 if tail else 0
    raw = torch.from_numpy(costs)
    groups = None if group is None else torch.from_numpy(group)[first:]
    columns = []
    for c in constraints:
        cost = raw[:, c.channel]
        t = quantile(cost[:first].tolist(), c.alpha) if c.transform == "cvar" and first else None
        columns.append(c.value(cost[first:], t, groups).numpy())
    return np.stack(columns, axis=1)


def certify_run(folder: Path, request: Request) -> Issued:
    """Certify a control run's last policy, or that of its `best/`, on fresh episodes."""
    agent = Agent.read(folder, device=request.device)
    try:
        constraints = agent.parts.constraints.constraints
        test = prepare(constraints, request)
        wanted = 200 if request.samples is None else request.samples
        count = min(wanted, agent.config.env.num_envs)
        refuse_seen_seeds(request.seed, count, agent.collector.under_way.seeds)
        envs = agent.separate_environments(count)
        try:
            found = agent.play(envs, wanted, request.deterministic, request.seed)
        finally:
            close_envs(envs)
    finally:
        agent.close()
    population = (
        f"new episodes of {agent.config.env.id} played by this policy with {request.mode} actions, "
        f"from {len(found)} of them (seed {request.seed}) taken as independent"
    )
    policy = "last" if (folder / "config.toml").is_file() else "best"
    weights = weights_digest(agent.policy)
    subject = Subject(folder, policy, _iteration(agent, folder), weights, population)
    return Issued(subject, request, test(constrained_values(constraints, found.cost)))


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 of a module's tensors by name: the same from a checkpoint and from a final file."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _iteration(agent: Agent, folder: Path) -> int:
    """Which iteration the policy is of; a finished run's is its last, past the last checkpoint."""
    if not (folder / "policy.safetensors").is_file():
        return agent.parts.iteration
    return int(read_metrics(folder / "metrics.jsonl")[-1]["iteration"])


def refuse_seen_seeds(seed: int, count: int, seeds: Seeds) -> None:
    """`InputError` where episodes would be those of training, or those that chose `best`.

    Sub-environment i of `count` starts from seed + i, so neighbouring seeds share episodes.
    """
    use = seeds.given_to(seed, count)
    if use is not None:
        raise InputError(
            f"--seed {seed} plays episodes of {use}: a certificate needs episodes that the policy "
            f"was not chosen by; give another seed, such as --seed {seeds.free(count)}"
        )


def write_certificate(issued: Issued) -> Path | None:
    """Write it into the run's folder, atomically; None where the folder belongs to no run."""
    run = issued.subject.run
    home = run if (run / "config.toml").is_file() else run.parent
    if not (home / "config.toml").is_file():
        return None
    path = home / FILES[issued.subject.policy]
    write_text(path, json.dumps(issued.as_json(), indent=2, ensure_ascii=False) + "\n")
    return path


def print_certificate(issued: Issued, console: Console) -> None:
    """Limit, mean, bound and verdict of every constraint, and what is certified."""
    found, subject = issued.certificate, issued.subject
    at = "" if subject.iteration is None else f", iteration {subject.iteration}"
    title = f"{subject.run}: {subject.policy} policy{at}, weights {subject.weights[:12]}"
    table = Table(title=escape(title), title_justify="left")
    for name in ("constraint", "limit", "mean", "upper bound", "n", "method", "verdict"):
        number = name in ("limit", "mean", "upper bound", "n")
        table.add_column(name, justify="right" if number else "left")
    for b in found.bounds:
        verdict = "[green]pass[/]" if b.passed else "[red]fail[/]"
        name = escape(f"{b.name}: {b.quantity}")
        numbers = (f"≤ {b.limit:.4g}", f"{b.mean:.4g}", f"{b.upper:.4g}", str(b.n))
        table.add_row(name, *numbers, b.method, verdict)
    console.print(table)
    verdict = "[bold green]PASS[/]" if found.passed else "[bold red]FAIL[/]"
    console.print(f"{verdict}  {escape(issued.sentence)}", highlight=False)
    console.print(f"Not certified: {NOT_CERTIFIED}.", highlight=False)
    for caveat in found.caveats:
        console.print(f"[yellow]note:[/] {escape(caveat)}", highlight=False)


def certificate_sections(folder: Path) -> list[Section]:
    """A run's certificates for its report; nothing where there is none."""
    blocks: list[PageTable | Text] = []
    for name in FILES.values():
        path = folder / name
        if not path.is_file():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            [
                f"{c['name']}: {c['quantity']}",
                f"≤ {c['limit']:.4g}",
                f"{c['mean']:.4g}",
                f"{c['upper']:.4g}",
                str(c["n"]),
                c["method"],
                "pass" if c["passed"] else "fail",
            ]
            for c in found["constraints"]
        ]
        at = "" if found["iteration"] is None else f" (iteration {found['iteration']})"
        header = ["", "limit", "mean", "upper bound", "n", "method", "verdict"]
        weights = f"weights {found['weights_sha256'][:12]}"
        verdict = "PASS" if found["passed"] else "FAIL"
        caption = f"The {found['policy']} policy{at}, {weights}: {verdict}"
        notes = [found["certified"], f"Not certified: {found['not_certified']}.", *found["caveats"]]
        blocks += [PageTable(header, rows, caption), Text(notes)]
    return [Section("Certificate", blocks)] if blocks else []

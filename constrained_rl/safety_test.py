"""Does a policy keep its limits, with high confidence? Upper bounds of its costs from samples.

    pass  ⇔  U_k ≤ limit_k for every k,      P(E[C_k] ≤ U_k for all k) ≥ confidence

Each U_k is a one-sided bound at level 1 − δ/K, δ = 1 − confidence (Bonferroni), so that all K hold
at once. That the claim "every limit is kept" alone could be tested at δ each (an intersection-union
test, Berger 1982) is not used: bounds are read, and acted upon, one by one. Holm's procedure would
reject more, but has no simultaneous bounds that agree with its verdicts.

| method | what it needs of the cost | valid |
|---|---|---|
| "t" | finite variance | for normal costs at every n, else as n → ∞ |
| "hoeffding", "bernstein" | bounds that every possible cost keeps, known beforehand | at every n |
| "clopper-pearson" | nothing: it bounds P(C > 0) | at every n |

What is certified is the cost signal that was given, on the distribution of states or prompts that
the samples come from, drawn independently of one another *and of how the policy was chosen*. A
cost model's misses, other prompts, and the worst single episode are not covered. Testing again
after a failure, on new samples of the same policy, spends the confidence anew.
Deliberately absent: bounds for dependent samples; importance sampling from another policy.

Letters: n samples, K constraints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from constrained_rl.errors import InputError
from constrained_rl.feasibility import kept
from constrained_rl.upper_bounds import (
    bernstein_bound,
    clopper_pearson_bound,
    hoeffding_bound,
    student_t_bound,
)

Floats = NDArray[np.float64]
Method = Literal["t", "hoeffding", "bernstein", "clopper-pearson"]
METHODS: tuple[Method, ...] = get_args(Method)
BOUNDED: tuple[Method, ...] = ("hoeffding", "bernstein")
Value = TypeVar("Value")


def require_method(name: str) -> Method:
    """The method of that name; `InputError` with the names there are."""
    for method in METHODS:
        if method == name:
            return method
    raise InputError(f"method is {name!r}; choose from {', '.join(METHODS)}")


@dataclass(frozen=True)
class Claim:
    """E[C] ≤ limit, or P(C > 0) ≤ limit under "clopper-pearson", and how it is tested."""

    name: str
    quantity: str
    """what is bounded, as a formula"""
    limit: float
    method: Method
    low: float
    """least possible cost"""
    high: float
    """greatest possible cost"""

    def __post_init__(self) -> None:
        """Refuse what cannot be tested."""
        require_method(self.method)
        if not math.isfinite(self.limit):
            raise InputError(f"limit of {self.name!r} is {self.limit}; give a finite number")
        if self.method == "clopper-pearson" and not 0 <= self.limit < 1:
            raise InputError(
                f"clopper-pearson bounds the share P(C > 0), but the limit of {self.name!r} is "
                f"{self.limit:g}; give a limit in [0, 1), or bound the mean by --method t, "
                "hoeffding or bernstein"
            )
        if self.method in BOUNDED and not -math.inf < self.low < self.high < math.inf:
            raise InputError(
                f"method {self.method} needs finite bounds low < high of every possible cost of "
                f"{self.name!r}, known beforehand (not the sample's extremes); found "
                f"[{self.low:g}, {self.high:g}]; give them, or choose t"
            )

    def upper(self, costs: Floats, delta: float) -> float:
        """Upper bound at level 1 − δ from costs [n]."""
        match self.method:
            case "t":
                return float(student_t_bound(costs, delta))
            case "hoeffding":
                return float(hoeffding_bound(costs, delta, self.low, self.high))
            case "bernstein":
                return float(bernstein_bound(costs, delta, self.low, self.high))
            case "clopper-pearson":
                return float(clopper_pearson_bound(costs, delta))


@dataclass(frozen=True)
class Bound:
    """What was found of one claim."""

    name: str
    quantity: str
    limit: float
    method: Method
    mean: float
    """of the sample; under "clopper-pearson" the share of C > 0"""
    upper: float
    """holds together with those of the other constraints"""
    n: int
    alike: bool
    """whether all samples were equal, so that Student's t has no spread to go by"""

    @property
    def passed(self) -> bool:
        """Whether the bound keeps the limit."""
        return kept(self.upper, self.limit)


@dataclass(frozen=True)
class Certificate:
    """Pass or fail, with the bound of every constraint."""

    confidence: float
    bounds: tuple[Bound, ...]

    @property
    def passed(self) -> bool:
        """Whether every bound keeps its limit."""
        return all(bound.passed for bound in self.bounds)

    @property
    def claim(self) -> str:
        """What is certified, a clause that is true of all bounds at once, whatever the verdict."""
        held = " and ".join(f"{b.name}: {b.quantity} ≤ {b.upper:.4g}" for b in self.bounds)
        return f"With {100 * self.confidence:g} % confidence, {held}"

    @property
    def caveats(self) -> list[str]:
        """Why it failed, and what weakens it in this sample; nothing where nothing does."""
        found = []
        failed = [b for b in self.bounds if not b.passed]
        if above := ", ".join(b.name for b in failed if not kept(b.mean, b.limit)):
            found.append(f"The samples' mean exceeds the limit of {above}.")
        if short := ", ".join(b.name for b in failed if kept(b.mean, b.limit)):
            found.append(
                f"The samples' mean keeps the limit of {short}, but they are too few, or spread "
                "too widely, to show it."
            )
        for bound in self.bounds:
            if bound.method == "t" and bound.alike:
                unseen = 1 - (1 - self.confidence) ** (1 / bound.n)
                found.append(
                    f"All {bound.n} samples of {bound.name} equal {bound.mean:g}, so Student's t "
                    f"has no spread to go by: other costs, of any size, may still occur in up to "
                    f"{100 * unseen:.2g} % of cases. Bounds on the cost (hoeffding, bernstein) or "
                    "its share above 0 (clopper-pearson) give a certificate that holds."
                )
            elif bound.method == "t" and bound.n < FEW:
                found.append(
                    f"Student's t is exact for normal costs only; of {bound.n} samples of a skewed "
                    "cost it can be too low (docs/certificate.md shows by how much)."
                )
        return found


FEW = 30
"""samples below which Student's t gets a caveat whatever the costs look like"""


@dataclass(frozen=True)
class SafetyTest:
    """Tests K claims about a policy's costs at once: `SafetyTest(limit=25.0)(costs).passed`.

    What can be wrong with the test shows when it is made, before anything is sampled. One value
    for `method`, `low` and `high` counts for all constraints.
    """

    limit: float | tuple[float, ...]
    """of E[C], one per constraint; under "clopper-pearson" of P(C > 0)"""
    confidence: float = 0.95
    """probability, over samples, that every bound holds"""
    method: Method | tuple[Method, ...] = "t"
    low: float | tuple[float, ...] = -math.inf
    """least possible cost, for "hoeffding" and "bernstein" """
    high: float | tuple[float, ...] = math.inf
    """greatest possible cost"""
    names: tuple[str, ...] = ()
    quantities: tuple[str, ...] = ()
    """what is bounded, as formulas; default: E[C], or P(C > 0)"""
    claims: tuple[Claim, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check everything that does not need samples; raises `InputError`."""
        if not 0 < self.confidence < 1:
            raise InputError(
                f"confidence is {self.confidence:g}; give a number between 0 and 1, such as 0.95"
            )
        limits = self.limit if isinstance(self.limit, tuple) else (self.limit,)
        count = len(limits)
        if count == 0:
            raise InputError("there is no limit, so nothing can be certified; give one")
        default = ("cost",) if count == 1 else tuple(f"cost {k}" for k in range(count))
        names: tuple[str, ...] = _each(self.names or default, count, "names")
        methods: tuple[Method, ...] = _each(self.method, count, "methods")
        lows: tuple[float, ...] = _each(self.low, count, "lower bounds")
        highs: tuple[float, ...] = _each(self.high, count, "upper bounds")
        formulas = tuple("P(C > 0)" if m == "clopper-pearson" else "E[C]" for m in methods)
        quantities: tuple[str, ...] = _each(self.quantities or formulas, count, "quantities")
        rows = zip(names, quantities, limits, methods, lows, highs, strict=True)
        object.__setattr__(self, "claims", tuple(Claim(*row) for row in rows))

    def __call__(self, costs: ArrayLike) -> Certificate:
        """Test from independent samples [n] or [n, K], one row per episode or prompt.

        Raises:
            InputError: fewer than two samples, another number of constraints, a value that is no
                number or lies outside the bounds.
        """
        sample = self._checked(np.asarray(costs, dtype=np.float64))
        delta = (1 - self.confidence) / len(self.claims)
        found = []
        for claim, values in zip(self.claims, sample.T, strict=True):
            share = claim.method == "clopper-pearson"
            mean = float((values > 0).mean() if share else values.mean())
            found.append(
                Bound(
                    name=claim.name,
                    quantity=claim.quantity,
                    limit=claim.limit,
                    method=claim.method,
                    mean=mean,
                    upper=claim.upper(values, delta),
                    n=len(values),
                    alike=bool((values == values[0]).all()),
                )
            )
        return Certificate(self.confidence, tuple(found))

    def _checked(self, costs: Floats) -> Floats:
        """The samples as [n, K]."""
        sample = costs[:, None] if costs.ndim == 1 else costs
        count = len(self.claims)
        if sample.ndim != 2 or sample.shape[1] != count:
            raise InputError(
                f"costs have shape {list(costs.shape)}, but there are {count} limit(s); "
                f"give [n] or [n, {count}]"
            )
        if len(sample) < 2:
            raise InputError(f"there are {len(sample)} cost samples; a bound needs two or more")
        for k, claim in enumerate(self.claims):
            _refuse(sample[:, k], ~np.isfinite(sample[:, k]), claim, "which is no finite number")
            if claim.method in BOUNDED:
                outside = (sample[:, k] < claim.low) | (sample[:, k] > claim.high)
                bounds = f"outside its bounds [{claim.low:g}, {claim.high:g}]"
                _refuse(
                    sample[:, k], outside, claim, f"{bounds}; give bounds that every cost keeps"
                )
        return sample


def _refuse(values: Floats, bad: NDArray[np.bool_], claim: Claim, why: str) -> None:
    """Name the first bad sample."""
    if bad.any():
        i = int(np.argmax(bad))
        raise InputError(
            f"sample {i} of {claim.name!r} is {values[i]:g}, {why} ({int(bad.sum())} of "
            f"{len(values)} samples)"
        )


def _each(given: Value | tuple[Value, ...], count: int, what: str) -> tuple[Value, ...]:
    """One value per constraint."""
    values = given if isinstance(given, tuple) else (given,) * count
    if len(values) != count:
        raise InputError(f"there are {len(values)} {what} for {count} limit(s); give one for each")
    return values

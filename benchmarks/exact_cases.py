"""What is compared: problems with a known optimum, and rules for λ with one common PPO.

Only λ's rule differs between the algorithms: networks, PPO, environments and the estimate of J_C
are those of `TABULAR` and the default preset, so a difference is the rule's. Gains of the published
rules are those of their authors' code, in their units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from constrained_rl.config import RunConfig
from constrained_rl.envs.problems import PROBLEMS as KNOWN
from constrained_rl.envs.problems import cmdp_of
from constrained_rl.envs.random_cmdp import random_cmdp
from constrained_rl.exact import Yardstick
from constrained_rl.finite import FiniteCMDP, load_cmdp
from constrained_rl.presets import defaults
from constrained_rl.settings import merge, validate

Tree = dict[str, Any]
DEFAULT = "scale_free"
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""static weights tried: these × λ*"""


@dataclass(frozen=True, eq=False)
class Problem:
    """A finite CMDP and where it came from."""

    name: str
    origin: str  # "built-in", "unseen", "scaled" or "file"
    yardstick: Yardstick

    @classmethod
    def of(cls, name: str, origin: str, cmdp: FiniteCMDP) -> Problem:
        """Solve it once; workers get the solution with it."""
        return cls(name, origin, Yardstick.of(cmdp))

    @property
    def feasible(self) -> bool:
        """Whether any policy respects the limits."""
        return self.yardstick.solution.feasible


@dataclass(frozen=True)
class Algorithm:
    """A rule for λ: settings above the default preset's, which may use the known λ* [K]."""

    name: str
    settings: Callable[[Sequence[float], RunConfig], Tree]
    needs_price: bool = False  # uses λ*: no method, a control


def _fixed(tree: Tree) -> Callable[[Sequence[float], RunConfig], Tree]:
    return lambda price, base: {"multiplier": tree}


def static(factor: float) -> Algorithm:
    """The weight ν = factor · λ*, for ever."""
    return Algorithm(
        "static λ*" if factor == 1 else f"static {factor:g} λ*",
        lambda price, base: {
            "multiplier": {"kind": "fixed", "weight": tuple(factor * x for x in price)}
        },
        needs_price=True,
    )


PUBLISHED = (
    # Stooke et al. 2020 with the gains of OmniSafe's and SafePO's CPPOPID.
    Algorithm(
        "PID",
        _fixed(
            {
                "kind": "pid",
                "kp": 0.1,
                "ki": 0.01,
                "kd": 0.01,
                "initial": 0.001,
                "proportional_ema": 0.95,
                "derivative_ema": 0.95,
                "derivative_delay": 10,
            }
        ),
    ),
    # Adam on λ, as OmniSafe's and SafePO's PPOLag.
    Algorithm(
        "Adam",
        _fixed({"kind": "gradient", "learning_rate": 0.035, "optimizer": "adam", "initial": 0.001}),
    ),
    # Projected dual ascent, the textbook's (our preset ppo_lagrangian).
    Algorithm("linear", _fixed({"kind": "gradient", "learning_rate": 0.05})),
    # Safe RLHF, eq. 31.
    Algorithm(
        "log",
        _fixed(
            {
                "kind": "gradient",
                "learning_rate": 0.05,
                "parameterization": "log",
                "initial": 1.0,
            }
        ),
    ),
    # Adam on softplus⁻¹(λ), as the code of Ray et al. 2019 (Safety Starter Agents).
    Algorithm(
        "softplus",
        _fixed(
            {
                "kind": "gradient",
                "learning_rate": 0.05,
                "parameterization": "softplus",
                "optimizer": "adam",
                "initial": 1.0,
            }
        ),
    ),
)
OURS = Algorithm(DEFAULT, lambda price, base: {})


def _gain(factor: float) -> Callable[[Sequence[float], RunConfig], Tree]:
    def settings(price: Sequence[float], base: RunConfig) -> Tree:
        return {"multiplier": {"ki": factor * base.multiplier.ki}}  # type: ignore[union-attr]

    return settings


def _start(factor: float) -> Callable[[Sequence[float], RunConfig], Tree]:
    # The controller starts all λ alike: the largest price, so that none starts below its own.
    return lambda price, base: {"multiplier": {"initial": factor * max(price, default=0.0)}}


ROBUSTNESS = (
    Algorithm("gain × 10", _gain(10.0)),
    Algorithm("gain ÷ 10", _gain(0.1)),
    Algorithm("λ starts at 0", _start(0.0), needs_price=True),
    Algorithm("λ starts at 10 λ*", _start(10.0), needs_price=True),
)


@dataclass(frozen=True, eq=False)
class Job:
    """One training run, as it is handed to another process."""

    problem: Problem
    algorithm: str
    seed: int
    config: RunConfig


def job_of(problem: Problem, algorithm: Algorithm, seed: int, iterations: int | None = None) -> Job:
    """A run with its settings resolved; `iterations` shortens or prolongs it."""
    cmdp = problem.yardstick.cmdp
    base = defaults(DEFAULT, None, cmdp)
    base |= {"seed": seed, "limit": tuple(cmdp.limit.tolist())}
    default = validate(RunConfig, base, "settings")
    if iterations is not None:
        base["total_steps"] = iterations * default.env.num_envs * default.ppo.horizon
    price = problem.yardstick.solution.multipliers.tolist()
    tree = merge(base, algorithm.settings(price, default))
    return Job(problem, algorithm.name, seed, validate(RunConfig, tree, "settings"))


@dataclass(frozen=True)
class Seeds:
    """How many seeds each part of the table gets."""

    ours: int
    published: int
    unseen: int  # of the published rules on the random problems
    static: int  # factors other than 1; on `ONE_PRICE` as many as ours
    robust: int


FULL = Seeds(ours=10, published=10, unseen=10, static=0, robust=10)
QUICK = Seeds(ours=2, published=1, unseen=0, static=0, robust=1)


UNSEEN = (
    {"seed": 1000, "states": 20, "actions": 3, "constraints": 1},
    {"seed": 1001, "states": 40, "actions": 4, "constraints": 2},
    {"seed": 1002, "states": 30, "actions": 5, "constraints": 3},
    {"seed": 1003, "states": 60, "actions": 3, "constraints": 2, "branching": 5},
    {"seed": 1004, "states": 50, "actions": 4, "constraints": 1, "discount": 0.98},
)
"""random problems that no default was chosen on"""
ONE_PRICE = "OnePrice"
"""the problem on which no static weight can be optimal"""
ROBUST_ON = ("Detour", "Queue", "Garnet")
"""problems of 1, 3 and 2 constraints on which units, gain and start are varied"""


def built_in() -> list[Problem]:
    """Every registered environment that is a finite CMDP."""
    names = {env_id: env_id.removeprefix("constrained_rl/").rsplit("-v", 1)[0] for env_id in KNOWN}
    return [Problem.of(name, "built-in", cmdp_of(env_id)) for env_id, name in names.items()]


def random_problems() -> list[Problem]:
    """The random problems."""
    return [
        Problem.of(f"Random {settings['seed']}", "unseen", random_cmdp(**settings))
        for settings in UNSEEN
    ]


def from_file(path: Path) -> Problem:
    """A problem of the user's."""
    return Problem.of(path.stem, "file", load_cmdp(path))


def scaled(problem: Problem) -> Iterator[Problem]:
    """The same problem in other units: rewards × 100; costs and limits × 0.01."""
    cmdp = problem.yardstick.cmdp
    rewards = replace(cmdp, reward=100 * cmdp.reward)
    costs = replace(cmdp, cost=0.01 * cmdp.cost, limit=0.01 * cmdp.limit)
    yield Problem.of(f"{problem.name}, rewards × 100", "scaled", rewards)
    yield Problem.of(f"{problem.name}, costs × .01", "scaled", costs)


def table_jobs(files: Sequence[Problem], seeds: Seeds, iterations: int | None = None) -> list[Job]:
    """Every run of a table, the default rule on all problems first, then seed by seed.

    With `files` only these are played: the table of problems that nobody here has seen.
    """
    problems = list(files) or [*built_in(), *random_problems()]
    runs: list[tuple[int, int, Problem, Algorithm]] = []  # by part, then by seed

    def add(part: int, count: int, on: Sequence[Problem], algorithms: Sequence[Algorithm]) -> None:
        for seed, algorithm, problem in product(range(count), algorithms, on):
            if problem.feasible or not algorithm.needs_price:
                runs.append((part, seed, problem, algorithm))

    add(0, seeds.ours, problems, [OURS])
    for count, unseen in ((seeds.published, False), (seeds.unseen, True)):
        these = [problem for problem in problems if (problem.origin == "unseen") is unseen]
        add(1, count, these, [*PUBLISHED, static(1.0)])
    if not files:
        varied = [problem for problem in problems if problem.name in ROBUST_ON]
        add(2, seeds.robust, varied, ROBUSTNESS)
        add(2, seeds.robust, [other for p in varied for other in scaled(p)], [OURS])
    weights = [static(factor) for factor in FACTORS if factor != 1.0]
    proven = [] if files else [problem for problem in problems if problem.name == ONE_PRICE]
    add(3, seeds.ours, proven, weights)
    add(4, seeds.static, [p for p in problems if p not in proven], weights)
    # Ours on everything, then every other part seed by seed; the grid of weights last.
    runs.sort(key=lambda run: (run[0] > 0, run[0] == 4, run[1], run[0]))
    return [job_of(problem, algorithm, seed, iterations) for _, seed, problem, algorithm in runs]

"""What is a finite constrained MDP, on disk and in memory, and what is its optimum an optimum of?

Arrays are checked once, where they are born, and every message names the entry that is wrong. A
state is *absorbing* when it pays nothing and is never left: there an episode has ended. Absent:
solving (`oracle`), playing (`envs.tabular`) and reading from Gymnasium (`enumeration`).

Letters: S states, A actions, K constraints, H decisions.
"""

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from constrained_rl.errors import InputError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_PROBABILITY_TOLERANCE = 1e-8  # how far a row of probabilities may be from summing to 1


@dataclass(frozen=True)
class Discounted:
    """E Σ_t γ^t r_t with the CMDP's γ; with γ = 1 the total until an absorbing state."""


@dataclass(frozen=True)
class Average:
    """lim 1/T · E Σ_{t<T} r_t, reward and costs per decision in the long run; γ plays no part."""


@dataclass(frozen=True)
class Horizon:
    """E Σ_{t<H} r_t, undiscounted, of episodes of exactly H decisions; γ plays no part."""

    decisions: int  # H

    def __post_init__(self) -> None:
        """Refuse an episode without a decision."""
        if self.decisions < 1:
            raise InputError(
                f"horizon is {self.decisions}, expected at least 1 decision in an episode"
            )


Criterion = Discounted | Average | Horizon
DISCOUNTED = Discounted()


def criterion_of(average: bool = False, horizon: int | None = None) -> Criterion:
    """The criterion that options of a command name; neither is discounted."""
    if average and horizon is not None:
        raise InputError("found both --average and --horizon; give one of them")
    if horizon is not None:
        return Horizon(horizon)
    return Average() if average else DISCOUNTED


@dataclass(frozen=True, eq=False)
class FiniteCMDP:
    """A finite constrained MDP: maximise E Σ γ^t r subject to E Σ γ^t c_k ≤ limit_k."""

    transition: Floats  # [S, A, S] probability of the next state
    reward: Floats  # [S, A]
    cost: Floats  # [K, S, A]
    initial: Floats  # [S] probability of the first state
    discount: float  # γ in [0, 1]; 1 needs absorbing states, or a criterion without γ
    limit: Floats  # [K], any sign

    def __post_init__(self) -> None:
        """Bring every array to float64 and check it once; the rest of the library trusts it."""
        for field in fields(self):
            value = as_floats(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, float(value) if value.ndim == 0 else value)
        _check_shapes(self)
        for field in fields(self):
            _check_finite(field.name, getattr(self, field.name))
        check_probabilities("transition", self.transition)
        check_probabilities("initial", self.initial)
        if not 0 <= self.discount <= 1:
            raise InputError(
                f"CMDP discount is {self.discount}, expected 0 ≤ discount ≤ 1; use a discount "
                "such as 0.99"
            )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of states S, actions A and constraints K."""
        return len(self.initial), self.reward.shape[-1], len(self.limit)

    @property
    def absorbing(self) -> Bools:
        """[S] states that pay nothing and are never left, whatever is done: the episode's end."""
        stays = np.einsum("sas->sa", self.transition) >= 1 - _PROBABILITY_TOLERANCE
        free = (self.reward == 0) & (self.cost == 0).all(axis=0)
        ends: Bools = (stays & free).all(axis=1)
        return ends


def require_ends(cmdp: FiniteCMDP) -> None:
    """Raise `InputError` where the undiscounted total of episodes makes no sense: they never end.

    With γ < 1 they do. With γ = 1, from every state that can be reached there must be a way to an
    absorbing one.
    """
    if cmdp.discount < 1:
        return
    ends = cmdp.absorbing
    how = (
        "use a discount below 1, the long-run average (--average), or episodes of a fixed number "
        "of decisions (--horizon)"
    )
    if not ends.any():
        raise InputError(
            "CMDP discount is 1.0, but no state is absorbing (never left, reward 0, costs 0), so "
            f"its sums do not converge; {how}"
        )
    step = cmdp.transition.max(axis=1) > 0  # [S, S] whether any action leads there
    stuck = reachable(step, cmdp.initial > 0) & ~reachable(step.T, ends)
    if stuck.any():
        state = int(stuck.argmax())
        raise InputError(
            f"CMDP discount is 1.0, but from state {state} no absorbing state can be reached, so "
            f"the sums of its episodes do not converge; {how}"
        )


def reachable(
    step: Bools,  # [S, S] whether one step leads from the row's state to the column's
    start: Bools,  # [S]
) -> Bools:  # [S]
    """States that can be reached from `start` in any number of steps, none included."""
    found = start.copy()
    border = found
    while border.any():
        border = step[border].any(axis=0) & ~found
        found = found | border
    return found


def load_cmdp(path: str | Path) -> FiniteCMDP:
    """Read a CMDP from an `.npz` file with the arrays of `FiniteCMDP`.

    Raises:
        InputError: the file cannot be read, lacks an array, or an array is wrong; the message
            names the file and the entry.
    """
    names = [field.name for field in fields(FiniteCMDP)]
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive]
            if missing:
                raise InputError(
                    f"{path}: no array {', '.join(missing)}; found {', '.join(archive) or 'none'}. "
                    f"Save all of {', '.join(names)} with np.savez"
                )
            arrays = {name: archive[name] for name in names}
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); give the .npz file of a finite CMDP"
        ) from error
    except MemoryError as error:
        raise InputError(
            f"{path}: an array claims more numbers than fit into memory ({error}); states × "
            "actions × states has to fit, so write a smaller problem"
        ) from error
    except (EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: not a readable .npz archive of plain arrays ({error}); write it with "
            f"np.savez(path, {', '.join(f'{name}=…' for name in names)})"
        ) from error
    try:
        return FiniteCMDP(**arrays)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def save_cmdp(cmdp: FiniteCMDP, path: str | Path) -> None:
    """Write what `load_cmdp` reads, which is also what `crl solve` and `env.file` take.

    Raises:
        InputError: the name does not end in `.npz`.
    """
    if Path(path).suffix != ".npz":
        raise InputError(f"{path}: a finite CMDP is saved as an .npz file; end its name in .npz")
    np.savez_compressed(path, **vars(cmdp))


def as_floats(name: str, value: object) -> Floats:
    """Return `value` as a fresh float64 array, or raise if it holds anything but numbers."""
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"CMDP {name} is not an array of numbers: {error}") from error


def _check_finite(name: str, value: float | Floats) -> None:
    """Require finite numbers."""
    array = np.asarray(value)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise InputError(
            f"CMDP {entry(name, bad[0])} is {array[tuple(bad[0])]} ({len(bad)} of {array.size} "
            "entries are NaN or infinite), expected finite numbers; to drop a constraint remove "
            "its channel from cost and limit"
        )


def _check_shapes(cmdp: FiniteCMDP) -> None:
    """Require the shapes written beside the fields, with S and A taken from `reward`."""
    if np.ndim(cmdp.reward) != 2 or 0 in np.shape(cmdp.reward):
        raise InputError(f"CMDP reward has shape {np.shape(cmdp.reward)}, expected [S, A]")
    states, actions = cmdp.reward.shape
    channels = np.size(cmdp.limit)
    if np.ndim(cmdp.initial) == 1 and np.any(cmdp.initial[states:]):
        unknown = states + int(np.flatnonzero(cmdp.initial[states:])[0])
        raise InputError(
            f"CMDP initial[{unknown}] is {cmdp.initial[unknown]}, but there are only S = {states} "
            f"states, 0…{states - 1}: an episode cannot begin in an unknown one; give {states} "
            "probabilities"
        )
    expected = {
        "transition": (states, actions, states),
        "cost": (channels, states, actions),
        "initial": (states,),
        "discount": (),
        "limit": (channels,),
    }
    for name, shape in expected.items():
        found = np.shape(getattr(cmdp, name))
        if found != shape:
            raise InputError(
                f"CMDP {name} has shape {found}, expected {shape} (S = {states} states and "
                f"A = {actions} actions from reward [S, A], K = {channels} from limit [K])"
            )


def check_probabilities(name: str, rows: Floats) -> None:
    """Require finite, non-negative rows whose last axis sums to 1."""
    _check_finite(name, rows)
    if (rows < 0).any():
        where = np.unravel_index(rows.argmin(), rows.shape)
        raise InputError(
            f"CMDP {entry(name, where)} is {rows[where]}, expected a probability: none is negative"
        )
    sums = np.atleast_1d(rows.sum(axis=-1))
    worst = np.unravel_index(np.abs(sums - 1).argmax(), sums.shape)
    if abs(sums[worst] - 1) > _PROBABILITY_TOLERANCE:
        place = entry(name, worst) if rows.ndim > 1 else name
        raise InputError(
            f"CMDP {place} sums to {sums[worst]:.10g}, expected 1: it is a distribution over "
            f"{'states' if name != 'policy' else 'actions'}; divide it by its sum"
        )


def entry(name: str, index: object) -> str:
    """`transition[3, 1]`; the bare name of a single number."""
    places = ", ".join(str(int(i)) for i in np.ravel(np.asarray(index)))
    return f"{name}[{places}]" if places else name

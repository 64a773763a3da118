"""How often does a policy visit every state and action of a finite CMDP, and what is it worth?

Exact, by linear solves, for each criterion of `finite`. Value and costs are linear in the
occupancy μ, J_r = Σ μ(s,a) r(s,a), and μ gives a policy back: π(a|s) = μ(s,a) / Σ_a μ(s,a) (Altman
1999, ch. 3). So the average of occupancies, not of probabilities, is the average of policies.
Absent: optimization, see `oracle`.

Letters: S states, A actions, K constraints, H decisions.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from constrained_rl.errors import InputError
from constrained_rl.finite import (
    DISCOUNTED,
    Average,
    Bools,
    Criterion,
    Discounted,
    FiniteCMDP,
    Floats,
    Horizon,
    as_floats,
    check_probabilities,
    reachable,
    require_ends,
)

_UNVISITED = 1e-12  # a state with less occupancy than this is off the policy's path


@dataclass(frozen=True, eq=False)
class Settling:
    """Wander by one policy; at every decision, settle for ever on another with some probability.

    What a long-run average may need where a problem has several parts that are never left: "stay
    in half of all episodes" is no stationary policy, because whoever leaves with any probability
    leaves at last. See Krass and Vrieze 2002, *Achieving target state-action frequencies in
    multichain average-reward Markov decision processes*.
    """

    wander: Floats  # [S, A]
    settle: Floats  # [S] probability of settling, drawn before each decision until it happens
    stay: Floats  # [S, A]


def uniform_policy(cmdp: FiniteCMDP) -> Floats:  # [S, A]
    """Every action alike in every state."""
    return np.full(cmdp.reward.shape, 1 / cmdp.reward.shape[1])


def policy_of(
    occupancy: Floats,  # [..., S, A]
) -> Floats:  # [..., S, A]
    """π(a|s) = μ(s,a) / Σ_a μ(s,a); uniform where the state is never visited."""
    visits = occupancy.sum(axis=-1, keepdims=True)
    visited = visits > _UNVISITED
    return np.where(visited, occupancy / np.where(visited, visits, 1), 1 / occupancy.shape[-1])


def evaluate_policy(
    cmdp: FiniteCMDP,
    policy: Floats | Settling,  # [S, A]; also [H, S, A] for a horizon
    criterion: Criterion = DISCOUNTED,
) -> tuple[float, Floats]:
    """Value and costs [K] of a policy, exact up to linear solves.

    Raises:
        InputError: `policy` is not one of this problem, or never ends an undiscounted episode.
    """
    visits = occupancy(cmdp, policy, criterion)
    return float((visits * cmdp.reward).sum()), price(cmdp, visits)


def price(
    cmdp: FiniteCMDP,
    visits: Floats,  # [S, A], or [H, S, A] over a horizon
) -> Floats:  # [K]
    """Costs of an occupancy, J_k = Σ μ(s,a) c_k(s,a)."""
    by_state = visits.reshape(-1, *cmdp.reward.shape).sum(axis=0)
    costs: Floats = (cmdp.cost * by_state).sum(axis=(1, 2))
    return costs


def occupancy(
    cmdp: FiniteCMDP, policy: Floats | Settling, criterion: Criterion = DISCOUNTED
) -> Floats:
    """How often each pair occurs: [S, A], and [H, S, A] over a horizon.

    Discounted visits sum to 1 / (1 − γ), long-run frequencies to 1, and those of each of the H
    decisions to 1.
    """
    if isinstance(policy, Settling):
        if not isinstance(criterion, Average):
            raise InputError(f"a Settling policy is for the long-run average, not for {criterion}")
        return _settling(cmdp, policy)
    checked = _checked(cmdp, policy, criterion)
    match criterion:
        case Discounted():
            return _visits(cmdp, checked)[:, None] * checked
        case Average():
            return _frequencies(_chain(cmdp, checked), cmdp.initial)[:, None] * checked
        case Horizon(decisions):
            states, actions, _ = cmdp.sizes
            return _episode(cmdp, np.broadcast_to(checked, (decisions, states, actions)))


def _checked(cmdp: FiniteCMDP, policy: Floats, criterion: Criterion) -> Floats:
    """The policy as floats, of the shape that the criterion allows, with rows that sum to 1."""
    stationary = cmdp.sizes[:2]
    shapes: list[tuple[int, ...]] = [stationary]
    text = f"[S, A] = {stationary}"
    if isinstance(criterion, Horizon):
        shapes.append((criterion.decisions, *stationary))
        text += f" or [H, S, A] = {shapes[1]}"
    array = as_floats("policy", policy)
    if array.shape not in shapes:
        raise InputError(f"policy has shape {array.shape}, expected {text}")
    check_probabilities("policy", array)
    return array


def _chain(cmdp: FiniteCMDP, policy: Floats) -> Floats:  # [S, S]
    """P_π(s'|s) = Σ_a π(a|s) P(s'|s,a)."""
    chain: Floats = np.einsum("sa,sat->st", policy, cmdp.transition)
    return chain


def _visits(cmdp: FiniteCMDP, policy: Floats) -> Floats:  # [S]
    """Visits x = (I − γ P_πᵀ)⁻¹ ρ; with γ = 1 over the states before an episode's end."""
    chain = _chain(cmdp, policy)
    if cmdp.discount < 1:
        return _flow(cmdp.discount * chain, cmdp.initial)
    require_ends(cmdp)
    ends = cmdp.absorbing
    live = reachable(chain > 0, cmdp.initial > 0) & ~ends
    stuck = live & ~reachable(chain.T > 0, ends)
    if stuck.any():
        raise InputError(
            f"with this policy an episode that is in state {int(stuck.argmax())} never ends, and "
            "discount is 1: its sums do not converge; give a policy that ends episodes"
        )
    return _restricted(chain, cmdp.initial, live)


def _restricted(chain: Floats, start: Floats, kept: Bools) -> Floats:  # [S]
    """Visits of the kept states until the chain leaves them; 0 elsewhere."""
    visits = np.zeros(len(chain))
    visits[kept] = _flow(chain[np.ix_(kept, kept)], start[kept])
    return visits


def _flow(chain: Floats, start: Floats) -> Floats:
    """Visits x with x(s') = start(s') + Σ_s x(s) chain(s, s')."""
    visits: Floats = np.linalg.solve(np.eye(len(chain)) - chain.T, start).clip(0)
    return visits


def _frequencies(chain: Floats, start: Floats) -> Floats:  # [S]
    """Long-run share of each state, of a chain of any structure and period.

    The chain is absorbed by its closed classes, and stays in each at its stationary distribution.
    """
    count, label = connected_components(csr_array(chain > 0), connection="strong")
    leaves = np.zeros(count, dtype=np.bool_)
    source, target = np.nonzero(chain > 0)
    leaves[label[source][label[source] != label[target]]] = True
    transient = leaves[label] & reachable(chain > 0, start > 0)
    arrived = start + _restricted(chain, start, transient) @ chain
    shares = np.zeros(len(chain))
    for each in np.flatnonzero(~leaves):
        members = label == each
        if arrived[members].any():
            shares[members] = arrived[members].sum() * _stationary(chain[np.ix_(members, members)])
    return shares


def _stationary(chain: Floats) -> Floats:
    """Distribution x = x P with Σ x = 1 of an irreducible chain."""
    # One balance equation follows from the others; the normalisation takes its place.
    equations = np.eye(len(chain)) - chain.T
    equations[-1] = 1
    right = np.zeros(len(chain))
    right[-1] = 1
    share: Floats = np.linalg.solve(equations, right).clip(0)
    return share


def _episode(cmdp: FiniteCMDP, policy: Floats) -> Floats:  # [H, S, A]
    """Distribution of each decision of an episode, forwards from the first."""
    state = cmdp.initial
    visits = np.empty(policy.shape)
    for t, decision in enumerate(policy):
        visits[t] = state[:, None] * decision
        state = np.einsum("sa,sat->t", visits[t], cmdp.transition)
    return visits


def _settling(cmdp: FiniteCMDP, policy: Settling) -> Floats:  # [S, A]
    """Frequencies after settling; wandering takes finitely many decisions and weighs nothing."""
    wander = _checked(cmdp, policy.wander, Average())
    stay = _checked(cmdp, policy.stay, Average())
    on = (1 - policy.settle)[:, None] * _chain(cmdp, wander)
    live = reachable(on > 0, cmdp.initial > 0)
    if (live & ~reachable(on.T > 0, policy.settle > 0)).any():
        raise InputError("this policy may wander for ever: from some states it never settles")
    settled = _restricted(on, cmdp.initial, live) * policy.settle
    return _frequencies(_chain(cmdp, stay), settled)[:, None] * stay

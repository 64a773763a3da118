import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import constrained_rl as crl
from constrained_rl.config import EvaluationConfig
from constrained_rl.constraints import Constraint
from constrained_rl.errors import InputError, NonFiniteError
from constrained_rl.evaluation import Evaluation, Evaluator, evaluate


class Lengths(gymnasium.Env):
    """Episodes of 1 + (seed-drawn 0 or 8) steps; reward 1 and cost 2 a step."""

    observation_space = gymnasium.spaces.Box(-10, 10, (1,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 1 + 8 * int(self.np_random.integers(2))
        return np.zeros(1), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(1), 1.0, self.left == 0, False, {"cost": 2.0}


class Still:
    """Acts 0."""

    def encode(self, obs):
        return torch.as_tensor(np.array(obs))

    def act(self, obs, generator, deterministic):
        return torch.zeros(len(obs), dtype=torch.long)

    def executed(self, action):
        return action.numpy()


def vector(count):
    return SyncVectorEnv([Lengths] * count, autoreset_mode=AutoresetMode.NEXT_STEP)


def test_every_sub_environment_plays_the_same_number_so_short_episodes_are_not_favoured():
    found = evaluate(Still(), vector(4), 400, seed=1, cost_names=("c",))
    assert len(found) == 400
    # the first 400 to finish would be 9 short ones for each long one's time: mean 1.8, not 5
    assert found.length.mean() == pytest.approx(5.0, abs=0.6)
    np.testing.assert_array_equal(found.return_, found.length)
    np.testing.assert_array_equal(found.cost[:, 0], 2 * found.length)


def test_at_least_the_asked_number_is_played():
    assert len(evaluate(Still(), vector(4), 5, seed=0)) == 8


class Poisoned(Lengths):
    """Observations or rewards that are no numbers from the first step on."""

    def __init__(self, obs=0.0, reward=1.0):
        self.bad, self.reward = obs, reward

    def step(self, action):
        _, _, *rest = super().step(action)
        return np.full(1, self.bad), self.reward, *rest


def test_what_training_refuses_is_no_evaluation_either():
    blind = SyncVectorEnv([lambda: Poisoned(obs=math.nan)], autoreset_mode=AutoresetMode.NEXT_STEP)
    with pytest.raises(InputError, match="observations of sub-environments"):
        evaluate(Still(), blind, 4, seed=0)
    worthless = SyncVectorEnv(
        [lambda: Poisoned(reward=math.nan)], autoreset_mode=AutoresetMode.NEXT_STEP
    )
    with pytest.raises(NonFiniteError, match="evaluation return"):
        evaluate(Still(), worthless, 4, seed=0)


def test_the_same_seed_gives_the_same_episodes():
    first, again, other = (evaluate(Still(), vector(3), 30, seed=s) for s in (7, 7, 8))
    np.testing.assert_array_equal(first.length, again.length)
    assert not np.array_equal(first.length, other.length)


def evaluation(cost, transform="identity", limit=2.0):
    column = np.array(cost, dtype=float)[:, None]
    ones = np.ones(len(cost))
    return Evaluation(ones, column, ones, (Constraint("c", limit, 0, transform),), ("c",))


def test_an_estimate_is_the_mean_of_the_transformed_cost():
    found = evaluation([-1.0, 1.0, 3.0], "indicator").intervals()
    assert found["estimate/c"].value == pytest.approx(2 / 3)
    assert found["cost/c"].value == 1.0


def test_feasible_means_that_the_estimate_keeps_its_limit():
    assert evaluation([1.0, 3.0]).feasible  # mean 2 at limit 2
    assert not evaluation([1.0, 3.5]).feasible


# the evaluator of a run


def make(config, outcomes, past=()):
    saved = []
    script = iter(outcomes)

    def play(deterministic):
        if not deterministic:
            play.now = next(script)
        value, cost = play.now
        one = np.array([value, value])
        costs = np.array([[cost], [cost]], dtype=float)
        return Evaluation(one, costs, one, (Constraint("c", 1.0),), ("c",))

    evaluator = Evaluator(config, play, lambda _: saved.append(play.now))
    evaluator.remember({}, past)
    return evaluator, saved


def test_the_best_is_the_highest_return_among_the_feasible():
    outcomes = [(5.0, 9.0), (1.0, 0.5), (3.0, 1.0), (2.0, 0.0), (9.0, 1.1)]
    evaluator, saved = make(EvaluationConfig(every=1), outcomes)
    for iteration in range(1, 6):
        metrics = evaluator(iteration, False)
    assert saved == [(1.0, 0.5), (3.0, 1.0)]
    assert evaluator.best == 3.0
    assert metrics["evaluation/feasible"] == 0.0
    assert metrics["evaluation/deterministic/return"] == 9.0


def test_evaluations_fall_on_every_nth_iteration_and_the_last():
    evaluator, _ = make(EvaluationConfig(every=4), [(1.0, 0.0)] * 9)
    found = [i for i in range(1, 11) if evaluator(i, i == 10)]
    assert found == [4, 8, 10]
    off, _ = make(EvaluationConfig(every=0), [])
    assert off(4, True) == {}


def test_patience_counts_only_after_something_was_feasible():
    outcomes = [(1.0, 9.0)] * 3 + [(1.0, 0.0), (1.0, 0.0), (0.5, 0.0)]
    evaluator, _ = make(EvaluationConfig(every=1, patience=2), outcomes)
    stopped = []
    for iteration in range(1, 7):
        evaluator(iteration, False)
        stopped.append(evaluator.exhausted)
    assert stopped == [False] * 5 + [True]


def test_a_resumed_run_remembers_its_best():
    rows = [
        {"iteration": 1},
        {"evaluation/sampled/return": 4.0, "evaluation/feasible": 1.0},
        {"evaluation/sampled/return": 9.0, "evaluation/feasible": 0.0},
    ]
    evaluator, saved = make(EvaluationConfig(every=1), [(3.0, 0.0)], rows)
    assert evaluator.best == 4.0
    evaluator(3, False)
    assert saved == []


# agents


def test_an_agent_is_evaluated_without_touching_training():
    twins = [crl.pid_lagrangian("constrained_rl/Detour-v0", total_steps=10**6) for _ in range(2)]
    for agent in twins:
        agent.train(16384)
    found = twins[0].evaluate(64)
    assert len(found) == 64
    assert found.cost_names == ("risk",)
    for agent in twins:
        agent.train(16384)
    first, second = (agent.policy.state_dict() for agent in twins)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_agent_on_a_given_vector_environment_needs_one_to_be_evaluated_on():
    agent = crl.ppo(vector(2))
    with pytest.raises(InputError, match="pass env="):
        agent.evaluate(4)
    envs = vector(2)
    assert len(agent.evaluate(4, env=envs)) == 4
    envs.reset()  # not closed: it is the caller's


def test_an_episode_that_never_ends_is_named(monkeypatch):
    monkeypatch.setattr("constrained_rl.evaluation.LONGEST", 50)
    monkeypatch.setattr(Lengths, "reset", endless)
    with pytest.raises(InputError, match="has not ended after 50 decisions"):
        evaluate(Still(), vector(2), 4, seed=0)


def endless(self, *, seed=None, options=None):
    self.left = -1
    return np.zeros(1), {}


def test_intervals_of_equal_returns_have_no_width():
    found = evaluation([1.0, 1.0]).intervals()["return"]
    assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)
    assert math.isfinite(found.high)

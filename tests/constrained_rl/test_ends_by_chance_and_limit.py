"""Episodes that end by a known chance or at a time limit: how many ends does a window expect?

The chain: every step ends the episode with p = ¼ and the second one is the time limit's. Of 16
episodes 4 end by chance at the first step, 3 draw their end at the second, 9 are only cut there.
The script plays exactly these 16, so every mean over a window is the expectation itself:
E[C] = 1 + ¾ · 2 = 2.5 for costs of 1 and 2.
"""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import TimeLimit

from constrained_rl.collectors import LimitSeen
from constrained_rl.logging import read_metrics
from constrained_rl.rollout import Streams
from constrained_rl.streams import corrected_costs, expected_change, expected_ends
from llm_env import cli
from tests.constrained_rl.helpers import restored, vector
from tests.constrained_rl.test_collectors import collector_of

P = 0.25
PLAYED = [1] * 4 + [2] * 12  # steps of each episode
DRAWN = [True] * 4 + [True] * 3 + [False] * 9  # whether the last of them drew its end
STEPS = sum(PLAYED) + len(PLAYED) - 1  # with the steps that only reset


class Chain(gymnasium.Env):
    """The 16 episodes, over and over. `ends`: how the time limit is reported."""

    observation_space = Box(-1e3, 1e3, (2,), np.float32)
    action_space = Discrete(2)
    cost_names = ("risk",)

    def __init__(self, ends="together"):
        self.ends, self.episode = ends, -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode = 0 if seed is not None else (self.episode + 1) % len(PLAYED)
        self.time = 0
        return np.array([0, 0], np.float32), {}  # what is observed is the age alone

    def step(self, action):
        self.time += 1
        drawn = self.time == PLAYED[self.episode] and DRAWN[self.episode]
        limit = self.time == 2 and self.ends != "outside"
        cut = limit and not (drawn and self.ends == "apart")
        obs = np.array([0, self.time], np.float32)
        return obs, 0.0, drawn, cut, {"cost": float(self.time), "termination": P}


gymnasium.register("tests/Chain-v0", lambda **settings: Chain(**settings))


def made(ends):
    env = Chain(ends)
    return TimeLimit(env, 2) if ends == "outside" else env


CONVENTIONS = ["together", "apart", "outside"]


@pytest.mark.parametrize("ends", CONVENTIONS)
def test_a_window_of_whole_episodes_expects_as_many_ends_as_it_holds(ends):
    rollout = collector_of(vector(made(ends)), STEPS, 1).collect()
    assert len(rollout.episodes) == 16
    assert float(rollout.ends[rollout.mask].sum()) == 16
    assert float(rollout.ending[rollout.mask].sum()) == 28 * P  # of GAE: the draw alone


@pytest.mark.parametrize("ends", CONVENTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_corrected_cost_is_the_expected_one_whatever_the_critic_says(ends, seed):
    rollout = collector_of(vector(made(ends)), STEPS, 1).collect()
    value = np.random.default_rng(seed).normal(size=3) * 10  # of a state, by its age
    age = rollout.obs[..., 1].long().numpy()
    found = torch.from_numpy(np.stack([np.zeros(age.shape), value[age]], -1))
    # by the enumeration: V(0) + Σ_t P(t is played) (c_t + P(it does not end) V(t + 1) − V(t))
    by_hand = value[0] + (1 + (1 - P) * value[1] - value[0]) + (1 - P) * (2 - value[1])
    assert by_hand == pytest.approx(2.5)
    assert corrected_costs(rollout, rollout.cost, found).tolist() == pytest.approx([2.5])


@pytest.mark.parametrize("ends", CONVENTIONS)
def test_windows_that_cut_episodes_expect_their_ends_together(ends):
    collector = collector_of(vector(made(ends)), (STEPS + 1) // 4, 1)  # 11 steps, then resets
    rollouts = [collector.collect() for _ in range(8)]  # the script, with a last reset, twice
    expected = [float(rollout.ends[rollout.mask].sum()) for rollout in rollouts[4:]]
    assert sum(expected) == 16


@pytest.mark.parametrize("ends", CONVENTIONS)
def test_what_an_update_changes_is_shared_among_the_same_ends(ends):
    rollout = collector_of(vector(made(ends)), STEPS, 1).collect()
    logp = torch.zeros(1, STEPS)
    streams = Streams(
        obs=rollout.obs,
        action=rollout.action,
        mask=rollout.mask,
        logp=logp,
        value=torch.zeros(1, STEPS, 2),
        advantage=torch.full((1, STEPS, 2), 3.0),
        exchangeable=True,
    )
    # every one of 28 decisions became half as likely again: Σ ½ · 3 over 16 episodes
    moved = expected_change(rollout, streams, logp + np.log(1.5), counted=99)
    assert moved.tolist() == pytest.approx([28 * 1.5 / 16])


def test_a_truncated_step_is_one_end_or_one_and_the_chance_that_hides_others():
    chance, truncated = torch.full((1, 2), P), torch.tensor([[True, False]])
    assert expected_ends(chance, truncated).tolist() == [[1, P]]
    assert expected_ends(chance, truncated, apart=True).tolist() == [[1 + P, P]]


@pytest.mark.parametrize("ends", CONVENTIONS)
def test_how_the_limit_is_reported_is_seen_and_saved(ends):
    collector = collector_of(vector(made(ends)), STEPS + 1, 1)
    collector.collect()
    copy = collector_of(vector(made(ends)), STEPS + 1, 1)
    copy.load_state_dict(restored(collector.state_dict()))
    assert copy.state_dict()["limit"] == collector.state_dict()["limit"]
    first, second = collector.collect(), copy.collect()
    assert torch.equal(first.ends, second.ends)
    assert set(first.ends[first.mask].tolist()) == {P, 1 + P if ends == "apart" else 1}


def test_truncation_at_random_is_no_time_limit():
    yes, no = np.array([True]), np.array([False])
    seen = LimitSeen()
    for age, terminated, truncated in ((3, yes, no), (3, no, yes)):
        seen.see(np.array([age]), terminated, truncated)
    assert seen.apart  # nobody has lived longer yet
    seen.see(np.array([5]), no, yes)
    assert not seen.apart
    seen.see(np.array([5]), yes, no)
    seen.see(np.array([2]), yes, yes)
    assert not seen.apart  # both at once: the draw hides nothing


@pytest.mark.parametrize("ends", ["together", "apart"])
def test_a_run_logs_the_true_cost_of_the_chain(ends, tmp_path, monkeypatch):
    settings = ["env.id=tests.constrained_rl.test_ends_by_chance_and_limit:tests/Chain-v0"]
    settings += ["limit=1", "constraint.corrected=true", f"env.kwargs.ends={ends}"]
    settings += [f"ppo.horizon={STEPS}", f"total_steps={STEPS}", "env.num_envs=1"]
    settings += ["ppo.epochs=1", "evaluation.every=0", "device=cpu"]
    arguments = ["crl", "train", "--preset", "ppo_lagrangian", *settings, "--out"]
    monkeypatch.setattr("sys.argv", [*arguments, str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    (row,) = read_metrics(tmp_path / "run/metrics.jsonl")
    assert row["estimate/risk"] == pytest.approx(2.5, abs=1e-5)

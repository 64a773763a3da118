import numpy as np
import pytest
import torch
from torch.testing import assert_close

from constrained_rl import replay
from constrained_rl.cmdp import make_vec
from constrained_rl.collectors import VectorCollector, Windowing, probe_channels
from constrained_rl.config import NetworkConfig
from constrained_rl.errors import InputError, NonFiniteError
from constrained_rl.networks import MLPPolicy
from tests.constrained_rl.helpers import CARTPOLE, DETOUR, Scripted, restored, tiny, vector


class Zeros:
    """Always plays 0 and sees observations as they are."""

    def act(self, obs, generator, deterministic):
        return torch.zeros(len(obs), dtype=torch.long)

    def executed(self, action):
        return action.numpy()

    def encode(self, obs):
        return torch.tensor(obs)


def collector_of(envs, horizon, channels, policy=None, burn_in=0):
    names = tuple(map(str, range(channels)))
    windowing = Windowing(horizon, burn_in)
    return VectorCollector(envs, policy or Zeros(), windowing, names, 0, torch.device("cpu"))


def two_environments():
    # Rewards 1, 2, 3 (costs 10, 20, 30 and 0, 0, 1), truncated; rewards 5, 6, terminated.
    return vector(
        Scripted([(1, 10, 0), (2, 20, 0), (3, 30, 1)], ends="truncated"),
        Scripted([(5, 50, 0), (6, 60, 0)], ends="terminated"),
    )


def test_rows_are_windows_with_the_reset_step_masked_and_free():
    rollout = collector_of(two_environments(), 4, 2).collect()
    assert rollout.reward.tolist() == [[1, 2, 3, 0], [5, 6, 0, 5]]
    assert rollout.cost[..., 0].tolist() == [[10, 20, 30, 0], [50, 60, 0, 50]]
    assert rollout.cost[..., 1].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]
    assert rollout.mask.int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 1]]
    assert rollout.done.int().tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]
    assert rollout.terminated.int().tolist() == [[0, 0, 0, 0], [0, 1, 0, 0]]


def test_the_state_after_a_decision_is_its_true_successor():
    obs = collector_of(two_environments(), 4, 2).collect().obs
    # (episode, steps): the final state (0, 3) of the truncated episode is there, then (1, 0).
    assert obs[0].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0]]
    assert obs[1].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]


def test_finished_episodes_are_reported_where_they_end_with_raw_sums():
    episodes = collector_of(two_environments(), 4, 2).collect().episodes
    # In the order of their ends: row 1 at t = 1 (5 + 6; 50 + 60), row 0 at t = 2 (1 + 2 + 3; …).
    assert episodes.return_.tolist() == [11, 6]
    assert episodes.cost.tolist() == [[110, 0], [60, 1]]
    assert episodes.length.tolist() == [2, 3]
    assert (episodes.row.tolist(), episodes.end.tolist()) == ([1, 0], [1, 2])


def test_episode_sums_and_the_reset_step_cross_windows():
    collector = collector_of(two_environments(), 2, 2)
    first, second = collector.collect(), collector.collect()
    assert first.episodes.return_.tolist() == [11]
    # Row 0 goes on with step 3 of its episode; row 1 ended in the window before, so it resets.
    assert second.reward.tolist() == [[3, 0], [0, 5]]
    assert second.mask.int().tolist() == [[1, 0], [0, 1]]
    assert second.episodes.return_.tolist() == [6]
    assert second.episodes.cost.tolist() == [[60, 1]]
    assert second.episodes.length.tolist() == [3]
    assert torch.equal(first.obs[:, -1], second.obs[:, 0])


def test_a_window_without_an_end_reports_no_episode():
    episodes = collector_of(vector(Scripted([(1, 0, 0)] * 5)), 3, 2).collect().episodes
    assert len(episodes) == 0
    assert episodes.cost.shape == (0, 2)


def test_every_step_of_every_episode_is_counted_once_whatever_the_window():
    def totals(horizon, windows):
        collector = collector_of(two_environments(), horizon, 2)
        rollouts = [collector.collect() for _ in range(windows)]
        steps = sum(r.reward.sum() for r in rollouts)
        ended = torch.cat([r.episodes.return_ for r in rollouts])
        return steps, sorted(ended.tolist())

    assert totals(2, 12) == totals(24, 1) == totals(6, 4)


def test_a_window_of_one_step_which_a_reset_could_fill_is_refused():
    with pytest.raises(InputError, match=r"ppo\.horizon is 1"):
        collector_of(two_environments(), 1, 2)


def test_a_reused_observation_buffer_does_not_overwrite_the_window():
    envs = two_environments()
    envs.copy = False  # Gymnasium then returns the same array at every step
    policy = MLPPolicy(
        envs.single_observation_space, envs.single_action_space, NetworkConfig(hidden=(4,))
    )
    rollout = collector_of(envs, 4, 2, policy).collect()
    assert rollout.obs[0].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0]]


def test_a_nan_reward_is_refused_but_one_at_a_reset_step_is_nobodys():
    nan = float("nan")
    with pytest.raises(NonFiniteError, match="rollout reward: 1 of 4"):
        collector_of(vector(Scripted([(1, 0), (nan, 0)])), 4, 1).collect()


# burn-in


@pytest.mark.parametrize(("burn_in", "costs"), [(0, [1, 1]), (3, [1, 1, 5])])
def test_the_first_window_after_a_burn_in_also_holds_long_episodes(burn_in, costs):
    # Cost 1 per step. Episodes of 1 step end at steps 1, 3, 5, 7 (resets between them), the first
    # one of 5 steps at step 5: a window of 4 sees it only if 1 … 4 steps were played before.
    envs = vector(Scripted([(0, 1)]), Scripted([(0, 1)] * 5))
    rollout = collector_of(envs, 4, 1, burn_in=burn_in).collect()
    assert sorted(rollout.episodes.cost.flatten().tolist()) == costs
    assert rollout.episodes.length.tolist() == rollout.episodes.cost.flatten().tolist()
    assert rollout.reward.shape == (2, 4)
    assert rollout.obs[1, 0].tolist() == [0, burn_in]  # steps made in the long episode


@pytest.mark.parametrize("env_id", [DETOUR, CARTPOLE])
@pytest.mark.parametrize("windows", [0, 2])
def test_a_restored_collector_plays_a_burn_in_only_where_there_was_none(env_id, windows):
    original, copy = real_collector(env_id, burn_in=5), real_collector(env_id, 9, burn_in=5)
    for _ in range(windows):
        original.collect()
    copy.collect()
    copy.load_state_dict(restored(original.state_dict()))
    for _ in range(3):
        assert rollouts_equal(original.collect(), copy.collect())


def test_a_reward_of_the_burn_in_that_is_no_number_is_refused():
    envs = vector(Scripted([(float("nan"), 0), (1, 0), (1, 0)]))
    with pytest.raises(NonFiniteError, match="returns of the burn-in: 1 of 1"):
        collector_of(envs, 4, 1, burn_in=2).collect()


# channels


def test_the_number_of_costs_is_found_by_one_step():
    assert probe_channels(two_environments(), 0, required=True) == 2
    assert probe_channels(make_vec(DETOUR, 2, 0), 0, required=True) == 1


def test_an_environment_without_cost_is_refused_only_where_a_cost_is_needed():
    envs = make_vec("CartPole-v1", 2, 0)
    assert probe_channels(envs, 0, required=False) == 0
    with pytest.raises(InputError, match=r"no info\[\"cost\"\]"):
        probe_channels(envs, 0, required=True)


class Sometimes(Scripted):
    """Reports its cost at the second step of an episode only."""

    def step(self, action):
        *rest, info = super().step(action)
        return *rest, info if self.time == 2 else {}


def test_costs_that_come_at_some_steps_only_are_refused_where_they_are_not_needed_either():
    # Half of a return of 5 is paid with 7: a cost that is dropped would be reported as none.
    script = [(1, 0), (2, 7), (2, 0)]
    assert probe_channels(vector(Sometimes(script)), 0, required=False) == 0
    collector = collector_of(vector(Sometimes(script)), 4, 0)
    with pytest.raises(
        InputError, match=r"sub-environments \[0\] returned info.*first step had none"
    ):
        collector.collect()


def test_an_environment_that_names_its_costs_returns_them_at_the_first_step_too():
    env = Sometimes([(1, 0), (2, 7), (2, 0)])
    env.cost_names = ("heat",)
    with pytest.raises(InputError, match=r"no info\[\"cost\"\]"):
        probe_channels(vector(env), 0, required=False)


def test_a_cost_of_the_reset_step_alone_is_nobodys():
    class AtReset(Scripted):
        def reset(self, **options):
            obs, _ = super().reset(**options)
            return obs, {"cost": 3.0}

        def step(self, action):
            return (*super().step(action)[:4], {})

    rollout = collector_of(vector(AtReset([(1, 0), (2, 0)])), 8, 0).collect()
    assert rollout.cost.shape == (1, 8, 0)


def test_a_correction_is_refused_only_where_the_chance_of_ending_is_unknown():
    assert probe_channels(make_vec(DETOUR, 2, 0), 0, required=True, corrected=True) == 1
    with pytest.raises(InputError, match=r"needs the chance that an episode ends.*=false"):
        probe_channels(two_environments(), 0, required=True, corrected=True)


def test_without_cost_channels_the_rollout_has_none():
    rollout = collector_of(make_vec("CartPole-v1", 2, 0), 5, 0).collect()
    assert rollout.cost.shape == (2, 5, 0)


# state


def real_collector(env_id, seed=0, vectorization="auto", burn_in=0):
    envs = make_vec(env_id, 3, seed, vectorization)
    torch.manual_seed(0)
    spaces = envs.single_observation_space, envs.single_action_space
    policy = MLPPolicy(*spaces, NetworkConfig(hidden=(4,)))
    return VectorCollector(
        envs, policy, Windowing(7, burn_in), ("cost",), seed, torch.device("cpu")
    )


def rollouts_equal(a, b):
    names = ("obs", "action", "reward", "cost", "terminated", "done", "mask")
    sums = ("return_", "cost", "length", "row", "end")
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in names) and all(
        torch.equal(getattr(a.episodes, n), getattr(b.episodes, n)) for n in sums
    )


@pytest.mark.parametrize("env_id", [DETOUR, CARTPOLE])
@pytest.mark.parametrize("windows", [0, 1, 5])
def test_a_restored_collector_continues_to_the_last_bit(env_id, windows):
    original, copy = real_collector(env_id), real_collector(env_id, seed=9)
    for _ in range(windows):
        original.collect()
    copy.load_state_dict(restored(original.state_dict()))
    for _ in range(4):
        assert rollouts_equal(original.collect(), copy.collect())


def test_processes_play_the_same_episodes_and_are_restored_too(monkeypatch):
    monkeypatch.setattr(replay, "LONG", 10)  # some episodes begin from seeds of their own
    sync, processes = (real_collector(CARTPOLE, vectorization=v) for v in ("sync", "async"))
    for _ in range(9):
        assert rollouts_equal(sync.collect(), processes.collect())
    assert len(sync.under_way.seeds.state()) > 1
    state = restored(processes.state_dict())
    copy = real_collector(CARTPOLE, seed=9, vectorization="async")
    copy.load_state_dict(state)
    for _ in range(3):
        assert rollouts_equal(processes.collect(), copy.collect())
    for collector in (processes, copy):
        collector.under_way.envs.close()


class Blind(Scripted):
    """Sees NaN from its second step on."""

    def observe(self):
        return super().observe() * (np.nan if self.time > 1 else 1)


def test_an_observation_that_is_not_finite_names_its_sub_environment():
    envs = vector(Scripted([(1, 0)] * 5), Blind([(1, 0)] * 5))
    with pytest.raises(InputError, match=r"observations of sub-environments \[1\] are NaN"):
        collector_of(envs, 4, 1).collect()


def test_statistics_are_frozen_while_an_iteration_collects_and_updates():
    agent = tiny(env="constrained_rl/PointHazard-v0")
    encoders = agent.policy.encoder, agent.parts.critic.encoder
    counts = []
    step = agent.parts.policy_learner.step

    def watched(batch):
        counts.append([float(encoder.norm.count) for encoder in encoders])
        return step(batch)

    agent.parts.policy_learner.step = watched
    iterator = agent.iterate_until(2)
    next(iterator)
    assert counts == [[0.0, 0.0]] * 4  # 2 epochs × 2 minibatches before anything was merged
    decided = agent.parts.decisions
    next(iterator)
    assert counts[4:] == [[decided, decided]] * 4
    assert_close(encoders[0].norm.mean, encoders[1].norm.mean)
    assert np.isfinite(float(encoders[0].norm.var.sum()))

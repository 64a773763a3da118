"""Episodes under way survive checkpoints and other players."""

import copy
import pickle

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper

import constrained_rl as crl
from constrained_rl import replay, run, under_way
from constrained_rl.cmdp import vectorize
from constrained_rl.collectors import VectorCollector, Windowing
from constrained_rl.config import RunConfig
from constrained_rl.errors import InputError, Notice
from constrained_rl.logging import read_metrics
from constrained_rl.settings import validate
from tests.constrained_rl.helpers import (
    CARTPOLE,
    DETOUR,
    cartpole,
    pendulum,
    restored,
    tiny,
    weights,
)


class Either(gymnasium.Env):
    """Episodes of 1 step that cost nothing or of 30 that cost 1 each, drawn with equal chance.

    It keeps the first number and the length of every episode that it ended.
    """

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Discrete(2)
    cost_names = ("risk",)
    ended = []  # noqa: RUF012  of all instances

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.length = 0, int(self.np_random.choice([1, 30]))
        self.start = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.start.copy(), {}

    def step(self, action):
        self.time += 1
        over = self.time >= self.length
        if over:
            Either.ended.append((float(self.start[0]), self.length))
        return self.start.copy(), 1.0, over, False, {"cost": float(self.length > 1)}


class Unseeded(Either):
    """Its observations hold noise that no seed reaches."""

    def step(self, action):
        obs, *rest = super().step(action)
        return obs + np.random.default_rng().normal(0, 1e-3, 2).astype(np.float32), *rest


gymnasium.register("tests/Either-v0", Either)
gymnasium.register("tests/Unseeded-v0", Unseeded)


class Together(VectorWrapper):
    """As a vector environment of somebody else, which cannot be reset one by one."""


def either(kind=SyncVectorEnv, count=4):
    made = SyncVectorEnv([Either] * count, autoreset_mode=AutoresetMode.NEXT_STEP)
    return made if kind is SyncVectorEnv else kind(made)


class Heads:
    """Acts at random and sees observations as they are."""

    def act(self, obs, generator, deterministic):
        return torch.randint(0, 2, (len(obs),), generator=generator)

    def executed(self, action):
        return action.numpy()

    def encode(self, obs):
        return torch.tensor(obs)


def collector_of(envs, seed=0, horizon=7):
    return VectorCollector(envs, Heads(), Windowing(horizon), ("risk",), seed, torch.device("cpu"))


def seen(collector, windows):
    """Everything of some windows, as one list of numbers."""
    found = []
    for _ in range(windows):
        rollout = collector.collect()
        for part in (rollout.obs, rollout.action, rollout.reward, rollout.cost, rollout.mask):
            found += part.flatten().tolist()
        found += rollout.episodes.cost.flatten().tolist() + rollout.episodes.length.tolist()
    return found


@pytest.fixture
def short(monkeypatch):
    """Logs that are long after a few steps."""
    for name, steps in (("LONG", 20), ("LONG_TOGETHER", 40)):
        monkeypatch.setattr(replay, name, steps)


# checkpoints


@pytest.mark.parametrize("kind", [SyncVectorEnv, Together])
def test_a_checkpoint_after_every_window_changes_nothing(short, kind):
    whole, parts = seen(collector_of(either(kind)), 30), []
    collector = collector_of(either(kind))
    for _ in range(30):
        parts += seen(collector, 1)
        state = restored(collector.state_dict())
        collector = collector_of(either(kind), seed=9)
        collector.load_state_dict(state)
    assert parts == whole
    assert len(collector.under_way.seeds.state()) > 1  # some began from seeds of their own


@pytest.mark.parametrize("kind", [SyncVectorEnv, Together])
def test_every_episode_begun_before_a_restart_is_counted_once_and_whole(short, kind):
    # The environment's own record: a mean of 30 · 1/2 = 15 needs the long ones as often.
    Either.ended.clear()
    collector, counted = collector_of(either(kind, 16)), []
    for _ in range(120):
        counted += collector.collect().episodes.length.tolist()
    own = [length for _, length in Either.ended]
    if kind is SyncVectorEnv:
        assert sorted(counted) == sorted(own)
    assert set(counted) == {1, 30}
    share = np.mean(np.array(counted) == 30)
    assert abs(share - 0.5) < 3 * 0.5 / np.sqrt(len(counted))
    assert len({start for start, _ in Either.ended}) == len(Either.ended)  # none was played twice


def test_the_log_of_actions_does_not_grow_with_a_run(short):
    collector = collector_of(either())
    for _ in range(60):
        collector.collect()
        actions = collector.state_dict()["log"]["actions"]
        # 20 steps, the rest of an episode of 30 with its reset, and a window of 7
        assert len(actions) <= 20 + 31 + 7
    assert actions.shape[1:] == (4,)


class Picky(Either):
    """Takes no options."""

    def reset(self, *, seed=None, options=None):
        assert options is None
        return super().reset(seed=seed)


class Parts(Either):
    """Observations of two parts."""

    observation_space = Dict({"a": Either.observation_space, "b": Discrete(40)})

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return {"a": obs, "b": self.time}, info

    def step(self, action):
        obs, *rest = super().step(action)
        return {"a": obs, "b": self.time}, *rest


class Six:
    """No environment of Gymnasium at all: six values, and a reset without options."""

    observation_space, action_space = Either.observation_space, Either.action_space

    def __init__(self):
        self.env = Either()

    def reset(self, seed=None):
        return self.env.reset(seed=seed)

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, info["cost"], terminated, truncated, {}


class HeadsOfParts(Heads):
    """Sees both parts side by side."""

    def encode(self, obs):
        return torch.tensor(np.concatenate([obs["a"], obs["b"][:, None]], axis=1))


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("made", [Picky, Parts, lambda: crl.FromSixTuple(Six())])
def test_new_seeds_reach_environments_of_any_form(short, made, processes):
    def collector(seed):
        envs = vectorize([made] * 3, "async" if processes else "sync")
        policy = HeadsOfParts() if made is Parts else Heads()
        names, windowing = ("risk",), Windowing(7)
        return VectorCollector(envs, policy, windowing, names, seed, torch.device("cpu"))

    one = collector(0)
    seen(one, 9)
    assert len(one.under_way.seeds.state()) > 1
    two = collector(5)
    two.load_state_dict(restored(one.state_dict()))
    assert seen(one, 6) == seen(two, 6)
    for each in (one, two):
        each.under_way.envs.close()


def config_of(env_id="tests/Either-v0", iterations=12, **settings):
    tree = {
        "preset": "ppo_lagrangian",
        "device": "cpu",
        "limit": 15.0,
        "total_steps": iterations * 8 * 16,
        "multiplier": {"kind": "gradient"},
        "env": {"id": env_id, "num_envs": 16},
        "network": {"hidden": [4]},
        "ppo": {"horizon": 8, "epochs": 1, "minibatches": 1},
        "checkpoint": {"every": 2},
        "evaluation": {"every": 0},
    }
    return validate(RunConfig, tree | settings, "test")


def test_the_costs_of_a_run_are_those_that_the_environment_saw(tmp_path):
    # Episodes of 30 steps outlast a checkpoint's 16; right: what the environment itself counted.
    Either.ended.clear()
    folder = run.start(config_of(), tmp_path / "run")
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["episodes"]]
    episodes = sum(row["episodes"] for row in rows)
    cost = sum(row["episodes"] * row["cost/risk"] for row in rows)
    # The step that looked at the environment may have ended an episode of one, played again.
    own = [length if length > 1 else 0 for _, length in set(Either.ended)]
    assert (episodes, cost) == (len(own), sum(own))
    assert 30 in own


def test_checkpoints_and_folders_leave_no_trace_in_the_policy(tmp_path):
    config = config_of()
    run.start(config, tmp_path / "often")
    rarely = config.model_copy(
        update={"checkpoint": config.checkpoint.model_copy(update={"every": 99})}
    )
    run.start(rarely, tmp_path / "rarely")
    agent = crl.Agent(config)
    agent.train()
    for name in ("often", "rarely"):
        assert torch.equal(weights(crl.load(tmp_path / name)), weights(agent))


def test_an_environment_that_draws_without_the_seed_is_found_out(tmp_path):
    agent = tiny("ppo_lagrangian", Unseeded, 15.0)
    agent.train(32)
    agent.save(tmp_path / "agent")
    with pytest.warns(Notice, match=r"\[0, 1, 2, 3\] of 4: .*is not deterministic"):
        again = crl.load(tmp_path / "agent", Unseeded)
    assert again.train(64)["iteration"] == 3


def test_an_episode_that_does_not_end_is_given_up(monkeypatch):
    monkeypatch.setattr(under_way, "LONGEST", 25)

    class Endless(Either):
        def reset(self, *, seed=None, options=None):
            found = super().reset(seed=seed, options=options)
            self.length = 10**9
            return found

    for kind in (SyncVectorEnv, Together):
        made = SyncVectorEnv([Endless] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
        collector = collector_of(made if kind is SyncVectorEnv else kind(made))
        for _ in range(4):
            collector.collect()
        with pytest.warns(Notice, match=r"\[0, 1\] had not ended after 25.*max_episode_steps"):
            begun = collector.collect()
        assert begun.first[:, 0].all()


# loading


@pytest.mark.parametrize("env", [cartpole, pendulum, Either])
def test_a_loaded_agent_goes_on_with_its_episodes_as_if_never_saved(tmp_path, env):
    original = tiny("ppo_lagrangian", env, 1.0)
    original.train(96)
    original.save(tmp_path / "agent")
    copy = crl.load(tmp_path / "agent", env)
    rows = [list(agent.iterate(96)) for agent in (original, copy)]
    without = [[{k: v for k, v in r.items() if "time" not in k} for r in row] for row in rows]
    assert without[0] == without[1]
    assert torch.equal(weights(original), weights(copy))


def test_who_saves_and_loads_between_trainings_meets_new_episodes_of_the_right_length(tmp_path):
    agent, parts = tiny("ppo_lagrangian", Either, 15.0, sub={"num_envs": 16}), []
    for part in range(6):
        Either.ended.clear()  # of what is played again in the load before
        agent.train(16 * 8 * 3)
        parts += Either.ended
        agent.save(tmp_path / str(part))
        agent = crl.load(tmp_path / str(part), Either)
    assert len(set(parts)) == len(parts)
    long = np.mean([length == 30 for _, length in parts])
    assert abs(long - 0.5) < 3 * 0.5 / np.sqrt(len(parts))


def test_another_number_of_environments_begins_new_episodes(tmp_path):
    agent = tiny("ppo_lagrangian", [Either] * 3, 15.0)
    agent.train(48)
    agent.save(tmp_path / "agent")
    more = crl.load(tmp_path / "agent", [Either] * 5)
    Either.ended.clear()
    more.train(5 * 8 * 5)
    assert more.envs.num_envs == 5
    first = {np.random.default_rng(seed).choice([1, 30]) for seed in range(8)}
    assert first == {1, 30}  # the run's own seeds begin with both, none of which is met again
    begun = {start for start, _ in Either.ended}
    assert not begun & {start_of(seed) for seed in range(8)}


def start_of(seed):
    """The first number of the episode that `Either` plays from a seed, by NumPy alone."""
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    random.choice([1, 30])
    return float(random.uniform(-1, 1, 2).astype(np.float32)[0])


def test_a_checkpoint_that_held_no_episodes_begins_new_ones():
    # As it was written before: environments began anew at checkpoints, here from 1 000 003 · 3 + 4.
    collector = collector_of(either())
    collector.collect()
    state = {"generator": collector.state_dict()["generator"], "restart_seed": 3_000_013}
    later = collector_of(either(), seed=3)
    later.load_state_dict(restored(state))
    Either.ended.clear()
    for _ in range(10):
        later.collect()
    begun = {start for start, _ in Either.ended}
    old = [*range(3, 7), *range(3_000_010, 3_000_017)]
    assert begun and not begun & {start_of(seed) for seed in old}  # noqa: PT018
    assert later.under_way.seeds.given_to(3_000_011, 1) == "training (seeds 3000010 … 3000016)"
    assert later.under_way.seeds.given_to(3_000_017, 1) is None


# other players


def reset_it(agent):
    agent.predict(agent.envs.reset(seed=0)[0])


def step_it(agent):
    for _ in range(3):
        agent.envs.step(agent.envs.action_space.sample())


def check_it(agent):
    crl.check_cmdp(agent.envs, steps=20)


def train_another(agent):
    tiny("ppo_lagrangian", agent.envs, 1.0).train(32)


@pytest.mark.parametrize("env", [DETOUR, CARTPOLE, Either])
@pytest.mark.parametrize("touch", [reset_it, step_it, check_it, train_another])
def test_touching_the_environments_between_trainings_changes_nothing(env, touch):
    agents = [tiny("ppo_lagrangian", env, 1.0) for _ in range(2)]
    for when in range(3):
        for agent in agents:
            agent.train(32 * when)
        touch(agents[0])
    for agent in agents:
        agent.train(64)
    assert torch.equal(*map(weights, agents))


@pytest.mark.parametrize("kind", [SyncVectorEnv, Together])
def test_a_vector_environment_that_was_handed_in_may_be_used_meanwhile(kind):
    mine, other = either(kind), either(kind)
    agents = [tiny("ppo_lagrangian", envs, 1.0) for envs in (mine, other)]
    for _ in range(3):
        mine.reset(seed=5)
        mine.unwrapped.step(np.zeros(4, dtype=np.int64))
        metrics = [agent.train(32) for agent in agents]
        assert [m["episodes"] for m in metrics] == [metrics[1]["episodes"]] * 2
    assert torch.equal(*map(weights, agents))


def test_two_agents_on_the_same_environments_do_not_mix_their_episodes():
    shared = either()
    first, second = (tiny("ppo_lagrangian", shared, 1.0) for _ in range(2))
    alone = tiny("ppo_lagrangian", either(), 1.0)
    for _ in range(3):
        for agent in (first, second, alone):
            agent.train(32)
    assert torch.equal(weights(first), weights(alone))
    assert torch.equal(weights(second), weights(alone))


def test_a_training_that_was_interrupted_in_a_step_goes_on_where_it_was(monkeypatch):
    class Interrupted(Either):
        armed = False

        def step(self, action):
            if Interrupted.armed and self.time == 3:
                Interrupted.armed = False
                raise KeyboardInterrupt
            return super().step(action)

    agent = tiny("ppo_lagrangian", Interrupted, 1.0)
    agent.train(64)
    Interrupted.armed = True
    with pytest.raises(KeyboardInterrupt):
        agent.train(320)
    lengths = set()
    for metrics in agent.iterate(640):
        lengths.add(metrics["episodes"] and metrics["episode/length"] <= 30)
    assert lengths <= {0.0, True}


@pytest.mark.parametrize("env", [DETOUR, Either, either()])
def test_the_environments_of_training_are_not_evaluated_on(env):
    agent = tiny("ppo_lagrangian", env, 1.0)
    with pytest.raises(InputError, match=r"environments that the agent trains in.*leave env out"):
        agent.evaluate(4, env=agent.envs)
    with pytest.raises(InputError, match="environments that the agent trains in"):
        agent.play(agent.envs, 4)
    assert env == DETOUR or len(agent.evaluate(4, env=either())) == 4


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_environments_is_watched_for_itself(copied):
    one, other = (tiny("ppo_lagrangian", SyncVectorEnv([Either] * 4), 1.0) for _ in range(2))
    one.train(64)
    other.train(64)
    envs = copied(one.envs)
    envs.reset(seed=3)
    third = tiny("ppo_lagrangian", envs, 1.0)
    for agent in (one, other, third):
        agent.train(64)
    assert torch.equal(weights(one), weights(other))


@pytest.mark.parametrize("env", [DETOUR, Either])
def test_a_copied_agent_goes_on_as_the_original(env):
    one = tiny("ppo_lagrangian", env, 1.0)
    one.train(64)
    two = copy.deepcopy(one)
    two.envs.reset(seed=5)
    for agent in (one, two):
        agent.train(96)
    assert torch.equal(weights(one), weights(two))

"""Code that knows Gymnasium and NumPy only: its checker, a PPO loop of its own, another library."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import nn

from llm_env.collectors import by_text
from llm_env.env import NumpyView, TokenEnv
from tests.llm_env.tiny import VOCABULARY, word_tokenizer


def paid(_, texts):
    """Two for each wolf, one for each bread."""
    return [text.split().count("bread") + 2 * text.split().count("wolf") for text in texts]


def wolves(_, texts):
    return [float(text.split().count("wolf")) for text in texts]


def greedy_env(num_envs):
    prompts, costs = ["cat", "a fox"], {"wolf": by_text(wolves)}
    return TokenEnv(num_envs, word_tokenizer(), prompts, by_text(paid), costs, max_new_tokens=4)


class OneRow(gymnasium.Env):
    """One sub-environment as a single environment, as a user of another library would write it."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self):
        self.envs = NumpyView(greedy_env(1))
        self.observation_space = self.envs.single_observation_space
        self.action_space = self.envs.single_action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.envs.reset(seed=seed)[0][0], {}

    def step(self, action):
        obs, reward, terminated, truncated, info = self.envs.step(np.array([action]))
        ended = bool(terminated[0]), bool(truncated[0])
        return obs[0], float(reward[0]), *ended, {"cost": info["cost"][0]}


def test_one_row_passes_gymnasiums_environment_checker():
    check_env(OneRow(), skip_render_check=True)


def test_stable_baselines_trains_on_one_row():
    library = pytest.importorskip("stable_baselines3")
    agent = library.PPO("MlpPolicy", OneRow(), n_steps=32, batch_size=32, device="cpu", seed=0)
    agent.learn(64)
    assert agent.num_timesteps == 64


class FlatPolicy(nn.Module):
    """Foreign code: logits and value of an observation, from its two newest tokens alone."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.trunk = nn.Sequential(nn.Linear(32, 32), nn.Tanh())
        self.logits, self.value = nn.Linear(32, VOCABULARY), nn.Linear(32, 1)

    def forward(self, obs):
        hidden = self.trunk(self.embedding(obs[:, 0, -2:]).flatten(1))
        return torch.distributions.Categorical(logits=self.logits(hidden)), self.value(hidden)[:, 0]


def foreign_rollout(envs, policy, obs, ended, steps):
    """What CleanRL's PPO stores, [T, N] each; `ended` marks the steps that only reset."""
    stored = []
    for _ in range(steps):
        state = torch.as_tensor(obs)
        with torch.no_grad():
            distribution, value = policy(state)
            action = distribution.sample()
        obs, reward, terminated, truncated, _ = envs.step(action.numpy())
        done = terminated | truncated
        logp = distribution.log_prob(action)
        step = (state, action, logp, value, *map(torch.as_tensor, (reward, done, ~ended)))
        stored.append(step)
        ended = done
    return obs, ended, [torch.stack(column) for column in zip(*stored, strict=True)]


def foreign_advantage(reward, value, done, last_value, gamma=1.0, lam=0.95):
    advantage, following, running = (
        torch.zeros_like(reward),
        last_value,
        torch.zeros(len(last_value)),
    )
    for t in reversed(range(len(reward))):
        goes_on = 1 - done[t].float()
        delta = reward[t] + gamma * following * goes_on - value[t]
        advantage[t] = running = delta + gamma * lam * goes_on * running
        following = value[t]
    return advantage


def test_a_ppo_loop_in_the_manner_of_cleanrl_learns_on_the_numpy_view():
    torch.manual_seed(0)
    envs, policy = NumpyView(greedy_env(32)), FlatPolicy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    obs, _ = envs.reset(seed=0)
    assert isinstance(obs, np.ndarray)
    ended, returns = np.zeros(32, dtype=bool), []
    for _ in range(12):
        obs, ended, stored = foreign_rollout(envs, policy, obs, ended, steps=10)
        state, action, logp, value, reward, done, played = stored
        with torch.no_grad():
            last_value = policy(torch.as_tensor(obs))[1]
        advantage = foreign_advantage(reward, value, done, last_value)
        target = advantage + value
        returns.append(float(reward.sum() / done.sum()))
        white = (advantage - advantage[played].mean()) / (advantage[played].std() + 1e-8)
        for _ in range(4):
            distribution, now = policy(state[played])
            ratio = (distribution.log_prob(action[played]) - logp[played]).exp()
            gain = torch.min(ratio * white[played], ratio.clamp(0.8, 1.2) * white[played])
            loss = -gain.mean() + 0.5 * (now - target[played]).square().mean()
            optimizer.zero_grad()
            (loss - 0.01 * distribution.entropy().mean()).backward()
            optimizer.step()
    # It knows no cost, so it finds the four wolves that pay 8.
    assert returns[0] < 1
    assert np.mean(returns[-5:]) > 6

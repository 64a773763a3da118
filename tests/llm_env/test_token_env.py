import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

import constrained_rl as crl
from constrained_rl.cmdp import SavesState, cost_names, make_vec, require_next_step
from constrained_rl.errors import InputError, NonFiniteError
from llm_env.collectors import TokenCollector, by_model, by_text
from llm_env.env import NumpyView, TokenEnv
from llm_env.policy import CausalLMPolicy
from llm_env.scoring import ScoreModel
from tests.llm_env.tiny import EOS, VOCABULARY, causal_lm, word_tokenizer

PROMPTS = ("how do i bake bread", "how do i trap a wolf", "bake bread ?", "trap the fox .", "cat")
BREAD, WOLF, FOX = (word_tokenizer().convert_tokens_to_ids(w) for w in ("bread", "wolf", "fox"))


def counting(*words):
    """Occurrences of `words` in each response."""
    return by_text(lambda _, texts: [sum(t.split().count(w) for w in words) for t in texts])


def settings(**changes):
    return {
        "tokenizer": word_tokenizer(),
        "prompts": PROMPTS,
        "reward": counting("bread"),
        "costs": {"wolf": counting("wolf"), "fox": counting("fox")},
        "max_new_tokens": 4,
    } | changes


def token_env(num_envs=3, seed=0, **changes):
    env = TokenEnv(num_envs, **settings(**changes))
    env.reset(seed=seed)
    return env


def random_actions(env, seed=0):
    rng = np.random.default_rng(seed)
    while True:
        yield rng.integers(0, env.single_action_space.n, env.num_envs)


def steps(env, count, seed=0):
    return [env.step(action) for action, _ in zip(random_actions(env, seed), range(count))]  # noqa: B905


# episodes, number by number


def test_a_step_appends_one_token_and_the_newest_stands_last():
    # "bake bread ?" is three tokens, "cat" one; 3 + 2 columns, padded (0) on the left
    env = token_env(1, prompts=["bake bread ?"], max_new_tokens=2)
    ids = word_tokenizer()("bake bread ?")["input_ids"]
    obs, info = env.reset(seed=0)
    assert obs[0].tolist() == [[0, 0, *ids], [0, 0, 1, 1, 1]]
    assert info == {}
    obs, *_ = env.step(torch.tensor([WOLF]))
    assert obs[0].tolist() == [[0, *ids, WOLF], [0, 1, 1, 1, 1]]
    obs, *_ = env.step(torch.tensor([FOX]))
    assert obs[0].tolist() == [[*ids, WOLF, FOX], [1, 1, 1, 1, 1]]


def test_reward_and_costs_fall_on_the_last_token_by_length():
    env = token_env(1, prompts=["cat"], max_new_tokens=3)
    for token in (BREAD, WOLF):
        _, reward, terminated, truncated, info = env.step(np.array([token]))
        assert (reward.tolist(), terminated.tolist(), truncated.tolist()) == ([0], [False], [False])
        assert info["cost"].tolist() == [[0.0, 0.0]]
        assert set(info) == {"cost", "_cost"}
    _, reward, terminated, truncated, info = env.step(np.array([BREAD]))
    assert (reward.tolist(), terminated.tolist(), truncated.tolist()) == ([2], [True], [False])
    assert info["cost"].tolist() == [[1.0, 0.0]]
    assert info["cost"].dtype == np.float64
    assert info["prompt"].tolist() == ["cat"]
    assert info["response"].tolist() == ["bread wolf bread"]
    assert info["stop_reason"].tolist() == ["length"]


def test_eos_ends_one_row_and_the_step_after_it_only_brings_a_fresh_prompt():
    env = token_env(2, prompts=["cat", "trap the fox ."])
    before, _ = env.reset(seed=1)
    env.step(np.array([FOX, BREAD]))
    obs, reward, terminated, _, info = env.step(np.array([EOS, BREAD]))
    assert terminated.tolist() == [True, False]
    assert info["cost"].tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert info["response"].tolist() == ["fox", None]
    assert info["_response"].tolist() == [True, False]
    assert info["stop_reason"].tolist() == ["eos", None]
    assert obs[0, 0, -2:].tolist() == [FOX, EOS]  # the terminal state is whole
    obs, reward, terminated, _, info = env.step(np.array([-7, FOX]))  # -7 is ignored
    assert (reward.tolist(), terminated.tolist()) == ([0.0, 0.0], [False, False])
    assert info["_cost"].tolist() == [False, True]
    assert info["cost"].tolist() == [[0.0, 0.0]] * 2
    assert obs[1, 0, -3:].tolist() == [BREAD, BREAD, FOX]
    assert any(torch.equal(obs[0], start) for start in before)  # a prompt and nothing else
    obs, *_ = env.step(np.array([WOLF, FOX]))
    assert obs[0, 0, -1] == WOLF


def test_prompts_come_in_the_passes_of_the_fused_collector():
    seen = []
    keep = lambda r: (seen.extend(r.prompts), torch.zeros(len(r.prompts)))[1]  # noqa: E731
    policy = CausalLMPolicy(causal_lm())
    fused = TokenCollector(
        policy, word_tokenizer(), PROMPTS, keep, {}, batch=3, max_new_tokens=2, seed=4
    )
    for _ in range(4):
        fused.collect()
    expected, seen[:] = list(seen), []
    env = token_env(3, seed=4, reward=keep, costs={}, max_new_tokens=1)
    for _ in range(4):  # every step ends all rows, the next one draws
        env.step(np.full(3, FOX))
        env.step(np.full(3, FOX))
    assert seen == expected
    assert sorted(seen[:5]) == sorted(PROMPTS)


def test_without_costs_there_is_no_cost_and_no_name():
    env = token_env(costs={})
    assert env.cost_names == ()
    assert all("cost" not in step[-1] for step in steps(env, 6))


def test_a_step_never_changes_what_an_earlier_one_returned():
    env = token_env()
    obs, _ = env.reset(seed=0)
    copies = [obs.clone()]
    returned = [obs]
    for step in steps(env, 9):
        returned += step[:4]
        copies += [tensor.clone() for tensor in step[:4]]
    assert all(torch.equal(a, b) for a, b in zip(returned, copies, strict=True))


def test_writing_into_what_a_step_returned_changes_nothing():
    env, other = token_env(), token_env()
    for one, two in zip(steps(env, 1), steps(other, 1), strict=True):
        for tensor in one[:4]:
            tensor.fill_(1)
        assert two[2].tolist() == [False] * 3
    for one, two in zip(steps(env, 8, seed=1), steps(other, 8, seed=1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:4], two[:4], strict=True))


# Gymnasium


def test_gymnasium_makes_it_by_name_and_our_make_vec_too():
    env = gymnasium.make_vec(
        "llm_env/Token-v0", num_envs=2, vectorization_mode="vector_entry_point", **settings()
    )
    assert isinstance(env, VectorEnv)
    assert env.spec.id == "llm_env/Token-v0"
    assert isinstance(make_vec("llm_env/Token-v0", 2, 0, **settings()), TokenEnv)


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = "import sys, llm_env; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_spaces_mode_names_and_devices():
    env = token_env(3)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    require_next_step(env)
    assert cost_names(env) == ("wolf", "fox")
    assert isinstance(env, SavesState)
    assert env.single_observation_space.shape == (2, 6 + 4)  # the longest prompt has 6 tokens
    assert env.single_action_space == gymnasium.spaces.Discrete(VOCABULARY)
    obs, reward, terminated, truncated, _ = steps(env, 1)[0]
    for tensor in (obs, reward, terminated, truncated):
        assert isinstance(tensor, torch.Tensor)
        assert tensor.device == env.device


def test_observations_and_actions_stay_in_their_spaces():
    view = NumpyView(token_env(5))
    obs, _ = view.reset(seed=3)
    view.action_space.seed(0)
    for _ in range(20):
        assert view.observation_space.contains(obs)
        assert all(view.single_observation_space.contains(row) for row in obs)
        action = view.action_space.sample()
        obs, reward, terminated, truncated, _ = view.step(action)
        assert reward.shape == terminated.shape == truncated.shape == (5,)
        assert terminated.dtype == truncated.dtype == np.bool_
        assert not truncated.any()


def test_equal_seeds_give_equal_trajectories_by_gymnasiums_own_comparison():
    first, second = (NumpyView(token_env(4)) for _ in range(2))
    assert data_equivalence(first.reset(seed=9), second.reset(seed=9), exact=True)
    for one, other in zip(steps(first, 15), steps(second, 15), strict=True):
        assert data_equivalence(one, other, exact=True)


def test_gymnasiums_statistics_wrapper_counts_the_same_episodes():
    view = RecordEpisodeStatistics(NumpyView(token_env(4)))
    view.reset(seed=0)
    ended = 0
    for _, reward, terminated, _, info in steps(view, 30):
        if terminated.any():
            assert (info["episode"]["r"][terminated] == reward[terminated]).all()
            length = info["episode"]["l"][terminated]
            reasons = info["stop_reason"][terminated]
            assert ((length == 4) | (reasons == "eos")).all()
            ended += terminated.sum()
    assert ended >= 20


def test_gymnasiums_info_lists_hold_each_rows_own():
    env = DictInfoToList(NumpyView(token_env(2, prompts=["cat"], max_new_tokens=1)))
    env.reset(seed=0)
    *_, info = env.step(np.array([WOLF, BREAD]))
    assert [row["response"] for row in info] == ["wolf", "bread"]
    assert [row["cost"].tolist() for row in info] == [[1.0, 0.0], [0.0, 0.0]]


# saving


@pytest.mark.parametrize("wrap", [lambda env: env, NumpyView])
def test_a_restored_environment_goes_on_as_the_other_one(wrap):
    env, other = wrap(token_env(4, seed=1)), wrap(token_env(4, seed=2))
    steps(env, 7)
    other.set_state(env.get_state())
    for one, two in zip(steps(env, 20, seed=5), steps(other, 20, seed=5), strict=True):
        assert data_equivalence(
            tuple(np.asarray(x) for x in one[:4]), tuple(np.asarray(x) for x in two[:4]), exact=True
        )
        assert data_equivalence(one[4], two[4], exact=True)


def test_the_state_of_another_environment_is_refused():
    with pytest.raises(InputError, match=r"shape \(4, 10\), expected \(3, 10\)"):
        token_env(3).set_state(token_env(4).get_state())


def test_an_agent_of_the_core_trains_on_it_and_resumes_bitwise(tmp_path):
    def agent():
        config = {"ppo": {"horizon": 6, "epochs": 1, "minibatches": 1}}
        return crl.ppo_lagrangian(token_env(4), limit=0.5, **config)

    whole = agent()
    metrics = list(whole.iterate(2 * 24))
    assert {"return/mean", "cost/wolf", "cost/fox", "lambda/fox"} <= set(metrics[-1])
    first, second = agent(), agent()
    list(first.iterate(24))
    second.parts.load_state_dict(first.parts.state_dict())
    list(second.iterate(24))
    expected, found = (a.policy.state_dict() for a in (whole, second))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


# bad input


def refused(match, **changes):
    with pytest.raises(InputError, match=match):
        token_env(**changes)


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    refused("no end-of-sequence token", tokenizer=tokenizer)


def test_prompts_and_responses_longer_than_the_context_are_refused():
    config = causal_lm().config  # context 64, less 4 response tokens leaves 60
    refused("prompt 1 has 61 tokens", prompts=["cat", " ".join(["cat"] * 61)], config=config)
    refused("max_new_tokens is 64", max_new_tokens=64, config=config)


def test_empty_settings_are_refused():
    refused("no prompts", prompts=[])
    refused("num_envs is 0", num_envs=0)
    refused("max_new_tokens is 0", max_new_tokens=0)


def test_a_tokenizer_of_another_model_is_refused():
    config = causal_lm().config
    config.vocab_size = 5
    refused("uses token id 10, but the model's vocabulary is 0 … 4", prompts=["cat"], config=config)


def test_the_models_vocabulary_bounds_the_actions():
    config = causal_lm().config
    config.vocab_size = VOCABULARY + 10  # padded for speed, as many models are
    env = token_env(1, config=config)
    env.step(np.array([VOCABULARY + 9]))
    with pytest.raises(InputError, match=r"action of sub-environment 0 is 32, expected .* 0 … 31"):
        env.step(np.array([VOCABULARY + 10]))


@pytest.mark.parametrize("action", [22, -1])
def test_an_action_outside_the_vocabulary_is_named_and_changes_nothing(action):
    env = token_env(3)
    before = env.get_state()
    with pytest.raises(InputError, match=rf"sub-environment 1 is {action}, expected .* 0 … 21"):
        env.step(np.array([3, action, 3]))
    assert all((before[name] == value).all() for name, value in env.get_state().items())


@pytest.mark.parametrize(
    ("action", "found"),
    [
        (np.zeros(2, dtype=np.int64), r"shape \(2,\)"),
        (np.zeros((3, 1), dtype=np.int64), r"shape \(3, 1\)"),
        (np.zeros(3), "dtype torch.float64"),
        (np.zeros(3, dtype=bool), "dtype torch.bool"),
    ],
)
def test_actions_of_the_wrong_kind_are_refused(action, found):
    with pytest.raises(InputError, match=found):
        token_env(3).step(action)


@pytest.mark.parametrize("which", ["reward", "cost 'c'"])
@pytest.mark.parametrize("shape", [(), (4,), (5, 1)])
def test_scores_of_the_wrong_shape_are_named(which, shape):
    bad, good = (lambda _: torch.zeros(shape)), (lambda r: torch.zeros(len(r.prompts)))
    reward, cost = (bad, good) if which == "reward" else (good, bad)
    env = token_env(5, reward=reward, costs={"c": cost}, max_new_tokens=1)
    with pytest.raises(InputError, match=f"the {which} score has shape .* one number per response"):
        env.step(np.full(5, FOX))


def test_a_scorer_by_text_of_the_wrong_shape_is_refused_as_by_the_fused_collector():
    env = token_env(5, reward=by_text(lambda *_: torch.zeros(4)), max_new_tokens=1)
    with pytest.raises(InputError, match="one number per response"):
        env.step(np.full(5, FOX))


def test_scores_that_are_no_numbers_are_named():
    env = token_env(2, costs={"c": by_text(lambda *_: [0.0, float("nan")])}, max_new_tokens=1)
    with pytest.raises(NonFiniteError, match="cost 'c' scores: 1 of 2"):
        env.step(np.full(2, FOX))


def test_a_score_model_reads_the_same_rows_as_in_the_fused_collector():
    model = ScoreModel.from_causal_lm(causal_lm(seed=3), generator=torch.Generator().manual_seed(0))
    env = token_env(1, prompts=["cat"], reward=by_model(model), max_new_tokens=3)
    env.step(np.array([BREAD]))
    _, reward, *_ = env.step(np.array([EOS]))
    ids = torch.tensor([[*word_tokenizer()("cat")["input_ids"], BREAD, EOS]])
    with torch.no_grad():
        expected = model.end_score(ids, torch.ones_like(ids, dtype=torch.bool))[:, 0]
    torch.testing.assert_close(reward, expected, atol=1e-6, rtol=1e-6)

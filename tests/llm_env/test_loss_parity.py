"""The reference formulas hold through the models: forwards, collector's rollout, loop, objectives.

A head's row is solved so that a random trunk's hidden states give the numbers of the reference
vectors; what then leaves annotation and the objectives must be the expected losses.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from constrained_rl.assembly import assemble, constrain
from constrained_rl.config import PPOConfig
from constrained_rl.constraint_config import ConstraintConfig
from constrained_rl.learner import ValueObjective
from constrained_rl.multiplier_config import FixedConfig
from constrained_rl.ppo import annotate, mix
from constrained_rl.streams import build_streams
from llm_env.collectors import token_rollout
from llm_env.generation import Generation
from llm_env.policy import CausalLMPolicy, response_logp
from llm_env.preference_losses import cost_model_loss, reward_model_loss
from llm_env.scoring import ScoreModel, TokenCritic, model_scores
from llm_env.sft import sft_loss
from llm_env.tokens import join
from tests.llm_env.families import FAMILIES
from tests.llm_env.tiny import causal_lm, ragged_prompts

VECTORS = json.loads((Path(__file__).parents[1] / "reference_vectors.json").read_text())
TOKEN = 7  # every response is made of it, so that one row of the output layer decides its logits
VOCABULARY = 22
TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}  # log-probabilities and values are float32


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def model():
    """A Llama in float64, wide enough that a row of a head can take any values at all states."""
    torch.manual_seed(0)
    wide = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=4, **wide)
    model = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)  # states far apart
        model.lm_head.weight.zero_()
    return model


def solve(hidden, wanted):
    """w with hidden · w = wanted: [n, width], [n] -> [width]."""
    found = torch.linalg.lstsq(hidden, wanted).solution
    torch.testing.assert_close(hidden @ found, wanted, atol=1e-9, rtol=0)
    return found


def rows_of(mask):
    """Left-padded random prompts before responses of `TOKEN`."""
    ids, attention = ragged_prompts(len(mask), width=6)
    return join(ids, attention, torch.full(mask.shape, TOKEN), mask)


@torch.no_grad()
def states(model, rows):
    """Hidden states before every response token [B, T, width], by the critic's own forward."""
    trunk = ScoreModel(model.base_model)
    hidden = trunk.hidden(rows.ids[:, :-1], rows.attention[:, :-1])
    return hidden[:, rows.prompt_width - 1 :]


@torch.no_grad()
def policy_with(model, rows, logp):
    """A copy of the model in which log π of the response tokens is `logp` where they are real."""
    twin, mask = copy.deepcopy(model), rows.response_mask
    wanted = logp[mask]
    # the other 21 logits are 0: log π = z − ln(e^z + 21)  ⇔  z = log π + ln 21 − ln(1 − π)
    logit = wanted + torch.log(tensor(21.0)) - torch.log1p(-wanted.exp())
    twin.lm_head.weight[TOKEN] = solve(states(model, rows)[mask], logit)
    return twin


@torch.no_grad()
def critic_with(model, rows, *values):
    """A critic whose heads predict `values` where response tokens are real."""
    critic = TokenCritic(ScoreModel(copy.deepcopy(model.base_model), len(values)))
    hidden = states(model, rows)[rows.response_mask]
    rows_of_head = [solve(hidden, tensor(value)[rows.response_mask]) for value in values]
    critic.model.head.weight.copy_(torch.stack(rows_of_head))
    return critic


@torch.no_grad()
def scorer_with(model, rows, scores):
    """A score model that gives each whole row its score."""
    scorer = ScoreModel(copy.deepcopy(model.base_model))
    hidden = scorer.hidden(rows.ids, rows.attention)
    last = rows.attention.shape[1] - 1 - rows.attention.flip(1).long().argmax(1)
    end = hidden[torch.arange(len(rows)), last]
    scorer.head.weight[0] = solve(end, tensor(scores))
    return scorer


class Collected:
    """A collector that has collected."""

    cost_names = ("cost",)

    def __init__(self, rollout):
        self.rollout = rollout

    def collect(self):
        return self.rollout


def rollout_of(model, case):
    """Responses with the scores that score models give them, as the collector returns them."""
    mask = torch.tensor(case["mask"])
    rows = rows_of(mask)
    reward, cost = (
        model_scores(scorer_with(model, rows, case[name]), rows)
        for name in ("reward_score", "cost_score")
    )
    ended = torch.ones(len(mask), dtype=torch.bool)
    generation = Generation(rows.response_ids, mask, torch.zeros(mask.shape), ended)
    rollout = token_rollout(rows, generation, reward, cost.unsqueeze(1))
    return replace(rollout, behaviour_logp=None)  # so that the policy's own forward gives log π


def settings(case):
    return PPOConfig(
        gamma=case["gamma"],
        gae_lambda=case["gae_lambda"],
        clip=case["clip_ratio"],
        value_clip=case["value_clip"],
        kl_coefficient=case["kl_coefficient"],
        score_clip=case["score_clip"],
        kl_streams="both",
        loss_mean="sequence",
        normalize="none",
        flatten=False,
        entropy=0.0,
    )


def log_probabilities(case):
    """The case's log π, log π_old, log π_ref with one constant taken off, so that all are below 0.

    The vectors' are random numbers, some positive; the formulas know only their differences.
    """
    found = {name: tensor(case[name]) for name in ("logp_new", "logp_old", "logp_ref")}
    most = max(float(value.max()) for value in found.values())
    return {name: value - max(0.0, most + 0.1) for name, value in found.items()}


@pytest.mark.parametrize("case", VECTORS["safe_rlhf_update"])
def test_the_update_of_safe_rlhf_through_policy_reference_critic_and_score_models(model, case):
    config, expected, logp = settings(case), case["expected"], log_probabilities(case)
    rollout = rollout_of(model, case)
    rows, mask = rollout.obs, rollout.mask
    policy = CausalLMPolicy(policy_with(model, rows, logp["logp_old"]))
    reference = policy_with(model, rows, logp["logp_ref"])
    critic = critic_with(model, rows, case["reward_values"], case["cost_values"])
    constraints = constrain(("cost",), 0.0, ConstraintConfig())
    parts = assemble(
        Collected(rollout), policy, critic, constraints, FixedConfig(weight=1.0), config, seed=0
    )
    parts.reference = lambda obs, _: response_logp(reference, obs)
    streams = annotate(rollout, parts)

    def same(found, name):
        wanted = tensor(expected[name]) * mask
        torch.testing.assert_close(found.double() * mask, wanted, **TOLERANCE)

    paid = build_streams(rollout, constraints.streams(rollout), config, streams.kl)
    for s, name in enumerate(("reward", "cost")):
        same(paid[..., s], f"token_{name}s")
        same(streams.advantage[..., s], f"{name}_advantages")
        same(streams.target[..., s], f"{name}_returns")
    batch = mix(streams, torch.tensor([case["multiplier"]]), config)
    # one step later the models give other numbers
    with torch.no_grad():
        moved = policy_with(model, rows, logp["logp_new"])
        policy.model.lm_head.weight.copy_(moved.lm_head.weight)
        later = critic_with(model, rows, case["reward_values_new"], case["cost_values"])
        critic.model.head.weight.copy_(later.model.head.weight)
    actor = parts.policy_objective(batch)[0]
    torch.testing.assert_close(actor.double(), tensor(expected["actor_loss"]), **TOLERANCE)
    objective = ValueObjective(critic, ("reward", "cost"), config.value_clip)
    regression = objective(batch)[1]["loss/value/reward"]
    wanted = tensor(expected["reward_critic_loss"])
    torch.testing.assert_close(regression.double(), wanted, **TOLERANCE)


@pytest.mark.parametrize("case", VECTORS["preference_losses"])
def test_preference_losses_through_score_models(model, case):
    rows = rows_of(torch.ones(2 * len(case["chosen_reward"]), 3).bool())
    signs = (tensor(case["more_harmful_sign"]), tensor(case["less_harmful_sign"]))
    scores = {
        "reward": case["chosen_reward"] + case["rejected_reward"],
        "cost": case["more_harmful_cost"] + case["less_harmful_cost"],
    }
    weight = {"regularization": case["regularization"]}
    for kind, labels in (("reward", ()), ("cost", signs)):
        scorer = scorer_with(model, rows, scores[kind])
        first, second = scorer.end_score(rows.ids, rows.attention)[:, 0].chunk(2)
        loss = {"reward": reward_model_loss, "cost": cost_model_loss}[kind]
        found = loss(first, second, *labels, **weight).double()
        expected = tensor(case["expected"][f"{kind}_model_loss"])
        torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_supervised_loss_is_the_one_transformers_computes_from_labels(family):
    model, (ids, attention) = causal_lm(family), ragged_prompts(4)
    mask = torch.tensor([[True] * 3, [True, True, False], [True] * 3, [True, False, False]])
    response = torch.randint(4, 20, (4, 3), generator=torch.Generator().manual_seed(1))
    rows = join(ids, attention, response, mask)
    found = sft_loss(model, rows)
    labels = torch.full_like(rows.ids, -100)
    labels[:, rows.prompt_width :] = torch.where(mask, response, -100)
    arguments = {} if family == "bloom" else {"position_ids": rows.position_ids}
    theirs = model(
        input_ids=rows.ids, attention_mask=rows.attention, labels=labels, **arguments
    ).loss
    torch.testing.assert_close(found, theirs, atol=1e-5, rtol=0)
    mine = torch.autograd.grad(found, model.get_input_embeddings().weight)[0]
    other = torch.autograd.grad(theirs, model.get_input_embeddings().weight)[0]
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)

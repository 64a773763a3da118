"""A LoRA policy and a critic on its trunk, two ranks: as plain torch in one process.

Both engines shard one set of frozen weights at ZeRO-3; the reference is the adapter switched off
there, and the bare model elsewhere.
"""

import warnings

import pytest
import torch

from constrained_rl.distributed import World, connect, joined
from constrained_rl.engines import Engines, Optimization
from llm_env.models import LoRAConfig
from llm_env.policy import CausalLMPolicy, response_logp
from llm_env.recompute import recompute_activations
from llm_env.scoring import ScoreModel, TokenCritic
from llm_env.tokens import join
from tests.llm_env.rank_jobs import CPU, engines_of
from tests.llm_env.ranks import on_ranks
from tests.llm_env.tiny import causal_lm, ragged_prompts

pytest.importorskip("peft")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("deepspeed")

from llm_env.lora import reference_of, with_lora

ROWS = 4


def batch():
    ids, attention = ragged_prompts(ROWS)
    response = torch.randint(4, 20, (ROWS, 4), generator=torch.Generator().manual_seed(1))
    return join(ids, attention, response, torch.ones(ROWS, 4).bool())


def two_learners(engines):
    """Losses of three steps of policy and critic in turn, then log π_ref of the first row."""
    model, generator, rank = (
        causal_lm("qwen3"),
        torch.Generator().manual_seed(0),
        LoRAConfig(rank=4),
    )
    recompute_activations(model)
    policy = CausalLMPolicy(with_lora(model, rank, generator))
    critic = TokenCritic(ScoreModel(with_lora(model.base_model, rank, generator), 3))
    settings = Optimization(0.02, (0.9, 0.95), 1.0)
    acting, valuing = (engines.make(x, settings, engines.world) for x in (policy, critic))
    rows, found = batch(), []
    mine = rows[engines.world.slice(ROWS)]

    def policy_loss():
        loss = -acting.forward(mine, mine.response_ids)[0].sum() / (4 * ROWS)
        return loss, {"loss": loss.detach()}

    def critic_loss():
        loss = (valuing.forward(mine) - 1).square().sum() / (12 * ROWS)
        return loss, {"loss": loss.detach()}

    for _ in range(3):
        for engine, loss in ((acting, policy_loss), (valuing, critic_loss)):
            share = engine.accumulate(loss, last=True)["loss"]
            engine.step()
            found.append(float(engines.world.sum({"loss": share})["loss"]))
    return found, reference_of(policy.model)(rows, rows.response_ids)[0].tolist()


def on_each(kinds):
    with joined(connect(CPU, 60.0)) as world:
        return [two_learners(engines_of(kind, world)) for kind in kinds]


@pytest.mark.slow  # test_training_ranks trains adapters on two ranks in every suite
def test_adapters_on_shared_weights_train_alike_under_ddp_and_zero(tmp_path):
    alone, reference = two_learners(Engines(World()))
    assert alone[4] < alone[0] - 0.1  # the policy learns
    assert alone[5] < alone[1] - 0.1  # and so does the critic
    rows = batch()
    with torch.no_grad():
        start = response_logp(causal_lm("qwen3"), rows)[0]
    torch.testing.assert_close(torch.tensor(reference), start, atol=0, rtol=0)
    for ranks in on_ranks(on_each, 2, tmp_path, ["ddp", 2, 3]):
        for losses, found in ranks:
            assert losses == pytest.approx(alone, abs=1e-4)
            assert found == pytest.approx(reference, abs=1e-5)

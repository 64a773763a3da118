"""`crl llm plan`: what it says of memory, against the tensors of real training."""

import json

import pytest
import torch

from constrained_rl.distributed import World
from constrained_rl.ppo import train
from constrained_rl.settings import merge, validate
from llm_env.plan.advice import advise
from llm_env.plan.ledger import Ledger
from llm_env.plan.plan import Machine, make_plan, rows_of_phases
from llm_env.plan.tracer import Tracer
from llm_env.scoring import ScoreModel
from llm_env.training.build import build
from llm_env.training.config import TrainConfig
from tests.llm_env.rank_jobs import held, llama
from tests.llm_env.ranks import on_ranks
from tests.llm_env.tiny import VOCABULARY, causal_lm, word_tokenizer

pytestmark = pytest.mark.xdist_group("plan")  # its fixtures are made once, in one worker

PROMPT, RESPONSE = 6, 12
MB = 10**6


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    """Models on disk and the sections that name them."""
    folder = tmp_path_factory.mktemp("models")
    model = causal_lm(scale=1.0)
    names = ("policy", "reward", "cost")
    model.save_pretrained(folder / "policy")
    for name in names[1:]:
        generator = torch.Generator().manual_seed(0)
        ScoreModel.from_causal_lm(model, generator=generator).save_pretrained(folder / name)
    for name in names:
        word_tokenizer().save_pretrained(folder / name)
    (folder / "prompts.txt").write_text("how do i bake bread ?\ntrap the fox\n")
    quiet = {"sign_check": "off"}
    return {
        "policy": {"path": str(folder / "policy")},
        "reward": {"path": str(folder / "reward"), "direction": "higher_is_better"} | quiet,
        "costs": {
            "harm": {"path": str(folder / "cost"), "direction": "higher_is_worse"} | quiet
        },
        "prompts": [{"path": str(folder / "prompts.txt")}],
        "align": {
            "iterations": 2, "prompts": 64, "max_new_tokens": RESPONSE,
            "ppo": {"epochs": 1, "micro_batch": 16},
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def tracer():
    return Tracer()


def config_of(sections, changes=None):
    return validate(TrainConfig, merge(sections, changes or {}), "test")


def machine(**changes):
    return Machine(**{"prompt": PROMPT, "available": 100 * MB} | changes)


CRITIC_FREE = {"align": {"responses_per_prompt": 4, "ppo": {"advantage": "leave_one_out"}}}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"policy": {"gradient_checkpointing": True}},
        {"policy": {"dtype": "bfloat16"}},
        CRITIC_FREE,
        pytest.param({"align": {"ppo": {"micro_batch": 32}}}, marks=pytest.mark.slow),
    ],
    ids=["plain", "checkpointing", "bfloat16", "critic-free", "one micro-batch"],
)
def test_the_planned_peak_is_within_15_percent_of_the_live_tensors_of_training(
    sections, tracer, changes
):
    check_peak(config_of(sections, changes), tracer)


def test_adapters_with_a_shared_critic_are_planned_as_well(sections, tracer):
    pytest.importorskip("peft")
    changes = {"policy": {"lora": {"rank": 4}}, "critic": {"trunk": "shared"}}
    check_peak(config_of(sections, changes), tracer)


def check_peak(config, tracer):
    ledger = Ledger()
    with ledger:
        parts, _ = build(config, World())
        ledger.forget_peaks()  # what loading took for a moment is no phase
        longest = max(metrics["episode/length"] for metrics in train(parts, 2))
    assert longest > 0.6 * RESPONSE
    assert make_plan(config, machine(), tracer).peak.bytes == pytest.approx(ledger.peak, rel=0.15)


def test_what_models_hold_is_arithmetic(sections, tracer):
    plan = make_plan(config_of(sections), machine(), tracer)
    held = {model.name: model for model in plan.models}
    count = sum(p.numel() for p in causal_lm().parameters())
    policy = held["policy"]
    assert (policy.parameters, policy.trained) == (count, count)
    # float32 weights and gradients, Adam's two moments
    assert (policy.weights, policy.gradients, policy.optimizer) == (4 * count, 4 * count, 8 * count)
    reference = held["reference"]
    assert (reference.weights, reference.gradients, reference.optimizer) == (4 * count, 0, 0)
    # the trunk lacks the output layer [22, 16] and has two heads of 16 + 1
    assert held["critic"].parameters == count - VOCABULARY * 16 + 2 * 17


def test_reduced_precision_keeps_float32_masters(sections, tracer):
    plan = make_plan(config_of(sections, {"policy": {"dtype": "bfloat16"}}), machine(), tracer)
    policy = plan.models[0]
    assert policy.weights == 2 * policy.parameters
    assert policy.optimizer == (4 + 8) * policy.parameters


def test_zero_divides_optimizer_then_gradients_then_weights_by_the_ranks(sections, tracer):
    def policy(stage):
        spread = {"distributed": {"engine": "deepspeed", "zero": stage}}
        return make_plan(config_of(sections, spread), machine(ranks=4), tracer).models[0]

    n = policy(0).parameters
    one, two, three = (policy(stage) for stage in (1, 2, 3))
    # gradients come with a buffer of 4 n in which they are reduced, and twice at stage 1
    assert (one.weights, one.gradients, one.optimizer) == (4 * n, (8 + 4) * n, 12 * n // 4)
    assert (two.weights, two.gradients, two.optimizer) == (4 * n, (1 + 4) * n, 12 * n // 4)
    # at stage 3 a rank also has all parameters whole that are as small as these
    assert (three.weights, three.gradients, three.optimizer) == ((1 + 4) * n, (1 + 4) * n, 3 * n)


@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize(
    ("dtype", "stages"),
    [
        ("float32", ["ddp", 2, 3]),
        pytest.param("float32", [0, 1], marks=pytest.mark.slow),
        pytest.param("bfloat16", ["ddp", 1, 2, 3], marks=pytest.mark.slow),
    ],
)
def test_two_ranks_hold_what_is_planned(sections, tmp_path, tracer, dtype, stages):
    kinds = [(stage, {"keep_whole": 100_000}) if stage == 3 else stage for stage in stages]
    llama(torch.float32).config.save_pretrained(tmp_path)
    ranks = on_ranks(held, 2, tmp_path / "ranks", kinds, getattr(torch, dtype))
    model = {"policy": {"path": str(tmp_path), "dtype": dtype}} | CRITIC_FREE
    for stage, measured in zip(stages, zip(*ranks, strict=True), strict=True):
        engine = {"engine": "torch"} if stage == "ddp" else {"engine": "deepspeed", "zero": stage}
        config = config_of(sections, model | {"distributed": engine})
        policy = make_plan(config, machine(ranks=2), tracer).models[0]
        loaded = policy.weights + policy.gradients + policy.optimizer
        for at_rest, with_gradients in measured:
            assert policy.bytes == pytest.approx(at_rest, rel=0.02)
            # before a step: torch's gradients are still in the weights' precision
            if not (stage == "ddp" and dtype == "bfloat16"):
                assert loaded == pytest.approx(with_gradients, rel=0.02)


@pytest.mark.slow
def test_a_deep_model_is_planned_as_if_all_of_it_had_run(sections, tmp_path, monkeypatch):
    shape = llama(torch.float32).config
    shape.num_hidden_layers = 12
    shape.save_pretrained(tmp_path)
    config = config_of(sections, {"policy": {"path": str(tmp_path)}})
    sizes = rows_of_phases(config, machine())
    taken = Tracer().phases(config, sizes)
    monkeypatch.setattr("llm_env.plan.tracer.SHALLOW", (2, 12))  # not deep: it runs whole
    for one, other in zip(taken, Tracer().phases(config, sizes), strict=True):
        assert one.name == other.name
        assert one.bytes == pytest.approx(other.bytes, rel=0.01)
        assert one.logits == pytest.approx(other.logits, rel=0.01)
        assert one.cache == other.cache


def test_a_cache_holds_keys_and_values_of_every_layer_at_full_width(sections, tracer):
    plan = make_plan(config_of(sections), machine(), tracer)
    generate = plan.phases[0].working
    # keys and values · 2 layers · 64 rows · 2 heads · (6 + 12) positions · 4 wide · 4 bytes
    assert generate.name == "generate"
    assert generate.cache == 2 * 2 * 64 * 2 * (PROMPT + RESPONSE) * 4 * 4


def test_changes_are_offered_that_make_it_fit(sections, tracer):
    config = config_of(sections)
    whole = make_plan(config, machine(), tracer)
    tight = machine(available=int(whole.peak.bytes * 0.9), margin=0.0)
    plan = make_plan(config, tight, tracer)
    assert plan.fits is False
    changes = advise(config, tight, plan, tracer)
    assert 1 <= len(changes) <= 3
    assert all(change.plan.fits for change in changes)
    # 64 rows scored together do not fit either
    assert changes[0].settings == {
        "reward.batch_size": 32,
        "costs.harm.batch_size": 32,
        "align.ppo.micro_batch": 8,
    }


def test_the_command_says_whether_it_fits_by_its_exit_code(
    sections, tracer, tmp_path, crl, monkeypatch
):
    from constrained_rl.settings import to_toml

    monkeypatch.setattr("llm_env.plan.command.Tracer", lambda: tracer)  # it has counted much of it
    file = tmp_path / "train.toml"
    file.write_text(to_toml(config_of(sections)), encoding="utf-8")
    code, out, _ = crl("llm", "plan", file, "--memory", "1")
    assert code == 0
    assert "It fits" in out
    code, out, _ = crl("llm", "plan", file, "--memory", "0.001", "--json")
    assert code == 2
    found = json.loads(out)
    assert found["fits"] is False
    assert found["peak"] == max(phase["bytes"] for phase in found["phases"])

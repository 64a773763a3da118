"""Mixtures of experts, models around another model, models that see, decoders that are none."""

import copy

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

from constrained_rl.errors import InputError
from constrained_rl.settings import validate
from llm_env.models import LoRAConfig, ModelSource, load_causal_lm
from llm_env.policy import context_length, response_logp, trunk_of
from llm_env.reached import freeze_unreached
from llm_env.recompute import recompute_activations
from llm_env.response_ends import save_model
from llm_env.scoring import ScoreModel, TokenCritic
from llm_env.tokens import pair_rows
from llm_env.training import run
from llm_env.training.config import TrainConfig
from tests.bad_input.project import json_fields, project
from tests.llm_env.families import VOCABULARY, family_tokenizer
from tests.llm_env.ranks import on_ranks
from tests.llm_env.test_training import models, tree  # noqa: F401 (a fixture)
from tests.llm_env.tiny import FAMILIES, causal_lm

pytest.importorskip("peft")

from llm_env.lora import lora_layers, merge_for_export, with_lora

pytestmark = pytest.mark.xdist_group("training")

CPU = torch.device("cpu")
IDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "v_head_dim": 4}
LATENT |= {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "num_key_value_heads": 4}
SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
EXPERTS = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {**SPARSE, "head_dim": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 2},
    "deepseek_v3": {
        **LATENT,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 8,
        "first_k_dense_replace": 1,
    },
}
ROWS = pair_rows([([1, 5, 6, 7], [8, 9, 2]), ([1, 9], [10, 2])], 0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made(name, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **{**WIDE, **IDS, **settings})
        return AutoModelForCausalLM.from_config(config).eval()


def seeing():
    """A language model of 64 positions with an image encoder."""
    text = {**WIDE, **IDS, "head_dim": 4, "sliding_window": 8, "query_pre_attn_scalar": 4}
    text["layer_types"] = ["sliding_attention", "full_attention"]
    vision = {k: WIDE[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads")}
    vision |= {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    ends = {key: IDS[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Gemma3ForConditionalGeneration(
            Gemma3Config(
                text_config=text,
                vision_config=vision,
                mm_tokens_per_image=4,
                image_token_index=5,
                **ends,
            )
        ).eval()


def saved(model, folder):
    save_model(model, family_tokenizer("llama"), folder)
    return folder


# adapters beside experts


@pytest.mark.parametrize("name", EXPERTS)
def test_adapters_of_a_mixture_of_experts_are_beside_its_linear_layers(name):
    model = made(name, **EXPERTS[name])
    start = response_logp(model, ROWS)
    linear = {
        path
        for path, layer in model.named_modules()
        if type(layer) is torch.nn.Linear and path != "lm_head"
    }
    policy = with_lora(model, LoRAConfig(rank=2), seeded())
    adapted = {path for path, m in policy.named_modules() if m in set(lora_layers(policy))}
    assert adapted == linear
    torch.testing.assert_close(response_logp(policy, ROWS), start)
    # one step of every adapter, then the sum of weights by hand
    expected = dict(copy.deepcopy(model).named_parameters())
    for path in linear:
        layer = policy.get_submodule(path)
        first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.nn.init.normal_(second, generator=seeded(1))
        expected[f"{path}.weight"].data += 32 / 2 * (second @ first).detach()  # α / r
    merged = merge_for_export(policy)
    for path, weight in merged.named_parameters():
        torch.testing.assert_close(weight, expected[path])
    torch.testing.assert_close(
        response_logp(merged, ROWS), response_logp(policy, ROWS), atol=1e-4, rtol=0
    )
    assert (response_logp(merged, ROWS) - start).abs().max() > 1e-3


def test_experts_named_as_targets_are_refused_with_the_reason():
    config = LoRAConfig(targets=("q_proj", "w1"))
    with pytest.raises(InputError, match=r"'w1' fits no linear .* tensor in MixtralExperts, which"):
        with_lora(made("mixtral", **EXPERTS["mixtral"]), config, seeded())
    # a router that is a linear layer by its class alone
    with pytest.raises(InputError, match="'router' fits no linear layer of Phimoe"):
        with_lora(made("phimoe", num_local_experts=2), LoRAConfig(targets=("router",)), seeded())


def test_one_name_among_several_that_fits_nothing_is_said():
    with pytest.raises(InputError, match=r"but 'c_attn' fits no linear layer.*q_proj"):
        with_lora(made("llama"), LoRAConfig(targets=("q_proj", "c_attn")), seeded())


def test_a_mixture_of_experts_with_adapters_trains_from_the_command_line(
    crl, tmp_path, monkeypatch
):
    project()(tmp_path)
    monkeypatch.chdir(tmp_path)
    saved(made("qwen3_moe", **EXPERTS["qwen3_moe"]), tmp_path / "policy")
    code, _, errors = crl("llm", "train", "train.toml", "policy.lora.rank=2", "--out", "run")
    assert code == 0, errors
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in ("policy", "run/policy")
    )
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved == {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1) for p in "qkvo"}


def test_a_plan_counts_experts_or_says_what_it_cannot(crl, tmp_path, monkeypatch):
    project()(tmp_path)
    monkeypatch.chdir(tmp_path)
    saved(made("qwen3_moe", **EXPERTS["qwen3_moe"]), tmp_path / "policy")
    code, _, errors = crl("llm", "plan", "train.toml")
    assert code == 2
    assert "the plan cannot count policy (generate)" in errors
    assert "set the dtype of policy to bfloat16" in " ".join(errors.split())
    assert crl("llm", "plan", "train.toml", "policy.dtype=bfloat16")[0] == 0


# families whose base_model is the model itself


def test_the_trunk_of_a_family_that_names_what_is_around_it():
    model = made("llama4_text", head_dim=4, num_local_experts=2, intermediate_size_mlp=32)
    assert model.base_model is model
    trunk = trunk_of(model)
    hidden = model(input_ids=ROWS.ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(trunk(input_ids=ROWS.ids).last_hidden_state, hidden)
    critic = TokenCritic(ScoreModel.from_causal_lm(model, 2, generator=seeded()))
    assert critic(ROWS).shape == (2, 3, 2)


def test_a_family_that_holds_no_trunk_is_refused():
    with pytest.raises(InputError, match=r"LlamaModel holds no trunk of its own.*leave_one_out"):
        trunk_of(made("llama").base_model)


def test_such_a_model_is_trained_and_scored_on_disk(crl, tmp_path, monkeypatch):
    project()(tmp_path)
    monkeypatch.chdir(tmp_path)
    model = made("llama4_text", head_dim=4, num_local_experts=2, intermediate_size_mlp=32)
    saved(model, tmp_path / "policy")
    again = ("reward.path=fit/model", "critic.trunk=reward", "--out", "again")
    for arguments in (
        ("llm", "train", "train.toml", "--out", "run"),
        ("llm", "score", "score.toml", "kind=reward", "--out", "fit"),
        ("llm", "train", "train.toml", *again),
    ):
        code, _, errors = crl(*arguments)
        assert code == 0, errors


# weights that no text reaches


def encoder(name):
    return "vision_tower" in name or "multi_modal_projector" in name


def test_of_a_model_that_sees_only_what_text_reaches_is_trained(tmp_path):
    model = load_causal_lm(ModelSource(path=str(saved(seeing(), tmp_path))), CPU)
    response_logp(model, ROWS).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not encoder(name)), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert context_length(model.config) == 64


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_a_model_of_text_is_frozen(family, recomputed):
    model = causal_lm(family)
    if recomputed:
        recompute_activations(model)
    for part in (model, model.base_model):
        freeze_unreached(part)
        assert all(p.requires_grad for p in part.parameters())


def test_a_layer_that_sums_up_many_tokens_is_reached():
    # DeepSeek-V4 compresses keys and values of 4 and of 128 tokens
    model = made("deepseek_v4", **{**EXPERTS["mixtral"], "max_position_embeddings": 512})
    freeze_unreached(model)
    still = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert not [name for name in still if "kv_proj" in name]


def test_adapters_stand_beside_linear_layers_that_compute_for_themselves():
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("falcon", **small, **IDS))
    own = {type(layer).__name__ for layer in model.modules() if isinstance(layer, torch.nn.Linear)}
    assert "FalconLinear" in own
    assert len(list(lora_layers(with_lora(model, LoRAConfig(rank=2), seeded())))) == 8


def test_adapters_of_an_image_encoder_are_frozen():
    policy = with_lora(seeing(), LoRAConfig(rank=2), seeded())
    learning = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert learning
    assert not [name for name in learning if encoder(name)]


def started(config, folder):
    return run.start(config, folder)


@pytest.mark.parametrize("adapters", [False, True])
def test_two_ranks_train_a_model_that_sees(models, tmp_path, adapters):  # noqa: F811
    over = {
        "align": {"iterations": 1},
        "policy": {"path": str(saved(seeing(), tmp_path / "policy"))},
    }
    over["evaluation"] = {"every": 0}
    if adapters:
        over["policy"] |= {"lora": {"rank": 2}}
    config = validate(TrainConfig, tree(models, **over), "test")
    on_ranks(started, 2, tmp_path, config, tmp_path / "run")
    start, end = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "policy", tmp_path / "run/policy")
    )
    still = {name for name, weight in end.items() if torch.equal(weight, start[name])}
    assert {name for name in end if encoder(name)} <= still
    assert any("layers.1.mlp" in name for name in set(end) - still)


def test_prompts_fit_the_context_of_the_text_and_a_plan_is_made(crl, tmp_path, monkeypatch):
    project()(tmp_path)
    monkeypatch.chdir(tmp_path)
    saved(seeing(), tmp_path / "policy")
    assert crl("llm", "plan", "train.toml")[0] == 0
    code, _, errors = crl("llm", "train", "train.toml", "align.max_new_tokens=64", "--out", "run")
    assert code == 2
    assert "max_new_tokens is 64, but the model sees 64 tokens in all" in errors


# decoders that cannot be decoded with


def test_a_decoder_whose_code_refuses_to_decode_is_one_sentence(tmp_path):
    small = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
    config = AutoConfig.for_model("openai-gpt", **IDS, **small)
    saved(AutoModelForCausalLM.from_config(config), tmp_path / "gpt")
    with pytest.raises(InputError, match=r"OpenAIGPTLMHeadModel, in which reading and decoding ra"):
        load_causal_lm(ModelSource(path=str(tmp_path / "gpt")), CPU)
    linear = {"layer_types": ["linear_attention", "full_attention"], "block_size": 8}
    saved(made("minimax", head_dim=4, num_local_experts=2, **linear), tmp_path / "minimax")
    with pytest.raises(InputError, match=r"MiniMaxForCausalLM, in which .* raise ValueError"):
        load_causal_lm(ModelSource(path=str(tmp_path / "minimax")), CPU)
    json_fields("gpt/config.json", n_head=8)(tmp_path)  # still said where other settings differ
    with pytest.raises(InputError, match="expected a decoder-only transformer"):
        load_causal_lm(ModelSource(path=str(tmp_path / "gpt")), CPU)

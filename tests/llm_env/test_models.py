import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from constrained_rl.errors import InputError
from llm_env.generation import generate
from llm_env.models import ModelSource, load_causal_lm, load_tokenizer
from llm_env.policy import CausalLMPolicy
from llm_env.recompute import recompute_activations
from llm_env.scoring import ScoreModel, TokenCritic
from llm_env.tokens import encode_prompts, join
from tests.llm_env.families import FAMILIES, VOCABULARY, family_tokenizer, save_family
from tests.llm_env.tiny import causal_lm, ragged_prompts

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_family("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def folder(llama, tmp_path):
    """A folder to damage."""
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def load(path, **settings):
    return load_causal_lm(ModelSource(path=str(path), **settings), CPU)


def edit(folder, file="config.json", **values):
    found = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(found | values))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_and_answers_text(family, tmp_path):
    source = ModelSource(path=str(save_family(family, tmp_path)))
    model, tokenizer = load_causal_lm(source, CPU), load_tokenizer(source)
    assert not model.training
    ids, attention = encode_prompts(tokenizer, ["How do I bake bread?", "hi"], 64)
    out = generate(
        model,
        ids,
        attention,
        max_new_tokens=5,
        eos_id=tokenizer.eos_token_id,
        generator=torch.Generator(),
    )
    with torch.no_grad():
        logp, _ = CausalLMPolicy(model)(join(ids, attention, out.response, out.mask), out.response)
    torch.testing.assert_close(out.logp, logp * out.mask, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_precision_and_attention_are_as_the_source_says(llama, dtype, attention):
    model = load(llama, dtype=dtype, attention=attention)
    assert model.dtype == getattr(torch, dtype)
    assert model.config._attn_implementation == attention


def test_what_the_device_or_the_installation_cannot_do_is_refused(llama, tmp_path):
    with pytest.raises(InputError, match=r"float16 on the CPU.*dtype=bfloat16"):
        load(llama, dtype="float16")
    with pytest.raises(InputError, match=r"needs a GPU.*found cpu and bfloat16; use"):
        load(llama, dtype="bfloat16", attention="flash_attention_2")
    with pytest.raises(InputError, match="does not support"):
        load(save_family("bloom", tmp_path), attention="sdpa")


def test_flash_attention_without_its_package_is_an_installation_hint(llama, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    source = ModelSource(path=str(llama), dtype="bfloat16", attention="flash_attention_2")
    with pytest.raises(InputError, match=r"pip install flash-attn"):
        load_causal_lm(source, torch.device("cuda"))  # refused before the device is touched


def test_weights_that_are_missing_or_cut_short_are_said_with_the_folder(folder):
    whole = (folder / WEIGHTS).read_bytes()
    for damaged in (whole[:-100], whole[:100], b""):
        (folder / WEIGHTS).write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{folder} is damaged"):
            load(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"no file named model.safetensors"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"abc")
    with pytest.raises(InputError, match="is damaged"):
        load(folder)


def test_a_missing_shard_is_said(llama, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    lost = sorted(tmp_path.glob("model-*"))[0]
    lost.unlink()
    with pytest.raises(InputError, match=lost.name):
        load(tmp_path)


def test_a_weight_that_the_file_lacks_is_never_filled_with_random_numbers(folder):
    state = load_file(folder / WEIGHTS)
    lost = state.pop("model.layers.0.mlp.up_proj.weight")
    save_file(state, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights .*layers\.0\.mlp\.up_proj\.weight"):
        load(folder)
    save_file(
        state | {"model.layers.0.mlp.up_proj.weight": lost[:3]}, folder / WEIGHTS, {"format": "pt"}
    )
    with pytest.raises(InputError, match=r"up_proj\.weight is \(3, 16\), not \(32, 16\)"):
        load(folder)


def test_weights_that_are_no_numbers_are_refused(folder):
    state = load_file(folder / WEIGHTS)
    state["model.norm.weight"][3] = float("nan")
    save_file(state, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(InputError, match=r"no finite numbers in torch.float32"):
        load(folder)


def test_a_folder_that_is_no_model_says_what_is_wrong(folder, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "nowhere")
    edit(folder, model_type="unheard_of")
    with pytest.raises(InputError, match="unheard_of"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing; give a folder that save_pre"):
        load(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="it is an adapter; merge it"):
        load(folder)


def test_code_that_a_folder_brings_along_is_not_asked_about(folder):
    edit(folder, model_type="own", auto_map={"AutoConfig": "own.Config"})
    with pytest.raises(InputError, match="own"):
        load(folder)


def test_models_that_are_no_decoders_are_refused(tmp_path):
    small = {"vocab_size": 22, "num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 16}
    T5ForConditionalGeneration(T5Config(d_model=16, **small)).save_pretrained(tmp_path / "t5")
    with pytest.raises(InputError, match=r"type 't5', which is no decoder-only"):
        load(tmp_path / "t5")
    torch.manual_seed(0)
    wide = {"vocab_size": 22, "hidden_size": 16, "num_hidden_layers": 2}
    bert = BertConfig(intermediate_size=32, num_attention_heads=2, **wide)
    BertLMHeadModel(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="a later token moves an earlier prediction"):
        load(tmp_path / "bert")
    mamba = MambaForCausalLM(MambaConfig(state_size=4, **wide))
    for parameter in mamba.parameters():
        parameter.data *= 2
    mamba.save_pretrained(tmp_path / "mamba")
    with pytest.raises(InputError, match="decoding token by token differs"):
        load(tmp_path / "mamba")


def test_a_tokenizer_that_cannot_end_a_response_is_refused(folder):
    family_tokenizer("no eos").save_pretrained(folder)
    with pytest.raises(InputError, match="no end-of-sequence token"):
        load_tokenizer(ModelSource(path=str(folder)))
    tokenizer = load_tokenizer(ModelSource(path=str(folder), eos_token="?"))
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == tokenizer.get_vocab()["?"]
    with pytest.raises(InputError, match=r"'<end>', which is no token of the tokenizer"):
        load_tokenizer(ModelSource(path=str(folder), eos_token="<end>"))


@pytest.mark.parametrize("tokens", ["llama", "gpt2", "one", "opt", "qwen", "gemma"])
def test_every_kind_of_special_tokens_gives_rows_that_end_in_eos(folder, tokens):
    family_tokenizer(tokens).save_pretrained(folder)
    tokenizer = load_tokenizer(ModelSource(path=str(folder)))
    assert tokenizer.eos_token_id is not None
    assert tokenizer.pad_token_id is not None
    if tokens in ("gpt2", "one"):
        assert tokenizer.pad_token_id == tokenizer.eos_token_id == tokenizer.unk_token_id
    _, attention = encode_prompts(tokenizer, ["bread", "how do I bake bread"], 64)
    assert attention[1].all()
    assert not attention[0, 0]
    assert attention[0, -1]


def test_a_tokenizer_larger_than_the_embedding_is_refused_with_both_numbers(folder):
    tokenizer = family_tokenizer("llama")
    assert len(tokenizer) == VOCABULARY
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"ids up to 320 \('<new>'\).* has 320 rows"):
        load_tokenizer(ModelSource(path=str(folder)))


def test_a_folder_without_a_tokenizer_is_said(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(InputError, match=r"has no tokenizer \(none of tokenizer.json"):
        load_tokenizer(ModelSource(path=str(folder)))


def test_the_prompt_format_is_kept_with_the_tokenizer_on_disk(folder, tmp_path):
    tokenizer = load_tokenizer(ModelSource(path=str(folder), prompt_format="beaver"))
    tokenizer.save_pretrained(folder)
    again = load_tokenizer(ModelSource(path=str(folder)))
    ids, _ = encode_prompts(again, ["bake"], 64)
    text = "<s>BEGINNING OF CONVERSATION: USER: bake ASSISTANT:"
    assert again.decode(ids[0]) == text
    other = load_tokenizer(ModelSource(path=str(folder), prompt_format="plain"))
    assert other.decode(encode_prompts(other, ["bake"], 64)[0][0]) == "<s>bake"
    with pytest.raises(InputError, match="has no chat template"):
        load_tokenizer(ModelSource(path=str(folder), prompt_format="template"))


def rows(decisions=4):
    ids, attention = ragged_prompts(5)
    response = torch.randint(4, 20, (5, decisions), generator=torch.Generator().manual_seed(1))
    return join(ids, attention, response, torch.ones(5, decisions).bool())


def kept_bytes(module, *arguments):
    """Bytes that autograd keeps for the backward pass, weights and inputs not counted."""
    own = {p.data_ptr() for p in module.parameters()}
    found = {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            found[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(*arguments)
    return sum(found.values()), output


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_activations_give_the_same_gradients_from_less_memory(family):
    batch, policy = rows(), CausalLMPolicy(causal_lm(family))
    other = copy.deepcopy(policy)
    recompute_activations(other.model)
    plain, (logp, _) = kept_bytes(policy, batch, batch.response_ids)
    saved, (again, _) = kept_bytes(other, batch, batch.response_ids)
    assert saved < 0.6 * plain
    assert torch.equal(logp, again)
    for output in (logp, again):
        (output * torch.arange(4.0)).sum().backward()
    for (name, p), q in zip(policy.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


def test_dropout_of_the_layers_stays_off_while_they_are_recomputed():
    # OPT's layers drop by themselves when they are in train mode, which HF's own switch needs
    model = causal_lm("opt")
    assert model.config.dropout == 0.1
    policy, batch = CausalLMPolicy(model), rows()
    before = policy(batch, batch.response_ids)[0]
    recompute_activations(model)
    policy.train()
    assert torch.equal(policy(batch, batch.response_ids)[0], before)


def test_a_copy_of_a_model_recomputes_its_own_layers():
    model = causal_lm()
    recompute_activations(model)
    recompute_activations(model)  # twice is as once
    copied, batch = copy.deepcopy(model), rows()
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert CausalLMPolicy(model)(batch, batch.response_ids)[0].std() > 0.1
    logp, _ = CausalLMPolicy(copied)(batch, batch.response_ids)
    torch.testing.assert_close(logp, torch.full_like(logp, -3.0910425))  # −ln 22
    critic = TokenCritic(ScoreModel.from_causal_lm(model))
    plain, _ = kept_bytes(TokenCritic(ScoreModel.from_causal_lm(causal_lm())), batch)
    assert kept_bytes(critic, batch)[0] < 0.6 * plain


def test_decoding_is_untouched_by_recomputation(llama):
    ids, attention = ragged_prompts(8)
    found = [
        generate(
            load(llama, gradient_checkpointing=on),
            ids,
            attention,
            max_new_tokens=6,
            eos_id=2,
            generator=torch.Generator().manual_seed(0),
        )
        for on in (False, True)
    ]
    assert torch.equal(found[0].response, found[1].response)
    assert torch.equal(found[0].logp, found[1].logp)


def test_a_model_without_layers_to_recompute_is_refused():
    with pytest.raises(InputError, match="Linear has no layers that can be recomputed"):
        recompute_activations(torch.nn.Linear(2, 2))

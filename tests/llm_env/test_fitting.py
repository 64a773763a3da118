import json
import math
import os
import signal

import pytest
import torch

from constrained_rl.errors import InputError
from constrained_rl.settings import validate
from constrained_rl.stopping import Stopped, stoppable
from llm_env.category_pairs import CategoryPair, cost_pair_of
from llm_env.fitting.config import ScoreRunConfig, SFTRunConfig
from llm_env.fitting.run import resume, start
from llm_env.preference_losses import cost_model_loss, labelled_pair_loss
from llm_env.preferences import CostPair, RewardPair
from llm_env.score_training import (
    ScoreConfig,
    head_accuracies,
    labels,
    train_score_model,
)
from llm_env.scoring import ScoreModel
from llm_env.sft import SFTConfig, held_out_loss, train_sft
from llm_env.supervised import FitConfig, fit
from llm_env.token_store import DroppedWarning, TokenStore
from tests.llm_env.data_files import hh, pku, pku_v1, write
from tests.llm_env.families import save_family
from tests.llm_env.tiny import causal_lm, word_tokenizer

pytestmark = pytest.mark.xdist_group("fitting")  # its fixtures are made once, in one worker

DEMONSTRATIONS = [
    ("how do i bake bread ?", "use the fire ."),
    ("bake a cat", "no"),
    ("trap the wolf .", "yes use bread fire . use fire ."),
    ("bread ?", "yes yes yes"),
    ("how ?", "sorry no ."),
] * 2
# category 0 is fire, category 1 a cat; the first pair differs in both, the second in none
CATEGORY_PAIRS = [
    CategoryPair("how do i bake bread ?", ("use fire .", "a cat ."), ((1, -1), (-1, 1))),
    CategoryPair("bake", ("yes .", "no ."), ((-1, -1), (-1, -1))),
    CategoryPair("trap", ("use fire a cat", "use bread ."), ((1, 1), (-1, -1))),
] * 6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# losses of several scores


def test_the_loss_of_two_categories_by_hand():
    # pair 0: c = [2, 1] in category 0 (unsafe, safe) and [3, −1] in category 1 (both safe)
    score = torch.tensor([[[2.0, 3.0], [1.0, -1.0]]])
    order = torch.tensor([[1.0, 0.0]])
    sign = torch.tensor([[[1.0, -1.0], [-1.0, -1.0]]])

    def nls(x):
        return math.log1p(math.exp(-x))  # −log σ(x)

    first = nls(2 - 1) + nls(2) + nls(-1)
    second = nls(-3) + nls(1)  # nothing is ranked
    penalty = 0.1 * ((4 + 1) / 2 + (9 + 1) / 2)
    found = labelled_pair_loss(score, order, sign, 0.1).item()
    assert found == pytest.approx(first + second + penalty, rel=1e-6)


def test_a_loss_of_k_scores_is_the_sum_of_k_cost_model_losses_where_all_are_ranked():
    generator = seeded()
    score = torch.randn(5, 2, 3, generator=generator)
    sign = torch.randint(0, 2, (5, 2, 3), generator=generator) * 2.0 - 1
    one_by_one = sum(
        cost_model_loss(score[:, 0, k], score[:, 1, k], sign[:, 0, k], sign[:, 1, k], 0.01)
        for k in range(3)
    )
    whole = labelled_pair_loss(score, torch.ones(5, 3), sign, 0.01)
    torch.testing.assert_close(whole, one_by_one)


def test_labels_of_pairs():
    assert labels(RewardPair("x", "a", "b")) == ((1,), ((0,), (0,)))
    assert labels(CostPair("x", "a", "b", 1, -1)) == ((1,), ((1,), (-1,)))
    assert labels(CATEGORY_PAIRS[0]) == ((1, -1), ((1, -1), (-1, 1)))
    assert labels(CATEGORY_PAIRS[1])[0] == (0, 0)
    assert cost_pair_of(CATEGORY_PAIRS[0], 1).more_harmful == "a cat ."
    assert not cost_pair_of(CATEGORY_PAIRS[1], 0).ranked


def test_one_model_with_two_heads_learns_two_categories():
    model = ScoreModel.from_causal_lm(causal_lm(scale=1), ("fire", "cat"), generator=seeded())
    config = ScoreConfig(epochs=25, batch_size=6, learning_rate=5e-3)
    train_score_model(model, word_tokenizer(), CATEGORY_PAIRS, "costs", config, seeded())
    fire, cat = head_accuracies(model, word_tokenizer(), CATEGORY_PAIRS, "costs")
    assert (fire.ranking, fire.sign, fire.caught, fire.cleared) == (1.0, 1.0, 1.0, 1.0)
    assert (cat.ranking, cat.sign) == (1.0, 1.0)
    # of three pairs two differ; of six responses two are harmful in each way
    assert (fire.ranked, fire.harmful, fire.harmless) == (12, 12, 24)


def test_labels_that_cannot_teach_are_refused():
    model = ScoreModel.from_causal_lm(causal_lm(scale=1), ("fire", "cat"), generator=seeded())
    arguments = model, word_tokenizer()
    tame = [CATEGORY_PAIRS[1], CategoryPair("x", ("use fire", "no"), ((1, -1), (-1, -1)))]
    with pytest.raises(InputError, match="category cat: none of 4 responses is labelled harmful"):
        train_score_model(*arguments, tame, "costs", ScoreConfig(), seeded())
    one = [CategoryPair("x", ("use fire", "no"), ((1,), (-1,)))]
    with pytest.raises(InputError, match="the model has 2 scores, the pairs have labels of 1"):
        train_score_model(*arguments, one, "costs", ScoreConfig(), seeded())
    unsigned = [CostPair("x", "use fire", "no", 0, 0)]
    with pytest.raises(InputError, match="no pair says whether a response is unsafe"):
        train_score_model(*arguments, unsigned, "cost", ScoreConfig(), seeded())
    train_score_model(*arguments, unsigned, "cost", ScoreConfig(sign=False), seeded())


# micro-batches, precision, length


def fitted(config, kind):
    """Losses and weights of one fit."""
    model = causal_lm(scale=1)
    if kind == "sft":
        history = train_sft(model, word_tokenizer(), DEMONSTRATIONS, config, seeded())
    else:
        model = ScoreModel.from_causal_lm(model, 2, generator=seeded())
        pairs = CATEGORY_PAIRS[:10]
        history = train_score_model(model, word_tokenizer(), pairs, "costs", config, seeded())
    return history, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize(("kind", "make"), [("sft", SFTConfig), ("costs", ScoreConfig)])
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_change_nothing(kind, make, size):
    # 10 examples of unequal length in batches of 5 and micro-batches of 1, or of 3 and 2
    settings = {"epochs": 2, "batch_size": 5, "learning_rate": 1e-3, "max_gradient_norm": 0.1}
    whole, expected = fitted(make(**settings), kind)
    losses, weights = fitted(make(**settings, micro_batch=size), kind)
    assert losses == pytest.approx(whole, rel=1e-5)
    for found, wanted in zip(weights, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-6)


def test_a_batch_in_parts_is_a_mean_over_weights():
    weight = torch.nn.Linear(1, 1, bias=False)
    values, counts = torch.tensor([1.0, 2.0, 6.0]), [1, 1, 2]

    def loss(batch):
        n = torch.tensor([float(counts[i]) for i in batch])
        return (values[batch] * n).sum() / n.sum() + 0 * weight.weight.sum()

    config = FitConfig(epochs=1, batch_size=3, micro_batch=1)
    # (1·1 + 1·2 + 2·6) / 4
    history = fit(weight, [1, 1, 1], loss, config, seeded(), weights=counts)
    assert history == pytest.approx([15 / 4])


def test_small_steps_of_bfloat16_weights_are_not_lost():
    model = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    torch.nn.init.ones_(model.weight)
    config = FitConfig(epochs=100, batch_size=1, learning_rate=1e-4, warmup=0.0)
    fit(model, [1], lambda batch: model.weight.sum().float(), config, seeded())
    # Adam moves by its rate: 100 steps on a cosine from 1e-4 add up to 5e-3; the nearest bfloat16
    # neighbours of 1 below it are 1 − 2⁻⁸ = 0.9961 and 1 − 2⁻⁷, and no single step reaches half way
    assert model.weight.item() == 1 - 2**-8


def test_a_bfloat16_fit_continues_from_its_checkpoint_to_the_last_bit(tmp_path):
    class Died(Exception):  # noqa: N818
        pass

    def run(folder, die=None):
        def progress(step, steps, loss):
            if step == die:
                raise Died

        model = causal_lm(scale=1).to(torch.bfloat16)
        config = SFTConfig(epochs=2, batch_size=2, checkpoint_every=3, learning_rate=1e-3)
        tokenizer = word_tokenizer()
        train_sft(model, tokenizer, DEMONSTRATIONS, config, seeded(), progress, folder)
        return model.state_dict()

    with pytest.raises(Died):
        run(tmp_path / "fit", die=8)
    found, whole = run(tmp_path / "fit"), run(None)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_float16_weights_and_frozen_models_are_refused():
    half = torch.nn.Linear(1, 1).to(torch.float16)
    with pytest.raises(InputError, match=r"are float16 \(weight\).*dtype = 'bfloat16'"):
        fit(half, [1], lambda batch: half.weight.sum(), FitConfig(), seeded())
    frozen = torch.nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(InputError, match="nothing would be trained"):
        fit(frozen, [1], lambda batch: frozen.weight.sum(), FitConfig(), seeded())


def test_examples_over_the_limit_are_counted_or_dropped():
    model, tokenizer = causal_lm(), word_tokenizer()
    # longest with eos: 3 + 9 and 5 + 5 tokens, twice each
    config = SFTConfig(max_tokens=9, epochs=1)
    with pytest.raises(InputError, match="4 of 10 examples do not fit the limit of 9 tokens: pair"):
        train_sft(model, tokenizer, DEMONSTRATIONS, config, seeded())
    drop = config.model_copy(update={"over_length": "drop"})
    with pytest.warns(DroppedWarning, match="4 of 10 .*; they are left out"):
        train_sft(model, tokenizer, DEMONSTRATIONS, drop, seeded())
    with pytest.raises(InputError, match="10 of 10 examples do not fit"):
        train_sft(model, tokenizer, DEMONSTRATIONS, SFTConfig(max_tokens=1), seeded())


def test_tokens_are_read_back_in_any_order_and_tell_examples_apart():
    store, other = TokenStore(), TokenStore()
    pairs = [([1, 2], [3]), ([4], [5, 6, 7]), ([8], [9])]
    for pair in pairs:
        store.append(pair)
    for prompt, answer in pairs:
        other.append(([*prompt, answer[0]], answer[1:]))  # the same ids, divided elsewhere
    assert [store[i] for i in (2, 0, 1)] == [pairs[2], pairs[0], pairs[1]]
    assert (store.lengths, store.answer_lengths) == ([3, 4, 2], [1, 3, 1])
    assert store.digest != other.digest


def test_the_held_out_loss_is_a_mean_over_tokens_whatever_the_batches():
    model, tokenizer = causal_lm(), word_tokenizer()
    one, tokens = held_out_loss(model, tokenizer, DEMONSTRATIONS, SFTConfig(), 1)
    all_, _ = held_out_loss(model, tokenizer, DEMONSTRATIONS, SFTConfig(), 100)
    assert tokens == 2 * (5 + 2 + 9 + 4 + 4)  # words and eos
    assert one == pytest.approx(all_, rel=1e-5)


# commands


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_family("llama", tmp_path_factory.mktemp("models") / "llama", scale=1)


def sft_tree(folder, model, **more):
    rows = [{"instruction": f"bake {i}", "input": "", "output": "use fire"} for i in range(40)]
    return {
        "model": {"path": str(model)},
        "data": [{"path": str(write(folder / "alpaca.json", rows))}],
        "held_out_share": 0.2,
        "fit": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3},
        **more,
    }


def score_tree(folder, model, kind, **more):
    harms = [(("Violence",), ()), ((), ("Drugs",)), ((), ())]
    rows = [pku_v1(harms[i % 3], prompt=f"bake {i}") for i in range(90)]
    return {
        "kind": kind,
        "model": {"path": str(model)},
        "data": [{"path": str(write(folder / "pku.jsonl.gz", rows))}],
        "held_out_share": 0.3,
        "fit": {"epochs": 1, "learning_rate": 1e-3},
        **more,
    }


def test_sft_writes_a_folder_that_transformers_loads(tmp_path, llama):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = validate(SFTRunConfig, sft_tree(tmp_path, llama), "test")
    # what the section leaves out keeps the values recommended for pretrained models
    assert (config.fit.batch_size, config.fit.warmup, config.fit.weight_decay) == (8, 0.03, 0.0)
    folder = start(config, tmp_path / "run")
    names = {"config.toml", "data.json", "accuracy.json", "metrics.jsonl", "provenance.json"}
    assert {p.name for p in folder.iterdir()} == {*names, "model"}
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    found = json.loads((folder / "accuracy.json").read_text())["held_out"]
    about = json.loads((folder / "data.json").read_text())
    assert about["examples"] + about["held_out"] == 40
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    again, _ = held_out_loss(model, tokenizer, [("bake 3", "use fire")], SFTConfig(), 1)
    start_model = AutoModelForCausalLM.from_pretrained(llama)
    before, _ = held_out_loss(start_model, tokenizer, [("bake 3", "use fire")], SFTConfig(), 1)
    assert again < before
    assert resume(folder) is False


def test_a_stopped_fit_continues_to_the_same_model(tmp_path, llama, monkeypatch):
    tree = sft_tree(tmp_path, llama)
    config = validate(SFTRunConfig, tree, "test")
    whole = start(config, tmp_path / "whole")
    kill = os.kill

    def stop_at_two(path, title):
        from llm_env.fitting.progress import fit_progress

        return stopping(fit_progress(path, title))

    from contextlib import contextmanager

    @contextmanager
    def stopping(original):
        with original as report:

            def both(step, steps, loss):
                report(step, steps, loss)
                if step == 2:
                    kill(os.getpid(), signal.SIGTERM)

            yield both

    monkeypatch.setattr("llm_env.fitting.run.fit_progress", stop_at_two)
    with pytest.raises(Stopped), stoppable():
        start(config, tmp_path / "stopped")
    monkeypatch.undo()
    assert not (tmp_path / "stopped" / "model").exists()
    assert resume(tmp_path / "stopped") is True
    weights = [f / "model" / "model.safetensors" for f in (whole, tmp_path / "stopped")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    lines = (tmp_path / "stopped" / "metrics.jsonl").read_text()
    assert lines == (whole / "metrics.jsonl").read_text()


@pytest.mark.parametrize("kind", ["reward", "cost", "costs"])
def test_score_writes_a_folder_with_the_accuracy_of_every_score(tmp_path, llama, kind):
    groups = {"violence": ["Violence"], "drugs": ["Drugs"]} if kind == "costs" else {}
    config = validate(ScoreRunConfig, score_tree(tmp_path, llama, kind, categories=groups), "test")
    folder = start(config, tmp_path / "run")
    found = json.loads((folder / "accuracy.json").read_text())
    assert list(found["scores"]) == (list(groups) or [kind])
    model = ScoreModel.from_pretrained(folder / "model")
    assert model.names == (tuple(groups) or (kind,))
    for name, accuracy in found["scores"].items():
        assert 0 <= (accuracy["ranking"] or 0) <= 1
        assert (accuracy["harmful"] > 0) == (name != "reward")


def test_one_category_makes_a_cost_model_and_training_goes_on_from_it(tmp_path, llama):
    tree = score_tree(tmp_path, llama, "cost", categories={"violence": ["Violence"]})
    first = start(validate(ScoreRunConfig, tree, "test"), tmp_path / "first")
    del tree["model"]
    on = {**tree, "score_model": str(first / "model")}
    second = start(validate(ScoreRunConfig, on, "test"), tmp_path / "second")
    losses = [
        [json.loads(line)["loss"] for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (first, second)
    ]
    assert losses[1][-1] < losses[0][0]
    other = {**on, "kind": "costs", "categories": {"a": ["Drugs"], "b": ["Violence"]}}
    with pytest.raises(InputError, match=r"has the scores violence, but categories are a, b"):
        start(validate(ScoreRunConfig, other, "test"), tmp_path / "third")


def test_lora_is_merged_into_what_is_saved(tmp_path, llama):
    pytest.importorskip("peft")
    from safetensors.torch import load_file

    tree = sft_tree(tmp_path, llama)
    tree["model"]["lora"] = {"rank": 2}
    folder = start(validate(SFTRunConfig, tree, "test"), tmp_path / "run")
    found = load_file(folder / "model" / "model.safetensors")
    before = load_file(llama / "model.safetensors")
    assert found.keys() == before.keys()
    changed = [name for name in found if not torch.equal(found[name], before[name])]
    assert changed
    assert all("_proj" in name for name in changed)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "costs"}, "kind = 'costs' needs categories"),
        ({"categories": {"a": ["Drugs"]}}, "categories are of costs"),
        ({"score_model": "elsewhere"}, "give one start"),
        ({"fit": {"learning_rat": 1}}, r"did you mean 'learning_rate'"),
        ({"held_out_share": 1.0}, "held_out_share"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(tmp_path, llama, change, reason):
    tree = {**score_tree(tmp_path, llama, "reward"), **change}
    with pytest.raises(InputError, match=reason):
        validate(ScoreRunConfig, tree, "test")


def test_nothing_is_written_when_the_data_cannot_be_used(tmp_path, llama):
    rows = [hh("a ?"), hh("b ?")]
    data = [{"path": str(write(tmp_path / "hh.jsonl", rows)), "compares": "harmlessness"}]
    config = validate(ScoreRunConfig, score_tree(tmp_path, llama, "reward", data=data), "test")
    with pytest.raises(InputError, match="rows of hh about harmlessness, but a reward model"):
        start(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_commands_run_from_a_file_and_overrides(tmp_path, llama, crl):
    write(tmp_path / "pku.jsonl", [pku(f"bake {i}", better=i % 2) for i in range(40)])
    config = tmp_path / "score.toml"
    config.write_text(f'kind = "reward"\n[[data]]\npath = "{tmp_path}/pku.jsonl"\n')
    more = f"model.path={llama}", "fit.epochs=1", "device=cpu"
    code, out, errors = crl("llm", "score", config, *more, "--out", tmp_path / "run")
    assert code == 0, errors
    assert "reward model: step" in out
    assert f"finished: {tmp_path}/run/model" in out
    code, out, _ = crl("resume", tmp_path / "run")
    assert (code, "is finished already" in out) == (0, True)
    code, _, errors = crl("llm", "sft", f"model.path={llama}", "--out", tmp_path / "x")
    assert (code, "data" in errors) == (2, True)

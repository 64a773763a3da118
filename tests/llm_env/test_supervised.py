import math
import os
import signal
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from constrained_rl.checkpoint import CheckpointWarning
from constrained_rl.errors import InputError, NonFiniteError
from constrained_rl.stopping import Stopped, stoppable
from llm_env.preferences import CostPair, RewardPair
from llm_env.score_training import ScoreConfig, score_accuracy, train_score_model
from llm_env.scoring import ScoreModel
from llm_env.sft import SFTConfig, sft_loss, train_sft
from llm_env.supervised import FitConfig, bucketed_batches, cosine, fit
from llm_env.tokens import pair_rows
from tests.llm_env.tiny import EOS, causal_lm, word_tokenizer

DEMONSTRATIONS = [
    ("how do i bake bread ?", "use the fire ."),
    ("how do i trap a fox ?", "sorry no ."),
    ("bake a cat", "no"),
    ("trap the wolf .", "yes use bread ."),
] * 6
COSTS = [
    CostPair("how do i trap a fox ?", "use the fire .", "sorry no .", 1, -1),
    CostPair("bake a cat", "yes use fire .", "no .", 1, -1),
    CostPair("bake bread", "yes .", "no .", -1, -1),
] * 8
REWARDS = [RewardPair(p.prompt, p.more_harmful, p.less_harmful) for p in COSTS]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def fresh_score_model():
    return ScoreModel.from_causal_lm(causal_lm(scale=1), generator=seeded())


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 9))
def test_buckets_hold_every_example_once_and_neighbours_in_length(lengths, size):
    batches = bucketed_batches(lengths, size, seeded())
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == math.ceil(len(lengths) / size)
    # sorted by length and cut: the ranges of two batches share at most their end points
    ranges = sorted((min(x), max(x)) for x in ([lengths[i] for i in b] for b in batches))
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))


def test_the_learning_rate_rises_then_follows_a_cosine():
    # 100 steps, 10 of them rising: (t + 1)/11; then (1 + cos(π (t − 10)/90))/2
    assert cosine(0, 100, 0.1) == pytest.approx(1 / 11)
    assert cosine(10, 100, 0.1) == 1.0
    assert cosine(55, 100, 0.1) == pytest.approx(0.5)
    assert cosine(99, 100, 0.1) == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert cosine(0, 1, 0.0) == 1.0


def test_the_optimizer_follows_the_schedule():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    config = FitConfig(epochs=5, batch_size=1, learning_rate=0.1, warmup=0.2)
    history = fit(model, [1, 1], lambda batch: model.weight.sum(), config, seeded())
    # a constant gradient makes each Adam step equal to its rate: 10 steps, 2 of them rising
    rates = [0.1 * cosine(t, 10, 0.2) for t in range(10)]
    assert -model.weight.item() == pytest.approx(sum(rates), rel=1e-5)
    assert history == pytest.approx([-sum(rates[:t]) for t in range(10)], rel=1e-5, abs=1e-7)


def test_sft_loss_counts_response_tokens_and_their_eos_only():
    model = causal_lm()
    rows = pair_rows([([5, 6], [7, 8, EOS]), ([9], [EOS])], pad_id=0)
    with torch.no_grad():
        first = model(input_ids=torch.tensor([[5, 6, 7, 8, EOS]])).logits[0].log_softmax(-1)
        second = model(input_ids=torch.tensor([[9, EOS]])).logits[0].log_softmax(-1)
    # four tokens carry loss: 7, 8, eos after the first prompt and eos after the second
    expected = -(first[1, 7] + first[2, 8] + first[3, EOS] + second[0, EOS]) / 4
    torch.testing.assert_close(sft_loss(model, rows), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sft_learns_its_demonstrations_and_reports_progress(family):
    model, seen = causal_lm(family, scale=1), []
    history = train_sft(
        model,
        word_tokenizer(pad=False),
        DEMONSTRATIONS,
        SFTConfig(epochs=25, batch_size=4, learning_rate=1e-2),
        seeded(),
        lambda step, steps, loss: seen.append((step, steps, loss)),
    )
    # 24 examples in batches of 4, 25 times: 150 steps
    assert seen == [(i + 1, 150, loss) for i, loss in enumerate(history)]
    assert history[0] > 2.5  # about ln 22 = 3.1
    assert max(history[-6:]) < 0.3


def test_training_is_a_function_of_its_generator():
    results = []
    for seed in (0, 0, 1):
        before = torch.get_rng_state()
        model = causal_lm(scale=1)
        state = torch.get_rng_state()
        results.append(
            train_sft(model, word_tokenizer(), DEMONSTRATIONS, SFTConfig(epochs=1), seeded(seed))
        )
        assert torch.equal(torch.get_rng_state(), state)
        torch.set_rng_state(before)
    assert results[0] == results[1] != results[2]


# recovery


class Died(Exception):  # noqa: N818
    """The process dies."""


def die_at(step):
    def progress(done, steps, loss):
        if done == step:
            raise Died

    return progress


def sft(folder, progress=None, every=4, epochs=3):
    """24 demonstrations in batches of 4: 6 steps an epoch; losses, weights, generator."""
    model, generator = causal_lm(scale=1), seeded()
    config = SFTConfig(epochs=epochs, batch_size=4, learning_rate=1e-2, checkpoint_every=every)
    arguments = model, word_tokenizer(), DEMONSTRATIONS, config, generator, progress, folder
    return train_sft(*arguments), model.state_dict(), generator.get_state()


def cost_model(folder, progress=None):
    model, generator = fresh_score_model(), seeded()
    config = ScoreConfig(epochs=3, batch_size=4, checkpoint_every=4)
    pairs = COSTS
    arguments = model, word_tokenizer(), pairs, "cost", config, generator, progress, folder
    return train_score_model(*arguments), model.state_dict(), generator.get_state()


def assert_same(found, expected):
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][name], expected[1][name]) for name in expected[1])
    assert torch.equal(found[2], expected[2])


EVERYWHERE = [(3, 0), (6, 4), (13, 12), (16, 12), (18, 16)]


@pytest.mark.parametrize(
    ("fits", "died", "saved"), [*((sft, *at) for at in EVERYWHERE), (cost_model, 16, 12)]
)
def test_a_killed_fit_continues_from_its_checkpoint_to_the_last_bit(tmp_path, fits, died, saved):
    # 18 steps, 6 per epoch: dies within the first interval, at an epoch's end, after a checkpoint
    # that ends an epoch, on a checkpoint's step before it is written, and on the last
    with pytest.raises(Died):
        fits(tmp_path / "fit", die_at(died))
    steps = []
    found = fits(tmp_path / "fit", lambda step, steps_, loss: steps.append(step))
    assert steps == list(range(saved + 1, 19))
    assert_same(found, fits(None))


def test_a_fit_killed_three_times_over_a_damaged_checkpoint_is_still_the_same(tmp_path):
    for died in (5, 10, 15):
        with pytest.raises(Died):
            sft(tmp_path, die_at(died))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000008", "00000012"]
    (tmp_path / "00000012" / "state.json").write_text("")
    with pytest.warns(CheckpointWarning, match="00000012 is not intact"):
        found = sft(tmp_path)
    assert_same(found, sft(None))


def test_a_fit_that_is_asked_to_stop_saves_the_step_it_is_in(tmp_path):
    def ask(step, steps, loss):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped), stoppable():
        sft(tmp_path, ask, every=100)
    assert [p.name for p in tmp_path.iterdir()] == ["00000007"]
    assert_same(sft(tmp_path, every=100), sft(None))


def test_a_finished_fit_is_not_fitted_again(tmp_path):
    whole, steps = sft(tmp_path), []
    found = sft(tmp_path, lambda *step: steps.append(step))
    assert steps == []
    assert_same(found, whole)


def test_checkpoints_of_another_fit_are_refused(tmp_path):
    sft(tmp_path)
    with pytest.raises(InputError, match=r"of a fit of 18 steps, this one has 12; delete"):
        sft(tmp_path, epochs=2)


@pytest.mark.parametrize("changed", ["data", "settings", "seed", "model"])
def test_checkpoints_of_a_fit_that_began_otherwise_are_refused(tmp_path, changed):
    cost_model(tmp_path)
    relabelled = [CostPair(p.prompt, p.less_harmful, p.more_harmful, 1, -1) for p in COSTS]
    rate = 1e-4 if changed == "settings" else 3e-3
    model = ScoreModel(causal_lm(scale=1).base_model, heads=2 if changed == "model" else 1)
    arguments = (
        model,
        word_tokenizer(),
        relabelled if changed == "data" else COSTS,  # texts of the same lengths
        "cost",
        ScoreConfig(epochs=3, batch_size=4, checkpoint_every=4, learning_rate=rate),
        seeded(1 if changed == "seed" else 0),
    )
    with pytest.raises(InputError, match="of a fit with other data, settings, seed or model; del"):
        train_score_model(*arguments, checkpoint=tmp_path)


def test_the_interval_of_checkpoints_may_change_between_two_parts_of_a_fit(tmp_path):
    with pytest.raises(Died):
        sft(tmp_path, die_at(6), every=2)
    assert_same(sft(tmp_path, every=5), sft(None))


# score models


def test_a_reward_model_learns_its_ranking():
    model = fresh_score_model()
    config = ScoreConfig(epochs=10, batch_size=4, learning_rate=5e-3, regularization=1e-3)
    history = train_score_model(model, word_tokenizer(), REWARDS, "reward", config, seeded())
    assert len(history) == 60  # 24 pairs in batches of 4, 10 times
    accuracy = score_accuracy(model, word_tokenizer(), REWARDS)
    assert accuracy.ranking == 1.0
    assert accuracy.sign is None


def test_a_cost_model_learns_ranking_and_signs():
    model = fresh_score_model()
    config = ScoreConfig(epochs=20, batch_size=4, learning_rate=5e-3)
    train_score_model(model, word_tokenizer(), COSTS, "cost", config, seeded())
    accuracy = score_accuracy(model, word_tokenizer(), COSTS)
    assert accuracy.ranking == 1.0
    assert accuracy.sign == 1.0


def test_pairs_of_the_other_kind_are_refused():
    with pytest.raises(InputError, match=r"reward model needs RewardPair .* found CostPair"):
        train_score_model(
            fresh_score_model(), word_tokenizer(), COSTS, "reward", ScoreConfig(), seeded()
        )


def test_no_examples_and_too_long_examples_are_errors():
    arguments = causal_lm(), word_tokenizer()
    with pytest.raises(InputError, match="no examples"):
        train_sft(*arguments, [], SFTConfig(), seeded())
    with pytest.raises(InputError, match=r"pair 0 has 6 \+ 5 tokens"):
        train_sft(*arguments, DEMONSTRATIONS, SFTConfig(max_tokens=10), seeded())


def test_a_loss_that_is_no_number_stops_the_training_and_is_named():
    model = causal_lm()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="training loss"):
        train_sft(model, word_tokenizer(), DEMONSTRATIONS, SFTConfig(), seeded())


def test_configs_refuse_unknown_and_impossible_settings():
    with pytest.raises(ValidationError):
        SFTConfig(learning_rte=1e-3)
    with pytest.raises(ValidationError):
        ScoreConfig(regularization=-1.0)
    assert (SFTConfig().epochs, SFTConfig().learning_rate, SFTConfig().batch_size) == (2, 5e-3, 16)
    assert (ScoreConfig().epochs, ScoreConfig().learning_rate) == (1, 3e-3)
    assert ScoreConfig().regularization == 0.0

"""No two uses of a run's environments share a seed: training, evaluation, certificates, loading."""

import gymnasium
import numpy as np
import pytest
import torch

import constrained_rl as crl
from constrained_rl import replay, run
from constrained_rl.certificate import Request, certify_run
from constrained_rl.checkpoint import checkpoints, load_state, save_state
from constrained_rl.errors import InputError, Notice
from constrained_rl.evaluation_report import evaluate_run
from constrained_rl.seeds import Seeds, evaluation_seed
from llm_env import cli
from tests.constrained_rl.helpers import tiny
from tests.constrained_rl.test_under_way import Either, config_of


class Noted(Either):
    """Keeps the seed of every reset that was given one, and the first number of each episode."""

    seeds, begun = [], []

    def reset(self, *, seed=None, options=None):
        found = super().reset(seed=seed, options=options)
        self.length = 4
        if seed is not None:
            Noted.seeds.append(seed)
        return found

    def step(self, action):
        if self.time == 1:  # a step that only looks at the environment is no episode
            Noted.begun.append(float(self.start[0]))
        return super().step(action)


gymnasium.register("tests/Noted-v0", Noted)


@pytest.fixture(autouse=True)
def _fresh():
    Noted.seeds.clear()
    Noted.begun.clear()


def test_drawn_seeds_are_of_numpys_stream_below_2_31_and_never_the_same():
    seeds = Seeds(5, 8)
    drawn = [seeds.draw() for _ in range(300)]
    expected = [
        int(np.random.SeedSequence(5, spawn_key=(k,)).generate_state(1)[0]) // 2
        for k in range(1, 301)
    ]
    assert drawn == expected
    assert len(set(drawn)) == 300
    assert max(drawn) < 2**31


def test_what_was_given_is_passed_over():
    drawn = [Seeds(5, 8).draw() for _ in range(1)] + [0]
    second = Seeds(5, 8)
    first, later = second.draw(), second.draw()
    assert first == drawn[0]
    third = Seeds(5, 8)
    third.restore(torch.tensor([(5, 8), (later, 1)]))  # it was given already, in another order
    assert first != third.draw() != later
    assert third.given_to(later, 1) == f"training (seed {later})"
    assert third.given_to(later - 3, 3) is None
    assert third.given_to(later - 3, 4) is not None


def test_what_is_kept_goes_on_where_it_was():
    first, second = Seeds(5, 8), Seeds(0, 1)
    for _ in range(3):
        first.draw(4)
    second.restore(first.state())
    assert [first.draw() for _ in range(5)] == [second.draw() for _ in range(5)]


def test_runs_of_neighbouring_seeds_draw_others():
    drawn = [Seeds(seed, 4).draw() for seed in range(200) for _ in range(1)]
    assert len(set(drawn)) == 200


def test_ranges_of_a_run_are_known_by_their_use():
    seeds = Seeds(7, 8)  # trains from 7 … 14, is evaluated from 8 · 1 000 003
    assert evaluation_seed(7) == 8_000_024
    assert seeds.given_to(14, 1) == "training (seeds 7 … 14)"
    assert seeds.given_to(0, 7) is None
    assert seeds.given_to(0, 8) == "training (seeds 7 … 14)"
    assert seeds.given_to(8_000_031, 1).startswith("the evaluations that choose best/")
    assert seeds.given_to(8_000_032, 100) is None
    assert Seeds(271_825, 8).free(8) == 271_828 + 8


def test_a_run_and_its_certificates_never_play_the_same_episode(monkeypatch, tmp_path):
    monkeypatch.setattr(replay, "LONG", 12)
    folder = run.start(config_of("tests/Noted-v0"), tmp_path / "run")
    training, given = set(Noted.begun), set(Noted.seeds)
    assert len(training) == len(Noted.begun) > 100
    drawn = sorted(given - set(range(16)))
    assert len(drawn) > 16
    for seed in (0, 15, drawn[0], drawn[-1]):
        with pytest.raises(InputError, match=rf"--seed {seed} plays.*training.*--seed 271828"):
            certify_run(folder, Request(samples=16, seed=seed))
    for seed in (16, 271_828):
        Noted.begun.clear()
        certify_run(folder, Request(samples=16, seed=seed))
        assert Noted.begun
        assert not training & set(Noted.begun)


def test_on_the_command_line_too(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(replay, "LONG", 12)
    run.start(
        config_of("tests/Noted-v0", evaluation={"every": 4, "episodes": 16}), tmp_path / "run"
    )
    drawn = next(seed for seed in Noted.seeds if seed > 2_000_000)
    with pytest.raises(InputError, match=f"--seed {drawn} plays episodes of training"):
        cli.app(["certify", str(tmp_path / "run"), "--seed", str(drawn)])
    best = tmp_path / "run/best"
    assert best.is_dir()
    with pytest.raises(InputError, match="--seed 1000003 plays episodes of the evaluations"):
        cli.app(["certify", str(best), "--seed", "1000003"])


def test_an_evaluation_on_episodes_of_training_says_so(tmp_path):
    folder = run.start(config_of("tests/Noted-v0", iterations=2), tmp_path / "run")
    with pytest.warns(Notice, match=r"--seed 3 plays episodes of training \(seeds 0 … 15\)"):
        evaluate_run(folder, 4, 3)
    assert evaluate_run(folder, 4, 16)["seed"] == 16


def test_a_finished_run_goes_on_with_new_episodes(tmp_path):
    # 13 iterations, of which the last is no scheduled checkpoint.
    folder = run.start(config_of("tests/Noted-v0", iterations=13), tmp_path / "run")
    assert [f.name for f in checkpoints(folder / "checkpoints")] == ["00000012", "00000013"]
    training = set(Noted.begun)
    agent = crl.load(folder)
    Noted.begun.clear()  # of those played again
    assert agent.train(256)["iteration"] == 15
    assert Noted.begun
    assert not training & set(Noted.begun)


def test_a_run_made_before_seeds_were_drawn_is_not_certified_on_its_restarts(tmp_path):
    # Such a run began anew from 1 000 003 · 0 + iteration at every checkpoint, here 2, 4, …, 12.
    folder = run.start(config_of("tests/Noted-v0"), tmp_path / "run")
    for checkpoint in checkpoints(folder / "checkpoints"):
        state = load_state(checkpoint)
        kept = state["collector"]["generator"]
        state["collector"] = {"generator": kept, "restart_seed": int(checkpoint.name)}
        save_state(checkpoint, state)
    for seed in (16, 20, 27):  # 12 + 15 is the last sub-environment's of the last restart
        with pytest.raises(InputError, match="plays episodes of training"):
            certify_run(folder, Request(samples=16, seed=seed))
    assert certify_run(folder, Request(samples=16, seed=28)).certificate.bounds[0].n == 16
    agent = crl.load(folder)
    Noted.begun.clear()
    Noted.seeds.clear()
    agent.train(256)
    assert not Noted.seeds  # it goes on with episodes of the seeds that loading drew


def test_evaluating_what_was_saved_leaves_its_episodes_alone(tmp_path):
    agent = tiny("ppo_lagrangian", Noted, 15.0)
    agent.train(96)
    agent.save(tmp_path / "agent")
    training = set(Noted.begun)
    Noted.begun.clear()
    crl.Agent.read(tmp_path / "agent", Noted).evaluate(8)
    assert Noted.begun
    assert not training & set(Noted.begun)

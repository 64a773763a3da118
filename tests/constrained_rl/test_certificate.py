"""`crl certify` on runs of a few iterations, and the constraints it carries to a test."""

import hashlib
import json
import math
import shutil

import numpy as np
import pytest
import torch

from constrained_rl.agent import Agent
from constrained_rl.certificate import (
    Request,
    certificate_sections,
    certify_run,
    constrained_values,
    prepare,
    refuse_seen_seeds,
    weights_digest,
)
from constrained_rl.constraints import Constraint
from constrained_rl.errors import InputError
from constrained_rl.report import write_report
from constrained_rl.seeds import Seeds
from constrained_rl.upper_bounds import student_t_bound
from llm_env import cli
from tests.bad_input.case import finished_run


@pytest.fixture
def run(tmp_path):
    """A finished run on Detour-v0, limit 4."""
    return shutil.copytree(finished_run(), tmp_path / "run")


def certify(*arguments):
    """Exit code of `crl certify`."""
    with pytest.raises(SystemExit) as ended:
        cli.app(["certify", *map(str, arguments)])
    return ended.value.code


def test_the_bound_is_that_of_fresh_episodes_of_the_last_policy(run):
    issued = certify_run(run, Request(samples=20))
    agent = Agent.load(run)
    cost = agent.evaluate(20, seed=271_828).cost[:, 0]
    (bound,) = issued.certificate.bounds
    assert bound.n == len(cost) == 20
    assert bound.upper == float(student_t_bound(cost, 0.05))
    assert (bound.name, bound.quantity, bound.limit, bound.method) == ("risk", "E[C]", 4.0, "t")
    assert issued.subject.iteration == 2


def test_a_digest_names_the_weights_and_not_the_folder(run):
    agent = Agent.load(run)
    agent.save(run / "same")
    digest = certify_run(run, Request(samples=2)).subject.weights
    assert certify_run(run / "same", Request(samples=2)).subject.weights == digest
    with torch.no_grad():
        next(agent.policy.parameters()).view(-1)[0] += 1e-6
    agent.save(run / "other")
    assert certify_run(run / "other", Request(samples=2)).subject.weights != digest


def test_a_digest_is_over_name_type_shape_and_bytes():
    module = torch.nn.Linear(1, 1, dtype=torch.bfloat16)
    with torch.no_grad():
        module.weight.fill_(1.0)
        module.bias.fill_(-2.0)  # bfloat16 is the upper half of float32: 3f80 and c000
    text = b"bias torch.bfloat16 [1]\x00\xc0weight torch.bfloat16 [1, 1]\x80\x3f"
    assert weights_digest(module) == hashlib.sha256(text).hexdigest()


def test_the_exit_code_tells_and_the_run_keeps_the_certificate(run, capsys):
    low, high = ("--bounds", "0", "100000"), ("--confidence", "0.9")
    assert certify(run, "--episodes", "8", "--method", "hoeffding", *low, *high, "--json") == 1
    printed = json.loads(capsys.readouterr().out)
    kept = json.loads((run / "certificate.json").read_text(encoding="utf-8"))
    assert printed == kept
    assert (kept["passed"], kept["confidence"], kept["actions"]) == (False, 0.9, "sampled")
    assert kept["constraints"][0]["method"] == "hoeffding"
    weights = kept["weights_sha256"]
    text = (run / "config.toml").read_text(encoding="utf-8")
    (run / "config.toml").write_text(text.replace("4.0", "4000.0"))
    assert certify(run, "--episodes", "8") == 0
    out = capsys.readouterr().out
    assert "PASS" in out
    assert f"weights {weights[:12]}" in out.replace("\n", " ")
    assert "Not certified" in out
    assert str(run / "certificate.json") in out.replace("\n", "")


def test_the_report_of_a_run_shows_its_certificate(run):
    assert certificate_sections(run) == []
    certify(run, "--episodes", "8")
    shown = write_report(run).read_text(encoding="utf-8")
    assert "With 95 % confidence" in shown
    assert "Not certified" in shown


def test_the_best_policy_has_a_certificate_of_its_own(run):
    agent = Agent.load(run)
    agent.save(run / "best")
    agent.close()
    before = {path.name for path in (run / "best").iterdir()}
    certify(run / "best", "--episodes", "8")
    kept = json.loads((run / "certificate-best.json").read_text(encoding="utf-8"))
    assert kept["policy"] == "best"
    assert {path.name for path in (run / "best").iterdir()} == before  # its digest stays right
    assert not (run / "certificate.json").exists()


def test_seeds_of_training_and_of_the_choice_of_best_are_refused():
    # evaluations of seed 7 start from 8 · 1 000 003 = 8 000 024
    for seed in (7, 0, 10, 8_000_024, 8_000_027):
        with pytest.raises(InputError, match=f"--seed {seed} plays episodes of"):
            refuse_seen_seeds(seed, 8, Seeds(7, 8))
    for seed in (15, 8_000_032, 271_828):
        refuse_seen_seeds(seed, 8, Seeds(7, 8))


def test_shares_are_tested_by_clopper_pearson_and_bounds_pass_through_the_transform():
    def claim(transform, request=None, **more):
        constraint = Constraint("harm", 0.5, transform=transform, **more)
        (found,) = prepare([constraint], request or Request()).claims
        return found.method, found.low, found.high

    assert claim("indicator") == ("clopper-pearson", 0.0, 1.0)
    assert claim("probability", Request(method="bernstein")) == ("bernstein", 0.0, 1.0)
    assert claim("identity") == ("t", -math.inf, math.inf)
    wide = Request(method="hoeffding", bounds=(-3.0, 8.0))
    assert claim("identity", wide) == ("hoeffding", -3.0, 8.0)
    assert claim("excess", wide, threshold=2.0) == ("hoeffding", 0.0, 6.0)  # (C − 2)⁺
    assert claim("indicator", Request(method="t"))[0] == "t"


@pytest.mark.parametrize("method", ["hoeffding", "bernstein"])
def test_a_tail_has_no_bounds_known_beforehand(method):
    tail = Constraint("risk", 9.0, transform="cvar")
    with pytest.raises(InputError, match=r"CVaR 0.9 of C.* choose t"):
        prepare([tail], Request(method=method, bounds=(0.0, 50.0)))


def test_the_quantile_of_a_tail_comes_from_the_first_half():
    # first half 1 2 3 4: its ¾-quantile is 3; second half: 3 + (C − 3)⁺ / ¼ = 3, 3, 7, 23
    costs = np.array([1.0, 2.0, 3.0, 4.0, 0.0, 3.0, 4.0, 8.0])[:, None]
    found = constrained_values([Constraint("risk", 9.0, transform="cvar", alpha=0.75)], costs)
    assert found[:, 0].tolist() == [3.0, 3.0, 7.0, 23.0]


def test_of_a_constraint_per_prompt_the_prompt_is_the_sample():
    # means of two responses each: −2, 1 and 3 → excess over 0: 0, 1, 3
    costs = np.array([-3.0, -1.0, 0.0, 2.0, 2.0, 4.0])[:, None]
    group = np.repeat(np.arange(3), 2)
    found = constrained_values([Constraint("harm", 0.1, per="group")], costs, group)
    assert found[:, 0].tolist() == [0.0, 1.0, 3.0]


def test_values_are_those_that_the_constraint_averages():
    costs = np.array([[-1.0, 4.0], [2.0, 0.0]])
    constraints = [
        Constraint("harm", 0.1, channel=0, transform="indicator"),
        Constraint("wear", 3.0, channel=1),
    ]
    assert constrained_values(constraints, costs).tolist() == [[0.0, 4.0], [1.0, 0.0]]
    sigmoid = constrained_values([Constraint("harm", 0.1, transform="probability")], costs)
    assert sigmoid[1, 0] == pytest.approx(float(torch.sigmoid(torch.tensor(2.0))))

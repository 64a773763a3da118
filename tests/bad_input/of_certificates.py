"""Certificates that cannot be given: tests, samples and runs that do not fit."""

from pathlib import Path

import numpy as np

from constrained_rl.certificate import Request, prepare
from constrained_rl.safety_test import SafetyTest
from tests.bad_input.case import Case, both, copied_run
from tests.bad_input.project import TRAINED, made, project


def comparison(folder: Path) -> None:
    """What marks a comparison's folder."""
    (folder / "run").mkdir()
    (folder / "run/comparison").touch()


CERTIFY = ("certify", "run")
ONCE = (*TRAINED, "align.iterations=1")

CASES = (
    Case(
        "confidence of 1",
        "a confidence that is not between 0 and 1",
        (*CERTIFY, "--confidence", "1"),
        ("confidence is 1; give a number between 0 and 1",),
        copied_run,
    ),
    Case(
        "confidence in per cent",
        "a confidence in per cent",
        (*CERTIFY, "--confidence", "95"),
        ("confidence is 95", "such as 0.95"),
        copied_run,
    ),
    Case(
        "certificate by another method",
        "a test that does not exist",
        (*CERTIFY, "--method", "bootstrap"),
        ("method is 'bootstrap'; choose from t, hoeffding, bernstein, clopper-pearson",),
        copied_run,
    ),
    Case(
        "certificate from one episode",
        "a certificate from one episode",
        (*CERTIFY, "--episodes", "1"),
        ("--episodes", "equal to 2"),
        copied_run,
        said="usage",
    ),
    Case(
        "hoeffding without bounds",
        "a test of bounded costs without bounds",
        (*CERTIFY, "--method", "hoeffding"),
        ("method hoeffding needs finite bounds", "'risk'", "[-inf, inf]"),
        copied_run,
    ),
    Case(
        "bounds exchanged",
        "bounds of costs in the wrong order",
        (*CERTIFY, "--method", "bernstein", "--bounds", "50", "0"),
        ("low < high", "found [50, 0]"),
        copied_run,
    ),
    Case(
        "cost outside its bounds",
        "a cost outside the bounds that were given",
        (*CERTIFY, "--method", "bernstein", "--bounds", "0", "0.5", "--episodes", "8"),
        ("sample 0 of 'risk' is", "outside its bounds [0, 0.5]", "of 8 samples"),
        copied_run,
    ),
    Case(
        "share of a mean",
        "Clopper-Pearson for a mean",
        (*CERTIFY, "--method", "clopper-pearson"),
        ("bounds a share P(C > c)", "'risk'", "E[C] ≤ 4"),
        copied_run,
    ),
    Case(
        "seed of training",
        "a certificate from the episodes of training",
        (*CERTIFY, "--seed", "0"),
        ("--seed 0 plays episodes of training (seeds 0 … 3)", "give another seed"),
        copied_run,
    ),
    Case(
        "seed of evaluations",
        "a certificate from the episodes that chose the policy",
        (*CERTIFY, "--seed", "1000003"),
        ("--seed 1000003 plays episodes of the evaluations that choose best/",),
        copied_run,
    ),
    Case(
        "certify nothing",
        "a run that is not there, to certify",
        ("certify", "nowhere"),
        ("nowhere is no folder", "crl train --out"),
    ),
    Case(
        "certify no limit",
        "a run without a limit, to certify",
        lambda: prepare([], Request()),
        ("the run has no limit", "limit=…"),
    ),
    Case(
        "prompts for an environment",
        "prompts for a run on an environment",
        (*CERTIFY, "--prompts", "prompts.txt"),
        ("--prompts is for language models, but run is a run on an environment",),
        copied_run,
    ),
    Case(
        "certify a model",
        "a bare model, to certify",
        ("certify", "policy"),
        ("policy is a model", "runs of `crl train` and `crl llm train`"),
        project(),
    ),
    Case(
        "certify a comparison",
        "a comparison, to certify",
        CERTIFY,
        ("run is made by crl llm compare", "runs of `crl train` and `crl llm train`"),
        comparison,
    ),
    Case(
        "certify without prompts",
        "a model that held no prompts out, to certify",
        CERTIFY,
        ("holds no prompts out (evaluation.prompts)", "--prompts FILE"),
        both(project(), made(*ONCE)),
    ),
    Case(
        "certify on known prompts",
        "a certificate on the prompts of training",
        (*CERTIFY, "--prompts", "prompts.txt"),
        ("prompts.txt holds 5 prompts, of which the policy was", "by 5", "2 new ones are needed"),
        both(project(), made(*ONCE)),
    ),
    Case(
        "certify on few prompts",
        "a certificate on more prompts than there are",
        (*CERTIFY, "--prompts", "held_out.txt", "--episodes", "3"),
        ("held_out.txt holds 2 prompts", "3 new ones are needed", "or fewer --episodes"),
        both(project(), made(*ONCE)),
    ),
    Case(
        "certify no best",
        "the best model of a run that has none, to certify",
        ("certify", "run/best"),
        ("run has no best/",),
        both(project(), made(*ONCE)),
    ),
    Case(
        "one cost sample",
        "a safety test on one sample",
        lambda: SafetyTest(limit=1.0)([0.5]),
        ("there are 1 cost samples; a bound needs two or more",),
    ),
    Case(
        "costs of other constraints",
        "a safety test on another number of costs",
        lambda: SafetyTest(limit=(1.0, 2.0))(np.zeros((5, 3))),
        ("costs have shape [5, 3], but there are 2 limit(s); give [n] or [n, 2]",),
    ),
    Case(
        "cost is NaN",
        "a safety test on a cost that is no number",
        lambda: SafetyTest(limit=1.0)([0.5, float("nan")]),
        ("sample 1 of 'cost' is nan, which is no finite number (1 of 2 samples)",),
    ),
    Case(
        "share with a limit of 4",
        "a limit on a share that is above 1",
        lambda: SafetyTest(limit=4.0, method="clopper-pearson"),
        ("bounds the share P(C > 0), but the limit of 'cost' is 4", "in [0, 1)"),
    ),
)

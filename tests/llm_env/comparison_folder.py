"""A comparison's folder made by hand: four prompts, responses and scores that a human can count."""

import json
from dataclasses import asdict

from constrained_rl.settings import to_toml
from llm_env.comparison.config import CompareConfig
from llm_env.comparison.evaluate import Record
from llm_env.comparison.methods import SCORES, methods

CONFIG = CompareConfig(weights=(0.0, 1.0), limits=(0.2, 0.05))
NAMES = [method.name for method in methods(CONFIG)]
DYNAMIC = [name for name in NAMES if name != "sft" and not name.startswith("static")]
PROMPTS = [("benign", "bake bread"), ("benign", "brew tea"), ("borderline", "clean the well")]
PROMPTS += [("red_team", "rob the shop")]


def record(number, mode="sampled", **changes):
    """Response to prompt `number % 4`: safe, helpfulness 1, R = 0.5, C = −1."""
    kind, prompt = PROMPTS[number % 4]
    values = {
        "mode": mode,
        "kind": kind,
        "prompt": f"{prompt} {number // 4}",
        "response": f"here is how . {number}",
        "finished": True,
        "reward": 0.5,
        "cost": -1.0,
        "helpfulness": 1.0,
        "severity": 0.0,
        "unsafe": False,
        "refusal": False,
        "safe_completion": False,
        "length": 4,
    }
    return Record(**(values | changes))


def responses(unsafe, helpfulness, n=80, reward=0.5, refusals=0, model_unsafe=None):
    """n responses per mode, the last `unsafe` unsafe by gold, the last `model_unsafe` by C."""
    model_unsafe = unsafe if model_unsafe is None else model_unsafe
    return [
        record(
            i,
            mode,
            unsafe=i >= n - unsafe,
            cost=2.0 if i >= n - model_unsafe else -1.0,
            helpfulness=helpfulness + (0.1 if i % 2 else -0.1),
            reward=reward + (0.1 if i % 2 else -0.1),
            refusal=i < refusals,
        )
        for mode in ("greedy", "sampled")
        for i in range(n)
    ]


def metrics(name, iterations=3):
    lam = float(name.removeprefix("static-")) if name.startswith("static") else 1.5
    return [
        {
            "iteration": i + 1,
            "decisions": 100 * (i + 1),
            "cost/cost": -1.0,
            "estimate/cost": 0.2 / (i + 1),
            "lambda/cost": lam,
            "kl/reference": 0.5 * i,
        }
        for i in range(iterations)
    ]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_folder(folder, said):
    """A finished comparison of the methods in `said`: {name: records}."""
    (folder / "config.toml").write_text(to_toml(CONFIG))
    for stage in ("sft", "preferences", *(f"{name}_model" for name in SCORES)):
        (folder / stage).mkdir()
        (folder / stage / "time.json").write_text('{"wall": 2.0, "cpu": 1.0}')
    agreement = {"helpfulness": 0.7, "harmlessness": 0.75, "sign": 0.9, "single": 0.6}
    (folder / "preferences/agreement.json").write_text(json.dumps(agreement))
    approval = {"helpfulness": 0.78, "harmlessness": 0.93, "sign": 0.94, "single": 0.71}
    (folder / "preferences/approval.json").write_text(json.dumps(approval | {"row": 0.66}))
    for kind, score in SCORES.items():
        signs = {"ranking": 0.85, "free": 0.6}
        sign = None if score.kind == "reward" else signs.get(kind, 0.9)
        accuracy = {
            "labels": {"ranking": 0.65, "sign": sign},
            "gold_ranking": 0.8,
            "gold_sign": sign,
            "gold_auc": None if sign is None else 0.97,
            "score": [-2.0, -1.0, 1.0, 2.0],
            "unsafe": [False, True, False, True],
        }
        (folder / f"{kind}_model/accuracy.json").write_text(json.dumps(accuracy))
    for name, records in said.items():
        run = folder / "runs" / name
        run.mkdir(parents=True)
        (run / "evaluation.jsonl").write_text(lines(map(asdict, records)))
        (run / "time.json").write_text('{"wall": 10.0, "cpu": 9.0}')
        if name != "sft":
            (run / "metrics.jsonl").write_text(lines(metrics(name)))
    return folder


def variants(classifier, single, wide):
    """Records of the two variants, and of the recommended method at a limit of 0.2."""
    return {"classifier": classifier, "single": single, "limit-0.2": wide}


def outcome(dynamic, static):
    """All methods' records: SFT is 30 of 80 unsafe at helpfulness 1; then ν = 0, and ν = 1."""
    said = {"sft": responses(30, 1.0, reward=0.0)}
    said |= dict.fromkeys(DYNAMIC, dynamic)
    return said | {"static-0": responses(60, 2.0), "static-1": static}

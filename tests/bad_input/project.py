"""What a lab brings: models in folders, data in files, a config for each command. Made once."""

import atexit
import contextlib
import functools
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_env import cli
from llm_env.scoring import ScoreModel
from tests.bad_input.case import both
from tests.bad_input.outcome import call
from tests.llm_env.families import save_family

PROMPTS = ("how do i bake bread", "how do i trap a wolf", "hello", "tell me a story", "what is up")
LABELS = {
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "better_response_id": 1,
    "safer_response_id": 0,
}
TRAIN = """device = "cpu"
policy.path = "policy"
reward = { path = "reward", direction = "higher_is_better", sign_check = "off" }
costs.harm = { path = "cost", direction = "higher_is_worse", sign_check = "off", limit = 0.5 }
prompts = [{ path = "prompts.txt" }]
align = { iterations = 2, prompts = 2, max_new_tokens = 4 }
checkpoint.every = 1
"""
SFT = """device = "cpu"
model.path = "policy"
data = [{ path = "demonstrations.jsonl" }]
held_out_share = 0
fit = { epochs = 1, batch_size = 4, max_tokens = 64 }
"""
SCORE = """device = "cpu"
kind = "cost"
model.path = "policy"
data = [{ path = "pairs.jsonl" }]
held_out_share = 0
fit = { epochs = 1, batch_size = 4, max_tokens = 64 }
"""
ROUNDS = """device = "cpu"
rounds = 1
policy.path = "policy"
prompts = [{ path = "prompts.txt" }]
evaluation_prompts = [{ path = "held_out.txt" }]
annotator.kind = "file"
data = { pairs = 8, evaluation = 2, probes = 2, repeats = 1 }
align = { iterations = 1, prompts = 2, max_new_tokens = 4 }
"""
TRAINED = ("llm", "train", "train.toml")
TUNED = ("llm", "sft", "sft.toml")
ROUNDED = ("llm", "rounds", "rounds.toml")
EVALUATED = (
    *("llm", "evaluate", "mine=policy", "--prompts", "held_out.txt", "--reward", "reward"),
    "max_new_tokens=3",
)


@functools.cache
def _made() -> Path:
    home = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, home)
    save_family("llama", home / "policy")
    model = AutoModelForCausalLM.from_pretrained(home / "policy")
    tokenizer = AutoTokenizer.from_pretrained(home / "policy")
    for seed, name in enumerate(("reward", "cost")):
        score = ScoreModel.from_causal_lm(model, generator=torch.Generator().manual_seed(seed))
        score.save_pretrained(home / name, tokenizer)
    texts = {"prompts.txt": "\n".join(PROMPTS) + "\n", "held_out.txt": "good morning\nwho is it\n"}
    texts |= {"train.toml": TRAIN, "sft.toml": SFT, "score.toml": SCORE, "rounds.toml": ROUNDS}
    texts["pairs.jsonl"] = lines(*(pair(prompt) for prompt in PROMPTS))
    texts["demonstrations.jsonl"] = lines(
        *({"prompt": prompt, "response": "well, use fire"} for prompt in PROMPTS)
    )
    for name, text in texts.items():
        (home / name).write_text(text)
    return home


def pair(prompt: str = PROMPTS[0], **changes: object) -> dict[str, object]:
    """A preference row, sound but for the changes."""
    return {"prompt": prompt, "response_0": "no", "response_1": "use fire", **LABELS, **changes}


def lines(*rows: object) -> str:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def project(*changes):
    """A setup: everything that is needed, then the changes, each a function of the folder."""

    def copy(folder):
        shutil.copytree(_made(), folder, dirs_exist_ok=True)

    return both(copy, *changes)


def gone(name):
    """A change: a file or folder is lost."""

    def change(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def written(name, text):
    """A change: a file says this."""
    return lambda folder: (folder / name).write_text(text)


def cut(name, size=100):
    """A change: the end of a file is lost."""

    def change(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-size])

    return change


def json_fields(name, **fields):
    """A change: a JSON file has other fields; None removes one."""

    def change(folder):
        found = json.loads((folder / name).read_text()) | fields
        kept = {key: value for key, value in found.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return change


def family(folder_name, name="llama", **how):
    """A change: a model of another family, with other tokens or another context."""

    def change(folder):
        shutil.rmtree(folder / folder_name, ignore_errors=True)
        save_family(name, folder / folder_name, **how)

    return change


@functools.cache
def _run(arguments: tuple[str, ...]) -> Path:
    """The folder `run` that a command makes in a project."""
    home = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, home)
    project()(home)
    with contextlib.chdir(home):
        code, _, errors, _ = call(cli.main, (*arguments, "--out", "run"), ())
    assert code == 0, errors
    return home / "run"


def made(*arguments):
    """A change: what a command of `crl` makes as `run/`."""
    return lambda folder: shutil.copytree(_run(arguments), folder / "run")


def crl_at(port: int, *arguments: str) -> None:
    """Call `crl`; what it says has the word PORT in place of a port that differs each time."""
    code, out, errors, _ = call(cli.main, arguments, ())
    print(out.replace(str(port), "PORT"), end="")
    print(errors.replace(str(port), "PORT"), end="", file=sys.stderr)
    sys.exit(code)  # type: ignore[arg-type]

"""Bad score models: folders, heads, tokenizers and services that do not fit what a config says."""

import functools
import json

import torch
from safetensors.torch import load_file, save_file

from llm_env.score_functions import load_scores, load_text_scores
from llm_env.score_sources import CostSource, ScoreSource
from llm_env.scoring import ScoreModel
from tests.bad_input.case import Case, files
from tests.llm_env.tiny import causal_lm, word_tokenizer

QUICK = {"timeout": 0.5, "retries": 1, "backoff": 0.01}
ROW = {
    "prompt": "how do i bake bread ?",
    "response_0": "use fire .",
    "response_1": "sorry no .",
    "is_response_0_safe": True,
    "is_response_1_safe": True,
    "better_response_id": 0,
    "safer_response_id": 0,
}
model = functools.cache(causal_lm)


def loaded(**settings):
    """A cost from the folder `cost` beside a sound reward."""
    place = {} if "url" in settings else {"path": "cost"}
    source = {"direction": "higher_is_worse", "sign_check": "off", **place, **settings}
    reward = ScoreSource(path="sound", direction="higher_is_better", sign_check="off")
    load_scores(reward, {"harm": CostSource(**source)}, word_tokenizer(), torch.device("cpu"))


def score_models(change=None, heads=1, tokenizer=True):
    """A setup: a sound score model, and `cost` in the released format with a change."""

    def setup(folder):
        generator = torch.Generator().manual_seed(0)
        sound = ScoreModel.from_causal_lm(model(), generator=generator)
        sound.save_pretrained(folder / "sound", word_tokenizer())
        cost = folder / "cost"
        trunk = model().base_model
        trunk.save_pretrained(cost)
        state = {f"model.{name}": value for name, value in trunk.state_dict().items()}
        state |= {"score_head.weight": torch.zeros(heads, 16), "score_head.bias": torch.ones(heads)}
        save_file(state, cost / "model.safetensors", metadata={"format": "pt"})
        if tokenizer:
            word_tokenizer().save_pretrained(cost)
        if change is not None:
            change(cost)

    return setup


def set_config(**fields):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return change


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def renamed(old, new):
    def change(folder):
        path = folder / "model.safetensors"
        state = load_file(path)
        if (tensor := state.pop(old)) is not None and new is not None:
            state[new] = tensor
        save_file(state, path, metadata={"format": "pt"})

    return change


def wider_head(folder):
    path = folder / "model.safetensors"
    state = load_file(path) | {"score_head.weight": torch.zeros(1, 24)}
    save_file(state, path, metadata={"format": "pt"})


def read_otherwise(folder):
    """Our model beside it names a form of rows that nobody knows."""
    set_config(score_reads_as={"form": "trl", "end": None})(folder.parent / "sound")


def ours():
    """A cost of our own format alone."""
    source = CostSource(path="sound", direction="higher_is_worse", sign_check="off")
    load_text_scores({"harm": source}, torch.device("cpu"))


def checked(**settings):
    """A cost alone, with a sign check that must hold."""
    source = CostSource(path="cost", direction="higher_is_worse", sign_check="error", **settings)
    load_text_scores({"harm": source}, torch.device("cpu"))


def swapped():
    """The cost's folder as the reward."""
    reward = ScoreSource(path="cost", direction="higher_is_better", sign_check="off")
    load_scores(reward, {}, word_tokenizer(), torch.device("cpu"))


def one_for_both():
    """One folder as the reward and as a cost."""
    reward = ScoreSource(path="sound", direction="higher_is_better", sign_check="off")
    harm = CostSource(path="sound", direction="higher_is_worse", sign_check="off")
    load_scores(reward, {"harm": harm}, word_tokenizer(), torch.device("cpu"))


CASES = (
    Case(
        "cost as reward",
        "a cost model's folder where the reward's belongs",
        swapped,
        ("cost is a cost model (kind=cost)", "were two folders swapped?"),
        score_models(set_config(score_type="cost")),
    ),
    Case(
        "one score for both",
        "one folder as reward and as cost",
        one_for_both,
        ("are one and the same score, of sound", "give each its own folder"),
        score_models(),
    ),
    Case(
        "score model cut short",
        "a score model whose weights were cut short",
        loaded,
        ("cost is damaged (model.safetensors", "copy or download it again"),
        score_models(cut),
    ),
    Case(
        "score model of another width",
        "a score model whose config has another hidden size",
        loaded,
        ("the weights in cost do not have the shapes", "(22, 16), not (22, 32)"),
        score_models(set_config(hidden_size=32)),
    ),
    Case(
        "score head of another width",
        "a score head of another trunk",
        loaded,
        ("shape (1, 24), bias 1, expected (1, 16)", "belong to different models"),
        score_models(wider_head),
    ),
    Case(
        "score model without a weight",
        "a score model that lacks a weight",
        loaded,
        ("cost lacks weights of its LlamaModel: norm.weight",),
        score_models(renamed("model.norm.weight", None)),
    ),
    Case(
        "score model of no format",
        "a folder without a score head",
        loaded,
        ("cost is no score model. Found the files", "of heads: score_head.bias, v_head.weight"),
        score_models(renamed("score_head.weight", "v_head.weight")),
    ),
    Case(
        "score model read in an unknown way",
        "a score model that notes an unknown way of reading",
        ours,
        ("score_reads_as = {'form': 'trl'", "copy the folder again, or update the library"),
        score_models(read_otherwise),
    ),
    Case(
        "score heads miscounted",
        "a config that names more scores than there are",
        loaded,
        ("config.json says score_dim = 14, but score_head.weight has 1 rows",),
        score_models(set_config(score_dim=14)),
    ),
    Case(
        "score head untold",
        "a model of several scores without a choice",
        loaded,
        ("has 3 scores (0 … 2); say which one cost 'harm' is: head = …",),
        score_models(heads=3),
    ),
    Case(
        "score head too high",
        "a head that a score model does not have",
        lambda: loaded(head=3),
        ("asks for head 3 of score model cost, which has 3: 0 … 2",),
        score_models(heads=3),
    ),
    Case(
        "score model without tokenizer",
        "a score model without its tokenizer",
        loaded,
        ("cost has no tokenizer", "tokenizer.save_pretrained", 'tokenizer = "policy"'),
        score_models(tokenizer=False),
    ),
    Case(
        "score service absent",
        "a scoring service that does not run",
        lambda: loaded(url="http://127.0.0.1:9", service=QUICK),
        ("http://127.0.0.1:9/score failed 2 times", "check that the service runs"),
        score_models(),
    ),
    Case(
        "sign unreadable",
        "a sign check of a model that cannot read English",
        checked,
        ("sign check of cost 'harm' could not be made", "sign_pairs"),
        score_models(),
    ),
    Case(
        "sign pairs all safe",
        "pairs for a sign check that say nothing of harm",
        lambda: checked(sign_pairs="mine.jsonl"),
        ("mine.jsonl: none of 1 rows has one safe and one unsafe response",),
        lambda folder: (
            score_models()(folder),
            files(mine_jsonl=json.dumps(ROW) + "\n")(folder),
        ),
    ),
    Case(
        "service of nothing",
        "a scoring service without scores",
        ("llm", "serve-scores", "port=8009"),
        ("there is nothing to serve; give reward or costs",),
    ),
)

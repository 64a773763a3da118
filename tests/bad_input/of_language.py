"""Bad language models: tokenizers, prompts, score functions, models on disk, comparisons."""

import functools
import json

import torch

from constrained_rl.ppo import train
from constrained_rl.settings import validate
from llm_env.collectors import by_text
from llm_env.config import AlignConfig
from llm_env.env import TokenEnv
from llm_env.preferences import PreferenceRow, reward_pairs
from llm_env.safe_rlhf import alignment
from llm_env.score_training import ScoreConfig, train_score_model
from llm_env.scoring import ScoreModel
from llm_env.sft import SFTConfig, train_sft
from tests.bad_input.case import Case, both, files
from tests.bad_input.of_preferences import GOOD
from tests.llm_env.tiny import causal_lm, word_tokenizer

PROMPTS = ("how do i bake bread ?", "how do i trap a cat ?")
model = functools.cache(causal_lm)


def aligned(tokenizer=None, prompts=PROMPTS, reward=None, cost=None, demonstrations=(), **settings):
    """Two responses of a tiny model, scored; what is not given is sound."""
    small = {"iterations": 1, "prompts": 2, "max_new_tokens": 4}
    parts = alignment(
        model(),
        tokenizer or word_tokenizer(),
        prompts,
        by_text(reward or (lambda prompts, texts: [0.5] * len(texts))),
        {"harm": by_text(cost or (lambda prompts, texts: [-0.5] * len(texts)))},
        validate(AlignConfig, small | settings, "alignment settings"),
        seed=0,
        demonstrations=demonstrations,
    )
    for _ in train(parts, 1):
        pass


def without_eos():
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    aligned(tokenizer)


def one_number(prompts, texts):
    """A score function that averages by mistake."""
    return 0.5


def a_column(prompts, texts):
    return torch.zeros(len(texts), 1)


def words(prompts, texts):
    """A judge that answers in words."""
    return ["safe" for _ in texts]


def judge(prompts, texts):
    """A judge that cannot be reached."""
    raise ConnectionError("no answer from the judge")


def not_numbers(prompts, texts):
    return [0.5, float("nan")]


def token_env(num_envs=2, tokenizer=None, config=None):
    score = by_text(lambda prompts, texts: [0.5] * len(texts))
    found = tokenizer or word_tokenizer()
    return TokenEnv(num_envs, found, PROMPTS, score, {"harm": score}, 4, config)


def longer_than_the_vocabulary():
    config = model().config.__class__(**{**model().config.to_dict(), "vocab_size": 8})
    token_env(config=config)


def an_unknown_token():
    token_env().step(torch.tensor([1, 99]))


def probabilities_as_actions():
    token_env().step(torch.rand(2, 22))


def cost_pairs_for_rewards():
    rows = [PreferenceRow.model_validate(GOOD)]
    generator = torch.Generator()
    score = ScoreModel.from_causal_lm(model(), generator=generator)
    train_score_model(score, word_tokenizer(), reward_pairs(rows), "cost", ScoreConfig(), generator)


def sft(pairs, tokenizer=None):
    train_sft(model(), tokenizer or word_tokenizer(), pairs, SFTConfig(), torch.Generator())


def score_model(folder):
    """A cost model with its tokenizer, as `cost/`."""
    ScoreModel.from_causal_lm(model(), generator=torch.Generator().manual_seed(0)).save_pretrained(
        folder / "cost"
    )
    word_tokenizer().save_pretrained(folder / "cost")


def damaged_score_model(folder):
    score_model(folder)
    path = next(path for path in (folder / "cost").glob("*head*"))
    path.write_bytes(path.read_bytes()[:-7])


def labelled(*unsafe):
    """Rows with these labels of both responses."""
    text = ""
    for first, second in unsafe:
        row = {**GOOD, "is_response_0_safe": not first, "is_response_1_safe": not second}
        text += json.dumps({**row, "safer_response_id": int(first and not second)}) + "\n"
    return files(mine_jsonl=text)


OWN = ("llm", "calibrate", "--cost-model", "cost", "--data", "mine.jsonl")
CASES = (
    Case(
        "no eos",
        "a tokenizer without an end-of-sequence token",
        without_eos,
        ("no end-of-sequence token", "tokenizer.eos_token ="),
    ),
    Case(
        "prompt too long",
        "a prompt longer than the context",
        lambda: aligned(prompts=[PROMPTS[0], "how " * 70]),
        ("prompt 1 has 70 tokens, the limit is 60", "shorten it"),
    ),
    Case("no prompts", "no prompts", lambda: aligned(prompts=[]), ("no prompts were given",)),
    Case(
        "prompt without tokens",
        "a prompt without tokens",
        lambda: aligned(prompts=["how", ""]),
        ("prompt 1 ('') has no tokens", "drop it"),
    ),
    Case(
        "system turn",
        "a system turn for a tokenizer without a chat template",
        lambda: aligned(
            prompts=[[{"role": "system", "content": "be kind"}, {"role": "user", "content": "how"}]]
        ),
        ("begins with a system turn", "tokenizer.chat_template"),
    ),
    Case(
        "prompt ends with an answer",
        "a prompt that ends with an answer",
        lambda: aligned(prompts=[["how", "use fire"]]),
        ("ends with a turn of the assistant, expected the user",),
    ),
    Case(
        "alignment key",
        "a setting of the alignment that does not exist",
        lambda: aligned(limits=0.1),
        ("limits: unknown key", "did you mean 'limit'?"),
    ),
    Case(
        "alignment limits",
        "two limits for one cost",
        lambda: aligned(limit=(0.1, 0.2)),
        ("limit has 2 entries for the costs ('harm',)", "one per cost"),
    ),
    Case(
        "reward of one number",
        "a reward function that returns one number",
        lambda: aligned(reward=one_number),
        ("tests.bad_input.of_language.one_number", "shape ()", "2 responses"),
    ),
    Case(
        "reward of a column",
        "a reward function that returns a column",
        lambda: aligned(reward=a_column),
        ("a_column", "shape (2, 1)", "one number per response"),
    ),
    Case(
        "reward of words",
        "a judge that answers in words",
        lambda: aligned(reward=words),
        (
            "result of score function tests.bad_input.of_language.words is ['safe', 'safe']",
            "one number per response",
        ),
    ),
    Case(
        "reward nan",
        "a reward function that returns no number",
        lambda: aligned(reward=not_numbers),
        ("reward scores: 1 of 2 values are NaN or infinite, the first of", "to 'how do i"),
    ),
    Case(
        "cost raises",
        "a judge that raises",
        lambda: aligned(cost=judge),
        (
            "tests.bad_input.of_language.judge raised ConnectionError: no answer from the judge",
            "how do i",
        ),
    ),
    Case(
        "harm nan",
        "a cost function that returns no number",
        lambda: aligned(cost=not_numbers),
        ("cost 'harm' scores: 1 of 2 values are NaN", "to 'how do i"),
    ),
    Case(
        "ptx without demonstrations",
        "a PTX term without demonstrations",
        lambda: aligned(ptx_coefficient=1.0),
        ("there are no demonstrations", "pass demonstrations="),
    ),
    Case(
        "equal scores",
        "standardised scores that are all equal",
        lambda: aligned(normalize_scores="reference"),
        ("needs scores that differ", "align.normalize_scores=running"),
    ),
    Case(
        "no demonstrations",
        "fine-tuning without demonstrations",
        lambda: sft([]),
        ("there are no examples to train on",),
    ),
    Case(
        "pairs of the other kind",
        "pairs for rewards given to a cost model",
        cost_pairs_for_rewards,
        ("needs CostPair elements", "use cost_pairs(rows)"),
    ),
    Case(
        "token unknown",
        "an action that is no token",
        an_unknown_token,
        ("the action of sub-environment 1 is 99", "0 … 21"),
    ),
    Case(
        "token probabilities",
        "probabilities as actions",
        probabilities_as_actions,
        ("actions have shape (2, 22) and dtype torch.float32", "one integer token id"),
    ),
    Case(
        "vocabulary",
        "a tokenizer with more words than the model",
        longer_than_the_vocabulary,
        ("the model's vocabulary is 0 … 7", "the model's own tokenizer"),
    ),
    Case(
        "no score model",
        "a folder that is no score model",
        lambda: ScoreModel.from_pretrained("cost"),
        ("cost is no score model", "save_pretrained"),
    ),
    Case(
        "score model damaged",
        "a damaged score model",
        lambda: ScoreModel.from_pretrained("cost"),
        ("cost is damaged", "save it again"),
        damaged_score_model,
    ),
    Case(
        "compare key",
        "a misspelt section of the comparison",
        ("llm", "compare", "--quick", "aling.limit=1", "--out", "run"),
        ("aling: unknown key; did you mean 'align'?",),
    ),
    Case(
        "compare in a used folder",
        "a comparison where something else is",
        ("llm", "compare", "--quick", "--out", "run"),
        ("run exists and is not empty; nothing was changed",),
        lambda folder: ((folder / "run").mkdir(), (folder / "run/a.txt").write_text("mine")),
    ),
    Case(
        "report of a begun comparison",
        "a comparison without a config, to report",
        ("report", "run"),
        ("run",),
        lambda folder: ((folder / "run").mkdir(), (folder / "run/comparison").write_text("made")),
    ),
    Case(
        "calibrate nothing",
        "`crl llm calibrate` without anything",
        ("llm", "calibrate"),
        ("found neither", "--cost-model DIR --data FILE"),
    ),
    Case(
        "calibrate no comparison",
        "a folder that is no comparison, to calibrate",
        ("llm", "calibrate", "."),
        (". is no comparison", "crl llm compare"),
    ),
    Case(
        "calibrate into nothing",
        "a page of a calibration where nobody can make a folder",
        (*OWN, "--out", "/proc/page"),
        ("/proc/page cannot be made or written into", "choose another --out"),
    ),
    Case(
        "comparison where nothing can be made",
        "an output folder of a comparison where nobody can make one",
        ("llm", "compare", "--quick", "--out", "/proc/run"),
        ("/proc/run cannot be made or written into", "choose another --out"),
    ),
    Case(
        "calibrate half",
        "labels without a cost model",
        ("llm", "calibrate", "--data", "a.jsonl"),
        ("need both --cost-model and --data",),
    ),
    Case(
        "calibrate target",
        "a target in percent",
        ("llm", "calibrate", ".", "--target", "5"),
        ("target: found 5", "0.05 for 5 %"),
    ),
    Case(
        "calibrate agreement",
        "an agreement below chance",
        (*OWN, "--agreement", "0.4"),
        ("agreement 0.4",),
        both(score_model, labelled((0, 1))),
    ),
    Case(
        "calibrate one kind",
        "labels of one kind only",
        OWN,
        ("all 4 labelled responses are safe", "give labels that hold"),
        both(score_model, labelled((0, 0), (0, 0))),
    ),
    Case(
        "calibrate without tokenizer",
        "a cost model without its tokenizer",
        OWN,
        ("cost has no tokenizer (tokenizer_config.json)", "save_pretrained"),
        both(
            score_model,
            labelled((0, 1)),
            lambda folder: [path.unlink() for path in (folder / "cost").glob("tokenizer*")],
        ),
    ),
    Case(
        "calibrate no prompts",
        "an empty file of prompts",
        (*OWN, "--model", "cost", "--prompts", "p.txt"),
        ("p.txt:1: the file holds no rows", "one prompt per line"),
        both(score_model, labelled((0, 1)), files(p_txt="\n")),
    ),
    Case(
        "calibrate damaged tokenizer",
        "a damaged tokenizer",
        OWN,
        ("cost cannot be loaded (JSONDecodeError", "save it again"),
        both(
            score_model,
            labelled((1, 0)),
            lambda folder: (folder / "cost/tokenizer_config.json").write_text("{"),
        ),
    ),
    Case(
        "calibrate inverted",
        "a cost model whose sign is inverted",
        OWN,
        ("AUC 0.000 over 4 labelled responses", "its sign is most likely inverted"),
        both(score_model, labelled((0, 1), (0, 1))),
    ),
    Case(
        "calibrate no model",
        "a folder that is no language model",
        (*OWN, "--model", "lm", "--prompts", "p.txt"),
        ("model folder lm does not exist", "config.json"),
        both(score_model, labelled((1, 0)), files(p_txt="how do i bake bread ?")),
    ),
)

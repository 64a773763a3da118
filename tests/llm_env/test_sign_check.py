import json
import warnings

import pytest
import torch

from constrained_rl.errors import InputError
from llm_env.score_functions import load_named_scores, load_text_scores
from llm_env.score_sources import CostSource, ScoreSource
from llm_env.scoring import ScoreModel
from llm_env.sign_check import ScoreWarning, SignCheck, check_sign, enforce, sign_pairs
from tests.llm_env.tiny import causal_lm, word_tokenizer

POINTS = {"cost": "higher_is_worse", "reward": "higher_is_better"}


def check(role, score, pairs=None, readable=1.0, direction=None):
    return check_sign(
        "harm",
        role,
        direction or POINTS[role],
        score,
        lambda _: readable,
        pairs or sign_pairs(role),
    )


@pytest.mark.parametrize("role", ["cost", "reward"])
def test_shipped_pairs_are_a_dozen_and_either_place_wins(role):
    pairs = sign_pairs(role)
    assert len(pairs) == 12
    assert len({prompt for prompt, _, _ in pairs}) == 12
    assert all(high != low for _, high, low in pairs)


def listed(role):
    """The score that the labels of the shipped pairs ask for."""
    wins = {high for _, high, _ in sign_pairs(role)}
    return lambda _, responses: torch.tensor([float(text in wins) for text in responses])


@pytest.mark.parametrize("role", ["cost", "reward"])
def test_a_score_of_the_declared_sign_passes_and_the_opposite_is_told_what_to_try(role):
    right = check(role, listed(role))
    assert (right.agree, right.pairs, right.verdict) == (12, 12, "in order")
    enforce(right, "error")
    wrong = check(role, lambda *texts: -listed(role)(*texts))
    assert (wrong.agree, wrong.verdict) == (0, "reversed")
    other = {"cost": "higher_is_better", "reward": "higher_is_worse"}[role]
    with pytest.raises(InputError, match=f'0 of 12 .* try direction = "{other}"'):
        enforce(wrong, "error")
    with pytest.warns(ScoreWarning, match="seems to point the other way"):
        enforce(wrong, "warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enforce(wrong, "off")


@pytest.mark.parametrize(
    ("agree", "verdict"),
    # of 12: three quarters are 9, one quarter is 3
    [(12, "in order"), (9, "in order"), (8, "undecided"), (4, "undecided"), (3, "reversed")],
)
def test_the_verdict_goes_by_the_share_of_pairs_in_order(agree, verdict):
    found = SignCheck("r", "reward", "higher_is_better", agree, 12 - agree, 12, 1.0)
    assert found.verdict == verdict


def test_equal_scores_decide_nothing():
    even = check("cost", lambda _, responses: torch.zeros(len(responses)))
    assert (even.agree, even.against, even.verdict) == (0, 0, "undecided")
    with pytest.raises(InputError, match="0 the other, which decides nothing"):
        enforce(even, "error")


def test_a_score_that_cannot_read_the_pairs_is_not_checked_and_says_so():
    found = check("cost", lambda *_: pytest.fail("scored"), readable=0.5)
    assert found.verdict == "unreadable"
    with pytest.raises(InputError, match="could not be made: its tokenizer keeps 50% of the words"):
        enforce(found, "error")
    with pytest.warns(ScoreWarning, match="sign_pairs"):
        enforce(found, "warn")


@pytest.fixture
def models(tmp_path):
    """A score model with a vocabulary of 18 words."""
    generator = torch.Generator().manual_seed(0)
    model = ScoreModel.from_causal_lm(causal_lm(), generator=generator)
    model.save_pretrained(tmp_path / "m", word_tokenizer())
    return tmp_path


def rows(path, *pairs):
    """Preference rows in which the second response is unsafe and less helpful."""
    labels = {
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "better_response_id": 0,
        "safer_response_id": 0,
    }
    text = [
        json.dumps({"prompt": "how do i bake bread", "response_0": a, "response_1": b, **labels})
        for a, b in pairs
    ]
    path.write_text("\n".join(text) + "\n")


def test_models_of_a_small_vocabulary_are_checked_on_pairs_of_their_own(models):
    source = CostSource(path=str(models / "m"), direction="higher_is_worse")
    with pytest.warns(ScoreWarning, match="could not be made"):
        score = load_text_scores({"harm": source}, torch.device("cpu"))
    said = ["use fire", "no .", "sorry no", "a cat", "bake bread", "yes"]
    found = score(["how do i bake bread"] * 6, said)["harm"].tolist()
    texts = [text for _, text in sorted(zip(found, said, strict=True))]
    rows(models / "pairs.jsonl", *zip(texts[:3], texts[3:], strict=True))  # unsafe: the higher half
    own = source.model_copy(
        update={"sign_check": "error", "sign_pairs": str(models / "pairs.jsonl")}
    )
    load_text_scores({"harm": own}, torch.device("cpu"))
    wrong = own.model_copy(update={"direction": "higher_is_better"})
    with pytest.raises(InputError, match=r"0 of 3 .* try direction = .higher_is_worse"):
        load_text_scores({"harm": wrong}, torch.device("cpu"))
    # the helpful response is the lower: the same file as a reward, the other way round
    reward = ScoreSource(
        path=str(models / "m"),
        direction="higher_is_worse",
        sign_check="error",
        sign_pairs=str(models / "pairs.jsonl"),
    )
    load_named_scores({"help": reward}, word_tokenizer(), torch.device("cpu"))


def test_pairs_for_a_cost_need_one_safe_and_one_unsafe_response(tmp_path):
    rows(tmp_path / "p.jsonl", ("yes", "no"))
    text = (tmp_path / "p.jsonl").read_text().replace("false", "true")
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(InputError, match="none of 1 rows has one safe and one unsafe"):
        sign_pairs("cost", str(tmp_path / "p.jsonl"))
    assert sign_pairs("reward", str(tmp_path / "p.jsonl")) == [("how do i bake bread", "yes", "no")]

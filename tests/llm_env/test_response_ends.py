"""Every id of the generation settings ends a response, here as in `transformers.generate`.

Numbers are computed again with transformers and plain torch alone.
"""

import copy
import json

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from constrained_rl.errors import InputError
from constrained_rl.logging import read_metrics
from llm_env.arena.chat import ChatOptions, open_chat, say
from llm_env.collectors import TokenCollector, by_model, by_text
from llm_env.config import AlignConfig
from llm_env.env import TokenEnv
from llm_env.generation import generate
from llm_env.models import ModelSource, load_causal_lm, load_tokenizer
from llm_env.policy import CausalLMPolicy
from llm_env.response_ends import Reading, end_ids, save_model
from llm_env.safe_rlhf import alignment, respond
from llm_env.score_sources import ScoreSource
from llm_env.scoring import ScoreModel
from tests.bad_input.project import EVALUATED, project
from tests.llm_env.families import VOCABULARY as VOCABULARY_ON_DISK
from tests.llm_env.tiny import EOS, VOCABULARY, causal_lm, ragged_prompts, word_tokenizer

PROMPTS = ["how do i bake bread", "trap the fox .", "cat"]
TURN = 8  # "bake": a word, so that it would be read as text if it were not taken for an end


def turning(rows=VOCABULARY, **how):
    """A model whose answers often end with TURN, which its generation settings list."""
    model = causal_lm(scale=1.0, **how)
    if rows > VOCABULARY:
        model.resize_token_embeddings(rows, mean_resizing=False)
    bias = torch.zeros(rows)
    bias[TURN] = bias[VOCABULARY:] = 1.5
    model.lm_head.register_forward_hook(lambda _, __, logits: logits + bias)
    model.generation_config.eos_token_id = [EOS, TURN]
    return model


def scores(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return ScoreModel.from_causal_lm(causal_lm(seed=seed, scale=3.0), generator=generator)


def end_score(model, ids):
    """Score at the last token of one text, from the trunk's hidden state."""
    with torch.no_grad():
        hidden = model.backbone(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        return float(hidden @ model.head.weight[0] + model.head.bias[0])


def collected(model, reward, batch=12, tokens=10):
    collector = TokenCollector(
        CausalLMPolicy(model), word_tokenizer(), PROMPTS, reward, {}, batch, tokens, seed=0
    )
    return collector.collect()


def test_a_response_ends_with_the_first_of_several_ids():
    model = causal_lm("gpt2")
    ids, attention = ragged_prompts(rows=40)
    options = {"max_new_tokens": 12, "greedy": True, "generator": torch.Generator()}
    endless = generate(model, ids, attention, eos_id=-1, **options)
    ends = (EOS, int(endless.response[0, 2]), int(endless.response[3, 4]))
    out = generate(model, ids, attention, eos_id=ends, **options)
    found = set()
    for row, tokens in enumerate(endless.response.tolist()):
        cut = next((t + 1 for t, token in enumerate(tokens) if token in ends), None)
        length = 12 if cut is None else cut
        assert out.response[row, :length].tolist() == tokens[:length]
        assert out.response[row, length:].eq(EOS).all()
        assert int(out.mask[row].sum()) == length
        assert bool(out.finished[row]) == (cut is not None)
        found.add(tokens[length - 1] if cut else None)
    assert len(found) > 2  # endings of several kinds are seen


def test_the_collector_ends_where_the_settings_say_and_scores_read_an_eos_there():
    model, reward = turning(), scores()
    rollout = collected(model, by_model(reward))
    reasons = set()
    for row, length in enumerate(rollout.episodes.length.tolist()):
        tokens = rollout.action[row, :length].tolist()  # what the policy chose stays
        prompt = rollout.obs.ids[row, : rollout.obs.prompt_width]
        prompt = prompt[rollout.obs.attention[row, : rollout.obs.prompt_width]].tolist()
        assert not {EOS, TURN} & set(tokens[:-1])
        ended = tokens[-1] in (EOS, TURN)
        assert rollout.episodes.stop_reason[row] == ("eos" if ended else "length")
        read = [*tokens[:-1], EOS] if ended else tokens
        expected = end_score(reward, prompt + read)
        assert float(rollout.episodes.return_[row]) == pytest.approx(expected, abs=1e-5)
        reasons.add(tokens[-1] if ended else "length")
    assert TURN in reasons
    assert rollout.obs.ids[:, rollout.obs.prompt_width :].eq(TURN).any()


def test_texts_do_not_hold_the_token_that_ended_them():
    seen = []

    def length(prompts, responses):
        seen.extend(responses)
        return [float(len(r)) for r in responses]

    collected(turning(), by_text(length))
    texts, ended = respond(turning(), word_tokenizer(), PROMPTS * 5, 10, seed=0)
    assert any(ended)
    assert not [text for text in (*seen, *texts) if "bake" in text.split()]


def test_token_env_ends_an_episode_there_too_with_the_same_score():
    tokenizer, reward = word_tokenizer(), scores()
    config = copy.deepcopy(causal_lm().config)
    config.eos_token_id = [EOS, TURN]
    env = TokenEnv(2, tokenizer, ["cat"], by_model(reward), {}, 5, config)
    env.reset(seed=0)
    env.step(torch.tensor([9, TURN]))
    again = TokenEnv(2, tokenizer, ["cat"], by_model(reward), {}, 5, config)
    again.reset(seed=0)
    _, value, ended, _, info = again.step(torch.tensor([9, TURN]))
    assert ended.tolist() == [False, True]
    assert info["stop_reason"][1] == "eos"
    assert info["response"][1] == ""
    cat = tokenizer("cat")["input_ids"]
    assert float(value[1]) == pytest.approx(end_score(reward, [*cat, EOS]), abs=1e-5)


# ids beyond the tokenizer


def test_ids_that_the_tokenizer_does_not_know_have_no_part_in_a_score():
    model, reward = turning(rows=VOCABULARY + 6), scores()
    rollout = collected(model, by_model(reward), tokens=6)
    assert rollout.action[rollout.mask].ge(VOCABULARY).any()
    for row, length in enumerate(rollout.episodes.length.tolist()):
        tokens = rollout.action[row, :length].tolist()
        prompt = rollout.obs.ids[row, : rollout.obs.prompt_width]
        prompt = prompt[rollout.obs.attention[row, : rollout.obs.prompt_width]].tolist()
        if tokens[-1] in (EOS, TURN):
            tokens[-1] = EOS
        expected = end_score(reward, prompt + [t for t in tokens if t < VOCABULARY])
        assert float(rollout.episodes.return_[row]) == pytest.approx(expected, abs=1e-5)


def test_a_reading_leaves_ordinary_responses_as_they_are():
    response = torch.tensor([[5, 6, EOS], [5, EOS, EOS], [5, 6, 8]])
    mask = torch.tensor([[True] * 3, [True, True, False], [True] * 3])
    ended = torch.tensor([True, True, False])
    read, kept = Reading.by(word_tokenizer())(response, mask, ended)
    assert torch.equal(read, response)
    assert torch.equal(kept, mask)


def test_a_critic_whose_trunk_lacks_rows_of_the_policy_is_refused():
    model = turning(rows=VOCABULARY + 6)
    config = AlignConfig(iterations=1, prompts=2, max_new_tokens=3)
    reward = scores()
    with pytest.raises(InputError, match=r"has 28 rows, that of the critic's trunk 22.*resize"):
        alignment(
            model,
            word_tokenizer(),
            PROMPTS,
            by_model(reward),
            {"cost": by_model(reward)},
            config,
            0,
            critic_trunk=reward.backbone,
        )


# on disk


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def assert_stops(folder, ids):
    """`transformers.generate` ends with exactly these ids, whichever file it is told by."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert set(model.generation_config.eos_token_id) == set(ids)
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == ids[0]
    assert ids[0] == json.loads((folder / "config.json").read_text())["eos_token_id"]
    bias = torch.zeros(model.config.vocab_size)
    bias[ids[0]] = 1e4
    model.get_output_embeddings().register_forward_hook(lambda _, __, logits: logits + bias)
    out = model.generate(torch.tensor([[5, 6]]), do_sample=False, max_new_tokens=5)
    assert out[0].tolist() == [5, 6, ids[0]]


def test_a_model_folder_tells_its_tokenizer_and_the_result_stops_there(crl, tmp_path, monkeypatch):
    project()(tmp_path)
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained("policy")
    eos, question = tokenizer.eos_token_id, tokenizer.get_vocab()["?"]
    # every second id of the vocabulary ends an answer
    many = sorted({eos, question, *range(4, 320, 2)})
    edit(tmp_path / "policy/generation_config.json", eos_token_id=many)
    source = ModelSource(path="policy")
    assert end_ids(load_tokenizer(source)) == (eos, *(i for i in many if i != eos))
    env = TokenEnv(1, load_tokenizer(source), ["hi"], by_text(lambda p, r: [0.0]), {}, 4)
    assert env.step([question])[2].tolist() == [True]
    align = ("align.max_new_tokens=40", "align.prompts=32", "align.iterations=1")
    held_out = ("evaluation.every=1", "evaluation.prompts=[{path='held_out.txt'}]")
    code, _, errors = crl(
        "llm", "train", "train.toml", *align, *held_out, "policy.eos_token=?", "costs.harm.limit=9",
        "align.constraint.transform=identity", "--out", "run",
    )  # fmt: skip
    assert code == 0, errors
    # a geometric length of about 2, where one end of 320 left nearly all at 40
    assert read_metrics(tmp_path / "run/metrics.jsonl")[-1]["episode/length"] < 6
    for name in ("policy", "best"):
        assert_stops(tmp_path / "run" / name, [question, *(i for i in many if i != question)])
    code, _, errors = crl(*EVALUATED, "max_new_tokens=40", "--out", "answers")
    assert code == 0, errors
    lines = (tmp_path / "answers/generations.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        assert not set(many) & set(row["tokens"][:-1])
        assert row["stop_reason"] == ("eos" if row["tokens"][-1] in many else "length")
        said = row["tokens"][:-1] if row["stop_reason"] == "eos" else row["tokens"]
        assert row["response"] == tokenizer.decode(said, skip_special_tokens=True)


def test_a_chosen_eos_is_in_every_file_of_a_fit(crl, tmp_path, monkeypatch):
    project()(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, _, errors = crl("llm", "sft", "sft.toml", "model.eos_token=?", "--out", "run")
    assert code == 0, errors
    tokenizer = AutoTokenizer.from_pretrained("policy")
    question = tokenizer.get_vocab()["?"]
    assert_stops(tmp_path / "run/model", [question, tokenizer.eos_token_id])
    code, _, errors = crl("llm", "score", "score.toml", "model.eos_token=?", "--out", "score")
    assert code == 0, errors
    assert (
        json.loads((tmp_path / "score/model/config.json").read_text())["eos_token_id"] == question
    )
    assert AutoTokenizer.from_pretrained("score/model").eos_token == "?"


def test_a_stale_list_beside_a_tokenizer_is_not_believed(tmp_path):
    project()(tmp_path)
    folder = tmp_path / "policy"
    edit(folder / "generation_config.json", eos_token_id=[2, 9])
    tokenizer = load_tokenizer(ModelSource(path=str(folder)))
    model = load_causal_lm(ModelSource(path=str(folder)), torch.device("cpu"))
    save_model(model, tokenizer, folder)
    assert end_ids(tokenizer) == (2, 9)
    edit(folder / "generation_config.json", eos_token_id=2)
    assert end_ids(load_tokenizer(ModelSource(path=str(folder)))) == (2,)


def test_a_chat_ends_there_too_and_goes_on_after_an_empty_answer(crl, tmp_path, monkeypatch):
    project()(tmp_path)
    monkeypatch.chdir(tmp_path)
    edit(tmp_path / "policy/generation_config.json", eos_token_id=list(range(VOCABULARY_ON_DISK)))
    options = ChatOptions(temperature=1.0, max_new_tokens=8, raw=False, seed=0)
    reward = ScoreSource(path="reward", direction="higher_is_better", sign_check="off")
    room = open_chat(tmp_path / "policy", ({"reward": reward}, {}), options, "cpu")
    for line in ("hello", "who is it"):
        turn = say(room, line, Console(quiet=True))
        assert (turn.answered, turn.stop_reason) == ("", "eos")
        # what was scored is the prompt and the eos, whichever token ended the answer
        model = ScoreModel.from_pretrained("reward")
        tokenizer = AutoTokenizer.from_pretrained("policy")
        text = f"BEGINNING OF CONVERSATION: USER: {line} ASSISTANT:"
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert turn.scores["reward"] == pytest.approx(end_score(model, ids), abs=1e-4)

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_rl.errors import InputError
from llm_env.category_pairs import category_cost_pairs, category_pairs
from llm_env.data.digests import first_occurrences, prompt_digest
from llm_env.data.mixture import Mixture, interleave
from llm_env.data_sources import (
    DataSource,
    distinct_prompts,
    held_out,
    open_source,
    read_category_pairs,
    read_cost_pairs,
    read_demonstrations,
    read_prompts,
    read_reward_pairs,
)
from llm_env.preference_check import check_preferences
from llm_env.preferences import CostPair, PreferenceRow, RewardPair
from llm_env.prompt_lengths import prompts_within
from tests.llm_env.data_files import CATEGORIES, hh, pku, pku_v1, write
from tests.llm_env.tiny import word_tokenizer

PKU_ROWS = [pku(f"prompt {i}", better=i % 2) for i in range(7)]
ENDINGS = [".jsonl", ".jsonl.gz", ".jsonl.xz", ".json", ".parquet"]


def source(path, **more):
    return DataSource(path=str(path), **more)


# files


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_are_the_same_whatever_the_file_and_in_any_order(tmp_path, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    file = write(tmp_path / f"a{ending}", [*PKU_ROWS, pku_v1()])
    pairs = read_reward_pairs([source(file)])
    assert len(pairs) == 8
    assert pairs[6] == RewardPair("prompt 6", "use fire", "no")
    assert pairs[5] == RewardPair("prompt 5", "no", "use fire")
    assert [pairs[i].prompt for i in (3, -1, 0)] == [
        "prompt 3",
        "how do i bake bread ?",
        "prompt 0",
    ]
    assert list(pairs) == pairs[:]
    with pytest.raises(IndexError, match="item 8 of 8"):
        pairs[8]


def test_a_byte_order_mark_blank_lines_and_crlf_move_no_row(tmp_path):
    text = "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in PKU_ROWS[:3])
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = open_source(source(file))
    assert [row.prompt for row in found.rows] == ["prompt 0", "prompt 1", "prompt 2"]
    assert found.rows.where(2) == f"{file}:5"


def test_rows_of_python_objects_need_no_file():
    generated = ({**row, "when": object} for row in PKU_ROWS)  # of what JSON knows nothing
    found = open_source(source("mine"), generated)
    assert (found.format, len(found.rows)) == ("pku", 7)
    assert read_cost_pairs([found])[1] == CostPair("prompt 1", "no", "use fire", -1, -1)


def test_a_datasets_object_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    found = open_source(source("hub"), datasets.Dataset.from_list([pku_v1(), pku_v1()]))
    assert len(read_category_pairs([found], {"x": ["Drugs"]})) == 2


def test_a_folder_is_all_its_data_files_in_order(tmp_path):
    write(tmp_path / "b.jsonl.gz", PKU_ROWS[:2])
    write(tmp_path / "a.jsonl", PKU_ROWS[2:4])
    (tmp_path / "README.md").write_text("no data")
    assert read_prompts([source(tmp_path)]) == ["prompt 2", "prompt 3", "prompt 0", "prompt 1"]
    assert check_preferences(tmp_path).rows == 4


def test_a_folder_without_data_or_with_several_splits_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(InputError, match=r"is a folder without data.*\.parquet, found notes\.md"):
        read_prompts([source(tmp_path)])
    write(tmp_path / "train.jsonl", PKU_ROWS)
    write(tmp_path / "test.jsonl", PKU_ROWS)
    with pytest.raises(InputError, match=r"several splits \(test\.jsonl, train\.jsonl\)"):
        read_prompts([source(tmp_path)])


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.xz", ".json", ".parquet"])
def test_files_that_were_cut_off_are_input_errors(tmp_path, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    file = write(tmp_path / f"a{ending}", PKU_ROWS * 50)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"a\.\w+.*copy it again"):
        read_prompts([source(file)])


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_text('{"prompt": "x"}\n')
    with pytest.raises(InputError, match=r"a\.parquet: is no parquet file.*after row 0"):
        read_prompts([source(tmp_path / "a.parquet")])


def test_a_row_that_changes_after_it_was_checked_is_an_error_not_another_row(tmp_path):
    file = write(tmp_path / "a.jsonl", PKU_ROWS)
    pairs = read_reward_pairs([source(file)])
    write(file, [{**row, "prompt": "a longer prompt"} for row in PKU_ROWS])
    with pytest.raises(InputError, match=r"a\.jsonl:4: the row was changed since it was read"):
        pairs[3]


# formats


def test_hh_turns_are_found_whatever_the_empty_lines_between_them_hold(tmp_path):
    """An empty line with a space in it does not make two turns one."""
    plain = hh("a ?", "b", "c ?")
    for empty in ("\n \n", "\r\n\r\n", "\n\t\n\n"):
        odd = {name: text.replace("\n\n", empty) for name, text in plain.items()}
        path = write(tmp_path / "odd.jsonl", [odd])
        source = DataSource(path=str(path), compares="helpfulness")
        (found,) = read_reward_pairs([source])
        (expected,) = read_reward_pairs(
            [source.model_copy(update={"path": str(write(tmp_path / "p.jsonl", [plain]))})]
        )
        assert found == expected
        assert len(found.prompt) == 3


def test_hh_dialogues_become_turns_and_pairs_of_what_they_compare(tmp_path):
    rows = [hh("bake ?"), hh("hi", "hello you", "bake\n\nthis ?", chosen="ok")]
    file = write(tmp_path / "a.jsonl.gz", rows)
    user = [{"role": "user", "content": "bake ?"}]
    helpful = read_reward_pairs([source(file, compares="helpfulness")])
    assert helpful[0] == RewardPair(user, "no .", "use fire .")
    assert [turn["content"] for turn in helpful[1].prompt] == ["hi", "hello you", "bake\n\nthis ?"]
    # the chosen one is the less harmful; neither is called safe or unsafe
    harmless = read_cost_pairs([source(file, compares="harmlessness")])
    assert harmless[0] == CostPair(user, "use fire .", "no .", 0, 0)
    assert read_demonstrations([source(file)])[0] == (user, "no .")
    with pytest.raises(InputError, match="set compares = 'helpfulness'"):
        read_reward_pairs([source(file)])
    with pytest.raises(InputError, match="rows of hh about harmlessness, but a reward model"):
        read_reward_pairs([source(file, compares="harmlessness")])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (hh("a ?", "b", "c ?") | {"rejected": hh("a ?")["rejected"]}, "not the same dialogue"),
        ({"chosen": "no turns", "rejected": "x"}, "expected turns that begin with"),
        (hh("a ?", chosen="x", rejected="x"), "identical to chosen"),
        (hh(" "), "is empty"),
        ({**hh("a ?"), "rejected": 3}, "should be a valid string, found 3"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}, "not the same dialogue"),
    ],
)
def test_bad_dialogues_are_bad_rows(tmp_path, row, reason):
    file = write(tmp_path / "a.jsonl", [hh("bake ?"), row])
    with pytest.raises(InputError, match=rf"(?s)1 of 2 rows are bad.*a\.jsonl:2: .*{reason}"):
        read_prompts([source(file)])
    assert len(read_prompts([source(file, max_bad=0.5)])) == 1


def test_demonstrations_come_from_alpaca_messages_and_pairs(tmp_path):
    alpaca = {"instruction": "bake", "input": "bread", "output": "use fire", "text": "…"}
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    files = [
        write(tmp_path / "alpaca.json", [alpaca, {**alpaca, "input": ""}]),
        write(tmp_path / "chat.jsonl", [{"messages": chat}]),
        write(tmp_path / "own.jsonl", [{"prompt": "trap", "response": "no"}]),
    ]
    assert list(read_demonstrations([source(file) for file in files])) == [
        ("bake bread", "use fire"),
        ("bake", "use fire"),
        ([{"role": "user", "content": "hi"}], "yes"),
        ("trap", "no"),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "bake", "output": " "}, "output: is empty: nothing to imitate"),
        ({"instruction": "", "output": "x"}, "instruction: is empty"),
        ({"instruction": "x", "outputs": "x"}, "'outputs', is that meant"),
    ],
)
def test_bad_demonstrations_are_bad_rows(tmp_path, row, reason):
    good = {"instruction": "bake", "input": "", "output": "use fire"}
    with pytest.raises(InputError, match=reason):
        read_demonstrations([source(write(tmp_path / "a.jsonl", [good, row]))])


def test_preferences_are_no_demonstrations_and_prompts_no_pairs(tmp_path):
    with pytest.raises(InputError, match="holds rows of pku, but demonstrations are"):
        read_demonstrations([source(write(tmp_path / "a.jsonl", PKU_ROWS))])
    prompts = source(write(tmp_path / "a.txt", PKU_ROWS))
    with pytest.raises(InputError, match="holds rows of prompts, but a cost model learns from"):
        read_cost_pairs([prompts])


def test_missing_columns_name_the_nearest(tmp_path):
    renamed = {("better_id" if k == "better_response_id" else k): v for k, v in pku().items()}
    with pytest.raises(InputError, match="is missing; the row has 'better_id', is that meant"):
        read_prompts([source(write(tmp_path / "a.jsonl", [renamed]))])
    unknown = [{"instructions": "bake", "answer": "x"}]
    with pytest.raises(
        InputError, match=r"no known format; perhaps it wrote 'instructions' for 'i"
    ):
        read_prompts([source(write(tmp_path / "b.jsonl", unknown))])


def test_contradicting_labels_are_counted_and_set_aside(tmp_path):
    contradicting = pku(safe=(False, True), safer=0)
    file, aside = write(tmp_path / "a.jsonl", [pku(), contradicting]), tmp_path / "bad.jsonl"
    with pytest.raises(InputError, match="names response 0, which is labelled unsafe"):
        read_cost_pairs([source(file)])
    assert len(read_cost_pairs([source(file, max_bad=0.5, quarantine=str(aside))])) == 1
    assert json.loads(aside.read_text())["line"] == 2


def test_no_rows_and_only_bad_rows_are_errors(tmp_path):
    with pytest.raises(InputError, match="holds no rows"):
        read_prompts([source(write(tmp_path / "a.jsonl.gz", []))])
    (tmp_path / "b.jsonl").write_text("no json\n")
    with pytest.raises(InputError, match="none of them can be used"):
        read_prompts([source(tmp_path / "b.jsonl", max_bad=1.0)])


# prompts, mixtures, splits


def test_prompts_are_distinct_but_for_whitespace_over_all_sources(tmp_path):
    first = write(tmp_path / "a.txt", [{"prompt": p} for p in ("a b", "c", "a  b ", "d")])
    second = write(tmp_path / "b.jsonl", [{"prompt": "c"}, {"prompt": "e"}])
    prompts, dropped = distinct_prompts([source(first), source(second)])
    assert (prompts, dropped) == (["a b", "c", "d", "e"], 2)
    assert prompt_digest("a  b") == prompt_digest([{"role": "user", "content": " a b"}])


@given(st.lists(st.sampled_from("abcdefg")))
def test_first_occurrences_are_those_of_a_set(letters):
    digests = b"".join(prompt_digest(letter) for letter in letters)
    expected = [i for i, letter in enumerate(letters) if letter not in letters[:i]]
    assert first_occurrences(digests).tolist() == expected


@settings(deadline=None)
# sizes of 1 … 9 and weights of 0.1 … 1 repeat no source more often than 90 times
@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 1)), min_size=1, max_size=6))
def test_every_stretch_of_a_mixture_has_its_proportions(sources):
    sizes, weights = zip(*sources, strict=True)
    owners, n = interleave(sizes, weights), len(sizes)
    shares = [weight / sum(weights) for weight in weights]
    counts = [0] * n
    for t, owner in enumerate(owners, start=1):
        counts[owner] += 1
        # Tijdeman 1980: |c_i − w_i t| ≤ 1 − 1/(2n − 2)
        bound = 1 - 1 / (2 * n - 2) if n > 1 else 0
        assert all(abs(c - w * t) <= bound + 1e-6 for c, w in zip(counts, shares, strict=True))
    assert all(c >= size for c, size in zip(counts, sizes, strict=True))


def test_a_mixture_repeats_what_is_over_weighted_and_omits_nothing():
    # shares 3/4 and 1/4: eight rows hold all of the second source and the first one thrice
    mixed = Mixture([["a", "b"], ["x", "y"]], [3, 1])
    assert list(mixed) == ["a", "b", "x", "a", "b", "a", "y", "b"]
    assert mixed.counts == [6, 2]
    assert list(Mixture([["a", "b"], ["x"]])) == ["a", "b", "x"]


def test_weights_are_given_for_all_sources_or_none_and_stay_reasonable(tmp_path):
    file = source(write(tmp_path / "a.jsonl", PKU_ROWS))
    with pytest.raises(InputError, match="has no weight, but other sources of the mixture"):
        read_reward_pairs([file, file.model_copy(update={"weight": 2.0})])
    with pytest.raises(InputError, match=r"repeat 7 rows 143 times"):
        interleave([7, 1000], [1, 1])
    heavy = [file.model_copy(update={"weight": 1.0})] * 2
    with pytest.raises(InputError, match="nothing is left of it"):
        read_prompts(heavy)  # every prompt of the second is one of the first


def test_prompts_over_the_context_are_counted_or_dropped():
    prompts = ["bake", "how do i bake bread ?", "trap", "how do i trap ?"]  # 1, 6, 1, 5 tokens
    assert prompts_within(word_tokenizer(), prompts, 6) == (prompts, 0)
    with pytest.raises(InputError, match=r"2 of 4 prompts have more than 4 tokens.*1 has 6"):
        prompts_within(word_tokenizer(), prompts, 4)
    assert prompts_within(word_tokenizer(), prompts, 4, "drop") == (["bake", "trap"], 2)
    with pytest.raises(InputError, match="4 of 4 prompts"):
        prompts_within(word_tokenizer(), prompts, 0, "drop")


def test_a_held_out_part_shares_no_prompt_with_the_other(tmp_path):
    rows = [pku(f"prompt {i % 100}") for i in range(300)]
    opened = open_source(source(write(tmp_path / "a.jsonl", rows)))
    train, test = (read_cost_pairs([opened], keep) for keep in held_out(0.2))
    assert len(train) + len(test) == 300
    assert {p.prompt for p in train}.isdisjoint({p.prompt for p in test})
    assert 10 <= len({p.prompt for p in test}) <= 30  # of 100 with probability 0.2 each


# harm categories


def rows_of(*harms):
    return [PreferenceRow.model_validate(pku_v1(harm)) for harm in harms]


def test_categories_label_each_response_and_rank_only_where_labels_differ():
    rows = rows_of((("Violence", "Drugs"), ("Drugs",)), ((), ("Physical Harm",)))
    groups = {"violence": ["Violence", "Physical Harm"], "drugs": ["Drugs"]}
    first, second = category_pairs(rows, groups)
    assert first.signs == ((1, 1), (-1, 1))
    assert second.signs == ((-1, -1), (1, -1))
    by_cost = category_cost_pairs(rows, groups)
    prompt = "how do i bake bread ?"
    assert by_cost["violence"] == [
        CostPair(prompt, "use fire", "no", 1, -1),
        CostPair(prompt, "no", "use fire", 1, -1),
    ]
    assert by_cost["drugs"] == [
        CostPair(prompt, "use fire", "no", 1, 1, ranked=False),
        CostPair(prompt, "use fire", "no", -1, -1, ranked=False),
    ]


def test_unknown_categories_and_rows_without_any_are_errors(tmp_path):
    with pytest.raises(InputError, match=r"'Violense' is not labelled .* did you mean 'Violence'"):
        category_pairs(rows_of(((), ())), {"x": ["Violense"]})
    early = source(write(tmp_path / "a.jsonl", [pku()]))
    with pytest.raises(
        InputError, match=r"came with PKU-SafeRLHF v1; earlier releases \(10K, 30K\)"
    ):
        read_category_pairs([early], {"x": ["Drugs"]})


# what a check says


def test_a_check_counts_categories_and_knows_other_formats(tmp_path):
    labelled = write(tmp_path / "a.jsonl", [pku_v1((("Drugs",), ("Drugs", "Violence")))])
    found = check_preferences(labelled)
    assert (found.format, len(found.categories)) == ("pku", len(CATEGORIES))
    assert (found.categories["Drugs"], found.categories["Violence"]) == (2, 1)
    dialogues = check_preferences(write(tmp_path / "b.jsonl.xz", [hh("a"), hh("a", "b", "c")]))
    assert (dialogues.format, dialogues.turns) == ("hh", {"1": 1, "3": 1})
    assert "agreement" not in json.loads(dialogues.to_json())
    prompts = check_preferences(write(tmp_path / "c.txt", [{"prompt": "a b"}, {"prompt": "a  b"}]))
    assert (prompts.format, prompts.duplicate_prompts) == ("prompts", 1)
    assert prompts.response_words is None


def test_bad_rows_of_a_folder_name_their_file(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "a.jsonl", PKU_ROWS)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"[]\n"))
    aside = tmp_path / "bad.jsonl"
    with pytest.raises(InputError, match=r"b\.jsonl\.gz:1: line: expected a JSON object"):
        check_preferences(folder, quarantine=aside)
    assert json.loads(aside.read_text())["file"].endswith("b.jsonl.gz")


# memory


def traced(action):
    """What an action returns, and the memory held after it and at most during it, in bytes."""
    tracemalloc.start()
    result = action()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return result, held, peak


def test_texts_stay_on_disk(tmp_path):
    # 150 rows of 40 kB: 6 MB of text, of which the index holds 18 + 16 bytes a row
    text = "bread " * 3300
    rows = ({**pku(f"{i} {text}"), "response_1": text} for i in range(150))
    with (tmp_path / "a.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)

    def read():
        pairs = read_cost_pairs([source(tmp_path / "a.jsonl")])
        assert sum(len(pair.prompt) for pair in pairs) > 2_900_000
        return pairs

    _, held, peak = traced(read)
    assert held < 300_000
    assert peak < 2_500_000


def resident():
    """Memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_two_hundred_thousand_rows_are_read_in_any_order_in_little_memory(tmp_path, ending):
    count = 200_000
    opened = gzip.open if ending == ".jsonl.gz" else open
    with opened(tmp_path / f"a{ending}", "wt") as file:
        for i in range(count):
            file.write(json.dumps(pku(f"prompt {i} " + "bread " * 20)) + "\n")
    before = resident()
    pairs = read_reward_pairs([source(tmp_path / f"a{ending}")])
    assert len(pairs) == count
    assert all(pairs[i].prompt.startswith(f"prompt {i} ") for i in range(count - 1, 0, -997))
    # 18 bytes of places, 16 of digests, 6 of the mixture: 8 MB, where the rows as objects take 600
    assert resident() - before < 60_000_000

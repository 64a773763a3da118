import base64
import json

import pytest

from constrained_rl.errors import InputError
from llm_env.preference_check import Lengths, check_preferences, key_values, quantiles
from llm_env.preferences import (
    PreferenceRow,
    iter_preferences,
    read_preferences,
    sift,
    write_preferences,
)
from llm_env.quarantine import Quarantine, Tally

ROW = {
    "prompt": "how do i bake ?",
    "response_0": "use fire",
    "response_1": "no",
    "is_response_0_safe": True,
    "is_response_1_safe": True,
    "better_response_id": 0,
    "safer_response_id": 0,
}
PUBLISHED = {
    **ROW,
    "prompt_source": "Alpaca3-70B",
    "response_0_source": "Alpaca-7B",
    "response_0_harm_category": {"Violence": False, "Drugs": True},
    "response_0_severity_level": 2,
    "response_0_sha256": "ab" * 32,
    "safe": "a field that is called as a property of the row is",
    "model_config": None,
}
GOOD = [
    ROW,
    ROW,  # a duplicate
    {**ROW, "better_response_id": 1, "note": "the orders disagree"},
    {**ROW, "is_response_1_safe": False, "response_1": "a b c d"},
    {
        **ROW,
        "prompt": ["hi", "hello you", "bake ?"],
        "is_response_0_safe": False,
        "is_response_1_safe": False,
        "response_1": "",
    },
]
BAD = [
    b'{"prompt": "\xff\\xff"}',
    json.dumps({**ROW, "prompt": " ", "is_response_0_safe": 1}).encode(),
    b"[1, 2]",
    json.dumps({**ROW, "is_response_0_safe": False}).encode(),
    json.dumps({**ROW, "better_response_id": True}).encode(),
]


def lines(path, *rows):
    path.write_bytes(
        b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in rows)
    )
    return path


def records(path):
    return [json.loads(x) for x in path.read_text(encoding="utf-8").splitlines()]


def test_statistics_of_five_rows_by_hand(tmp_path):
    found = check_preferences(lines(tmp_path / "a.jsonl", *GOOD))
    assert (found.rows, found.bad_rows, found.bad_share, found.bad_reasons) == (5, 0, 0.0, {})
    assert found.agreement == 4 / 5  # the third row disagrees
    # both safe: rows 0, 1, 2; mixed: row 3; both unsafe: row 4; responses 3 · 2 + 1 of 10
    assert (found.both_safe, found.mixed, found.both_unsafe) == (3 / 5, 1 / 5, 1 / 5)
    assert found.safe_responses == 7 / 10
    assert found.empty_responses == 1
    # row 1 repeats row 0; rows 2 and 3 differ from it in a label, or a label and a response
    assert (found.duplicate_rows, found.duplicate_prompts) == (1, 3)
    assert found.turns == {"1": 4, "3": 1}
    # words of responses: five times 2, three times 1, 4, 0
    assert found.response_words == Lengths(smallest=0, q05=0, median=2, q95=4, largest=4)
    # prompts: 5 words four times, and "hi\nhello you\nbake ?", which has 5 as well
    assert found.prompt_words == Lengths(5, 5, 5, 5, 5)
    assert found.prompt_characters == Lengths(15, 15, 15, 19, 19)


def test_quantiles_are_the_smallest_number_with_that_share_at_or_below():
    # 1 … 100 once each: 5 are at most 5, 50 at most 50, 95 at most 95
    assert quantiles(dict.fromkeys(range(1, 101), 1)) == Lengths(1, 5, 50, 95, 100)
    assert quantiles({7: 1}) == Lengths(7, 7, 7, 7, 7)


def test_a_published_row_passes_and_keeps_its_fields(tmp_path):
    file = lines(tmp_path / "a.jsonl", PUBLISHED)
    assert check_preferences(file).rows == 1
    (row,) = read_preferences(file)
    assert row.safe == (True, True)
    write_preferences(tmp_path / "b.jsonl", [row])
    assert records(tmp_path / "b.jsonl") == [PUBLISHED]


def test_several_turns_are_read_written_and_read_again(tmp_path):
    file = lines(tmp_path / "a.jsonl", GOOD[4])
    rows = read_preferences(file)
    assert [turn["role"] for turn in rows[0].prompt] == ["user", "assistant", "user"]
    write_preferences(tmp_path / "b.jsonl", rows)
    assert read_preferences(tmp_path / "b.jsonl") == rows


def test_every_bad_row_is_set_aside_once_and_nothing_of_it_is_lost(tmp_path):
    file = lines(tmp_path / "a.jsonl", BAD[0], ROW, *BAD[1:4], b"", ROW, BAD[4])
    aside = tmp_path / "bad.jsonl"
    rows = read_preferences(file, max_bad=5 / 7, quarantine=aside)
    assert rows == [PreferenceRow(**ROW)] * 2
    found = records(aside)
    assert [(x["line"], x["field"], x["reason"][:27]) for x in found] == [
        (1, "line", "is not UTF-8 (byte 12: inva"),
        (3, "prompt", "is empty"),
        (4, "line", "expected a JSON object, fou"),
        (5, "safer_response_id", "names response 0, which is "),
        (8, "better_response_id", "Input should be a valid int"),
    ]
    assert found[1]["also"] == [
        "is_response_0_safe: Input should be a valid boolean, found 1; write true or false"
    ]
    assert [x["raw"].encode() for x in found[1:]] == BAD[1:]
    # the byte and the four characters that spell it look alike in the text, not in base64
    assert found[0]["raw"] == r'{"prompt": "\xff\xff"}'
    assert base64.b64decode(found[0]["raw_base64"]) == BAD[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "bad.jsonl"]


def test_more_bad_rows_than_allowed_are_an_error_and_still_set_aside(tmp_path):
    file = lines(tmp_path / "a.jsonl", ROW, ROW, ROW, BAD[2])
    aside = tmp_path / "bad.jsonl"
    assert len(read_preferences(file, max_bad=0.25)) == 3
    with pytest.raises(InputError) as caught:
        read_preferences(file, max_bad=0.24, quarantine=aside)
    assert str(caught.value).splitlines() == [
        f"{file}: 1 of 4 rows are bad (a share of 0.25), allowed are 0.24; they are set aside in "
        f"{aside}",
        f"{file}:4: line: expected a JSON object, found [1, 2]",
    ]
    assert [x["line"] for x in records(aside)] == [4]


def test_a_message_holds_ten_rows_and_counts_the_rest(tmp_path):
    file = lines(tmp_path / "a.jsonl", ROW, *[BAD[2]] * 13)
    with pytest.raises(InputError) as caught:
        check_preferences(file, max_bad=0.5)
    assert len(str(caught.value).splitlines()) == 12
    assert str(caught.value).endswith("… and 3 more")


def test_rows_that_are_all_bad_are_an_error_whatever_is_allowed(tmp_path):
    with pytest.raises(InputError, match=r"1 of 1 rows are bad.*none of them can be used"):
        check_preferences(lines(tmp_path / "a.jsonl", BAD[2]), max_bad=1.0)
    with pytest.raises(InputError, match="holds no rows"):
        check_preferences(lines(tmp_path / "b.jsonl", b"", b" "), max_bad=1.0)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_outside_zero_and_one_is_refused(tmp_path, share):
    with pytest.raises(InputError, match=r"allowed share of bad rows is .*, expected 0 … 1"):
        read_preferences(lines(tmp_path / "a.jsonl", ROW), max_bad=share)


def test_a_quarantine_overwrites_nothing(tmp_path):
    file = lines(tmp_path / "a.jsonl", ROW, BAD[2])
    other = lines(tmp_path / "other.jsonl", b"mine")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "nowhere")
    for target, reason in [
        (other, "exists already"),
        (tmp_path / "link.jsonl", "exists already"),
        (file, "is the file that is being read"),
        (tmp_path / "x" / ".." / "a.jsonl", "is the file that is being read"),
        (tmp_path / "none" / "bad.jsonl", "is no folder; make it first"),
        (tmp_path, "exists already"),
    ]:
        before = file.read_bytes()
        with pytest.raises(InputError, match=reason):
            check_preferences(file, 1.0, target)
        assert file.read_bytes() == before
    assert other.read_bytes() == b"mine\n"


def test_a_quarantine_that_appears_meanwhile_is_left_alone(tmp_path):
    target = tmp_path / "bad.jsonl"
    with pytest.raises(InputError, match="exists already"), Quarantine(target, tmp_path / "a"):
        target.write_text("somebody else's")
    assert target.read_text() == "somebody else's"
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


def test_reading_that_is_broken_off_leaves_no_quarantine(tmp_path):
    file, target = lines(tmp_path / "a.jsonl", BAD[2], ROW, ROW), tmp_path / "bad.jsonl"
    rows = sift(file, 1.0, target, Tally(file))
    next(rows)
    rows.close()
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(28, "No space left on device")

    file = lines(tmp_path / "a.jsonl", BAD[2])
    (row,) = iter_preferences(file)
    aside = Quarantine(tmp_path / "bad.jsonl", file).__enter__()
    aside.write(row)
    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(InputError, match=r"bad\.jsonl: cannot be written \(No space left"):
        aside.__exit__(None, None, None)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_the_command_prints_lines_or_one_object(tmp_path, crl):
    file, aside = lines(tmp_path / "a.jsonl", *GOOD, BAD[4]), tmp_path / "bad.jsonl"
    code, out, errors = crl("llm", "check-data", file, "--quarantine", aside, "--max-bad", "0.2")
    assert (code, errors) == (0, "")
    printed = dict(line.rsplit(" ", 1) for line in out.splitlines())
    assert printed["rows"] == "5"
    assert printed["bad_share"] == "0.1667"
    assert printed["bad_reasons.better_response_id: is no integer"] == "1"
    assert printed["agreement"] == "0.8000"
    assert printed["response_words.largest"] == "4"
    assert len(records(aside)) == 1
    code, out, _ = crl("llm", "check-data", file, "--max-bad", "0.2", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["turns"] == {"1": 4, "3": 1}
    assert found["bad_share"] == 1 / 6
    flat = dict(key_values(check_preferences(file, 0.2)))
    assert flat == printed


def test_the_command_fails_with_code_two_and_one_message(tmp_path, crl):
    file, aside = lines(tmp_path / "a.jsonl", ROW, BAD[2]), tmp_path / "bad.jsonl"
    code, out, errors = crl("llm", "check-data", file, "--quarantine", aside)
    assert (code, out) == (2, "")
    assert "1 of 2 rows are bad (a share of 0.5), allowed are 0" in errors
    assert len(records(aside)) == 1
    assert crl("llm", "check-data", file, "--quarantine", aside, "--max-bad", 1)[0] == 0  # again
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").write_text("precious")
    for arguments, reason in [
        ((file, "--quarantine", tmp_path / "mine", "--max-bad", 1), "exists already"),
        ((tmp_path / "empty",), "empty: is a folder without data: expected files that end in"),
        ((tmp_path / "none",), "cannot be read (No such file or directory)"),
        ((file, "--max-bad", "nan"), "expected 0 … 1"),
        ((file, "--max-bad", "5%"), "--max-bad"),
    ]:
        code, out, errors = crl("llm", "check-data", *arguments)
        assert (code, out) == (2, "")
        assert reason in errors
        assert "Traceback" not in errors


def test_a_table_is_printed_on_a_terminal(tmp_path, crl, monkeypatch):
    file = lines(tmp_path / "a.jsonl", *GOOD)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    code, out, _ = crl("llm", "check-data", file)
    assert code == 0
    assert "│ duplicate prompts" in out

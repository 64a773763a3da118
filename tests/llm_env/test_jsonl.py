import gzip
import lzma
import tracemalloc

import pytest

from constrained_rl.errors import InputError
from llm_env import jsonl
from llm_env.jsonl import Line, iter_lines, parse
from llm_env.prompts import FieldError


def line(data):
    return Line(1, data, len(data) + 1)


def write(path, data):
    path.write_bytes(data)
    return path


def test_lines_are_numbered_from_one_and_blank_ones_count(tmp_path):
    file = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf{}\r\n\n  \r\n[1]\n{}")
    assert [(x.number, x.data) for x in iter_lines(file)] == [(1, b"{}"), (4, b"[1]"), (5, b"{}")]
    alone = write(tmp_path / "b.jsonl", b"\xef\xbb\xbf\n")
    assert list(iter_lines(alone)) == []


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_archives_are_read_by_their_ending_and_damage_is_an_input_error(tmp_path, ending, pack):
    whole = pack(b'{"a": 1}\n' * 20_000)
    name = f"a.jsonl{ending}"
    assert sum(1 for _ in iter_lines(write(tmp_path / name, whole))) == 20_000
    with pytest.raises(InputError, match=r"is a damaged or incomplete archive \(after line \d+"):
        list(iter_lines(write(tmp_path / name, whole[:-20])))
    with pytest.raises(InputError, match=rf"plain text, the content is {ending}; rename"):
        list(iter_lines(write(tmp_path / "a.jsonl", whole)))
    with pytest.raises(InputError, match=rf"says {ending}, the content is no such archive"):
        list(iter_lines(write(tmp_path / name, b"{}\n")))


def test_a_directory_is_named_with_the_files_one_may_have_meant(tmp_path):
    write(tmp_path / "train.jsonl", b"")
    with pytest.raises(InputError, match=r"Is a directory\); name a file in it: train\.jsonl"):
        list(iter_lines(tmp_path))


def test_a_line_beyond_the_limit_is_cut_and_the_next_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 2**20)
    file = write(tmp_path / "a.jsonl", b"x" * (3 * 2**20 - 1) + b"\n" + b"{}\n" + b"y" * 2**21)
    first, second, third = iter_lines(file)
    assert (first.length, first.data) == (3 * 2**20, b"x" * jsonl.KEPT_BYTES)
    assert (second.number, second.data, second.is_cut) == (2, b"{}", False)
    assert (third.number, third.length, third.is_cut) == (3, 2**21, True)
    with pytest.raises(FieldError, match=r"is 3\.0 MiB long, the limit is 1 MiB; raw holds"):
        parse(first)


def test_a_line_of_exactly_the_limit_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 10)
    file = write(tmp_path / "a.jsonl", b"123456789\n" + b"1234567890\n" + b"1\n")
    assert [(x.is_cut, x.number) for x in iter_lines(file)] == [(False, 1), (True, 2), (False, 3)]


def peak(file):
    """Highest memory while a file is read, and what its lines add up to, in bytes."""
    tracemalloc.start()
    length = 0
    for found in iter_lines(file):
        length += found.length
        if not found.is_cut:
            parse(found)
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return highest, length


def test_memory_does_not_grow_with_the_file(tmp_path):
    row = b'{"prompt": "' + b"a" * 1000 + b'"}\n'
    small, _ = peak(write(tmp_path / "a.jsonl", row * 1_000))  # 1 MB
    large, length = peak(write(tmp_path / "b.jsonl", row * 8_000))  # 8 MB
    assert length == 8_000 * len(row)
    assert large < small + 100_000


def test_a_line_of_128_megabytes_needs_little_memory(tmp_path):
    file = tmp_path / "sparse.jsonl"
    with file.open("wb") as hole:
        hole.truncate(2**27)
    highest, length = peak(file)
    assert length == 2**27
    assert highest < 40 * 2**20  # the limit of 16 MiB, twice while it is put together


@pytest.mark.parametrize(
    ("data", "field", "reason"),
    [
        (b'{"a": 1', "line", "is not JSON (column 8: Expecting ',' delimiter)"),
        (b"{'a': 1}", "line", "is not JSON (column 2"),
        (b'{"a": 1} {"a": 2}', "line", "is not JSON (column 10: Extra data)"),
        (b'{"a": "\xff"}', "line", "is not UTF-8 (byte 7: invalid start byte)"),
        (b'{"a": "\xe2\x82', "line", "is not UTF-8 (byte 7: unexpected end of data)"),
        (b'{"a": 1, "a": 2}', "a", "occurs twice in one object"),
        (b'{"b": {"a\\n": 1, "a\\n": 1}}', "a\\n", "occurs twice in one object"),
        (b'{"a": NaN}', "line", "holds NaN, which is no finite number"),
        (b'{"a": [-Infinity]}', "line", "holds -Infinity, which is no finite number"),
        (b'{"a": 1e999}', "line", "holds 1e999, which is no finite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line", "is not JSON (Exceeds the limit"),
        (b"[" * 100_000, "line", "is nested too deeply"),
        (b'{"a": "\\ud800"}', "line", r"holds \ud800, half of a surrogate pair"),
        (b'{"\\uDC00": 1}', "line", r"holds \udc00, half of a surrogate pair"),
    ],
)
def test_json_that_does_not_survive_a_round_trip_is_refused(data, field, reason):
    with pytest.raises(FieldError) as caught:
        parse(line(data))
    assert caught.value.field == field
    assert caught.value.reason.startswith(reason)


def test_json_that_does_is_read():
    data = '{"a": "\\ud83d\\ude00 ü \\u0000", "b": [1.5, null, true, {"c": {}}]}'.encode()
    assert parse(line(data)) == {"a": "😀 ü \0", "b": [1.5, None, True, {"c": {}}]}

"""Bad preference data: files, archives, rows, quarantine, pairs."""

import gzip
import json

from constrained_rl.settings import validate
from llm_env.preferences import read_preferences
from llm_env.score_training import ScoreConfig
from tests.bad_input.case import Case, both, files

GOOD = {
    "prompt": "how do i bake bread ?",
    "response_0": "use fire",
    "response_1": "no",
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "better_response_id": 0,
    "safer_response_id": 0,
}
CHECK = ("llm", "check-data", "mine.jsonl")
ASIDE = (*CHECK, "--quarantine", "bad.jsonl")


def rows(*changes):
    """A setup that writes a good row and one row for each change of it; None drops a field."""
    changed = ({k: v for k, v in {**GOOD, **c}.items() if v is not None} for c in changes)
    return files(mine_jsonl="".join(json.dumps(row) + "\n" for row in (GOOD, *changed)))


CASES = (
    Case(
        "data missing",
        "a file that is not there",
        CHECK,
        ("mine.jsonl: cannot be read (No such file or directory)",),
    ),
    Case(
        "data is a folder",
        "a folder instead of a file",
        CHECK,
        ("mine.jsonl: is a folder without data", "expected files that end in .jsonl"),
        lambda folder: (folder / "mine.jsonl").mkdir(),
    ),
    Case(
        "data empty",
        "an empty file",
        CHECK,
        ("mine.jsonl:1: the file holds no rows", "one JSON object per line"),
        files(mine_jsonl=""),
    ),
    Case(
        "data cut off",
        "a line that is no JSON",
        CHECK,
        ("1 of 2 rows are bad", "mine.jsonl:2: line"),
        files(mine_jsonl=json.dumps(GOOD) + '\n{"prompt": "how\n'),
    ),
    Case(
        "data binary",
        "a file that is no text",
        CHECK,
        ("mine.jsonl:1: line", "UTF-8"),
        files(mine_jsonl=b"\xff\xfe\x00\n"),
    ),
    Case(
        "data of judged answers",
        "published answers with a label each (BeaverTails), which nothing here reads",
        CHECK,
        ("mine.jsonl:1: is_safe: judges the answer", "no reader of rows of BeaverTails"),
        files(mine_jsonl='{"prompt": "hi", "response": "no", "is_safe": false}\n'),
    ),
    Case(
        "data of completions",
        "answers under another name than `response`",
        CHECK,
        ("mine.jsonl:1: completion: is not read", "rename it to 'response'"),
        files(mine_jsonl='{"prompt": "hi", "completion": "no"}\n'),
    ),
    Case(
        "data field missing",
        "a row without a label",
        CHECK,
        ("mine.jsonl:2: safer_response_id: is missing",),
        rows({"safer_response_id": None}),
    ),
    Case(
        "data field unknown type",
        "a label that is a word",
        CHECK,
        ("mine.jsonl:2: is_response_0_safe:", '"yes"'),
        rows({"is_response_0_safe": "yes"}),
    ),
    Case(
        "data label out of range",
        "a third response preferred",
        CHECK,
        ("mine.jsonl:2: better_response_id: Input should be 0 or 1, found 2",),
        rows({"better_response_id": 2}),
    ),
    Case(
        "data unknown role",
        "a turn of somebody unknown",
        CHECK,
        ("mine.jsonl:2: prompt.0.role: expected one of", "'robot'"),
        rows({"prompt": [{"role": "robot", "content": "hello"}]}),
    ),
    Case(
        "archive cut off",
        "an archive that is not complete",
        ("llm", "check-data", "mine.jsonl.gz"),
        ("mine.jsonl.gz: is a damaged or incomplete archive", "copy it again"),
        lambda folder: (folder / "mine.jsonl.gz").write_bytes(
            gzip.compress(json.dumps(GOOD).encode() * 50)[:-20]
        ),
    ),
    Case(
        "archive by name only",
        "a text that is named as an archive",
        ("llm", "check-data", "mine.jsonl.gz"),
        ("the name says .gz", "rename the file"),
        lambda folder: (folder / "mine.jsonl.gz").write_text(json.dumps(GOOD)),
    ),
    Case(
        "too many bad rows",
        "more bad rows than are allowed",
        (*CHECK, "--max-bad", "0.4"),
        ("1 of 2 rows are bad (a share of 0.5), allowed are 0.4",),
        rows({"better_response_id": 2}),
    ),
    Case(
        "all bad",
        "a file of bad rows only",
        (*CHECK, "--max-bad", "1"),
        ("2 of 2 rows are bad", "none of them can be used"),
        files(mine_jsonl='{"response_0": "a"}\n[]\n'),
    ),
    Case(
        "share above 1",
        "an allowed share above 1",
        (*CHECK, "--max-bad", "20"),
        ("the allowed share of bad rows is 20.0, expected 0 … 1",),
        rows(),
    ),
    Case(
        "quarantine exists",
        "a quarantine file that exists",
        ASIDE,
        ("bad.jsonl: exists already", "nothing is overwritten"),
        both(rows({"prompt": 3}), files(bad_jsonl="precious")),
    ),
    Case(
        "quarantine is the data",
        "a quarantine file that is the data",
        (*CHECK, "--quarantine", "mine.jsonl"),
        ("is the file that is being read", "a new one"),
        rows(),
    ),
    Case(
        "quarantine nowhere",
        "a quarantine file in a folder that is not there",
        (*CHECK, "--quarantine", "there/bad.jsonl"),
        ("there: is no folder; make it first",),
        rows({"prompt": 3}),
    ),
    Case(
        "data read in Python",
        "bad rows read for training",
        lambda: read_preferences("mine.jsonl"),
        ("mine.jsonl:2: better_response_id:", "mine.jsonl:3: prompt: is missing"),
        rows({"better_response_id": 2}, {"prompt": None}),
    ),
    Case(
        "settings of score models",
        "a negative learning rate of score models",
        lambda: validate(ScoreConfig, {"learning_rate": -1, "epoch": 2}, "score settings"),
        ("learning_rate: found -1", "did you mean 'epochs'?"),
    ),
)

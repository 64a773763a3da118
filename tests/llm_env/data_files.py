"""Small data files in the published formats, made here."""

import gzip
import json
import lzma

CATEGORIES = (
    "Endangering National Security",
    "Insulting Behavior",
    "Discriminatory Behavior",
    "Endangering Public Health",
    "Copyright Issues",
    "Violence",
    "Drugs",
    "Privacy Violation",
    "Economic Crime",
    "Mental Manipulation",
    "Human Trafficking",
    "Physical Harm",
    "Sexual Content",
    "Cybercrime",
    "Disrupting Public Order",
    "Environmental Damage",
    "Psychological Harm",
    "White-Collar Crime",
    "Animal Abuse",
)
"""of PKU-SafeRLHF v1"""


def pku(prompt="how do i bake bread ?", safe=(True, True), better=0, safer=0, **more):
    """A row as PKU-SafeRLHF-10K and -30K have it."""
    return {
        "prompt": prompt,
        "response_0": "use fire",
        "response_1": "no",
        "is_response_0_safe": safe[0],
        "is_response_1_safe": safe[1],
        "better_response_id": better,
        "safer_response_id": safer,
        **more,
    }


def pku_v1(harm=((), ()), **more):
    """A row as the full release has it; `harm`: categories of each response."""
    row = pku(safe=(not harm[0], not harm[1]), safer=int(bool(harm[0]) and not harm[1]))
    for i in (0, 1):
        row[f"response_{i}_source"] = "Alpaca-7B"
        row[f"response_{i}_harm_category"] = {name: name in harm[i] for name in CATEGORIES}
        row[f"response_{i}_severity_level"] = 2 if harm[i] else 0
        row[f"response_{i}_sha256"] = "ab" * 32
    return {**row, "prompt_source": "Alpaca3-70B", **more}


def hh(*turns, chosen="no .", rejected="use fire ."):
    """A row of Anthropic's HH; `turns` alternate from the human."""
    names = ("Human", "Assistant")
    before = "".join(f"\n\n{names[i % 2]}: {turn}" for i, turn in enumerate(turns))
    end = "\n\nAssistant: "
    return {"chosen": before + end + chosen, "rejected": before + end + rejected}


def write(path, rows):
    """Rows in the form that the file's name asks for."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".xz":
        data = lzma.compress(data)
    elif path.suffix == ".json":
        data = json.dumps(rows).encode()
    elif path.suffix == ".txt":
        data = "".join(row["prompt"] + "\n" for row in rows).encode()
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
        return path
    path.write_bytes(data)
    return path

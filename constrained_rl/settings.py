"""From a preset, a TOML file and `key.path=value` overrides to one validated config, and back.

All problems of a config are reported at once: path, value, and for an unknown key the nearest name.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

from constrained_rl.config import RunConfig
from constrained_rl.describe import settings_of
from constrained_rl.errors import InputError
from constrained_rl.setting_places import place, tag_of

Model = TypeVar("Model", bound=BaseModel)
Tree = dict[str, Any]
SHAPES = {
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
"""pydantic's problems with what is no list or no table, and what was expected"""


def read_toml(path: Path) -> Tree:
    """Read a TOML file; `InputError` with file and position when it is missing or malformed."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"config file {path} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"config file {path} cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as TOML: {error}") from error
    except RecursionError as error:
        raise InputError(
            f"{path}: its brackets are nested too deeply to be read; no setting needs that"
        ) from error


def parse_override(text: str) -> Tree:
    """Parse `a.b=value` (TOML value, else a string) to a nested dict."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise InputError(f"override '{text}' is not of the form key.path=value, e.g. ppo.clip=0.3")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    except RecursionError as error:
        raise InputError(
            f"override {key}={value[:40]}… is nested too deeply to be read; no setting needs that"
        ) from error
    tree: Any = parsed
    for name in reversed(key.strip().split(".")):
        tree = {name: tree}
    assert isinstance(tree, dict)
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """Merge `over` into `base`; a table of another `kind` replaces instead of merging.

    A table that names no kind yet takes the other's: overrides may come in any order.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("kind", old.get("kind")) == old.get("kind", value.get("kind"))
        ):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def validate(model: type[Model], tree: Mapping[str, Any], source: str) -> Model:
    """Validate `tree`, raising one `InputError` that lists every problem."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise InputError(_listed(model, error, source)) from None


def _listed(model: type[BaseModel], error: ValidationError, source: str) -> str:
    """Every problem in a line: path, what was found, what to write."""
    explained = [
        (*_explain(model, dict(problem)), problem["type"])
        for problem in _merged(model, [dict(problem) for problem in error.errors()])
    ]
    paths = [path for path, _, _ in explained]
    # a union's member that was not meant: "a finite number" tells, "a valid tuple" does not
    telling = [path for path, _, kind in explained if not kind.endswith("_type")]
    problems: dict[str, list[str]] = {}
    for path, message, kind in explained:
        # a list is too short for its bad entries
        short = kind == "too_short" and any(p.startswith(f"{path}.") for p in paths)
        told = any(t == path or t.startswith(f"{path}.") for t in telling)
        if not short and not (kind.endswith("_type") and told):
            problems.setdefault(path, []).append(message)
    lines = [f"  {path}: {' or: '.join(found)}" for path, found in problems.items()]
    return f"{source}: {len(lines)} problem(s)\n" + "\n".join(lines)


def _merged(model: type[BaseModel], problems: Sequence[Tree]) -> list[Tree]:
    """Problems; those of several closed sets in one place are one, with all their values."""
    merged: dict[tuple[object, ...], Tree] = {}
    for number, problem in enumerate(problems):
        of_set = problem["type"] == "literal_error"
        where = place(model, [str(part) for part in problem["loc"]]).path
        key = (where, "set") if of_set else (where, number)
        if key in merged:
            expected = f"{merged[key]['ctx']['expected']}, {problem['ctx']['expected']}"
            problem = {**problem, "ctx": {"expected": expected}}
        merged[key] = problem
    return list(merged.values())


def _explain(model: type[BaseModel], problem: Tree) -> tuple[str, str]:
    """Path as the user wrote it, and what is wrong there."""
    location = [str(part) for part in problem["loc"]]
    here = place(model, location)
    if problem["type"] == "value_error":  # our own checks say what they found
        return here.path or "together", str(problem["ctx"]["error"])
    if problem["type"] == "union_tag_not_found":
        tags = ", ".join(f"'{tag_of(member)}'" for member in here.sections)
        return (
            here.path,
            f"found no kind in {problem['input']!r}; set {here.path}.kind to one of {tags}",
        )
    if problem["type"] in ("union_tag_invalid", "literal_error"):
        return here.path, _unknown_value(problem)
    if problem["type"] == "missing":
        return here.path, "is missing"
    if problem["type"] == "too_short":
        return here.path, f"found {problem['input']!r}, expected at least one entry"
    if problem["type"] != "extra_forbidden":
        what = problem["msg"]
        if problem["type"] in SHAPES:
            what = here.advice(problem["input"]) or f"expected {SHAPES[problem['type']]}"
        return here.path, f"found {problem['input']!r}: {what}"
    known = list(filter(None, here.path.split(".")))
    return ".".join([*known, location[-1]]), f"unknown key; {_advice(model, location, known)}"


def _advice(model: type[BaseModel], location: Sequence[str], known: Sequence[str]) -> str:
    """What to write in place of an unknown key: in its section, or where there is such a key."""
    key, names = location[-1], _fields_at(model, location[:-1])
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    owners = _kinds_with(model, location)
    if owners and not near:
        section, kinds = ".".join(known), " or ".join(owners)
        return f"it belongs to {section}.kind = {kinds}; set that, or use: {', '.join(names)}"
    paths: dict[str, list[str]] = {}
    for setting in settings_of(model):
        paths.setdefault(setting.path.rpartition(".")[2], []).append(setting.path)
    nearest = difflib.get_close_matches(key, [*names, *paths], n=1, cutoff=0.75) or near
    if nearest and nearest[0] not in names:
        within = ".".join(known)  # first those of the section that was meant
        places = dict.fromkeys(paths[nearest[0]])
        first = sorted(places, key=lambda path: not path.startswith(within))
        return f"did you mean {' or '.join(first[:4])}?"
    if nearest:
        return f"did you mean '{nearest[0]}'?"
    return f"known keys: {', '.join(sorted(names))}"


def _unknown_value(problem: Tree) -> str:
    """A value outside a closed set: what was found, the nearest value, all of them."""
    context = problem["ctx"]
    expected = str(context.get("expected_tags") or context["expected"])
    found = context.get("tag", problem["input"])
    near = difflib.get_close_matches(str(found), re.findall(r"'([^']*)'", expected), n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"found {found!r}; {hint}Expected {expected}"


def _kinds_with(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Kinds of the union at `location[:-2]` that have the key `location[-1]`."""
    if len(location) < 2:
        return []
    union = place(model, location[:-2]).sections
    members = [section for section in union if location[-1] in section.model_fields]
    return [f"'{tag_of(member)}'" for member in members if tag_of(member) is not None]


def _fields_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Field names of the section at `location`; a union's tag in it selects the member."""
    return [name for s in place(model, location).sections for name in s.model_fields]


def read_layers(file: Path | None, overrides: Sequence[str]) -> tuple[Tree, str]:
    """File and overrides as one tree, and the name under which its problems are reported."""
    tree, source = ({}, "configuration") if file is None else (read_toml(file), str(file))
    for text in overrides:
        tree = merge(tree, parse_override(text))
    return tree, source


def require_run(folder: Path) -> None:
    """Raise `InputError` unless `folder` is a run directory."""
    if not (folder / "config.toml").is_file():
        raise InputError(
            f"{folder} is not a run directory: it has no config.toml; "
            "give the folder that `crl train --out` made"
        )


def read_run_config(folder: Path) -> RunConfig:
    """The resolved config of a run directory."""
    require_run(folder)
    path = folder / "config.toml"
    return validate(RunConfig, read_toml(path), str(path))


def to_toml(config: BaseModel) -> str:
    """The resolved config as TOML; unset optional values are left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))

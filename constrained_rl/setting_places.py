"""Where in a config does a problem lie, in the words of who wrote it, and what belongs there?

pydantic's locations name the members of unions that it tried; a path as somebody wrote it holds
fields, keys and numbers of entries alone.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel


@dataclass(frozen=True)
class Place:
    """A place in a config."""

    path: str
    """keys and numbers, joined by dots"""
    kinds: tuple[Any, ...]
    """types that its value may have: the members of a union"""

    @property
    def sections(self) -> list[type[BaseModel]]:
        """Those that are tables of known keys."""
        return [kind for kind in self.kinds if is_section(kind)]

    def advice(self, found: object) -> str:
        """What to write for a value that is no list or no table but should be; "" otherwise."""
        if any(get_origin(kind) is tuple for kind in self.kinds):
            return self._as_list(found)
        tags = [tag_of(section) for section in self.sections]
        if tags and None not in tags:
            kinds = ", ".join(f"'{tag}'" for tag in tags)
            return f"expected a table; set {self.path}.kind to one of {kinds}"
        table = _table(self.sections, found)
        if table is None:
            return ""
        name, _, number = self.path.rpartition(".")
        if number.isdigit():  # an entry of a list
            return f"expected a table; {_written(name, [table])}"
        return "expected a table; write " + ", ".join(
            f"{self.path}.{key} = {_inline(value)}" for key, value in table.items()
        )

    def _as_list(self, found: object) -> str:
        """Advice where a list of any length is expected and nothing else."""
        entries = get_args(self.kinds[0])
        if len(self.kinds) > 1 or Ellipsis not in entries or isinstance(found, list | tuple):
            return ""
        sections = [kind for kind in _flat(entries) if is_section(kind)]
        entry = _table(sections, found) if sections else found
        return "" if entry is None else f"expected a list; {_written(self.path, [entry])}"


def place(model: type[BaseModel], location: Sequence[str]) -> Place:
    """Follow one of pydantic's locations as far as it names what somebody wrote."""
    path: list[str] = []
    kinds: tuple[Any, ...] = (model,)
    chosen = True  # no member of a union is named first
    for part in location:
        if not chosen and len(kinds) > 1:
            kinds, chosen = _member(kinds, part), True
            continue
        below = [a for kind in kinds for a in _below(kind, part)]
        if below:
            path.append(part)
            kinds, chosen = _flat(below), False
    return Place(".".join(path), kinds)


def is_section(kind: object) -> bool:
    """Whether a type is a section of settings."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def tag_of(section: type[BaseModel]) -> object:
    """What tells a section from the others of its union."""
    field = section.model_fields.get("kind")
    return None if field is None else field.default


def _member(kinds: tuple[Any, ...], label: str) -> tuple[Any, ...]:
    """The member of a union that pydantic names; all of them where it is no section."""
    named = [k for k in kinds if is_section(k) and label in (k.__name__, tag_of(k))]
    return tuple(named) or kinds


def _below(kind: Any, part: str) -> list[Any]:  # noqa: ANN401 — a type
    """Types of what a value of this type holds at a key."""
    if is_section(kind):
        return [kind.model_fields[part].annotation] if part in kind.model_fields else []
    if get_origin(kind) is tuple and part.isdigit():
        return list(get_args(kind))
    return [get_args(kind)[1]] if get_origin(kind) is dict and part != "[key]" else []


def _flat(annotations: Iterable[Any]) -> tuple[Any, ...]:
    """Types without `Annotated`, unions as their members."""
    found: list[Any] = []
    for annotation in annotations:
        if get_origin(annotation) is Annotated:
            found += _flat(get_args(annotation)[:1])
        elif get_origin(annotation) in (Union, types.UnionType):
            found += _flat(get_args(annotation))
        elif annotation not in (Ellipsis, types.NoneType):
            found.append(annotation)
    return tuple(dict.fromkeys(found))


def _table(sections: Sequence[type[BaseModel]], found: object) -> dict[str, Any] | None:
    """A table with what was found as its first required text; a table as it is."""
    if isinstance(found, Mapping):
        return dict(found)
    texts = [
        name
        for section in sections
        for name, field in section.model_fields.items()
        if (field.is_required() or name == "path") and str in _flat([field.annotation])
    ]
    return {texts[0]: found} if texts and isinstance(found, str) else None


def _inline(value: object) -> str:
    """A value as TOML writes it in a line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_inline(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def _written(path: str, value: object) -> str:
    line = _inline(value)
    return f"write {path} = {line}, on a command line '{path}={line}'"

"""What every setting is: type, bound, default and meaning, read from the typed models themselves.

The source is pydantic's JSON schema, whose descriptions are the docstrings under the fields. From
it come the help table, docs/configuration.md, commented TOML and the keys a shell completes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tomli_w
from pydantic import BaseModel

Tree = Mapping[str, Any]

NAME = "NAME"
"""stands for a name of the user's in a path"""
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class Setting:
    """One key of a config."""

    path: str
    """as in `path=value`; `costs.NAME.path` in a table of sections, `data[].path` in a list"""
    when: str
    """the kind of its section that has it, such as `multiplier.kind = "pid"`; else empty"""
    type: str
    """type and bound in words"""
    default: str
    """as JSON; `required`, or `—` when unset"""
    meaning: str
    """description, with its unit"""
    values: tuple[str, ...] = ()
    """all values, where they can be listed"""


def settings_of(model: type[BaseModel]) -> list[Setting]:
    """Every key of a config model, in the order of its fields, sections opened."""
    schema = model.model_json_schema()
    # constructed, not validated: where any one of several keys is needed, no default is valid
    default = {} if schema.get("required") else model.model_construct().model_dump(mode="json")
    return list(_walk(schema, schema.get("$defs", {}), "", "", default))


def completions(model: type[BaseModel], incomplete: str) -> list[str]:
    """Continuations of `key.path=value`: keys with `=`, then the values of a closed set.

    Keys of a section with a name are offered once it has been typed; items of a list are not.
    """
    path, separator, _ = incomplete.partition("=")
    found = [(_named(s.path, path), s) for s in settings_of(model) if "[]" not in s.path]
    if not separator:
        keys = (f"{key}=" for key, _ in found if NAME not in key.split("."))
        return sorted({key for key in keys if key.startswith(incomplete)})
    values = (f"{path}={v}" for key, s in found if key == path for v in s.values)
    return [text for text in values if text.startswith(incomplete)]


def _named(pattern: str, typed: str) -> str:
    """A key whose NAME is what was typed in its place."""
    words = typed.split(".")
    parts = pattern.split(".")
    return ".".join(
        words[i] if part == NAME and words[i:] and words[i] else part
        for i, part in enumerate(parts)
    )


def _walk(section: Tree, defs: Tree, prefix: str, when: str, default: Tree) -> Iterator[Setting]:
    for name, field in section["properties"].items():
        path = f"{prefix}{name}"
        value = default.get(name, field.get("default"))
        sections = _sections(field, defs)
        kinds = _tags(field, defs) if len(sections) > 1 else []
        if not sections:
            unset = "required" if name in section.get("required", ()) else "—"
            yield _setting(path, when, field, defs, value, unset)
            for below, part in _repeated(field, defs):
                yield from _walk(part, defs, f"{path}{below}.", when, {})
        elif kinds:
            tag = {"enum": kinds, "description": field.get("description", "")}
            chosen = value.get("kind") if isinstance(value, Mapping) else None
            yield _setting(f"{path}.kind", when, tag, defs, chosen)
        for part in sections:
            inner = value if isinstance(value, Mapping) else {}
            if not kinds:
                yield from _walk(part, defs, f"{path}.", when, inner)
                continue
            kind = part["properties"]["kind"]["const"]
            rest = {k: v for k, v in part["properties"].items() if k != "kind"}
            inner = inner if inner.get("kind") == kind else {}
            condition = f'{path}.kind = "{kind}"'
            yield from _walk({"properties": rest}, defs, f"{path}.", condition, inner)


def _sections(field: Tree, defs: Tree) -> list[Tree]:
    """The sections that a field may hold; none for a plain value."""
    parts = (_resolve(part, defs) for part in _alternatives(field))
    return [part for part in parts if "properties" in part]


def _repeated(field: Tree, defs: Tree) -> Iterator[tuple[str, Tree]]:
    """Sections of which a field holds any number, and how a path names one of them."""
    for part in _alternatives(field):
        for key, below in (("items", "[]"), ("additionalProperties", f".{NAME}")):
            inner = part.get(key)
            found = _resolve(inner, defs) if isinstance(inner, Mapping) else {}
            if "properties" in found:
                yield below, found


def _tags(field: Tree, defs: Tree) -> list[str]:
    """The kinds that a section chooses between; none where there is no choice."""
    kinds = [part["properties"].get("kind", {}).get("const") for part in _sections(field, defs)]
    return [str(kind) for kind in kinds if kind is not None]


def _setting(
    path: str, when: str, field: Tree, defs: Tree, value: object, unset: str = "—"
) -> Setting:
    default = unset if value is None else json.dumps(value, ensure_ascii=False)
    meaning = _description(field)
    return Setting(path, when, type_text(field, defs), default, meaning, _values(field, defs))


def _description(field: Tree) -> str:
    return " ".join(str(field.get("description", "")).split())


def _alternatives(field: Tree) -> list[Tree]:
    return list(field.get("anyOf") or field.get("oneOf") or field.get("allOf") or [field])


def _resolve(part: Tree, defs: Tree) -> Tree:
    return defs[part["$ref"].rsplit("/", 1)[-1]] if "$ref" in part else part


def _values(field: Tree, defs: Tree) -> tuple[str, ...]:
    """The values of a closed set; none for an open one."""
    found: list[str] = []
    for part in _alternatives(field):
        part = _resolve(part, defs)
        if part.get("type") == "boolean":
            found += ["true", "false"]
        found += [str(value) for value in part.get("enum", [])]
        found += [str(part["const"])] if "const" in part else []
    return tuple(found)


def type_text(field: Tree, defs: Tree) -> str:
    """A field's type and bound in words: `number > 0`, `"a" | "b"`, `list of integer ≥ 1`."""
    return " or ".join(_one_type(_resolve(part, defs), defs) for part in _alternatives(field))


def _one_type(part: Tree, defs: Tree) -> str:
    if "enum" in part or "const" in part:
        return " | ".join(json.dumps(v) for v in part.get("enum", [part.get("const")]))
    if part.get("type") == "null":
        return "unset"
    if part.get("type") == "array":
        if "prefixItems" in part:
            return f"[{', '.join(type_text(item, defs) for item in part['prefixItems'])}]"
        return f"list of {type_text(part.get('items', {}), defs)}"
    inner = part.get("additionalProperties")
    if isinstance(inner, Mapping) and inner and "properties" not in _resolve(inner, defs):
        return f"table of {type_text(inner, defs)}"
    name = str(part.get("format", part.get("type", "anything"))).replace("object", "table")
    bounds = " and ".join(f"{sign} {part[key]:g}" for key, sign in BOUNDS.items() if key in part)
    return f"{name} {bounds}".rstrip()


def to_commented_toml(config: BaseModel, unset: Collection[str] = ()) -> str:
    """The config as TOML that can be read back, every key under its meaning, type and bound.

    The keys at the paths `unset` are left open.
    """
    return "\n".join(_toml_section(config, "", unset)).strip() + "\n"


def _toml_section(
    config: BaseModel, path: str, unset: Collection[str], kinds: Tree | None = None
) -> Iterator[str]:
    schema = type(config).model_json_schema()
    fields, defs = schema["properties"], schema.get("$defs", {})
    values = config.model_dump(mode="json")
    tables = [n for n in fields if isinstance(getattr(config, n), BaseModel | Mapping)]
    for name, field in fields.items():
        if name in tables:
            continue
        kind = type_text(kinds if kinds and name == "kind" else field, defs)
        yield f"# {_description(field)} ({kind})"
        yield _toml_line(name, None if f"{path}{name}" in unset else values[name])
    for name in tables:
        value, field = getattr(config, name), fields[name]
        tags = _tags(field, defs)
        yield ""
        yield f"# {_description(field)}"
        if isinstance(value, BaseModel):
            yield f"[{path}{name}]"
            chosen = {"enum": tags} if tags else None
            yield from _toml_section(value, f"{path}{name}.", unset, chosen)
            continue
        tree = values[name]
        for part in reversed(f"{path}{name}".split(".")):
            tree = {part: tree}
        yield tomli_w.dumps(tree).rstrip()


def _toml_line(name: str, value: object) -> str:
    """`name = value`; lists of plain values, which JSON and TOML write alike, on one line."""
    if value is None:
        return f"# {name} ="
    if isinstance(value, list) and not any(isinstance(item, Mapping) for item in value):
        return f"{name} = {json.dumps(value, ensure_ascii=False)}"
    return tomli_w.dumps({name: value}).rstrip()


def to_markdown(model: type[BaseModel]) -> str:
    """All keys as one Markdown table."""
    lines = ["| key | type and bound | default | meaning |", "|---|---|---|---|"]
    for s in settings_of(model):
        when = f" *({s.when})*" if s.when else ""
        cells = (f"`{s.path}`{when}", s.type, f"`{s.default}`", s.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"

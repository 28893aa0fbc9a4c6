"""Writes docs/config.md: every config key with its type, default and meaning, from the config's own definitions."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from rlaif_ray.config import RunConfig

TARGET = Path(__file__).parents[1] / "docs" / "config.md"

# The open sections, outermost first, with their names.
Sections: TypeAlias = tuple[tuple[str, type[BaseModel]], ...]

_NAMES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    NoneType: "none",
    Any: "anything",
}

HEAD = """# Every config key

Written by `make docs` from `rlaif_ray/config`. A config is a YAML file; every command takes `key=value` after it,
with the keys as they stand here. A file may stand on another, `base: FILE`, and change or add to its keys.

| key | value | default | meaning |
| --- | --- | --- | --- |
"""


def rows(section: type[BaseModel], defaults: BaseModel | None, above: Sections) -> Iterator[str]:
    """A line a key, sections opened. `defaults` is the section as its parent sets it, where the parent does."""
    for name, field in section.model_fields.items():
        key = ".".join([*(outer for outer, _ in above), name])
        default = field.default if defaults is None else getattr(defaults, name)
        kind = field.annotation
        inner = next((part for part in (kind, *get_args(kind)) if is_section(part)), None)
        if inner is None:
            yield row(key, value_name(kind), default, field.description)
        elif like := next((outer for outer, opened in above if issubclass(opened, inner)), ""):
            yield row(key, repeated(kind, inner, like), default, field.description)
        elif get_origin(kind) is tuple:
            yield row(key, "list; each with the keys below", default, field.description)
            yield from rows(inner, None, (*above, (f"{name}[]", inner)))
        else:
            if default is None:
                yield row(key, "the keys below, or none", None, field.description or vars(inner).get("__doc__"))
            yield from rows(inner, default if is_section(type(default)) else None, (*above, (name, inner)))


def row(key: str, value: str, default: Any, meaning: str | None) -> str:
    """One line of the table."""
    cells = (f"`{key}`", value, default_name(default), " ".join((meaning or "").split()))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def default_name(default: Any) -> str:
    """A default as it would be written in YAML."""
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "none"
    return f"`{default if isinstance(default, str | Path) else json.dumps(default)}`"


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def repeated(annotation: Any, section: type[BaseModel], like: str) -> str:
    """What to write where an open section's keys stand again."""
    first, *_, last = section.model_fields
    one = f"a {like}, with the keys of `{like}` from `{first}` to `{last}`"
    if get_origin(annotation) is tuple:
        return f"list; each {one}"
    return f"{one}, or none" if NoneType in get_args(annotation) else one


def value_name(annotation: Any) -> str:
    """What to write there, in words."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return value_name(parts[0])
    if kind is Literal:
        return ", ".join(f"`{choice}`" for choice in parts)
    if kind is tuple and parts[-1] is Ellipsis:
        return f"list of {value_name(parts[0])}s"
    if kind is tuple:
        return f"[{', '.join(value_name(part) for part in parts)}]"
    if kind is dict:
        return f"mapping of {value_name(parts[0])} to {value_name(parts[1])}"
    if parts:
        return " or ".join(value_name(part) for part in parts)
    return _NAMES[annotation]


def reference() -> str:
    """The whole page."""
    return HEAD + "\n".join(rows(RunConfig, None, ())) + "\n"


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(reference())
    print(f"wrote {TARGET}", file=sys.stderr)

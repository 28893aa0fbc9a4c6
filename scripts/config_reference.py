"""Writes docs/config.md: every config key with its type, default and meaning, from the config's own definitions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from rlaif_ray.config import RunConfig

TARGET = Path(__file__).parents[1] / "docs" / "config.md"

HEAD = """# Every config key

Written by `make docs` from `rlaif_ray/config.py`. A config is a YAML file; every command takes `key=value` after it,
with the keys as they stand here. A file may stand on another, `base: FILE`, and change or add to its keys.

| key | value | default | meaning |
| --- | --- | --- | --- |
"""


def rows(section: type[BaseModel], defaults: BaseModel | None, prefix: str = "") -> Iterator[str]:
    """A line a key, sections opened. `defaults` is the section as its parent sets it, where the parent does."""
    for name, field in section.model_fields.items():
        default = field.default if defaults is None else getattr(defaults, name)
        inner = next((kind for kind in (field.annotation, *get_args(field.annotation)) if is_section(kind)), None)
        if inner is not None:
            yield from rows(inner, default if isinstance(default, BaseModel) else None, f"{prefix}{name}.")
            continue
        shown = "required" if default is PydanticUndefined else "none" if default is None else f"`{default}`"
        meaning = " ".join((field.description or "").split())
        yield f"| `{prefix}{name}` | {value_name(field.annotation)} | {shown} | {meaning} |"


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def value_name(annotation: Any) -> str:
    """What to write there, in words."""
    if get_origin(annotation) is Annotated:
        return value_name(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_args(annotation):
        return " or ".join(value_name(part) for part in get_args(annotation))
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", NoneType: "none"}
    return names[annotation]


def reference() -> str:
    """The whole page."""
    return HEAD + "\n".join(rows(RunConfig, None)) + "\n"


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(reference())
    print(f"wrote {TARGET}", file=sys.stderr)

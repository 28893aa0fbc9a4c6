"""Files of material: found, read, and all that is wrong with them, each thing with its place and a remedy.

A file is a list, in YAML or JSON. This module knows nothing of what its items mean.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from yaml.constructor import ConstructorError

from rlaif_ray.config import UserError

T = TypeVar("T")

SHIPPED = Path(__file__).parent / "material"

_NUMBER_PROBLEMS = frozenset({"float_type", "greater_than", "finite_number"})


def find(name: str, key: str, kind: str) -> Path:
    """The shipped file of that name, or the file at that path. Raises UserError naming `key`, and what is shipped of
    the kind."""
    for path in (SHIPPED / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob(f"{kind}*.yaml")))
    raise UserError(f"{key}: no file {name!r} and none shipped of that name ({shipped})")


def read_list(path: Path) -> list[Any]:
    """The items of a file as they stand there. Raises UserError naming the file, and the line where there is one."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: is not YAML ({error.problem}); correct or quote what stands there") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML in UTF-8 ({' '.join(str(error).split())})") from None
    if not isinstance(tree, list) or not tree:
        raise UserError(f"{path}: must be a list with at least one item, each starting with `- `")
    return tree


def sift(items: Sequence[Any], kind: type[T]) -> tuple[dict[int, T], list[str]]:
    """The items that are right, by their number from 1, and a sentence on each thing that is wrong with the others."""
    adapter: TypeAdapter[T] = TypeAdapter(kind)
    right: dict[int, T] = {}
    wrong = []
    for number, item in enumerate(items, start=1):
        try:
            right[number] = adapter.validate_python(item)
        except ValidationError as error:
            for problem in error.errors():
                place = ", ".join(str(part) for part in (f"item {number}", *problem["loc"]))
                wrong.append(f"{place}: {_sentence(problem, kind)}")
    return right, wrong


def repetitions(what: str, values: Mapping[int, Hashable]) -> list[str]:
    """A sentence on each item whose value an earlier one has. `values` are by the items' numbers."""
    first: dict[Hashable, int] = {}
    return [
        f"items {earlier} and {number} have the same {what} {value!r}; change one of them"
        for number, value in values.items()
        if (earlier := first.setdefault(value, number)) != number
    ]


def _sentence(problem: ErrorDetails, kind: type[Any]) -> str:
    shown = "nothing" if problem["input"] is None else reprlib.repr(problem["input"])
    match problem["type"]:
        case "missing":
            return "is missing; write it"
        case "extra_forbidden":
            return f"is not a known key; {_hint(str(problem['loc'][-1]), list(kind.model_fields))}"
        case "value_error":
            return str(problem["ctx"]["error"])
        case "string_type":
            return f"must be a text, not {shown}; write one, in quotes"
        case "tuple_type":
            return f"must be a list, not {shown}; put it in brackets"
        case "model_type":
            return f"must be a mapping of keys, such as `key: text`, not {shown}"
        case number if number in _NUMBER_PROBLEMS:
            return f"must be a number above 0, not {shown}"
        case _:
            return f"{problem['msg']}, not {shown}"


def _hint(misspelt: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(misspelt, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise ConstructorError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

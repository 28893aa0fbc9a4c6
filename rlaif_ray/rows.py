"""Rows of anyone's data: a JSONL or parquet file, or a dataset of the `datasets` library; and what their columns hold.

Rows are read as they are asked for, and each says where it stands, so that an error can name the place.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from rlaif_ray.config import UserError
from rlaif_ray.records import Message, Prompt

Row = tuple[str, dict[str, Any]]

_ROLES = frozenset({"system", "user", "assistant"})
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LARGEST = sys.float_info.max


@dataclass(frozen=True, slots=True)
class Rows:
    """A source's rows, each with where it stands. They can be read again and again."""

    count: int
    read: Callable[[], Iterator[Row]]

    def __iter__(self) -> Iterator[Row]:
        return self.read()


def open_rows(source: str, key: str) -> Rows:
    """The rows of a .jsonl, .json (an object on each line) or .parquet file, or of a dataset, given as NAME or
    NAME:SPLIT (`train`, unless it is said).

    Raises UserError naming `key`, which is the setting or argument that holds the source; reading raises it naming the
    line.
    """
    file = Path(source)
    if file.suffix in {".jsonl", ".json"}:
        return _jsonl(file, key)
    if file.suffix == ".parquet":
        return _parquet(file, key)
    if file.is_file():
        raise UserError(f"{key}: {file} is neither .jsonl nor .parquet; convert it to one of them")
    return _dataset(source, key)


def text_in(row: dict[str, Any], column: str, where: str) -> str:
    """The text in a row's column. Raises UserError naming the place."""
    if column not in row:
        raise UserError(f"{where}: has no {column!r} (its columns: {', '.join(row) or 'none'}); rename or add it")
    return _text(row[column], f"{where}: {column}")


def prompt_in(row: dict[str, Any], column: str, where: str) -> Prompt:
    """A prompt from a row's column: a text, or {role, content} messages of which the last is the user's. Its id is
    its content's. Raises UserError naming the place."""
    value = row.get(column)
    content: str | tuple[Message, ...]
    if isinstance(value, list) and value:
        content = tuple(_message(turn, f"{where}: {column}") for turn in value)
        if content[-1].role != "user":
            raise UserError(f"{where}: the conversation must end with a user's turn, not {content[-1].role}'s")
    elif isinstance(value, str) and value.strip():
        content = text_in(row, column, where)
    else:
        known = ", ".join(row) or "none"
        raise UserError(f"{where}: needs a text or a list of messages in {column!r} (its columns: {known})")
    return Prompt(id=hashlib.sha256(repr(content).encode()).hexdigest()[:12], content=content)


def number_in(row: dict[str, Any], column: str, where: str, low: float = -_LARGEST, high: float = _LARGEST) -> float:
    """The finite number in a row's column, from `low` to `high`. Raises UserError naming the place."""
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        bounds = ("" if low == -_LARGEST else f" from {low:g}") + ("" if high == _LARGEST else f" to {high:g}")
        raise UserError(f"{where}: {column}: must be a number{bounds}, not {reprlib.repr(value)}")
    return float(value)


def identity_in(row: dict[str, Any], column: str, where: str) -> str | None:
    """The id in a row's column, if there is one. Raises UserError naming the place."""
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, (str, int, NoneType)) or value == "":
        raise UserError(f"{where}: {column}: must be a text or a whole number; leave it out to have one made")
    return None if value is None else str(value)


def _message(turn: Any, where: str) -> Message:
    role = turn.get("role") if isinstance(turn, dict) else None
    if role not in _ROLES:
        raise UserError(f"{where}: each message needs a role (system, user or assistant) and a text content")
    return Message(role, _text(turn.get("content"), f"{where}: a message's content"))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: must be a text, not {'null' if value is None else f'a {type(value).__name__}'}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: holds half of a surrogate pair, which is no text; take it out") from None
    return value


def _jsonl(file: Path, key: str) -> Rows:
    def read() -> Iterator[Row]:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if number == 1:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                if line.strip():
                    yield f"{file}, line {number}", _json_object(line, f"{file}, line {number}")

    try:
        with file.open("rb") as lines:
            return Rows(sum(1 for line in lines if line.removeprefix(_BYTE_ORDER_MARK).strip()), read)
    except OSError as error:
        raise UserError(f"{key}: {file} cannot be read ({error.strerror})") from None


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        raise UserError(f"{where}: is not UTF-8 text; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: is not JSON ({error.msg}); put one object on each line") from None
    except (ValueError, RecursionError):
        raise UserError(f"{where}: is JSON beyond reason; put one plain object on each line") from None
    if not isinstance(row, dict):
        raise UserError(f'{where}: must be an object such as {{"prompt": "..."}}')
    return row


def _parquet(file: Path, key: str) -> Rows:
    import pyarrow
    import pyarrow.parquet

    def opened() -> Any:
        try:
            return pyarrow.parquet.ParquetFile(file)
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{key}: {file} is not a parquet file ({_first_line(error)})") from None
        except OSError as error:
            raise UserError(f"{key}: {file} cannot be read ({error.strerror or _first_line(error)})") from None

    def read() -> Iterator[Row]:
        number = 0
        with opened() as parquet:
            try:
                for batch in parquet.iter_batches(batch_size=1024):
                    for row in batch.to_pylist():
                        yield f"{file}, row {number}", row
                        number += 1
            except (pyarrow.ArrowException, OSError) as error:
                raise UserError(f"{file}, after row {number}: cannot be read ({_first_line(error)})") from None

    with opened() as parquet:
        return Rows(parquet.metadata.num_rows, read)


def _dataset(source: str, key: str) -> Rows:
    import datasets

    name, _, split = source.partition(":")
    try:
        dataset = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key}: {source!r} is neither a .jsonl or .parquet file nor a dataset that can be loaded "
            f"({_first_line(error)})"
        ) from None

    def read() -> Iterator[Row]:
        for number, row in enumerate(dataset):
            yield f"{source}, row {number}", row

    return Rows(len(dataset), read)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

"""Anyone's pairs: rows with `prompt`, `response_a`, `response_b` and perhaps `id`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from rlaif_ray.config import UserError
from rlaif_ray.records import Pair
from rlaif_ray.rows import identity_in, open_rows, prompt_in, text_in


class PairFile:
    """Pairs of a JSONL or parquet file, or of a dataset (NAME or NAME:SPLIT); as many as `len` says.

    A prompt is a text, or a list of {role, content} messages of which the last is the user's. Other columns are left
    alone. A pair without an id is known by its content, so that a file in another order holds the same pairs.
    """

    def __init__(self, source: str) -> None:
        """Raises UserError where the source cannot be read, or holds nothing."""
        self._rows = open_rows(source, "PAIRS")
        if not self._rows.count:
            raise UserError(f"PAIRS: {source} holds no pairs; give rows with prompt, response_a and response_b")

    def __len__(self) -> int:
        return self._rows.count

    def __iter__(self) -> Iterator[Pair]:
        """Read the pairs, one by one. Raises UserError naming the line or row."""
        given: set[str] = set()
        for where, row in self._rows:
            pair = _pair(row, where)
            if row.get("id") is not None:
                if pair.id in given:
                    raise UserError(f"{where}: its id {pair.id!r} is an earlier row's; give each pair an id of its own")
                given.add(pair.id)
            yield pair


def _pair(row: dict[str, Any], where: str) -> Pair:
    prompt = prompt_in(row, "prompt", where)
    a, b = text_in(row, "response_a", where), text_in(row, "response_b", where)
    made = hashlib.sha256(repr((prompt.content, a, b)).encode()).hexdigest()[:32]
    return Pair(id=identity_in(row, "id", where) or made, prompt=prompt, response_a=a, response_b=b)

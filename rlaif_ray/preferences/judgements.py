"""Judgements at rest: every raw judgement with every field, in a parquet file beside the preferences."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlaif_ray.records import Judgement, Order, Outcome
from rlaif_ray.rundir import file_written_atomically

_AT_A_TIME = 4_096

_TYPES = {
    "str": pa.string(),
    "float": pa.float64(),
    "int": pa.int64(),
    "bool": pa.bool_(),
    "tuple[str, ...]": pa.list_(pa.string()),
}


def write_judgements(path: Path, judgements: Iterable[Judgement]) -> None:
    """Write every field of every judgement, atomically, some at a time, as their prompts and replies are long."""
    schema = pa.schema([(field.name, _column_type(str(field.type))) for field in dataclasses.fields(Judgement)])
    remaining = iter(judgements)
    with (
        file_written_atomically(path) as unfinished,
        pq.ParquetWriter(unfinished, schema, compression="zstd") as writer,
    ):
        while batch := list(itertools.islice(remaining, _AT_A_TIME)):
            columns = {name: [getattr(judgement, name) for judgement in batch] for name in schema.names}
            writer.write_table(pa.table(columns, schema=schema))


def read_judgements(path: Path) -> list[Judgement]:
    """The judgements of a file that `write_judgements` wrote."""
    return [
        Judgement(
            **{
                **row,
                "order": Order(row["order"]),
                "outcome": Outcome(row["outcome"]),
                "ledger_keys": tuple(row["ledger_keys"]),
            }
        )
        for row in pq.read_table(path).to_pylist()
    ]


def _column_type(annotation: str) -> Any:
    """The column type of a field; an enum is written as its text, an optional field as nullable."""
    return _TYPES.get(annotation.removesuffix(" | None"), pa.string())

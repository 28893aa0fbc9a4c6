"""Chains at rest: parquet files in a directory, a row for each answer and each revision, in order.

Round 0 is the answer; it has no principle, critique or outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlaif_ray.records import Chain, Message, Prompt, Revision, RevisionOutcome
from rlaif_ray.samples import write_table

_SCHEMA = pa.schema(
    [
        ("chain_id", pa.string()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),  # as people read it
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),  # of a conversation
        ("reference", pa.string()),
        ("round", pa.int32()),
        ("principle", pa.string()),
        ("critique", pa.string()),
        ("text", pa.string()),  # the answer after the round
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("attempts", pa.int32()),
    ]
)


def write_chains(path: Path, chains: Sequence[Chain]) -> None:
    """One file of chains, whole or not at all. Their ids differ."""
    write_table(path, pa.Table.from_pylist([row for chain in chains for row in _rows(chain)], schema=_SCHEMA))


def read_chains(directory: Path) -> list[Chain]:
    """The chains of all files, in the order of the files' names."""
    rows = [row for file in sorted(directory.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return [_chain(rows) for _, rows in groupby(rows, key=lambda row: row["chain_id"])]


def _rows(chain: Chain) -> Iterable[dict[str, Any]]:
    content = chain.prompt.content
    common = {
        "chain_id": chain.id,
        "prompt_id": chain.prompt.id,
        "prompt": chain.prompt.text,
        "messages": None if isinstance(content, str) else [asdict(message) for message in content],
        "reference": chain.prompt.reference,
    }
    yield {**common, "round": 0, "text": chain.answer}
    for revision in chain.revisions:
        yield common | asdict(revision)


def _chain(rows: Iterable[dict[str, Any]]) -> Chain:
    first, *rounds = rows
    messages = first["messages"]
    content = first["prompt"] if messages is None else tuple(Message(**message) for message in messages)
    return Chain(
        id=first["chain_id"],
        prompt=Prompt(first["prompt_id"], content, first["reference"]),
        answer=first["text"],
        revisions=tuple(
            Revision(
                row["round"],
                row["principle"],
                row["critique"],
                row["text"],
                RevisionOutcome(row["outcome"]),
                row["reason"],
                row["attempts"],
            )
            for row in rounds
        ),
    )

"""What the reward model said of held-out pairs: one parquet row a pair, which all its measures come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from rlaif_ray.preferences.dataset import LabelSource
from rlaif_ray.report.columns import read_columns
from rlaif_ray.samples import write_table


@dataclass(frozen=True, slots=True)
class HeldOutPair:
    """A pair of a held-out prompt. `p` is its label, the probability that `chosen` is better; `margins` are the raw
    r_chosen - r_rejected in logits, one of each member of the ensemble, NaN where an answer could not be scored."""

    pair_id: str
    prompt_id: str
    p: float
    margins: tuple[float, ...]
    chosen_tokens: int
    rejected_tokens: int
    gold_margin: float | None  # gold's utility of chosen less that of rejected, where gold is known
    label_source: LabelSource
    round: int  # that collected it, from 1


_SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt_id", pa.string()),
        ("p", pa.float64()),
        ("margins", pa.list_(pa.float64())),
        ("chosen_tokens", pa.int64()),
        ("rejected_tokens", pa.int64()),
        ("gold_margin", pa.float64()),
        ("label_source", pa.string()),
        ("round", pa.int64()),
    ]
)


def write_held_out(path: Path, pairs: Sequence[HeldOutPair]) -> None:
    """Write atomically."""
    write_table(path, pa.Table.from_pylist([asdict(pair) for pair in pairs], schema=_SCHEMA))


def read_held_out(path: Path) -> tuple[HeldOutPair, ...] | None:
    """None where there is no file. Raises UserError, naming it, where it cannot be read or lacks a column."""
    table = read_columns(path, _SCHEMA.names)
    if table is None:
        return None
    return tuple(HeldOutPair(**{**row, "margins": tuple(row["margins"])}) for row in table.to_pylist())

"""How one optimizer step's rows are split over ranks and micro-batches.

Every rank gets the same number of micro-batches: collectives inside a forward or backward pass would hang otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """`rows` (M,) indices into a batch; where `real` (M,) is False the row is filler, and must carry no weight."""

    rows: NDArray[np.int64]
    real: NDArray[np.bool_]


def split_rows(rows: NDArray[np.int64], rank: int, world_size: int, micro_batch_size: int) -> list[MicroBatch]:
    """This rank's share of `rows`, in micro-batches of at most `micro_batch_size`; as many on every rank.

    A rank whose share is short gets a filler row, a copy of the step's first row, for each row that it lacks.
    """
    if len(rows) == 0:
        raise ValueError("no rows to split")
    share = rows[rank::world_size]
    size = -(-len(rows) // world_size)
    filler = np.full(size - len(share), rows[0], dtype=np.int64)
    padded = np.concatenate([share, filler])
    real = np.arange(size) < len(share)
    starts = range(0, size, micro_batch_size)
    return [MicroBatch(padded[i : i + micro_batch_size], real[i : i + micro_batch_size]) for i in starts]

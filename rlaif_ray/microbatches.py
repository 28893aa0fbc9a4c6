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


def pack_rows(
    rows: NDArray[np.int64], lengths: NDArray[np.int64], world_size: int, max_tokens: int
) -> list[list[MicroBatch]]:
    """The micro-batches of every rank, of at most `max_tokens` tokens each where one row alone is no longer.

    `lengths` (M,) are those of `rows` in tokens. The longest row goes first, each to the rank that has the fewest
    tokens so far (Graham 1969), and a rank's rows stay in that order: rows of equal length are neighbours. A rank that
    needs fewer micro-batches than another gets filler ones of the shortest row.
    """
    if len(rows) == 0:
        raise ValueError("no rows to pack")
    order = np.argsort(-lengths, kind="stable")
    loads = [0] * world_size
    ranks: list[list[list[int]]] = [[] for _ in range(world_size)]
    room = [0] * world_size
    for place in order.tolist():
        length = int(lengths[place])
        rank = loads.index(min(loads))
        loads[rank] += length
        if length > room[rank]:
            ranks[rank].append([])
            room[rank] = max_tokens
        ranks[rank][-1].append(place)
        room[rank] -= length
    most = max(len(micros) for micros in ranks)
    filler = MicroBatch(rows[order[-1:]], np.array([False]))
    return [
        [MicroBatch(rows[micro], np.ones(len(micro), dtype=bool)) for micro in micros] + [filler] * (most - len(micros))
        for micros in ranks
    ]

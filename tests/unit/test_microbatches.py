import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.microbatches import pack_rows, split_rows


def test_every_rank_gets_as_many_micro_batches() -> None:
    rows = np.arange(10, 17)
    shares = [split_rows(rows, rank, 3, micro_batch_size=2) for rank in range(3)]
    assert [[len(micro.rows) for micro in share] for share in shares] == [[2, 1]] * 3
    real = np.concatenate([micro.rows[micro.real] for share in shares for micro in share])
    assert sorted(real) == rows.tolist()


def test_packs_by_hand() -> None:
    """Lengths 5, 9, 2, 9, 4 of rows 10 to 14 over two ranks with room for 12: 9 (row 11) to the first, 9 (13) to the
    second, 5 (10) to the first, 4 (14) to the second, 2 (12) to the second, which has 13 against 14."""
    first, second = pack_rows(np.arange(10, 15), np.array([5, 9, 2, 9, 4]), 2, 12)
    assert [micro.rows.tolist() for micro in first] == [[11], [10]]
    assert [micro.rows.tolist() for micro in second] == [[13], [14, 12]]


def test_a_rank_without_rows_gets_filler_that_carries_no_weight() -> None:
    first, second = pack_rows(np.array([7]), np.array([3]), 2, 8)
    assert first[0].real.tolist() == [True]
    assert (second[0].rows.tolist(), second[0].real.tolist()) == ([7], [False])


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 5), st.integers(20, 100))
def test_packs_hold_every_row_once_within_the_budget_and_even_out_the_ranks(
    lengths: list[int], world_size: int, budget: int
) -> None:
    sizes = np.array(lengths)
    ranks = pack_rows(np.arange(len(sizes)), sizes, world_size, budget)
    assert len({len(micros) for micros in ranks}) == 1
    real = [micro.rows for micros in ranks for micro in micros if micro.real.all()]
    assert sorted(np.concatenate(real).tolist()) == list(range(len(sizes)))
    for rows in real:
        assert len(rows) == 1 or sizes[rows].sum() <= budget
        assert (np.diff(sizes[rows]) <= 0).all()
    loads = [sum(sizes[micro.rows].sum() for micro in micros if micro.real.all()) for micros in ranks]
    assert max(loads) - min(loads) <= sizes.max()


def test_nothing_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="no rows"):
        split_rows(np.zeros(0, dtype=np.int64), 0, 1, 4)
    with pytest.raises(ValueError, match="no rows"):
        pack_rows(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), 1, 4)

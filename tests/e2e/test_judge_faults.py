"""Labelling while the endpoint fails and processes are killed: the benchmark's books, in small."""

from __future__ import annotations

import pytest

from scripts.benchmarks.judge_faults import run


@pytest.mark.long
@pytest.mark.timeout(900)
def test_nothing_is_lost_and_nothing_is_bought_again() -> None:
    books = run(pairs=1_000, kill_every=8.0, seed=1)
    assert sum(books.kills.values()) >= 1
    assert (books.lost, books.bought_again, books.unexplained) == (0, 0, 0)
    assert sum(books.outcomes.values()) == books.pairs
    # One pass, and what may have been billed unseen.
    assert books.billed == books.answered + books.ambiguous_billed
    assert books.ambiguous_billed <= books.ambiguous

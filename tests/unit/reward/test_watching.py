import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray import metrics
from rlaif_ray.reward.watching import drawn_to_watch, rank_correlation, watch_measures

IDS = [f"ppo-3/{row}" for row in range(40)]


def test_the_draw_is_of_the_seed_and_the_ids_alone() -> None:
    valid = np.ones(40, dtype=bool)
    drawn = {IDS[row] for row in drawn_to_watch(IDS, valid, 8, seed=1)}
    assert len(drawn) == 8
    backwards = IDS[::-1]
    assert {backwards[row] for row in drawn_to_watch(backwards, valid, 8, seed=1)} == drawn
    assert {IDS[row] for row in drawn_to_watch(IDS, valid, 8, seed=2)} != drawn


def test_answers_without_a_reward_are_not_drawn_and_displace_nobody() -> None:
    everyone = drawn_to_watch(IDS, np.ones(40, dtype=bool), 8, seed=1)
    valid = np.ones(40, dtype=bool)
    valid[everyone[0]] = False
    assert set(everyone[1:]) < set(drawn_to_watch(IDS, valid, 8, seed=1))
    assert drawn_to_watch(IDS, np.arange(40) < 3, 8, seed=1) == [0, 1, 2]


def test_the_measures_by_hand() -> None:
    """Rewards 1, 2, 4 against scores .5, -.5, 0, one answer not scored: means 7/3 and 0. Ranks 0, 1, 2 against 2, 0, 1:
    centred -1, 0, 1 and 1, -1, 0, so -1 / 2."""
    measured = watch_measures(np.array([1, 2, 9, 4], dtype=np.float32), np.array([0.5, -0.5, np.nan, 0.0]))
    assert measured == {
        metrics.WATCHED: 3,
        metrics.WATCHED_REWARD_MEAN: pytest.approx(7 / 3),
        metrics.WATCHED_JUDGE_MEAN: pytest.approx(0),
        metrics.WATCHED_CORRELATION: pytest.approx(-0.5),
    }


def test_what_was_not_scored_is_no_number() -> None:
    measured = watch_measures(np.array([1, 2], dtype=np.float32), np.full(2, np.nan))
    assert measured.pop(metrics.WATCHED) == 0
    assert all(math.isnan(value) for value in measured.values())


def test_ties_share_their_mean_rank() -> None:
    """Ranks .5, .5, 2 and 0, 1, 2: centred -.5, -.5, 1 and -1, 0, 1; 1.5 / sqrt(1.5 * 2)."""
    assert rank_correlation(np.array([3.0, 3.0, 5.0]), np.array([1.0, 2.0, 4.0])) == pytest.approx(1.5 / 3**0.5)
    assert math.isnan(rank_correlation(np.ones(3), np.arange(3.0)))
    assert math.isnan(rank_correlation(np.ones(1), np.ones(1)))


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=9))
def test_the_order_alone_counts(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    plain = rank_correlation(a, b)
    assert rank_correlation(np.exp(a), b**3) == pytest.approx(plain, nan_ok=True)
    assert rank_correlation(b, a) == pytest.approx(plain, nan_ok=True)
    assert rank_correlation(-a, b) == pytest.approx(-plain, nan_ok=True)

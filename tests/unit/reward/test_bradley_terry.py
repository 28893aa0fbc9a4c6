import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.reward.bradley_terry import PRIOR_PRECISION, bradley_terry_scores

PROBABILITIES = st.floats(0, 1)


def scores(pairs: dict[tuple[int, int], float], count: int) -> np.ndarray:
    first, second = np.array(list(pairs), dtype=np.int64).reshape(-1, 2).T
    return bradley_terry_scores(first, second, np.array(list(pairs.values()), dtype=float), count)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_two_answers_by_hand() -> None:
    """At the optimum p - sigma(2 x) = precision * x for scores x and -x; with x = 1, p = sigma(2) + precision."""
    np.testing.assert_allclose(scores({(0, 1): sigma(2) + PRIOR_PRECISION}, 2), [1.0, -1.0], atol=1e-8)


def test_three_answers_by_hand() -> None:
    """Scores 1, 0, -1. The middle one's pull cancels with p = sigma(1) on both sides; the outer ones' prior of
    1 * precision is made up by p = sigma(2) + precision between them."""
    pairs = {(0, 1): sigma(1), (1, 2): sigma(1), (0, 2): sigma(2) + PRIOR_PRECISION}
    np.testing.assert_allclose(scores(pairs, 3), [1.0, 0.0, -1.0], atol=1e-8)


def test_certain_verdicts_stay_finite() -> None:
    """One answer wins every time: without a prior its score would have no bound."""
    found = scores({(0, 1): 1.0, (0, 2): 1.0, (1, 2): 0.0}, 3)
    assert np.isfinite(found).all()
    assert found[0] > found[2] > found[1]
    assert found.sum() == pytest.approx(0, abs=1e-8)


def test_an_answer_that_was_not_compared_has_no_score() -> None:
    found = scores({(0, 3): 0.5}, 4)
    np.testing.assert_array_equal(np.isnan(found), [False, True, True, False])
    np.testing.assert_allclose(found[[0, 3]], 0, atol=1e-12)


def test_a_group_without_pairs_has_none() -> None:
    assert np.isnan(scores({}, 2)).all()


def test_parts_that_share_no_answer_do_not_rank_each_other() -> None:
    """Each keeps its own mean of 0, and is scored as it would be alone."""
    together = scores({(0, 1): 0.9, (2, 3): 0.6}, 4)
    np.testing.assert_allclose(together[:2], scores({(0, 1): 0.9}, 2), atol=1e-8)
    np.testing.assert_allclose(together[2:], scores({(0, 1): 0.6}, 2), atol=1e-8)


@given(st.integers(2, 5).flatmap(lambda n: st.tuples(st.just(n), st.lists(PROBABILITIES, min_size=10, max_size=10))))
def test_they_are_the_optimum_that_gradient_descent_finds(case: tuple[int, list[float]]) -> None:
    """L-BFGS of PyTorch on the same objective, written by torch's own cross-entropy, and mean 0 in the group."""
    count, chances = case
    pairs = dict(zip(itertools.combinations(range(count), 2), chances, strict=False))
    first, second = torch.tensor(list(pairs)).T
    p = torch.tensor(list(pairs.values()), dtype=torch.float64)
    found = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [found], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def objective() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(found[first] - found[second], p, reduction="sum")
        loss = loss + PRIOR_PRECISION / 2 * found.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    ours = scores(pairs, count)
    np.testing.assert_allclose(ours, found.detach().numpy(), atol=1e-4)
    assert ours.sum() == pytest.approx(0, abs=1e-7)


@given(st.lists(PROBABILITIES, min_size=6, max_size=6), st.permutations(range(4)))
def test_names_and_directions_mean_nothing(chances: list[float], order: list[int]) -> None:
    pairs = dict(zip(itertools.combinations(range(4), 2), chances, strict=True))
    renamed = {(order[b], order[a]): 1 - p for (a, b), p in pairs.items()}
    np.testing.assert_allclose(scores(renamed, 4)[order], scores(pairs, 4), atol=1e-6)

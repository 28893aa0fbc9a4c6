import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlaif_ray.config import RewardConfig
from rlaif_ray.reward.losses import (
    PairObjective,
    centring_loss,
    magnitude_loss,
    preference_loss,
    ranks_alike,
    smoothed,
)

scores = st.floats(-20, 20)
ONE = torch.ones(1)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss(a: float, b: float, p: float, margin: float = 0.0) -> float:
    return preference_loss(double(a), double(b), double(p), margin).item()


def test_by_hand() -> None:
    """Equal scores: ln 2 whatever the label. d = ln 3 and p = 0.75: s(d) = 3/4, the entropy of (3/4, 1/4).

    A margin of ln 3 takes from each side: d - m = 0 and -d - m = -2 ln 3, of which s is 1/2 and 1/10.
    """
    assert loss(1.0, 1.0, 0.3) == pytest.approx(math.log(2))
    assert loss(math.log(3), 0.0, 0.75) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert loss(math.log(3), 0.0, 0.75, math.log(3)) == pytest.approx(0.75 * math.log(2) + 0.25 * math.log(10))


@given(scores, scores)
def test_a_certain_label_gives_the_usual_loss(a: float, b: float) -> None:
    assert loss(a, b, 1.0) == pytest.approx(math.log1p(math.exp(b - a)), rel=1e-9)


@given(scores, scores, st.floats(0, 1), st.floats(0, 3), st.floats(0, 0.4), st.floats(0, 1), st.floats(0, 1))
def test_swapping_the_answers_with_the_label_changes_nothing(
    a: float, b: float, p: float, margin: float, smoothing: float, centring: float, magnitude: float
) -> None:
    objective = PairObjective(smoothing, margin, centring, magnitude)
    one = objective(double(a), double(b), double(p), ONE)
    other = objective(double(b), double(a), double(1 - p), ONE)
    assert one.item() == pytest.approx(other.item(), rel=1e-9)


def test_the_soft_loss_is_least_at_the_label() -> None:
    """Its derivative in d is s(d) - p."""
    lead = double(0.0).requires_grad_()
    preference_loss(lead, double(0.0), double(0.8)).sum().backward()
    assert lead.grad is not None
    assert lead.grad.item() == pytest.approx(0.5 - 0.8)


def test_the_objective_by_hand() -> None:
    """r_a = 1 and r_b = ln 3 - 1, so d = 2 - ln 3. p = 0.75 under smoothing 0.2 is 0.8 * 0.75 + 0.1 = 0.7; the
    margin is 2 * |2 * 0.75 - 1| = 1, by the label as it was given. The label's part counts 3 times, the others once:
    (r_a + r_b)^2 = (ln 3)^2 and r_a^2 + r_b^2 = 1 + (ln 3 - 1)^2."""
    three = math.log(3)
    a, b, lead = 1.0, three - 1.0, 2.0 - three
    label = -0.7 * -math.log1p(math.exp(-(lead - 1))) - 0.3 * -math.log1p(math.exp(lead + 1))
    expected = 3 * label + 0.5 * three**2 + 0.25 * (1 + (three - 1) ** 2)
    objective = PairObjective(label_smoothing=0.2, margin=2.0, centring=0.5, magnitude=0.25)
    assert objective(double(a), double(b), double(0.75), double(3.0)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "objective",
    [
        PairObjective(),
        PairObjective(margin=0.7),
        PairObjective(label_smoothing=0.1),
        PairObjective(centring=0.3),
        PairObjective(magnitude=0.2),
        PairObjective(0.1, 0.7, 0.3, 0.2),
    ],
)
def test_gradients_are_those_of_finite_differences(objective: PairObjective) -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    p, weights = torch.rand(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64) + 0.5
    assert torch.autograd.gradcheck(lambda a, b: objective(a, b, p, weights), (a, b))


def test_the_objective_takes_its_terms_from_the_config() -> None:
    config = RewardConfig(label_smoothing=0.1, margin=0.2, centring=0.3, magnitude=0.4)
    assert PairObjective.of(config) == PairObjective(label_smoothing=0.1, margin=0.2, centring=0.3, magnitude=0.4)


@pytest.mark.parametrize(
    "term", [preference_loss, lambda a, b, p: centring_loss(a, b), lambda a, b, p: magnitude_loss(a, b)]
)
def test_precision_is_float64_where_the_scores_are_and_else_float32(term: Callable[..., Tensor]) -> None:
    for given_dtype, expected in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        score = torch.ones(2, dtype=given_dtype)
        assert term(score, -score, torch.ones(2)).dtype == expected


def test_extremes_stay_finite_in_low_precision() -> None:
    a = torch.tensor([300.0, -300.0], dtype=torch.bfloat16)
    assert preference_loss(a, -a, torch.tensor([0.0, 1.0])).tolist() == [600.0, 600.0]


def test_centring_magnitude_smoothing_and_ranking() -> None:
    assert centring_loss(double(1.0), double(2.0)).item() == 9.0
    assert magnitude_loss(double(1.0), double(2.0)).item() == 5.0
    assert smoothed(double(1.0, 0.5, 0.0), 0.2).tolist() == pytest.approx([0.9, 0.5, 0.1])
    a, b = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 2.0, 1.0])
    assert ranks_alike(a, b, torch.tensor([0.9, 0.9, 0.9])).tolist() == [True, False, False]

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.reward.losses import centring_loss, preference_loss, ranks_alike

scores = st.floats(-20, 20)


def loss(a: float, b: float, p: float) -> float:
    return preference_loss(torch.tensor([a]), torch.tensor([b]), torch.tensor([p])).item()


def test_by_hand() -> None:
    """Equal scores: ln 2 whatever the label. d = ln 3 and p = 0.75: s(d) = 3/4, the entropy of (3/4, 1/4)."""
    assert loss(1.0, 1.0, 0.3) == pytest.approx(math.log(2))
    assert loss(math.log(3), 0.0, 0.75) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))


@given(scores, scores)
def test_a_certain_label_gives_the_usual_loss(a: float, b: float) -> None:
    assert loss(a, b, 1.0) == pytest.approx(math.log1p(math.exp(b - a)), rel=1e-3, abs=1e-5)


@given(scores, scores, st.floats(0, 1))
def test_swapping_the_answers_with_the_label_changes_nothing(a: float, b: float, p: float) -> None:
    assert loss(a, b, p) == pytest.approx(loss(b, a, 1 - p), rel=1e-4, abs=1e-5)


def test_the_soft_loss_is_least_at_the_label() -> None:
    margin = torch.tensor([0.0], requires_grad=True)
    preference_loss(margin, torch.zeros(1), torch.tensor([0.8])).sum().backward()
    assert margin.grad is not None
    assert margin.grad.item() == pytest.approx(0.5 - 0.8)


def test_extremes_stay_finite_in_low_precision() -> None:
    a = torch.tensor([300.0, -300.0], dtype=torch.bfloat16)
    assert preference_loss(a, -a, torch.tensor([0.0, 1.0])).tolist() == [600.0, 600.0]


def test_centring_and_ranking() -> None:
    assert centring_loss(torch.tensor([1.0]), torch.tensor([2.0])).item() == 9.0
    a, b = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 2.0, 1.0])
    assert ranks_alike(a, b, torch.tensor([0.9, 0.9, 0.9])).tolist() == [True, False, False]

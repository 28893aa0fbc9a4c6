import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlaif_ray.policy.dpo import DpoObjective, dpo_loss, flipped, ipo_loss

RATIOS = st.floats(-20, 20)
PROBABILITIES = st.floats(0, 1)
BETAS = st.floats(0.05, 2)
LENGTHS = st.integers(1, 9)
OBJECTIVES = st.builds(DpoObjective, st.sampled_from(["sigmoid", "ipo"]), BETAS, st.floats(0, 0.49))


def precise(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_losses_of_a_verdict_and_of_a_soft_label_by_hand() -> None:
    """h = 3 - 1 = 2 and beta = 1/2: the implicit rewards differ by 1. A verdict costs ln(1 + e^-1) = 0.313262, the
    opposite one 1 more, and p = 3/4 a quarter of that more than the verdict."""
    log_ratios = precise(3.0, 1.0).expand(3, 2)
    losses = dpo_loss(log_ratios, precise(1.0, 0.0, 0.75), beta=0.5)
    assert losses.tolist() == pytest.approx([0.313262, 1.313262, 0.563262], abs=1e-6)


def test_the_gradient_by_hand() -> None:
    """d/dh = beta (s(beta h) - p), on answer a, and its opposite on answer b: at h = 0 and beta = 1/10, -0.05 for a
    verdict, 0 for a tie. At h = 10 ln 3, s = 3/4: 0 where p is 3/4."""
    ten_ln_three = 10 * math.log(3)
    log_ratios = torch.tensor([[1.0, 1.0], [1.0, 1.0], [ten_ln_three, 0.0]], dtype=torch.float64, requires_grad=True)
    dpo_loss(log_ratios, precise(1.0, 0.5, 0.75), beta=0.1).sum().backward()
    assert log_ratios.grad is not None
    np.testing.assert_allclose(log_ratios.grad.numpy(), [[-0.05, 0.05], [0.0, 0.0], [0.0, 0.0]], atol=1e-12)


def test_ipo_by_hand() -> None:
    """Sums of 3 over 2 tokens and 2 over 4: means 3/2 and 1/2, so h = 1. With beta = 1/4 a verdict wants 2: loss
    (1 - 2)^2 = 1. p = 3/4 wants half of that: loss 0. A tie wants 0: loss 1. The opposite wants -2: loss 9."""
    log_ratios, lengths = precise(3.0, 2.0).expand(4, 2), precise(2, 4).expand(4, 2)
    losses = ipo_loss(log_ratios, lengths, precise(1.0, 0.75, 0.5, 0.0), beta=0.25)
    assert losses.tolist() == pytest.approx([1.0, 0.0, 1.0, 9.0])


@given(RATIOS, RATIOS, PROBABILITIES, BETAS)
def test_ipo_is_the_mean_over_verdicts_in_both_orders_but_for_a_constant(
    one: float, two: float, p: float, beta: float
) -> None:
    """Azar et al.'s loss of a verdict I that y beats y' is (h(y, y') - I / beta)^2, I of 0 or 1, over both orders."""

    def of_verdicts(h: float) -> float:
        return sum(
            share * ((h - named_a / beta) ** 2 + (-h - (1 - named_a) / beta) ** 2) / 2
            for share, named_a in ((p, 1), (1 - p, 0))
        )

    ours = ipo_loss(torch.tensor([[one, 0.0], [two, 0.0]], dtype=torch.float64), precise(1, 1), precise(p), beta=beta)
    assert (ours[0] - ours[1]).item() == pytest.approx(of_verdicts(one) - of_verdicts(two), abs=1e-6)


def test_conservative_labels_by_hand() -> None:
    """Of ten labels one is flipped: a verdict is right with 0.9. p = 0.8 becomes 0.9 * 0.8 + 0.1 * 0.2 = 0.74."""
    assert flipped(precise(1.0, 0.8, 0.5, 0.0), 0.1).tolist() == pytest.approx([0.9, 0.74, 0.5, 0.1])


@given(RATIOS, RATIOS, LENGTHS, LENGTHS, PROBABILITIES, OBJECTIVES)
def test_to_swap_the_answers_and_the_label_changes_nothing(
    a: float, b: float, length_a: int, length_b: int, p: float, objective: DpoObjective
) -> None:
    log_ratios, lengths, weight = precise(a, b)[None], precise(length_a, length_b)[None], precise(1.5)
    here = objective(log_ratios, lengths, precise(p), weight)
    there = objective(log_ratios.flip(1), lengths.flip(1), precise(1 - p), weight)
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)


@given(st.floats(0.6, 1), st.floats(0.01, 0.4), OBJECTIVES)
def test_a_smoothed_label_is_a_softer_label(p: float, smoothing: float, objective: DpoObjective) -> None:
    log_ratios, lengths, weight = precise(2.0, -1.0)[None], precise(3, 2)[None], precise(1.0)
    smoothed = DpoObjective(objective.loss, objective.beta, smoothing)(log_ratios, lengths, precise(p), weight)
    softer = (1 - smoothing) * p + smoothing * (1 - p)
    plain = DpoObjective(objective.loss, objective.beta, 0.0)(log_ratios, lengths, precise(softer), weight)
    torch.testing.assert_close(smoothed, plain)


def test_a_label_counts_for_its_weight() -> None:
    objective = DpoObjective("sigmoid", 0.5, 0.0)
    losses = objective(precise(3.0, 1.0).expand(2, 2), precise(1, 1).expand(2, 2), precise(1.0, 1.0), precise(1.0, 0.5))
    assert losses.tolist() == pytest.approx([0.313262, 0.156631], abs=1e-6)


def test_leads_are_those_of_the_preferred_answer() -> None:
    """beta (3 - 1) = 1 where a is preferred, -1 where b is, 0 in a tie."""
    leads = DpoObjective("ipo", 0.5, 0.0).leads(precise(3.0, 1.0).expand(3, 2), precise(0.9, 0.1, 0.5))
    assert leads.tolist() == [1.0, -1.0, 0.0]

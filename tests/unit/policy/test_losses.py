import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.policy.losses import explained_variance, policy_loss, reference_kl_loss, value_loss

NAN = float("nan")


def test_the_surrogate_by_hand() -> None:
    """Ratios 1.5 and 0.5, clip 0.2. A = 1, ratio 1.5: max(-1.5, -1.2) = -1.2, clipped. A = 1, ratio 0.5:
    max(-0.5, -0.8) = -0.5. A = -1, ratio 1.5: max(1.5, 1.2) = 1.5. A = -1, ratio 0.5: max(0.5, 0.8) = 0.8, clipped."""
    old = torch.zeros(1, 4)
    new = torch.log(torch.tensor([[1.5, 0.5, 1.5, 0.5]])).requires_grad_()
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    result = policy_loss(new, old, advantages, torch.ones(1, 4, dtype=torch.bool), clip=0.2, tokens=4)
    assert result.loss.item() == pytest.approx((-1.2 - 0.5 + 1.5 + 0.8) / 4)
    assert result.clipped.item() == 2
    result.loss.backward()
    assert new.grad is not None
    np.testing.assert_allclose(new.grad.numpy(), [[0.0, -0.5 / 4, 1.5 / 4, 0.0]], atol=1e-6)


def test_an_unchanged_policy_has_the_gradient_of_the_advantage() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    result = policy_loss(
        logprobs, logprobs.detach(), torch.tensor([[2.0, -3.0]]), torch.tensor([[True, True]]), clip=0.2, tokens=2
    )
    result.loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-1.0, 1.5]]
    assert result.clipped.item() == 0
    assert result.kl.item() == 0


def test_the_value_loss_by_hand() -> None:
    """Old 0, clip 0.2, return 1. V = 0.5: errors 0.25 and (0.2 - 1)^2 = 0.64, so 0.32. V = -0.5: 2.25 and 1.44, so
    1.125. V = 0.1 is inside: 0.81, so 0.405."""
    values = torch.tensor([[0.5, -0.5, 0.1]])
    result = value_loss(
        values, torch.zeros(1, 3), torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool), clip=0.2, tokens=3
    )
    assert result.loss.item() == pytest.approx((0.32 + 1.125 + 0.405) / 3)
    assert result.clipped.item() == 1


def test_the_kl_loss_by_hand() -> None:
    """log pi = ln 1/2 against ln 1/4: d = -ln 2, k3 = 1/2 - 1 + ln 2, and its gradient 1 - e^d = 1/2. Against ln 1:
    d = ln 2, k3 = 2 - 1 - ln 2, gradient 1 - 2 = -1. Where they agree both are 0."""
    logprobs = torch.log(torch.tensor([[0.5, 0.5, 0.5, 0.5]])).requires_grad_()
    reference = torch.log(torch.tensor([[0.25, 1.0, 0.5, NAN]]))
    mask = torch.tensor([[True, True, True, False]])
    loss = reference_kl_loss(logprobs, reference, mask, tokens=3)
    loss.backward()
    assert loss.item() == pytest.approx((-0.5 + math.log(2) + 1 - math.log(2)) / 3)
    assert logprobs.grad is not None
    np.testing.assert_allclose(logprobs.grad.numpy(), [[0.5 / 3, -1 / 3, 0.0, 0.0]], atol=1e-6)


def test_the_kl_loss_pulls_as_the_forward_kl_does() -> None:
    """In expectation over answers of the policy, to first order, k3's gradient is that of KL(reference || policy):
    with pi = softmax(z) over three tokens it is pi - pi_ref, and KL(policy || reference) has another."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-0.4, 0.6, 0.1], dtype=torch.float64).log_softmax(0)
    logprobs = logits.log_softmax(0)
    pi = logprobs.detach().exp()
    per_token = [
        reference_kl_loss(logprobs[None, i : i + 1], reference[None, i : i + 1], torch.tensor([[True]]), tokens=1)
        for i in range(3)
    ]
    expected = sum(share * loss for share, loss in zip(pi, per_token, strict=True))
    (gradient,) = torch.autograd.grad(expected, logits, retain_graph=True)
    torch.testing.assert_close(gradient, pi - reference.exp())
    assert expected.item() == pytest.approx((pi * (logprobs.detach() - reference)).sum().item())
    (reverse,) = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logits)
    assert (reverse - gradient).abs().max() > 0.01


def test_a_wild_ratio_stays_finite() -> None:
    new = torch.tensor([[500.0]], requires_grad=True)
    loss = policy_loss(
        new, torch.zeros(1, 1), -torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), clip=0.2, tokens=1
    )
    loss.loss.backward()
    assert math.isfinite(loss.loss.item())
    assert new.grad is not None
    assert new.grad.isfinite().all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_the_split_over_micro_batches_changes_nothing_and_neither_do_masked_tokens(seed: int, cut: int) -> None:
    random = np.random.default_rng(seed)
    arrays = random.normal(size=(4, 8, 5))
    mask = random.random((8, 5)) < 0.7
    mask[0, 0] = mask[-1, 0] = True
    tokens = int(mask.sum())

    def gradients(filler: float, slices: list[slice]) -> tuple[float, torch.Tensor]:
        new, old, advantages, returns = (torch.tensor(np.where(mask, a, filler), dtype=torch.float32) for a in arrays)
        new.requires_grad_()
        total = 0.0
        for part in slices:
            where = torch.tensor(mask[part])
            policy = policy_loss(new[part], old[part], advantages[part], where, clip=0.2, tokens=tokens)
            value = value_loss(new[part], old[part], returns[part], where, clip=0.2, tokens=tokens)
            (policy.loss + value.loss).backward()
            total += (policy.loss + value.loss).item()
        assert new.grad is not None
        return total, new.grad

    whole, whole_gradient = gradients(0.0, [slice(0, 8)])
    split, split_gradient = gradients(float("nan"), [slice(0, cut), slice(cut, 8)])
    assert split == pytest.approx(whole, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(split_gradient, whole_gradient, rtol=1e-4, atol=1e-6)


def test_explained_variance() -> None:
    mask = torch.tensor([[True, True, True, False]])
    returns = torch.tensor([[1.0, 2.0, 3.0, NAN]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.full((1, 4), 2.0), returns, mask) == pytest.approx(0.0)
    assert math.isnan(explained_variance(returns, torch.ones(1, 4), mask))

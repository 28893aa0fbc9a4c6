import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.config import PpoConfig
from rlaif_ray.policy.losses import (
    TokenBatch,
    clipped_surrogate,
    explained_variance,
    importance_weights,
    policy_gradient,
    reference_kl_loss,
    token_shares,
    value_loss,
)

NAN = float("nan")


def batch(logprobs: torch.Tensor, **fields: Any) -> TokenBatch:
    """Unless said: from where the update began, of the policy that sampled, advantages of 1, equal shares."""
    ones = torch.ones_like(logprobs.detach())
    defaults = {"old_logprobs": logprobs.detach(), "weights": ones, "advantages": ones, "shares": ones / len(ones)}
    return TokenBatch(logprobs, **(defaults | {name: torch.as_tensor(value) for name, value in fields.items()}))


def test_the_surrogate_by_hand() -> None:
    """Ratios 1.5 and 0.5, clip 0.2. A = 1, ratio 1.5: max(-1.5, -1.2) = -1.2, clipped. A = 1, ratio 0.5:
    max(-0.5, -0.8) = -0.5. A = -1, ratio 1.5: max(1.5, 1.2) = 1.5. A = -1, ratio 0.5: max(0.5, 0.8) = 0.8, clipped."""
    new = torch.log(torch.tensor([1.5, 0.5, 1.5, 0.5])).requires_grad_()
    tokens = batch(new, old_logprobs=torch.zeros(4), advantages=[1.0, 1.0, -1.0, -1.0])
    result = clipped_surrogate(tokens, clip=0.2, dual_clip=None)
    assert result.loss.item() == pytest.approx((-1.2 - 0.5 + 1.5 + 0.8) / 4)
    assert result.clipped.item() == 2
    result.loss.backward()
    assert new.grad is not None
    np.testing.assert_allclose(new.grad.numpy(), [0.0, -0.5 / 4, 1.5 / 4, 0.0], atol=1e-6)


def test_importance_weights_multiply_the_advantage() -> None:
    """Ratio 1, A = 2, weights .5 and 3, shares 1/2: -(2 * .5 + 2 * 3) / 2 = -3.5; no gradient through the weights."""
    new = torch.zeros(2, requires_grad=True)
    result = clipped_surrogate(batch(new, weights=[0.5, 3.0], advantages=[2.0, 2.0]), clip=0.2, dual_clip=None)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(-3.5)
    torch.testing.assert_close(new.grad, torch.tensor([-0.5, -3.0]))


def test_the_dual_clip_by_hand() -> None:
    """c = 2. A = -1, ratio 5: 5 held to 2, and no gradient. A = -1, ratio 1.5: 1.5 as before. A = 1, ratio 5: -1.2 by
    the first clip."""
    new = torch.log(torch.tensor([5.0, 1.5, 5.0])).requires_grad_()
    tokens = batch(new, old_logprobs=torch.zeros(3), advantages=[-1.0, -1.0, 1.0])
    result = clipped_surrogate(tokens, clip=0.2, dual_clip=2.0)
    result.loss.backward()
    assert result.loss.item() == pytest.approx((2 + 1.5 - 1.2) / 3)
    assert result.clipped.item() == 2
    torch.testing.assert_close(new.grad, torch.tensor([0.0, 0.5, 0.0]))


def test_an_unchanged_policy_has_the_gradient_of_the_advantage() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    result = clipped_surrogate(batch(logprobs, advantages=[2.0, -3.0]), clip=0.2, dual_clip=None)
    result.loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-1.0, 1.5]
    assert result.clipped.item() == 0
    assert result.kl.item() == 0


def test_the_value_loss_by_hand() -> None:
    """Old 0, clip 0.2, return 1. V = 0.5: errors 0.25 and (0.2 - 1)^2 = 0.64, so 0.32. V = -0.5: 2.25 and 1.44, so
    1.125. V = 0.1 is inside: 0.81, so 0.405. The last token does not count."""
    values, returns = torch.tensor([0.5, -0.5, 0.1, NAN]), torch.tensor([1.0, 1.0, 1.0, NAN])
    result = value_loss(values, torch.zeros(4), returns, torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0]), clip=0.2)
    assert result.loss.item() == pytest.approx((0.32 + 1.125 + 0.405) / 3)
    assert result.clipped.item() == 1


def test_k3_by_hand() -> None:
    """log pi = ln 1/2 against ln 1/4: d = ln 2, k3 = 1/2 - 1 + ln 2, and its gradient 1 - e^-d = 1/2. Against ln 1:
    d = -ln 2, k3 = 2 - 1 - ln 2, gradient 1 - 2 = -1. Where they agree both are 0."""
    logprobs = torch.log(torch.tensor([0.5, 0.5, 0.5, 0.5])).requires_grad_()
    reference = torch.log(torch.tensor([0.25, 1.0, 0.5, NAN]))
    loss = reference_kl_loss(batch(logprobs, shares=[1 / 3, 1 / 3, 1 / 3, 0.0]), reference, "k3")
    loss.backward()
    assert loss.item() == pytest.approx((-0.5 + math.log(2) + 1 - math.log(2)) / 3)
    assert logprobs.grad is not None
    np.testing.assert_allclose(logprobs.grad.numpy(), [0.5 / 3, -1 / 3, 0.0, 0.0], atol=1e-6)


def test_k2_by_hand() -> None:
    """d = ln 2: (ln 2)^2 / 2, and its gradient is d."""
    logprobs = torch.zeros(1, requires_grad=True)
    loss = reference_kl_loss(batch(logprobs), torch.tensor([-math.log(2)]), "k2")
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2) ** 2 / 2)
    torch.testing.assert_close(logprobs.grad, torch.tensor([math.log(2)]))


def test_k2_pulls_as_the_kl_does_and_k3_as_the_opposite_one() -> None:
    """In expectation over answers of the policy. With pi = softmax(z) over three tokens the gradient of
    KL(pi_ref || pi) is pi - pi_ref; that of KL(pi || pi_ref) is taken by autograd."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-0.4, 0.6, 0.1], dtype=torch.float64).log_softmax(0)
    logprobs = logits.log_softmax(0)
    pi = logprobs.detach().exp()

    def expected(kind: Any) -> tuple[torch.Tensor, torch.Tensor]:
        losses = [reference_kl_loss(batch(logprobs[i : i + 1]), reference[i : i + 1], kind) for i in range(3)]
        mean = torch.stack([share * loss for share, loss in zip(pi, losses, strict=True)]).sum()
        return mean, torch.autograd.grad(mean, logits, retain_graph=True)[0]

    (k2, k2_gradient), (k3, k3_gradient) = expected("k2"), expected("k3")
    kl = (logprobs.exp() * (logprobs - reference)).sum()
    (gradient,) = torch.autograd.grad(kl, logits)
    torch.testing.assert_close(k2_gradient, gradient)
    torch.testing.assert_close(k3_gradient, pi - reference.exp())
    assert k3.item() == pytest.approx(kl.item())
    assert abs(k2.item() - kl.item()) > 1e-3
    assert (k3_gradient - gradient).abs().max() > 0.01


def test_a_wild_ratio_stays_finite() -> None:
    for loss_of in (lambda tokens: clipped_surrogate(tokens, clip=0.2, dual_clip=None), policy_gradient):
        new = torch.tensor([500.0], requires_grad=True)
        loss = loss_of(batch(new, old_logprobs=[0.0], advantages=[-1.0]))
        loss.loss.backward()
        assert math.isfinite(loss.loss.item())
        assert new.grad is not None
        assert new.grad.isfinite().all()


def test_importance_weights_by_hand() -> None:
    """Ratios 1/2, 3 cut to 2, and 1 off the mask, whatever lies there. Log ratios of 500 stay finite."""
    weights = importance_weights(
        torch.log(torch.tensor([[0.5, 3.0, NAN]])),
        torch.zeros(1, 3),
        torch.tensor([[True, True, False]]),
        cap=2.0,
    )
    torch.testing.assert_close(weights, torch.tensor([[0.5, 2.0, 1.0]]))
    far = importance_weights(torch.tensor([[500.0]]), torch.zeros(1, 1), torch.ones(1, 1).bool(), cap=math.inf)
    assert far.item() == pytest.approx(math.exp(20), rel=1e-5)


def test_what_a_token_counts_for_by_hand() -> None:
    """Answers of 3 and 1 tokens, and one that is not learnt from; the longest possible has 4."""
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    expected = {
        "token_mean": [[1 / 4, 1 / 4, 1 / 4], [1 / 4, 0, 0], [0, 0, 0]],
        "answer_mean": [[1 / 6, 1 / 6, 1 / 6], [1 / 2, 0, 0], [0, 0, 0]],
        "length_constant": [[1 / 8, 1 / 8, 1 / 8], [1 / 8, 0, 0], [0, 0, 0]],
    }
    assert expected.keys() == set(get_args(PpoConfig.model_fields["aggregation"].annotation))
    for aggregation, shares in expected.items():
        torch.testing.assert_close(token_shares(mask, aggregation, longest=4), torch.tensor(shares))  # type: ignore[arg-type]


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.sampled_from(["token_mean", "answer_mean", "length_constant"]))
def test_the_split_over_micro_batches_changes_nothing_and_neither_do_masked_tokens(
    seed: int, cut: int, aggregation: Any
) -> None:
    random = np.random.default_rng(seed)
    arrays = random.normal(size=(5, 8, 5))
    mask = random.random((8, 5)) < 0.7
    mask[0, 0] = mask[-1, 0] = True
    shares = token_shares(torch.tensor(mask), aggregation, longest=5)

    def gradients(filler: float, slices: list[slice]) -> tuple[float, torch.Tensor]:
        new, old, advantages, returns, reference = (
            torch.tensor(np.where(mask, a, filler), dtype=torch.float32) for a in arrays
        )
        new.requires_grad_()
        total = 0.0
        for part in slices:
            tokens = batch(
                new[part].flatten(),
                old_logprobs=old[part].flatten(),
                advantages=advantages[part].flatten(),
                shares=shares[part].flatten(),
            )
            loss = clipped_surrogate(tokens, clip=0.2, dual_clip=3.0).loss + policy_gradient(tokens).loss
            loss = loss + reference_kl_loss(tokens, reference[part].flatten(), "k3")
            loss = (
                loss
                + value_loss(
                    tokens.logprobs, tokens.old_logprobs, returns[part].flatten(), tokens.shares, clip=0.2
                ).loss
            )
            loss.backward()
            total += loss.item()
        assert new.grad is not None
        return total, new.grad

    whole, whole_gradient = gradients(0.0, [slice(0, 8)])
    split, split_gradient = gradients(float("nan"), [slice(0, cut), slice(cut, 8)])
    assert split == pytest.approx(whole, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(split_gradient, whole_gradient, rtol=1e-4, atol=1e-5)


def test_explained_variance() -> None:
    mask = torch.tensor([[True, True, True, False]])
    returns = torch.tensor([[1.0, 2.0, 3.0, NAN]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.full((1, 4), 2.0), returns, mask) == pytest.approx(0.0)
    assert math.isnan(explained_variance(returns, torch.ones(1, 4), mask))

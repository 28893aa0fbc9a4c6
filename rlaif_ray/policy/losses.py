"""Losses of the policy and the value model, and their measures.

Shapes are (T,), the answer tokens of a micro-batch. Each token has a share of its optimizer step's loss; the shares of
all micro-batches and ranks are normalised together, so that how a step is split changes nothing. Where a token's share
is 0 it does not count, and what is said of it may be NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LOG_RATIO_BOUND = 20.0
"""Log ratios are cut here before exp: e^20 is far outside any trust region and still finite in float32."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What a policy loss is of. All but `logprobs` are without gradient."""

    logprobs: Tensor  # of the policy that is being trained
    old_logprobs: Tensor  # of the policy at the start of the update
    weights: Tensor  # by which tokens that another policy sampled stand for the one at the start of the update
    advantages: Tensor
    shares: Tensor  # 0 where a token does not count

    @property
    def counts(self) -> Tensor:
        return self.shares > 0

    @property
    def log_ratio(self) -> Tensor:
        """log pi - log pi_old, within +-LOG_RATIO_BOUND; 0 where a token does not count."""
        distance = torch.where(self.counts, self.logprobs - self.old_logprobs, 0.0)
        return distance.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)

    def total(self, terms: Tensor) -> Tensor:
        """The sum of a term a token, by its share."""
        return torch.where(self.counts, terms * self.shares, 0.0).sum()


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """`loss` carries the gradient; the rest are detached sums over the tokens that count."""

    loss: Tensor
    clipped: Tensor
    kl: Tensor  # k3 of the sampling policy from this one: exp(d) - 1 - d, d = log pi - log pi_old


def clipped_surrogate(tokens: TokenBatch, *, clip: float, dual_clip: float | None) -> PolicyLoss:
    """w max(-A r, -A clip(r, 1 - clip, 1 + clip)) (Schulman et al. 2017, eq. 7).

    For a negative advantage it grows without bound as r does; `dual_clip` c holds it to -c A (Ye et al. 2020, eq. 5).
    """
    log_ratio = tokens.log_ratio
    advantages = torch.where(tokens.counts, tokens.advantages * tokens.weights, 0.0)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = torch.maximum(plain, bounded)
    cut = bounded > plain
    if dual_clip is not None:
        ceiling = torch.where(advantages < 0, -advantages * dual_clip, torch.inf)
        cut = cut | (loss > ceiling)
        loss = torch.minimum(loss, ceiling)
    return PolicyLoss(tokens.total(loss), cut.sum(), _divergence(log_ratio))


def policy_gradient(tokens: TokenBatch) -> PolicyLoss:
    """-w A r, whose gradient where r = 1 is REINFORCE's, -A grad log pi (Williams 1992).

    The ratio r to the policy at the start of the update keeps later minibatches of an iteration unbiased.
    """
    log_ratio = tokens.log_ratio
    advantages = torch.where(tokens.counts, tokens.advantages * tokens.weights, 0.0)
    loss = tokens.total(-advantages * log_ratio.exp())
    return PolicyLoss(loss, torch.zeros((), device=loss.device), _divergence(log_ratio))


def _divergence(log_ratio: Tensor) -> Tensor:
    distance = log_ratio.detach()
    return (distance.exp() - 1 - distance).sum()


def reference_kl_loss(tokens: TokenBatch, reference_logprobs: Tensor, kind: Literal["k2", "k3"]) -> Tensor:
    """An estimate of KL(pi || pi_ref), a token, as a loss, with d = log pi - log pi_ref (Schulman 2020).

    `k2` is d^2 / 2: a biased value, but on answers of pi the gradient of that KL. `k3` is exp(-d) - 1 + d (Shao et al.
    2024, eq. 4): an unbiased value and never negative, but its gradient is that of KL(pi_ref || pi). Answers of an
    older policy bias both. (k1 as a loss would have an expected gradient of zero.)
    """
    distance = torch.where(tokens.counts, tokens.logprobs - reference_logprobs, 0.0)
    distance = distance.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return tokens.total(distance.square() / 2 if kind == "k2" else (-distance).exp() - 1 + distance)


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """`loss` carries the gradient; `clipped` counts the tokens whose clipped error was the larger."""

    loss: Tensor
    clipped: Tensor


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, shares: Tensor, *, clip: float) -> ValueLoss:
    """Half the larger of two squared errors: of V, and of V kept within +-`clip` of the value before the update."""
    counts = shares > 0
    values = torch.where(counts, values.float(), 0.0)
    old_values = torch.where(counts, old_values, 0.0)
    returns = torch.where(counts, returns, 0.0)
    plain = (values - returns).square()
    near = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    return ValueLoss(0.5 * (torch.maximum(plain, near) * shares).sum(), (near > plain).sum().detach())


def token_shares(
    mask: Tensor, aggregation: Literal["token_mean", "answer_mean", "length_constant"], *, longest: int
) -> Tensor:
    """What each token (B, A) of an optimizer step counts for in its loss; 0 off the mask.

    `token_mean`: all tokens alike. `answer_mean`: all answers alike, and the tokens of one (Shao et al. 2024).
    `length_constant`: 1 / `longest` in an answer of any length, over the answers (Liu et al. 2025); the shares add up
    to less than 1 where answers are shorter.
    """
    lengths = mask.sum(dim=1, keepdim=True)
    answers = (lengths > 0).sum()
    per_token = {
        "token_mean": torch.ones_like(lengths) / mask.sum(),
        "answer_mean": 1 / (lengths.clamp(min=1) * answers),
        "length_constant": torch.ones_like(lengths) / (longest * answers),
    }[aggregation]
    return torch.where(mask, per_token, 0.0)


def importance_weights(logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, *, cap: float) -> Tensor:
    """min(pi_old / pi_rollout, cap) of each token (B, A), without gradient; 1 off the mask (Yao et al. 2025)."""
    distance = torch.where(mask, logprobs - rollout_logprobs, 0.0).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return distance.exp().clamp(max=cap).detach()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the masked tokens; NaN where the returns do not vary."""
    targets = returns[mask].double()
    errors = targets - values[mask].double()
    variance = targets.var(correction=0)
    if variance <= 1e-12:
        return float("nan")
    return float(1 - errors.var(correction=0) / variance)

"""Scored answers for tests of algorithms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlaif_ray.policy.algorithm import Experience


def experience(
    scores: Sequence[float],
    groups: Sequence[int],
    valid: Sequence[bool] | None = None,
    *,
    lengths: Sequence[int] | None = None,
    gaps: Tensor | None = None,
    values: Tensor | None = None,
    reward_kl: float = 0.0,
    bootstrap: Tensor | None = None,
) -> Experience:
    """Answers of these lengths, else of one token each; `gaps` (B, A) are log pi - log pi_ref. What is not defined is
    NaN."""
    lengths = lengths or [1] * len(scores)
    answers = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    scored = torch.ones(len(scores), dtype=torch.bool) if valid is None else torch.tensor(valid)
    logprobs = torch.where(answers, -1.0, float("nan"))
    return Experience(
        scores=torch.where(scored, torch.tensor(scores), 0.0),
        valid=scored,
        groups=torch.tensor(groups),
        mask=answers & scored[:, None],
        logprobs=logprobs,
        rollout_logprobs=logprobs,
        reference_logprobs=logprobs if gaps is None else logprobs - gaps,
        reward_kl=reward_kl,
        values=values,
        bootstrap=bootstrap,
    )

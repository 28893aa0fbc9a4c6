"""What an algorithm is to the learner: which advantages it makes of scored answers, and by which loss they teach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from rlaif_ray.policy.losses import PolicyLoss


@dataclass(frozen=True, slots=True)
class Experience:
    """An iteration's answers, and what the models say of them before any update. B answers of up to A tokens."""

    scores: Tensor  # (B,) float32, normalised, with truncation settled; 0 where not `valid`
    valid: Tensor  # (B,) bool
    groups: Tensor  # (B,) int64: answers that were drawn together for one prompt share a number
    mask: Tensor  # (B, A) bool: the actions of valid answers
    logprobs: Tensor  # (B, A) float32, as all that follow; defined on answer tokens alone
    reference_logprobs: Tensor
    entropies: Tensor
    values: Tensor | None  # V of the state before each token, where the algorithm has a value model


@dataclass(frozen=True, slots=True)
class Targets:
    """What the updates of an iteration aim at. Answers of which `mask` marks no action are not trained on."""

    advantages: Tensor  # (B, A) float32
    mask: Tensor  # (B, A) bool
    returns: Tensor | None  # (B, A) float32: what the value model is fitted to, where there is one
    measures: Mapping[str, float] = field(default_factory=dict)


class Algorithm(Protocol):
    """One way to learn from scores."""

    @property
    def has_value_model(self) -> bool: ...

    def targets(self, experience: Experience) -> Targets: ...

    def loss(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        reference_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        *,
        tokens: int,
    ) -> PolicyLoss:
        """Of one micro-batch (B, T), normalised by the `tokens` of the whole optimizer step."""

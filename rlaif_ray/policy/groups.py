"""Statistics over the answers that were drawn together for one prompt. Only valid answers enter them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NO_SPREAD = 1e-6
"""Below it a group's standard deviation is rounding."""


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """Of each answer's group (B,): `counts` of valid answers, and the `means` and sample standard deviations `stds` of
    their values, in float64. A group without a valid answer has mean 0, one with fewer than two has std 0."""

    counts: Tensor
    means: Tensor
    stds: Tensor

    @property
    def tied(self) -> Tensor:
        """(B,) bool: the group has no spread."""
        return self.stds < NO_SPREAD


def group_statistics(values: Tensor, groups: Tensor, valid: Tensor) -> GroupStatistics:
    """`values`, `groups` (a number a group) and `valid` are (B,), in any order. What is not valid may be NaN.

    In float64 the mean of equal float32 values is that value: a group whose answers all earn the same has no spread.
    """
    values = torch.where(valid, values.double(), 0.0)

    def total(entries: Tensor) -> Tensor:
        sums = torch.zeros(int(groups.max()) + 1, dtype=torch.float64)
        return sums.index_add_(0, groups, entries)[groups]

    counts = total(valid.double())
    means = total(values) / counts.clamp(min=1)
    squares = torch.where(valid, (values - means).square(), 0.0)
    return GroupStatistics(counts, means, (total(squares) / (counts - 1).clamp(min=1)).sqrt())


def share_of_groups(selected: Tensor, groups: Tensor) -> float:
    """Share of the groups of which `selected` (B,) marks an answer."""
    return len(set(groups[selected].tolist())) / len(set(groups.tolist()))

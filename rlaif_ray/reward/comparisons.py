"""What the reward model scores together while it is fitted: a pair, or all compared answers to a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlaif_ray.records import LabelledPair
from rlaif_ray.reward.scoring import rewards_of, right_padded


@dataclass(frozen=True, slots=True)
class ComparisonGroup:
    """Pairs that never part between micro-batches and together weigh as one, and the answers that they compare.

    `sequences` are distinct: token ids of a prompt and an answer. Of P pairs, `first` and `second` (P,) are rows of
    `sequences`, `p` (P,) the probabilities that the first is the better one, `weights` (P,) what the labels count for.
    """

    sequences: tuple[tuple[int, ...], ...]
    first: tuple[int, ...]
    second: tuple[int, ...]
    p: tuple[float, ...]
    weights: tuple[float, ...]


def comparison_groups(pairs: Iterable[LabelledPair], *, by_prompt: bool) -> list[ComparisonGroup]:
    """A group for each pair, or for each prompt, in the order of their first pairs.

    A pair of equal answers says nothing, and is left out.
    """
    members: dict[str, list[LabelledPair]] = {}
    for pair in pairs:
        if pair.answer_a != pair.answer_b:
            members.setdefault(pair.prompt_id if by_prompt else pair.id, []).append(pair)
    return [_group(together) for together in members.values()]


def _group(pairs: Sequence[LabelledPair]) -> ComparisonGroup:
    rows: dict[tuple[int, ...], int] = {}
    first = tuple(rows.setdefault((*pair.prompt, *pair.answer_a), len(rows)) for pair in pairs)
    second = tuple(rows.setdefault((*pair.prompt, *pair.answer_b), len(rows)) for pair in pairs)
    return ComparisonGroup(
        tuple(rows), first, second, tuple(pair.p for pair in pairs), tuple(pair.weight for pair in pairs)
    )


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """The P pairs of some groups under a model. All tensors are (P,) and on its device."""

    scores_a: Tensor
    scores_b: Tensor
    p: Tensor
    weights: Tensor
    shares: Tensor  # of its group that a pair makes up: 1 / pairs of the group
    real: Tensor  # bool; False for the pairs of filler


def score_groups(
    model: Any, groups: Sequence[ComparisonGroup], real: Sequence[bool], pad_id: int, device: torch.device
) -> ScoredPairs:
    """Score each answer of the groups once. `real` says which of them are no filler."""
    sequences = [sequence for group in groups for sequence in group.sequences]
    starts = np.cumsum([0, *(len(group.sequences) for group in groups)])
    scores = _scores(model, sequences, pad_id, device)

    def rows(sides: Iterable[tuple[int, ...]]) -> Tensor:
        return torch.tensor([start + row for start, side in zip(starts, sides, strict=False) for row in side]).to(
            device
        )

    counts = torch.tensor([len(group.p) for group in groups])
    return ScoredPairs(
        scores[rows(group.first for group in groups)],
        scores[rows(group.second for group in groups)],
        torch.tensor([p for group in groups for p in group.p], device=device),
        torch.tensor([weight for group in groups for weight in group.weights], device=device),
        (1 / counts).repeat_interleave(counts).to(device),
        torch.tensor(real).repeat_interleave(counts).to(device),
    )


def _scores(model: Any, sequences: Sequence[tuple[int, ...]], pad_id: int, device: torch.device) -> Tensor:
    """Rewards (N,) of two sequences or more, in two forwards: of the shorter half, and of the longer.

    That a pair's answers differ in length is most of the padding there is. Every rank takes as many forwards, which
    ZeRO-3 needs.
    """
    order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
    half = len(order) // 2
    scores = [
        rewards_of(model, right_padded([sequences[row] for row in rows], pad_id, device))
        for rows in (order[:half], order[half:])
    ]
    return torch.cat(scores)[torch.tensor(order).argsort().to(device)]

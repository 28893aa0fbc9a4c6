"""The reward model as it scores: its members in one process, their mean, and where they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.engines.training import Dtype
from rlaif_ray.records import Scores
from rlaif_ray.reward.model import RewardNormalisation, load_reward_model, members
from rlaif_ray.reward.scoring import Tokens, score_sequences


@dataclass(frozen=True, slots=True)
class RewardEnsemble:
    """k models with one vocabulary, each with its normalisation. One model is an ensemble of one."""

    models: tuple[Any, ...]
    normalisations: tuple[RewardNormalisation, ...]

    @classmethod
    def load(cls, directory: Path, *, dtype: Dtype, trust_remote_code: bool, device: str) -> RewardEnsemble:
        found = members(directory)
        return cls(
            tuple(
                load_reward_model(member, dtype=dtype, trust_remote_code=trust_remote_code).to(device)
                for member in found
            ),
            tuple(RewardNormalisation.load(member) for member in found),
        )

    def raw_scores(
        self, ids: Sequence[str], sequences: Sequence[Tokens], *, max_batch_tokens: int
    ) -> NDArray[np.float32]:
        """Each member's raw reward (N, k); NaN where it gives none."""
        return np.stack(
            [score_sequences(model, ids, sequences, max_batch_tokens=max_batch_tokens)[0] for model in self.models],
            axis=1,
        )


def normalised(raw: NDArray[np.float32], normalisations: Sequence[RewardNormalisation]) -> NDArray[np.float32]:
    """Raw rewards (N, k) in units of each member's spread, from its mean."""
    means = np.array([one.mean for one in normalisations], dtype=np.float32)
    spreads = np.array([one.std for one in normalisations], dtype=np.float32)
    scores: NDArray[np.float32] = (raw - means) / spreads
    return scores


def disagreement(member_scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standard deviation (N,) of the members' normalised scores (N, k)."""
    spread: NDArray[np.float32] = member_scores.std(axis=1)
    return spread


def ensemble_scores(
    sample_ids: tuple[str, ...], member_scores: NDArray[np.float32], *, disagreement_penalty: float
) -> Scores:
    """The members' mean, less so many of their standard deviations (Coste et al. 2024). An answer is valid where every
    member scored it."""
    mean = member_scores.mean(axis=1)
    parts = {"reward_model": mean}
    values = mean
    if member_scores.shape[1] > 1:
        parts["disagreement"] = disagreement(member_scores)
        values = mean - np.float32(disagreement_penalty) * parts["disagreement"]
    return Scores(sample_ids, values, np.isfinite(values), parts)

"""How far the weights that drew an iteration's answers lag behind those that learn from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlaif_ray.records import Rollouts


class StaleRollouts(RuntimeError):
    """A token was drawn by weights older than is allowed, or by none that the learner has published."""


def mean_staleness(rollouts: Sequence[Rollouts], version: int, *, at_most: int) -> float:
    """Versions between the learner's, whose newest is `version`, and those that drew a token, averaged over tokens.

    Raises StaleRollouts.
    """
    versions = np.concatenate([shard.token_versions for shard in rollouts])
    if not len(versions):
        return 0.0
    if versions.max() > version:
        raise StaleRollouts(f"answers were drawn by version {versions.max()}, and the learner's is {version}")
    if version - versions.min() > at_most:
        raise StaleRollouts(
            f"answers were drawn by version {versions.min()}, more than ppo.max_staleness={at_most} behind the "
            f"learner's {version}"
        )
    return float(version - versions.mean())

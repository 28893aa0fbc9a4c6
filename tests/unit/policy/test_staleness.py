"""How old the weights may be that drew what is learnt from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlaif_ray.policy.staleness import StaleRollouts, mean_staleness
from rlaif_ray.records import Rollouts
from tests.small_models import scored_rollouts


def drawn_by(*versions: int) -> Rollouts:
    """Tokens whose versions cycle through these."""
    rollouts, _ = scored_rollouts(3, seed=0)
    return replace(rollouts, token_versions=np.resize(np.array(versions, dtype=np.int32), len(rollouts.answer_tokens)))


def test_the_lag_is_averaged_over_tokens() -> None:
    """Of the learner's version 7, tokens of versions 7, 6, 7, 6, ... lag by 0, 1, 0, 1, ..."""
    rollouts = drawn_by(7, 6)
    tokens = len(rollouts.answer_tokens)
    assert mean_staleness([rollouts], 7, at_most=1) == pytest.approx((tokens // 2) / tokens)
    assert mean_staleness([drawn_by(7), drawn_by(7)], 7, at_most=0) == 0


@pytest.mark.parametrize(
    ("version", "at_most", "said"),
    [
        (8, 1, r"by version 6, more than ppo\.max_staleness=1 behind the learner's 8"),
        (7, 0, r"by version 6, more than ppo\.max_staleness=0 behind"),
        (6, 1, "by version 7, and the learner's is 6"),
    ],
)
def test_one_token_that_is_too_old_or_of_no_published_version_is_refused(version: int, at_most: int, said: str) -> None:
    with pytest.raises(StaleRollouts, match=said):
        mean_staleness([drawn_by(7), drawn_by(7, 7, 6)], version, at_most=at_most)

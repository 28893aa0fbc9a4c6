import math

import pytest
import torch

from rlaif_ray import metrics
from rlaif_ray.config import PpoConfig
from rlaif_ray.policy.ppo import Ppo
from tests.unit.policy.experiences import experience


def test_the_targets_by_hand() -> None:
    """gamma = lambda = 1, beta .5, two answers of two tokens with k1 = (.2, -.4) and (0, 0), scores 2 and 1, values
    .5 everywhere. Rewards: (-.1, 2.2), (0, 1). GAE: (2.1 - .5, 2.2 - .5), (1 - .5, 1 - .5) = 1.6, 1.7, .5, .5;
    whitened by their mean 1.075 and sample variance (.525^2 + .625^2 + 2 * .575^2) / 3 = 1.3275 / 3. Returns: GAE + V.
    """
    scored = experience(
        [2.0, 1.0],
        [0, 1],
        lengths=[2, 2],
        gaps=torch.tensor([[0.2, -0.4], [0.0, 0.0]]),
        values=torch.full((2, 2), 0.5),
        reward_kl=0.5,
    )
    targets = Ppo(PpoConfig(gamma=1.0, lam=1.0)).targets(scored)
    torch.testing.assert_close(targets.returns, torch.tensor([[2.1, 2.2], [1.0, 1.0]]))
    std = math.sqrt(1.3275 / 3)
    torch.testing.assert_close(
        targets.advantages, torch.tensor([[0.525 / std, 0.625 / std], [-0.575 / std, -0.575 / std]])
    )
    assert targets.measures == {metrics.EXPLAINED_VARIANCE: pytest.approx(0.0)}


def test_groups_mean_nothing_to_it() -> None:
    config = PpoConfig()
    apart, together = (
        Ppo(config).targets(experience([1.0, 3.0, 5.0], groups, values=torch.zeros(3, 1)))
        for groups in ([0, 1, 2], [0, 0, 0])
    )
    assert torch.equal(apart.advantages, together.advantages)


def test_a_truncated_answer_can_end_in_what_the_value_model_expects() -> None:
    """gamma .5, lambda 1. Two answers of one token without a score, V = 1 before it; the second was cut off in a state
    worth 4. Returns: 0, and 0 + .5 * 4 = 2."""
    scored = experience([0.0, 0.0], [0, 1], values=torch.ones(2, 1), bootstrap=torch.tensor([0.0, 4.0]))
    targets = Ppo(PpoConfig(gamma=0.5, lam=1.0)).targets(scored)
    torch.testing.assert_close(targets.returns, torch.tensor([[0.0], [2.0]]))

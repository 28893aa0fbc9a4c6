import math

import pytest
import torch

from rlaif_ray import metrics
from rlaif_ray.config import PpoConfig
from rlaif_ray.policy.a2c import A2c
from rlaif_ray.policy.losses import TokenBatch
from rlaif_ray.policy.reinforce import Reinforce
from tests.unit.policy.experiences import experience

SCORED = experience(
    [2.0, 1.0],
    [0, 1],
    lengths=[2, 1],
    gaps=torch.tensor([[0.2, -0.4], [0.0, math.nan]]),
    values=torch.tensor([[0.5, 1.0], [0.25, math.nan]]),
    reward_kl=0.5,
)


def test_reinforce_by_hand() -> None:
    """Rewards (-.1, 2.2) and (1): Z = (2.1, 2.2) and (1), less V = (.5, 1) and (.25), whatever lambda."""
    targets = Reinforce(PpoConfig(gamma=1.0, lam=0.3)).targets(SCORED)
    torch.testing.assert_close(targets.advantages, torch.tensor([[1.6, 1.2], [0.75, 0.0]]))
    torch.testing.assert_close(targets.returns, torch.tensor([[2.1, 2.2], [1.0, 0.0]]))
    assert targets.measures[metrics.EXPLAINED_VARIANCE] < 1


def test_a2c_by_hand() -> None:
    """lambda .5: d = (-.1 + 1 - .5, 2.2 - 1) = (.4, 1.2), A = (.4 + .5 * 1.2, 1.2) = (1, 1.2)."""
    targets = A2c(PpoConfig(gamma=1.0, lam=0.5)).targets(SCORED)
    torch.testing.assert_close(targets.advantages, torch.tensor([[1.0, 1.2], [0.75, 0.0]]))


@pytest.mark.parametrize("algorithm", [Reinforce, A2c])
def test_their_loss_has_no_trust_region(algorithm: type[Reinforce] | type[A2c]) -> None:
    """Ratio 3, A = 2, weight .5, share .25: loss -2 * .5 * 3 * .25 = -.75, and its gradient is as much. At ratio 1 the
    gradient is REINFORCE's, -A: -.5 with share .25."""
    logprobs = torch.tensor([math.log(3.0), -1.0, 7.0], requires_grad=True)
    loss = algorithm(PpoConfig()).loss(
        TokenBatch(
            logprobs,
            old_logprobs=torch.tensor([0.0, -1.0, math.nan]),
            weights=torch.tensor([0.5, 1.0, math.nan]),
            advantages=torch.tensor([2.0, 2.0, math.nan]),
            shares=torch.tensor([0.25, 0.25, 0.0]),
        )
    )
    loss.loss.backward()
    assert loss.loss.item() == pytest.approx(-0.75 - 0.5)
    torch.testing.assert_close(logprobs.grad, torch.tensor([-0.75, -0.5, 0.0]))
    assert loss.clipped.item() == 0
    assert loss.kl.item() == pytest.approx(3 - 1 - math.log(3))

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray import metrics
from rlaif_ray.config import PpoConfig
from rlaif_ray.policy.losses import TokenBatch
from rlaif_ray.policy.rloo import Rloo, leave_one_out
from tests.unit.policy.experiences import experience

NAN = math.nan
REWARDS = st.floats(-5, 5, width=32)


def test_the_advantages_by_hand() -> None:
    """Group 7: rewards 1, 2, 6, so 1 - 4, 2 - 3.5, 6 - 1.5. Group 2: 3 and 5, the third not scored, so -2 and 2.
    Group 4 has one answer that counts, and nothing to compare it with."""
    advantages, compared, _ = leave_one_out(
        torch.tensor([1.0, 3.0, 2.0, NAN, 6.0, 5.0, 9.0, NAN]),
        torch.tensor([7, 2, 7, 2, 7, 2, 4, 4]),
        torch.tensor([True, True, True, False, True, True, True, False]),
    )
    torch.testing.assert_close(advantages, torch.tensor([-3.0, -2.0, -1.5, 0.0, 4.5, 2.0, 0.0, 0.0]))
    assert compared.tolist() == [True, True, True, False, True, True, False, False]


def test_kl_is_taken_off_the_reward_of_the_whole_answer() -> None:
    """beta .5: the first answer's log-ratios .2 and .6 sum to .8, its reward is 2 - .4 = 1.6; the second's is
    1 - .5 * -.2 = 1.1. Advantages .5 and -.5, the same on each token. The third answer is alone."""
    scored = experience(
        [2.0, 1.0, 4.0],
        [0, 0, 1],
        lengths=[2, 1, 2],
        gaps=torch.tensor([[0.2, 0.6], [-0.2, NAN], [0.0, 0.0]]),
        reward_kl=0.5,
    )
    targets = Rloo(PpoConfig()).targets(scored)
    torch.testing.assert_close(targets.advantages, torch.tensor([[0.5, 0.5], [-0.5, 0.0], [0.0, 0.0]]))
    assert targets.mask.tolist() == [[True, True], [True, False], [False, False]]
    assert targets.returns is None
    assert targets.measures == {metrics.LONE_GROUP_FRACTION: 0.5, metrics.TIED_GROUP_FRACTION: 0.0}


def test_equal_rewards_are_exactly_without_advantage() -> None:
    """.1 has no exact binary form; sums of it in float32 would leave a remainder to learn from."""
    advantages, _, tied = leave_one_out(torch.full((7,), 0.1), torch.zeros(7, dtype=torch.long), torch.ones(7).bool())
    assert tied.all()
    assert not advantages.any()


@given(st.lists(st.tuples(REWARDS, st.integers(0, 3)), min_size=1, max_size=12), st.data())
def test_an_answer_that_is_not_valid_changes_nothing(answers: list[tuple[float, int]], data: st.DataObject) -> None:
    rewards, groups = (list(column) for column in zip(*answers, strict=True))
    place = data.draw(st.integers(0, len(answers)))
    value, group = data.draw(st.sampled_from([NAN, 1e9, -3.0])), data.draw(st.integers(0, 4))
    before, _, _ = leave_one_out(torch.tensor(rewards), torch.tensor(groups), torch.ones(len(rewards)).bool())
    valid = [True] * len(rewards)
    for column, entry in ((rewards, value), (groups, group), (valid, False)):
        column.insert(place, entry)
    after, compared, _ = leave_one_out(torch.tensor(rewards), torch.tensor(groups), torch.tensor(valid))
    assert not compared[place]
    assert after[place] == 0
    assert torch.equal(torch.cat([after[:place], after[place + 1 :]]), before)


@given(st.lists(REWARDS, min_size=8, max_size=8), st.lists(st.booleans(), min_size=8, max_size=8))
def test_advantages_agree_with_trl(rewards: list[float], valid: list[bool]) -> None:
    """The arithmetic of TRL 1.16's RLOOTrainer, derived again: two groups of four, NaN where not scored."""
    grouped = torch.tensor(
        [reward if ok else NAN for reward, ok in zip(rewards, valid, strict=True)], dtype=torch.float64
    ).view(2, 4)
    siblings = grouped.isfinite().sum(1, keepdim=True) - 1
    theirs = (grouped - (grouped.nansum(1, keepdim=True) - grouped) / siblings).view(-1).nan_to_num(0.0)
    ours, _, _ = leave_one_out(torch.tensor(rewards), torch.tensor([0] * 4 + [1] * 4), torch.tensor(valid))
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_the_loss_is_the_clipped_surrogate() -> None:
    """Ratio 1.5 at clip .2: A = 1 earns -1.2 and no gradient."""
    logprobs = torch.tensor([[math.log(1.5)]], requires_grad=True)
    loss = Rloo(PpoConfig()).loss(
        TokenBatch(logprobs, torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1))
    )
    loss.loss.backward()
    assert loss.loss.item() == pytest.approx(-1.2)
    assert logprobs.grad is not None
    assert logprobs.grad.item() == 0

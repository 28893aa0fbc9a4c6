import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.utils import nanstd

from rlaif_ray import metrics
from rlaif_ray.config import PpoConfig
from rlaif_ray.policy.grpo import Grpo, standardised
from tests.unit.policy.experiences import experience

NAN = math.nan
SCORES = st.floats(-5, 5, width=32)


def test_the_advantages_by_hand() -> None:
    """Group 3: scores 1, 2, 6 have mean 3 and sample variance (4 + 1 + 9) / 2 = 7. Group 1: 3 and 5, the third not
    scored: mean 4, variance 2. Group 0: 2 and 2, tied. Group 2 has one answer that counts."""
    advantages, compared, tied = standardised(
        torch.tensor([1.0, 3.0, 2.0, NAN, 6.0, 5.0, 2.0, 2.0, 9.0, NAN]),
        torch.tensor([3, 1, 3, 1, 3, 1, 0, 0, 2, 2]),
        torch.tensor([True, True, True, False, True, True, True, True, True, False]),
    )
    expected = [-2 / 7**0.5, -(0.5**0.5), -1 / 7**0.5, 0.0, 3 / 7**0.5, 0.5**0.5, 0.0, 0.0, 0.0, 0.0]
    torch.testing.assert_close(advantages, torch.tensor(expected))
    assert compared.tolist() == [True, True, True, False, True, True, True, True, False, False]
    assert tied.tolist() == [False] * 6 + [True, True, False, False]


def test_groups_without_spread_are_left_out_and_counted() -> None:
    """Groups: 0 (1 and 3, so -1 and 1 times sqrt 1/2), 1 (tied), 2 (alone), 3 (none valid)."""
    scored = experience(
        [1.0, 3.0, 2.0, 2.0, 5.0, 0.0],
        [0, 0, 1, 1, 2, 3],
        [True, True, True, True, True, False],
        gaps=torch.full((6, 1), 2.0),
    )
    targets = Grpo(PpoConfig()).targets(scored)
    half = 0.5**0.5
    torch.testing.assert_close(targets.advantages[:, 0], torch.tensor([-half, half, 0.0, 0.0, 0.0, 0.0]))
    assert targets.mask[:, 0].tolist() == [True, True, False, False, False, False]
    assert targets.measures == {metrics.LONE_GROUP_FRACTION: 0.5, metrics.TIED_GROUP_FRACTION: 0.25}


def test_a_kl_in_the_reward_comes_off_before_answers_are_compared() -> None:
    """Scores 2 and 2, k1 sums 1 and -1 at beta 1: rewards 1 and 3, mean 2, standard deviation sqrt 2."""
    scored = experience([2.0, 2.0], [0, 0], gaps=torch.tensor([[1.0], [-1.0]]), reward_kl=1.0)
    half = 0.5**0.5
    torch.testing.assert_close(Grpo(PpoConfig()).targets(scored).advantages[:, 0], torch.tensor([-half, half]))


def test_equal_scores_are_a_tie_whatever_their_size() -> None:
    """.1 has no exact binary form; a standard deviation of rounding would make advantages of about 1."""
    advantages, _, tied = standardised(torch.full((7,), 0.1), torch.zeros(7, dtype=torch.long), torch.ones(7).bool())
    assert tied.all()
    assert not advantages.any()


@given(st.lists(st.tuples(SCORES, st.integers(0, 3)), min_size=1, max_size=12), st.data())
def test_an_answer_that_is_not_valid_changes_nothing(answers: list[tuple[float, int]], data: st.DataObject) -> None:
    scores, groups = (list(column) for column in zip(*answers, strict=True))
    place = data.draw(st.integers(0, len(answers)))
    value, group = data.draw(st.sampled_from([NAN, 1e9, -3.0])), data.draw(st.integers(0, 4))
    before, _, _ = standardised(torch.tensor(scores), torch.tensor(groups), torch.ones(len(scores)).bool())
    valid = [True] * len(scores)
    for column, entry in ((scores, value), (groups, group), (valid, False)):
        column.insert(place, entry)
    after, compared, tied = standardised(torch.tensor(scores), torch.tensor(groups), torch.tensor(valid))
    assert not compared[place]
    assert not tied[place]
    assert after[place] == 0
    assert torch.equal(torch.cat([after[:place], after[place + 1 :]]), before)


@given(st.lists(SCORES, min_size=8, max_size=8), st.lists(st.booleans(), min_size=8, max_size=8))
def test_advantages_agree_with_trl(scores: list[float], valid: list[bool]) -> None:
    """TRL 1.16's GRPOTrainer takes (r - mean) / (std + 1e-4) with its own `nanstd`; the 1e-4 is taken back here. Its
    lone answers get 0 from NaN, and so do ours."""
    rewards = torch.tensor([s if ok else NAN for s, ok in zip(scores, valid, strict=True)], dtype=torch.float64)
    grouped = rewards.view(2, 4)
    std = nanstd(grouped, dim=1).repeat_interleave(4)
    theirs = (rewards - grouped.nanmean(1).repeat_interleave(4)) / (std + 1e-4)
    theirs = (theirs * (std + 1e-4) / std).nan_to_num(0.0, posinf=0.0, neginf=0.0)
    ours, _, tied = standardised(torch.tensor(scores), torch.tensor([0] * 4 + [1] * 4), torch.tensor(valid))
    torch.testing.assert_close(ours.double()[~tied], theirs[~tied], rtol=1e-4, atol=1e-4)

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.policy.advantages import generalized_advantages, whiten


def gae_in_numpy(rewards, values, mask, gamma, lam):
    """The recursion of the paper on the actions alone, row by row."""
    advantages = np.zeros_like(rewards)
    for row in range(len(rewards)):
        advantage = next_value = 0.0
        for t in reversed(np.flatnonzero(mask[row])):
            delta = rewards[row, t] + gamma * next_value - values[row, t]
            advantage = delta + gamma * lam * advantage
            advantages[row, t], next_value = advantage, values[row, t]
    return advantages


def test_masked_tokens_are_no_steps() -> None:
    """Two actions, fifty observations, two actions, a reward of 1 at the end, V = 0, lambda 0.95: the last action of
    the first turn is two *actions* from the reward, so its advantage is 0.95^2 = 0.9025, and not 0.95^52."""
    mask = torch.zeros(1, 54, dtype=torch.bool)
    mask[0, [0, 1, 52, 53]] = True
    rewards = torch.zeros(1, 54)
    rewards[0, 53] = 1.0
    result = generalized_advantages(rewards, torch.full((1, 54), 0.0), mask, gamma=1.0, lam=0.95)
    assert result.advantages[0, 1].item() == pytest.approx(0.9025)
    assert result.advantages[0, 0].item() == pytest.approx(0.95**3)
    assert not result.advantages[0, 2:52].any()


def test_by_hand() -> None:
    """r = (0, 1), V = (0.5, 0.25), gamma 1, lambda 0.5: d_1 = 1 - 0.25 = 0.75, d_0 = 0.25 - 0.5 = -0.25,
    A_0 = -0.25 + 0.5 * 0.75 = 0.125, and the returns A + V are 0.625 and 1."""
    result = generalized_advantages(
        torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]]), torch.tensor([[True, True]]), gamma=1.0, lam=0.5
    )
    assert result.advantages.tolist() == [[0.125, 0.75]]
    assert result.returns.tolist() == [[0.625, 1.0]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 12), st.floats(0.5, 1.0), st.floats(0.0, 1.0))
def test_equals_numpy_and_ignores_what_is_masked(seed: int, rows: int, width: int, gamma: float, lam: float) -> None:
    random = np.random.default_rng(seed)
    rewards, values = random.normal(size=(2, rows, width))
    mask = random.random((rows, width)) < 0.7
    expected = gae_in_numpy(rewards, values, mask, gamma, lam)
    rewards[~mask] = values[~mask] = np.nan
    result = generalized_advantages(
        torch.tensor(rewards), torch.tensor(values), torch.tensor(mask), gamma=gamma, lam=lam
    )
    np.testing.assert_allclose(result.advantages.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(result.returns.numpy(), np.where(mask, expected + values, 0), atol=1e-5)


@given(st.integers(0, 2**32 - 1))
def test_whitening_sees_valid_entries_alone(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(3.0, 2.0, size=(4, 6))
    mask = random.random((4, 6)) < 0.6
    mask[0, :2] = True
    values[~mask] = np.nan
    white = whiten(torch.tensor(values), torch.tensor(mask)).numpy()
    valid = values[mask]
    np.testing.assert_allclose(white[mask], (valid - valid.mean()) / valid.std(ddof=1), atol=1e-4)
    assert not white[~mask].any()


def test_whitening_without_spread_takes_only_the_mean_off() -> None:
    mask = torch.tensor([[True, True, False]])
    assert whiten(torch.tensor([[2.0, 2.0, 9.0]]), mask).tolist() == [[0.0, 0.0, 0.0]]
    assert whiten(torch.tensor([[2.0, 7.0, 9.0]]), torch.tensor([[True, False, False]])).tolist() == [[0.0, 0.0, 0.0]]


def test_whitening_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        whiten(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool))

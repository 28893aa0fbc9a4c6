from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.reward.ensemble import RewardEnsemble, ensemble_scores, normalised
from rlaif_ray.reward.model import RewardNormalisation, load_reward_model
from rlaif_ray.reward.scoring import rollout_sequences, score_sequences, token_bounded
from tests.small_models import scored_rollouts, write_models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    _, reward = write_models(tmp_path_factory.mktemp("models"))
    return load_reward_model(reward, dtype="float32", trust_remote_code=False)


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100))
def test_batches_cover_the_rows_in_order_within_the_bound(lengths: list[int], bound: int) -> None:
    batches = token_bounded(lengths, bound)
    assert [row for batch in batches for row in batch] == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= bound for batch in batches)


def test_the_score_is_the_normalised_logit_at_the_last_token(model: Any) -> None:
    rollouts, _ = scored_rollouts(9, seed=0)
    ensemble = RewardEnsemble((model,), (RewardNormalisation(mean=0.25, std=2.0, count=9),))
    raw = ensemble.raw_scores(rollouts.sample_ids, rollout_sequences(rollouts), max_batch_tokens=40)
    scores = ensemble_scores(rollouts.sample_ids, normalised(raw, ensemble.normalisations), disagreement_penalty=0.0)
    assert scores.valid.all()
    assert scores.parts.keys() == {"reward_model"}
    assert np.array_equal(scores.parts["reward_model"], scores.values)
    for row in range(9):
        tokens = torch.tensor(np.concatenate([rollouts.prompt(row), rollouts.answer(row)])[None].astype(np.int64))
        with torch.no_grad():
            hidden = model.base_model(input_ids=tokens).last_hidden_state[:, -1]
            expected = (model.score(hidden).item() - 0.25) / 2.0
            assert scores.values[row] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_an_ensemble_says_its_mean_less_its_disagreement() -> None:
    """Raw rewards (3, 8) under means (1, 2) and spreads (2, 3) are (1, 2): mean 1.5, standard deviation 0.5, and with a
    penalty of 2 the reward is 1.5 - 2 * 0.5 = 0.5. (5, 2) are (2, 0): 1 - 2 * 1 = -1. One member's NaN is no number."""
    normalisations = [RewardNormalisation(1.0, 2.0, 9), RewardNormalisation(2.0, 3.0, 9)]
    raw = np.array([[3, 8], [5, 2], [3, np.nan]], dtype=np.float32)
    scores = ensemble_scores(("a", "b", "c"), normalised(raw, normalisations), disagreement_penalty=2.0)
    assert scores.values[:2] == pytest.approx([0.5, -1.0])
    assert scores.parts["reward_model"][:2] == pytest.approx([1.5, 1.0])
    assert scores.parts["disagreement"][:2] == pytest.approx([0.5, 1.0])
    assert scores.valid.tolist() == [True, True, False]
    assert np.isnan(scores.values[2])


def test_scores_do_not_depend_on_the_order_of_rows(model: Any) -> None:
    sequences = [[5, 6, 7], [5, 6], [8, 9, 10, 11], [12]]
    ids = ["d", "b", "a", "c"]
    values, _ = score_sequences(model, ids, sequences, max_batch_tokens=8)
    order = [2, 0, 3, 1]
    shuffled, _ = score_sequences(model, [ids[i] for i in order], [sequences[i] for i in order], max_batch_tokens=8)
    assert shuffled.tolist() == values[order].tolist()


def test_sequences_of_like_length_share_a_forward(model: Any) -> None:
    """In the order of their ids, a, b, c and d would make two forwards of 2 x 8 tokens."""
    shapes: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    try:
        score_sequences(model, ["a", "b", "c", "d"], [[5] * 8, [6], [7] * 8, [8]], max_batch_tokens=16)
    finally:
        hook.remove()
    assert shapes == [(2, 1), (2, 8)]


def test_what_cannot_be_scored_is_invalid_and_no_number(model: Any) -> None:
    """The model has 32 positions."""
    values, valid = score_sequences(model, ["a", "b", "c"], [[5] * 33, [5] * 32, []], max_batch_tokens=64)
    assert valid.tolist() == [False, True, False]
    assert np.isnan(values[[0, 2]]).all()


def test_a_reward_that_is_not_finite_is_invalid(model: Any) -> None:
    weight = model.score.weight.detach().clone()
    try:
        model.score.weight.data.fill_(float("inf"))
        values, valid = score_sequences(model, ["a"], [[5, 6]], max_batch_tokens=64)
    finally:
        model.score.weight.data.copy_(weight)
    assert not valid.any()
    assert np.isnan(values).all()

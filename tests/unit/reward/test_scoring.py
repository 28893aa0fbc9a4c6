from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.policy.model import save_model
from rlaif_ray.reward.model import RewardNormalisation, load_reward_model, new_reward_model
from rlaif_ray.reward.scoring import score_rollouts, score_sequences, token_bounded
from tests.small_models import policy_and_tokenizer, scored_rollouts, weights_of, write_models


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
    normalisation = RewardNormalisation(mean=0.25, std=2.0, count=9)
    scores = score_rollouts(model, normalisation, rollouts, max_batch_tokens=40)
    assert scores.valid.all()
    for row in range(9):
        tokens = torch.tensor(np.concatenate([rollouts.prompt(row), rollouts.answer(row)])[None].astype(np.int64))
        with torch.no_grad():
            hidden = model.base_model(input_ids=tokens).last_hidden_state[:, -1]
            normalised = (model.score(hidden).item() - 0.25) / 2.0
            assert scores.values[row] == pytest.approx(normalised, rel=1e-4, abs=1e-6)


def test_scores_do_not_depend_on_the_order_of_rows(model: Any) -> None:
    sequences = [[5, 6, 7], [5, 6], [8, 9, 10, 11], [12]]
    ids = ["d", "b", "a", "c"]
    values, _ = score_sequences(model, ids, sequences, max_batch_tokens=8)
    order = [2, 0, 3, 1]
    shuffled, _ = score_sequences(model, [ids[i] for i in order], [sequences[i] for i in order], max_batch_tokens=8)
    assert shuffled.tolist() == values[order].tolist()


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


def test_a_tokenizer_without_its_own_pad_token_is_refused(tmp_path: Path) -> None:
    policy, tokenizer = policy_and_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    save_model(policy, weights_of(policy), tokenizer, tmp_path)
    with pytest.raises(ValueError, match="pad token"):
        new_reward_model(tmp_path, dtype="float32", seed=0, trust_remote_code=False)

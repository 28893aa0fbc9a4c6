import dataclasses

import numpy as np
import pytest
import torch

from rlaif_ray.policy.batching import assemble, minibatches
from rlaif_ray.policy.logprobs import token_entropies
from rlaif_ray.records import FinishReason, Rollouts, Scores, offsets_of
from tests.small_models import scored_rollouts

ROLLOUTS = Rollouts(
    sample_ids=("a", "b"),
    group_ids=("g", "g"),
    prompt_ids=("p", "p"),
    prompt_tokens=np.array([1, 7, 8, 1, 9], dtype=np.int32),
    prompt_offsets=offsets_of([3, 2]),
    answer_tokens=np.array([11, 12, 2, 0], dtype=np.int32),
    answer_offsets=offsets_of([1, 3]),
    logprobs=np.array([-1.0, -2.0, -3.0, -4.0], dtype=np.float32),
    token_versions=np.full(4, 3, dtype=np.int32),
    finish_reasons=(FinishReason.STOP, FinishReason.LENGTH),
    version=3,
    fingerprint="x",
)
SCORES = Scores(("a", "b"), np.array([0.5, np.nan], dtype=np.float32), np.array([True, False]))


def test_a_batch_is_what_the_shards_say() -> None:
    """The second answer ends in a pad id, drawn by the policy: it stays an action. Nothing is copied."""
    batch = assemble([ROLLOUTS], [SCORES])
    assert [row.tolist() for row in batch.sequences.prompts] == [[1, 7, 8], [1, 9]]
    assert [row.tolist() for row in batch.sequences.answers] == [[11], [12, 2, 0]]
    assert all(np.shares_memory(row, ROLLOUTS.answer_tokens) for row in batch.sequences.answers)
    assert batch.sequences.answer_mask.tolist() == [[True, False, False], [True, True, True]]
    assert batch.rollout_logprobs.tolist() == [[-1.0, 0.0, 0.0], [-2.0, -3.0, -4.0]]
    assert batch.truncated.tolist() == [False, True]


def test_a_batch_may_be_of_several_versions_where_that_is_allowed() -> None:
    stale = dataclasses.replace(ROLLOUTS, token_versions=np.array([3, 2, 3, 3], dtype=np.int32))
    assert len(assemble([stale], [SCORES], staleness=1)) == 2
    with pytest.raises(ValueError, match="versions 2 to 3"):
        assemble([stale], [SCORES])


def test_weights_of_one_version_have_one_fingerprint() -> None:
    other = dataclasses.replace(ROLLOUTS, fingerprint="y")
    with pytest.raises(ValueError, match="different fingerprints"):
        assemble([ROLLOUTS, other], [SCORES, SCORES])


def test_groups_and_parts_of_the_reward_go_along_over_shards() -> None:
    other, scores = scored_rollouts(4, seed=1)
    parts = {"rule": np.arange(4, dtype=np.float32)}
    mixed = [Scores(("a", "b"), SCORES.values, SCORES.valid, {"rule": np.array([7, 8], dtype=np.float32)})]
    mixed.append(Scores(scores.sample_ids, scores.values, scores.valid, parts))
    origin = {"token_versions": np.ones(4, dtype=np.int32)}
    batch = assemble([dataclasses.replace(ROLLOUTS, **origin), other], mixed)
    assert [[i for i in range(6) if batch.groups[i] == batch.groups[row]] for row in (0, 2, 5)] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]
    assert batch.parts["rule"].tolist() == [7, 8, 0, 1, 2, 3]
    with pytest.raises(ValueError, match="different sources"):
        assemble([dataclasses.replace(ROLLOUTS, **origin), other], [SCORES, mixed[1]])


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="sample ids"):
        assemble([ROLLOUTS], [Scores(("a", "c"), SCORES.values, SCORES.valid)])
    with pytest.raises(ValueError, match="marked valid"):
        assemble([ROLLOUTS], [Scores(("a", "b"), SCORES.values, np.array([True, True]))])
    other, scores = scored_rollouts(2, seed=0)
    with pytest.raises(ValueError, match="different weights"):
        assemble([ROLLOUTS, other], [SCORES, scores])


def test_entropy_of_even_odds() -> None:
    """Two tokens with equal logits and two impossible ones: ln 2 nats."""
    entropy = token_entropies(torch.tensor([[[0.0, 0.0, -80.0, -80.0]]]), temperature=1.0)
    assert entropy.item() == pytest.approx(np.log(2), abs=1e-6)


def test_minibatches_cover_the_rows_once_and_depend_on_seed_iteration_and_epoch() -> None:
    rows = np.array([0, 2, 3, 5, 8, 9, 11])
    first = minibatches(rows, 3, seed=1, iteration=4, epoch=0)
    assert sorted(np.concatenate(first)) == rows.tolist()
    assert [len(part) for part in first] == [3, 2, 2]
    again = minibatches(rows, 3, seed=1, iteration=4, epoch=0)
    assert [part.tolist() for part in first] == [part.tolist() for part in again]
    others = [minibatches(rows, 3, seed=s, iteration=i, epoch=e) for s, i, e in ((2, 4, 0), (1, 5, 0), (1, 4, 1))]
    assert all(np.concatenate(other).tolist() != np.concatenate(first).tolist() for other in others)

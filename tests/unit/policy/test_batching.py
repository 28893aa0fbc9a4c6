import dataclasses

import numpy as np
import pytest
import torch

from rlaif_ray.microbatches import split_rows
from rlaif_ray.policy.batching import assemble, minibatches
from rlaif_ray.policy.logprobs import answer_logits, token_entropies, token_logprobs
from rlaif_ray.records import FinishReason, Rollouts, Scores, offsets_of
from tests.small_models import policy_and_tokenizer, scored_rollouts

ROLLOUTS = Rollouts(
    sample_ids=("a", "b"),
    group_ids=("g", "g"),
    prompt_ids=("p", "p"),
    prompt_tokens=np.array([1, 7, 8, 1, 9], dtype=np.int32),
    prompt_offsets=offsets_of([3, 2]),
    answer_tokens=np.array([11, 12, 2, 0], dtype=np.int32),
    answer_offsets=offsets_of([1, 3]),
    logprobs=np.array([-1.0, -2.0, -3.0, -4.0], dtype=np.float32),
    finish_reasons=(FinishReason.STOP, FinishReason.LENGTH),
    version=3,
    fingerprint="x",
)
SCORES = Scores(("a", "b"), np.array([0.5, np.nan], dtype=np.float32), np.array([True, False]))


def test_prompts_are_padded_on_the_left_and_answers_on_the_right() -> None:
    """The second answer ends in the pad id itself, drawn by the policy: it stays an action."""
    batch = assemble([ROLLOUTS], [SCORES], pad_id=0)
    sequences = batch.sequences
    assert sequences.prompts.tolist() == [[1, 7, 8], [0, 1, 9]]
    assert sequences.answers.tolist() == [[11, 0, 0], [12, 2, 0]]
    assert sequences.answer_mask.tolist() == [[True, False, False], [True, True, True]]
    assert batch.rollout_logprobs.tolist() == [[-1.0, 0.0, 0.0], [-2.0, -3.0, -4.0]]
    assert batch.truncated.tolist() == [False, True]
    inputs = sequences.inputs(np.array([0, 1]), torch.device("cpu"))
    assert inputs.input_ids.tolist() == [[1, 7, 8, 11, 0, 0], [0, 1, 9, 12, 2, 0]]
    assert inputs.attention_mask.tolist() == [[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]]
    assert inputs.position_ids.tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 3, 4]]
    alone = sequences.inputs(np.array([0]), torch.device("cpu"))
    assert alone.input_ids.tolist() == [[1, 7, 8, 11]]


def test_groups_and_parts_of_the_reward_go_along_over_shards() -> None:
    other, scores = scored_rollouts(4, seed=1)
    parts = {"rule": np.arange(4, dtype=np.float32)}
    mixed = [Scores(("a", "b"), SCORES.values, SCORES.valid, {"rule": np.array([7, 8], dtype=np.float32)})]
    mixed.append(Scores(scores.sample_ids, scores.values, scores.valid, parts))
    origin = {"version": other.version, "fingerprint": other.fingerprint}
    batch = assemble([dataclasses.replace(ROLLOUTS, **origin), other], mixed, pad_id=0)
    assert [[i for i in range(6) if batch.groups[i] == batch.groups[row]] for row in (0, 2, 5)] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]
    assert batch.parts["rule"].tolist() == [7, 8, 0, 1, 2, 3]
    with pytest.raises(ValueError, match="different sources"):
        assemble([dataclasses.replace(ROLLOUTS, **origin), other], [SCORES, mixed[1]], pad_id=0)


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="sample ids"):
        assemble([ROLLOUTS], [Scores(("a", "c"), SCORES.values, SCORES.valid)], pad_id=0)
    with pytest.raises(ValueError, match="marked valid"):
        assemble([ROLLOUTS], [Scores(("a", "b"), SCORES.values, np.array([True, True]))], pad_id=0)
    other, scores = scored_rollouts(2, seed=0)
    with pytest.raises(ValueError, match="different weights"):
        assemble([ROLLOUTS, other], [SCORES, scores], pad_id=0)


def test_padding_and_company_do_not_change_log_probabilities() -> None:
    policy, _ = policy_and_tokenizer()
    rollouts, scores = scored_rollouts(12, seed=3)
    sequences = assemble([rollouts], [scores], pad_id=0).sequences
    with torch.no_grad():
        together = sequences.inputs(np.arange(12), torch.device("cpu"))
        batched = token_logprobs(answer_logits(policy, together), together.answer_ids, temperature=0.7)
        for row in range(12):
            tokens = np.concatenate([rollouts.prompt(row), rollouts.answer(row)])
            logits = policy(input_ids=torch.tensor(tokens[None], dtype=torch.long)).logits[0]
            expected = torch.log_softmax(logits / 0.7, dim=-1)[
                torch.arange(len(rollouts.prompt(row)) - 1, len(tokens) - 1),
                torch.tensor(rollouts.answer(row), dtype=torch.long),
            ]
            torch.testing.assert_close(batched[row, : len(expected)], expected, rtol=1e-4, atol=1e-5)


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


def test_every_rank_gets_as_many_micro_batches() -> None:
    rows = np.arange(10, 17)
    shares = [split_rows(rows, rank, 3, micro_batch_size=2) for rank in range(3)]
    assert [[len(micro.rows) for micro in share] for share in shares] == [[2, 1]] * 3
    real = np.concatenate([micro.rows[micro.real] for share in shares for micro in share])
    assert sorted(real) == rows.tolist()

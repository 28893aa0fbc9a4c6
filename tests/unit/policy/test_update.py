import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlaif_ray import metrics
from rlaif_ray.config import RunConfig
from rlaif_ray.engines.training import OptimizerSettings
from rlaif_ray.policy.batching import assemble
from rlaif_ray.policy.logprobs import token_logprobs
from rlaif_ray.policy.model import (
    PolicyWithValue,
    ValueModel,
    load_policy,
    new_value_head,
    state_and_end_values,
    value_model_from_reward,
)
from rlaif_ray.policy.packing import Ragged, answer_logits
from rlaif_ray.policy.update import ALGORITHMS, NothingToLearn, PolicyUpdate
from rlaif_ray.records import FinishReason, Rollouts, Scores, offsets_of
from rlaif_ray.reward.model import RewardNormalisation, load_reward_model
from rlaif_ray.reward.scoring import score_sequences
from tests.plain_engine import PlainEngine
from tests.small_models import scored_rollouts, write_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


def learner(
    models: tuple[Path, Path], learning_rate: float = 1e-3, algorithm: str = "ppo", **options: Any
) -> tuple[PolicyUpdate, PlainEngine]:
    sft, reward = models
    ppo = {"minibatch_size": 8, "epochs": 2, "learning_rate": learning_rate, "answers_per_prompt": 2} | options
    config = RunConfig.model_validate(
        {
            "run_dir": "unused",
            "prompts": {"path": "p.jsonl"},
            "policy": {"model": "m", "algorithm": algorithm, "max_answer_tokens": 5},
            "judge": {"model": "j"},
            "ppo": ppo,
        }
    )
    policy = load_policy(sft, dtype="float32", trust_remote_code=False)
    reference = partial(answer_logits, copy.deepcopy(policy))
    settings = OptimizerSettings(learning_rate, max_grad_norm=1.0, zero_stage=0, dtype="float32", epsilon=1e-5)
    value = None
    if config.ppo.value_model == "trunk":
        engine = PlainEngine(PolicyWithValue(policy, new_value_head(policy, "float32")), settings)
    else:
        engine = PlainEngine(policy, settings)
        if config.has_value_model:
            normalisation = RewardNormalisation.load(reward)
            model = value_model_from_reward(reward, normalisation, dtype="float32", trust_remote_code=False)
            value = PlainEngine(model, settings)
    return PolicyUpdate(engine, value, reference, config), engine


def with_true_logprobs(engine: PlainEngine, rollouts: Rollouts) -> Rollouts:
    """The rollouts as the engine's own policy would have sampled them."""
    sequences = Ragged.of(
        *zip(*((rollouts.prompt(row), rollouts.answer(row)) for row in range(len(rollouts))), strict=True)
    )
    inputs = sequences.pack(np.arange(len(rollouts)), torch.device("cpu"))
    with torch.no_grad():
        said = token_logprobs(answer_logits(engine.module, inputs), inputs.answer_ids, temperature=1.0)
    return replace(rollouts, logprobs=said.numpy())


@pytest.mark.parametrize("old_logprobs", ["rollout", "recompute"])
def test_without_a_learning_rate_the_policy_stays_where_it_was(models: tuple[Path, Path], old_logprobs: str) -> None:
    update, engine = learner(models, learning_rate=0.0, old_logprobs=old_logprobs)
    rollouts, scores = scored_rollouts(20, seed=1)
    rollouts = with_true_logprobs(engine, rollouts)
    for iteration in range(2):
        measured = update.step(iteration, [rollouts], [scores])
        assert measured[metrics.CLIP_FRACTION] == 0
        assert measured[metrics.APPROXIMATE_KL] == pytest.approx(0, abs=1e-9)
        assert measured[metrics.KL] == pytest.approx(0, abs=1e-5)
        assert measured[metrics.LOGPROB_GAP_MAX] < 1e-5
        assert measured[metrics.IMPORTANCE_WEIGHT] == pytest.approx(1, abs=1e-5)
        assert measured[metrics.IMPORTANCE_TRUNCATED] == 0


def test_the_first_step_of_an_update_is_taken_where_the_ratio_is_one(models: tuple[Path, Path]) -> None:
    """One minibatch, one epoch: nothing is clipped, whoever sampled, and the loss is minus the mean advantage, which
    whitening makes 0."""
    update, _ = learner(models, epochs=1, minibatch_size=64, old_logprobs="recompute", importance_cap=1e-9)
    rollouts, scores = scored_rollouts(20, seed=1)
    measured = update.step(0, [rollouts], [scores])
    assert measured[metrics.CLIP_FRACTION] == 0
    assert measured[metrics.APPROXIMATE_KL] == pytest.approx(0, abs=1e-9)
    assert measured[metrics.POLICY_LOSS] == pytest.approx(0, abs=1e-9)
    assert measured[metrics.IMPORTANCE_TRUNCATED] == 1


def test_three_policies_are_kept_apart(models: tuple[Path, Path]) -> None:
    """Rollouts of another policy: every token log 2 more likely under the learner's. Recomputed, each weighs 2, or what
    the cap leaves of it; the rollouts' own would make it a ratio of 2, beyond the clip."""
    rollouts, scores = scored_rollouts(20, seed=1)
    options: dict[str, Any] = {"epochs": 1, "minibatch_size": 64}
    recomputing, engine = learner(models, old_logprobs="recompute", importance_cap=1.5, **options)
    drawn = with_true_logprobs(engine, rollouts)
    drawn = replace(drawn, logprobs=drawn.logprobs - np.float32(np.log(2)))
    measured = recomputing.step(0, [drawn], [scores])
    assert measured[metrics.LOGPROB_GAP] == pytest.approx(np.log(2), rel=1e-4)
    assert measured[metrics.IMPORTANCE_WEIGHT] == pytest.approx(1.5)
    assert measured[metrics.IMPORTANCE_TRUNCATED] == 1
    assert measured[metrics.CLIP_FRACTION] == 0
    trusting, _ = learner(models, old_logprobs="rollout", **options)
    measured = trusting.step(0, [drawn], [scores])
    assert measured[metrics.LOGPROB_GAP] == pytest.approx(np.log(2), rel=1e-4)
    assert measured[metrics.LOGPROB_GAP_MAX] == pytest.approx(np.log(2), rel=1e-3)
    assert measured[metrics.IMPORTANCE_WEIGHT] == 1
    assert measured[metrics.CLIP_FRACTION] > 0.3


@pytest.mark.parametrize(
    "options",
    [
        {"old_logprobs": "recompute"},
        {"aggregation": "answer_mean", "kl": "k2"},
        {"value_model": "trunk", "truncated": "bootstrap"},
        {"algorithm": "grpo", "aggregation": "length_constant", "truncated": "mask"},
    ],
)
def test_micro_batches_and_shards_change_nothing(models: tuple[Path, Path], options: dict[str, Any]) -> None:
    rollouts, scores = scored_rollouts(16, seed=2)
    whole, whole_engine = learner(models, **options)
    split, split_engine = learner(models, micro_batch_tokens=12, **options)
    first, second = (_part(rollouts, scores, rows) for rows in (range(7), range(7, 16)))
    before = whole.step(0, [rollouts], [scores])
    after = split.step(0, [first[0], second[0]], [first[1], second[1]])
    assert after == pytest.approx(before, rel=1e-3, abs=1e-5, nan_ok=True)
    for name, tensor in whole_engine.gather_weights().items():
        np.testing.assert_allclose(split_engine.gather_weights()[name], tensor, atol=2e-5, err_msg=name)


def test_answers_without_a_score_change_nothing(models: tuple[Path, Path]) -> None:
    """A batch of which some rows failed teaches what the rest of it teaches alone."""
    rollouts, scores = scored_rollouts(16, seed=2, invalid=(13, 14, 15))
    kept = _part(rollouts, scores, range(13))
    with_failures, engine = learner(models, epochs=1, minibatch_size=64)
    alone, alone_engine = learner(models, epochs=1, minibatch_size=64)
    measured = with_failures.step(0, [rollouts], [scores])
    expected = alone.step(0, [kept[0]], [kept[1]])
    assert measured[metrics.VALID_FRACTION] == pytest.approx(13 / 16)
    for name in (metrics.REWARD_MEAN, metrics.KL, metrics.POLICY_LOSS, metrics.VALUE_LOSS, metrics.EXPLAINED_VARIANCE):
        assert measured[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6)
    for name, tensor in alone_engine.gather_weights().items():
        np.testing.assert_allclose(engine.gather_weights()[name], tensor, atol=1e-5, err_msg=name)


def test_a_batch_without_a_score_stops_the_run(models: tuple[Path, Path]) -> None:
    update, _ = learner(models)
    rollouts, scores = scored_rollouts(3, seed=0, invalid=(0, 1, 2))
    with pytest.raises(NothingToLearn, match="none of 3"):
        update.step(0, [rollouts], [scores])


def test_the_value_model_warms_up_alone(models: tuple[Path, Path]) -> None:
    update, engine = learner(models, value_warmup_iterations=1)
    rollouts, scores = scored_rollouts(16, seed=2)
    before = engine.gather_weights()
    assert metrics.POLICY_LOSS not in update.step(0, [rollouts], [scores])
    assert all(np.array_equal(tensor, engine.gather_weights()[name]) for name, tensor in before.items())
    assert metrics.POLICY_LOSS in update.step(1, [rollouts], [scores])
    assert not any(np.array_equal(tensor, engine.gather_weights()[name]) for name, tensor in before.items())


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_the_policy_learns_to_say_what_is_rewarded(algorithm: str, models: tuple[Path, Path]) -> None:
    """Eight answers of one token to each of eight prompts, drawn from the policy as it learns. Token 5 scores 1, others
    0: its probability must rise."""
    update, engine = learner(models, learning_rate=3e-3, algorithm=algorithm, kl_coefficient=0.0)
    prompts = np.repeat(np.arange(8), 8)
    tokens = torch.tensor(np.stack([np.ones(64, dtype=np.int64), prompts + 5], axis=1))

    def distributions() -> torch.Tensor:
        with torch.no_grad():
            return engine.module(input_ids=tokens).logits[:, -1].log_softmax(-1)

    before = distributions()[:, 5].exp().mean()
    for iteration in range(8):
        said = distributions()
        drawn = torch.multinomial(said.exp(), 1, generator=torch.Generator().manual_seed(iteration))
        rollouts = Rollouts(
            sample_ids=tuple(f"{iteration}/{row}" for row in range(64)),
            group_ids=tuple(f"{iteration}/{prompt}" for prompt in prompts),
            prompt_ids=tuple(str(prompt) for prompt in prompts),
            prompt_tokens=tokens.numpy().astype(np.int32).ravel(),
            prompt_offsets=offsets_of([2] * 64),
            answer_tokens=drawn[:, 0].numpy().astype(np.int32),
            answer_offsets=offsets_of([1] * 64),
            logprobs=said.gather(1, drawn)[:, 0].numpy(),
            token_versions=np.full(64, iteration, dtype=np.int32),
            finish_reasons=(FinishReason.STOP,) * 64,
            version=iteration,
            fingerprint="test",
        )
        values = (rollouts.answer_tokens == 5).astype(np.float32)
        update.step(iteration, [rollouts], [Scores(rollouts.sample_ids, values, np.ones(64, dtype=bool))])
    assert distributions()[:, 5].exp().mean() > 2 * before


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_groups_are_whole_however_the_batch_is_sharded(algorithm: str, models: tuple[Path, Path]) -> None:
    """Eight groups of two; one answer fails, so its sibling teaches nothing and seven groups are left."""
    rollouts, scores = scored_rollouts(16, seed=2, invalid=(3,))
    options: dict[str, Any] = {"algorithm": algorithm, "epochs": 1, "minibatch_size": 64, "truncated": "mask"}
    whole, engine = learner(models, **options)
    split, split_engine = learner(models, **options)
    before = whole.step(0, [rollouts], [scores])
    parts = [_part(rollouts, scores, rows) for rows in (range(5), range(5, 16))]
    after = split.step(0, [part[0] for part in parts], [part[1] for part in parts])
    assert after == pytest.approx(before)
    assert before[metrics.LONE_GROUP_FRACTION] >= 1 / 8
    assert metrics.VALUE_LOSS not in before
    for name, tensor in engine.gather_weights().items():
        np.testing.assert_allclose(split_engine.gather_weights()[name], tensor, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kl", ["k2", "k3", "reward"])
def test_the_kl_holds_the_policy_to_the_reference(models: tuple[Path, Path], kl: str) -> None:
    """The same scores again and again: with a large coefficient the policy stays closer to where it began."""

    def distance(kl_coefficient: float) -> float:
        update, engine = learner(models, algorithm="rloo", kl=kl, kl_coefficient=kl_coefficient, epochs=1)
        rollouts, scores = scored_rollouts(32, seed=2)
        for iteration in range(12):
            measured = update.step(iteration, [with_true_logprobs(engine, rollouts)], [scores])
        return abs(measured[metrics.KL])

    assert distance(5.0) < 0.5 * distance(0.0)


def test_where_all_answers_tie_nothing_is_updated(models: tuple[Path, Path]) -> None:
    update, engine = learner(models, algorithm="grpo", truncation_score=1.0)
    rollouts, scores = scored_rollouts(16, seed=2)
    start = engine.gather_weights()
    measured = update.step(0, [rollouts], [Scores(scores.sample_ids, np.ones(16, dtype=np.float32), scores.valid)])
    assert measured[metrics.TIED_GROUP_FRACTION] == 1
    assert measured[metrics.SKIPPED_STEP] == 1
    assert metrics.POLICY_LOSS not in measured
    assert all(np.array_equal(tensor, engine.gather_weights()[name]) for name, tensor in start.items())
    assert update.step(1, [rollouts], [scores])[metrics.SKIPPED_STEP] == 0


def test_updates_end_once_the_policy_is_far_from_where_they_began(models: tuple[Path, Path]) -> None:
    """Four minibatches an epoch. The bound is passed in the second step, where the first has moved the policy; the
    value model takes all its steps."""
    rollouts, scores = scored_rollouts(32, seed=2)

    def steps(**options: Any) -> tuple[dict[str, float], dict[str, int]]:
        update, engine = learner(models, learning_rate=3e-2, old_logprobs="recompute", **options)
        taken = {"policy": 0, "value": 0}
        value = update._value
        assert value is not None
        for name, one in (("policy", engine), ("value", value)):

            def step(name: str = name, plain: Any = one.step) -> float:
                taken[name] += 1
                return float(plain())

            one.step = step  # type: ignore[method-assign]
        return update.step(0, [rollouts], [scores]), taken

    measured, taken = steps(stop_at_kl=1e-4)
    assert measured[metrics.EARLY_STOPPED] == 1
    assert taken == {"policy": 2, "value": 8}
    measured, taken = steps()
    assert measured[metrics.EARLY_STOPPED] == 0
    assert taken == {"policy": 8, "value": 8}


def test_the_coefficient_follows_the_target_from_iteration_to_iteration(models: tuple[Path, Path]) -> None:
    """The policy is at the reference: KL 0 is 100 % below the target, cut at 20 %, and 16 answers of a horizon of 32
    make that 10 %."""
    update, engine = learner(models, learning_rate=0.0, kl_coefficient=1.0, kl_target=5.0, kl_horizon=32)
    rollouts, scores = scored_rollouts(16, seed=2)
    rollouts = with_true_logprobs(engine, rollouts)
    used = [update.step(iteration, [rollouts], [scores])[metrics.KL_COEFFICIENT] for iteration in range(3)]
    assert used == pytest.approx([1.0, 0.9, 0.81])
    assert update.kl_coefficient == pytest.approx(0.729)


def test_the_rate_falls_over_the_iterations(models: tuple[Path, Path]) -> None:
    update, engine = learner(models, learning_rate_schedule="linear", learning_rate_warmup=1, iterations=5)
    rollouts, scores = scored_rollouts(16, seed=2)
    rates = [update.step(iteration, [rollouts], [scores])[metrics.LEARNING_RATE] for iteration in (0, 1, 3)]
    assert rates == pytest.approx([0.5e-3, 1e-3, 0.5e-3])
    assert engine.learning_rate == pytest.approx(0.5e-3)


def test_a_value_head_learns_on_the_trunk(models: tuple[Path, Path]) -> None:
    update, _ = learner(models, value_model="trunk", value_coefficient=1.0, learning_rate=1e-2, value_clip=100.0)
    rollouts, scores = scored_rollouts(64, seed=2)
    losses = [update.step(iteration, [rollouts], [scores])[metrics.VALUE_LOSS] for iteration in range(15)]
    assert losses[-1] < 0.7 * losses[0]


def test_without_two_scored_answers_to_a_prompt_there_is_nothing_to_compare(models: tuple[Path, Path]) -> None:
    update, _ = learner(models, algorithm="rloo")
    rollouts, scores = scored_rollouts(4, seed=0, invalid=(0, 3))
    with pytest.raises(NothingToLearn, match="no prompt has two answers"):
        update.step(0, [rollouts], [scores])


def test_parts_of_a_reward_are_described_where_they_speak(models: tuple[Path, Path]) -> None:
    """Of 1, 3 and two silent answers: mean 2, standard deviation 1, half of them valid."""
    update, _ = learner(models)
    rollouts, scores = scored_rollouts(4, seed=0)
    part = np.array([1.0, np.nan, 3.0, np.nan], dtype=np.float32)
    silent = np.full(4, np.nan, dtype=np.float32)
    measured = update.step(
        0, [rollouts], [Scores(scores.sample_ids, scores.values, scores.valid, {"brevity": part, "never": silent})]
    )
    assert measured["reward/brevity"] == 2.0
    assert measured["reward_std/brevity"] == 1.0
    assert measured["reward_valid/brevity"] == 0.5
    assert np.isnan(measured["reward/never"])
    assert measured["reward_valid/never"] == 0.0


def test_values_start_as_the_normalised_reward(models: tuple[Path, Path]) -> None:
    """At an answer's last token the value model sees what the reward model saw: (raw - mean) / std."""
    _, reward = models
    normalisation = RewardNormalisation.load(reward)
    value: ValueModel = value_model_from_reward(reward, normalisation, dtype="float32", trust_remote_code=False)
    rollouts, scores = scored_rollouts(6, seed=5)
    scorer = load_reward_model(reward, dtype="float32", trust_remote_code=False)
    whole = [np.concatenate([rollouts.prompt(row), rollouts.answer(row)]) for row in range(6)]
    raw, _ = score_sequences(scorer, rollouts.sample_ids, whole, max_batch_tokens=64)
    inputs = assemble([rollouts], [scores]).sequences.pack(np.arange(6), torch.device("cpu"))
    with torch.no_grad():
        _, last = state_and_end_values(value, inputs)
    np.testing.assert_allclose(last, (raw - normalisation.mean) / normalisation.std, rtol=1e-4, atol=1e-5)


def _part(rollouts: Rollouts, scores: Scores, rows: range) -> tuple[Rollouts, Scores]:
    """Consecutive rows as a shard of their own."""
    start, stop = rows.start, rows.stop
    prompts, answers = rollouts.prompt_offsets[start : stop + 1], rollouts.answer_offsets[start : stop + 1]
    shard = Rollouts(
        sample_ids=rollouts.sample_ids[start:stop],
        group_ids=rollouts.group_ids[start:stop],
        prompt_ids=rollouts.prompt_ids[start:stop],
        prompt_tokens=rollouts.prompt_tokens[prompts[0] : prompts[-1]],
        prompt_offsets=prompts - prompts[0],
        answer_tokens=rollouts.answer_tokens[answers[0] : answers[-1]],
        answer_offsets=answers - answers[0],
        logprobs=rollouts.logprobs[answers[0] : answers[-1]],
        token_versions=rollouts.token_versions[answers[0] : answers[-1]],
        finish_reasons=rollouts.finish_reasons[start:stop],
        version=rollouts.version,
        fingerprint=rollouts.fingerprint,
    )
    return shard, Scores(shard.sample_ids, scores.values[start:stop], scores.valid[start:stop])

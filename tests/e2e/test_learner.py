"""The learner's ranks under DeepSpeed, against a plain loop of one process."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import ray
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.learner import LearnerGroup
from rlaif_ray import metrics
from rlaif_ray.checkpoints import CheckpointCorrupt
from rlaif_ray.config import RunConfig
from rlaif_ray.engines.training import OptimizerSettings
from rlaif_ray.policy.model import load_policy, value_model_from_reward
from rlaif_ray.policy.packing import answer_logits
from rlaif_ray.policy.update import PolicyUpdate
from rlaif_ray.records import LearnerModels, Rollouts, Scores, Weights
from rlaif_ray.reward.model import RewardNormalisation
from rlaif_ray.weights import fingerprint_of, read_weights
from tests.plain_engine import PlainEngine
from tests.small_models import scored_rollouts, write_models

pytestmark = pytest.mark.usefixtures("local_ray")

ITERATIONS = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


def config(ranks: int = 1, zero_stage: int = 0, algorithm: str = "ppo", **ppo: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run_dir": "unused",
            "prompts": {"path": "p.jsonl"},
            "policy": {"model": "m", "algorithm": algorithm},
            "judge": {"model": "j"},
            "learner": {"ranks": ranks, "zero_stage": zero_stage, "resources": {"cpus": 0.5}},
            "ppo": {
                "answers_per_prompt": 2,
                "minibatch_size": 10,
                "micro_batch_tokens": 24,
                "epochs": 2,
                "learning_rate": 1e-3,
                "value_learning_rate": 1e-3,
            }
            | ppo,
        }
    )


def batch(iteration: int) -> tuple[list[Rollouts], list[Scores]]:
    """Two shards; 22 rows make minibatches that neither two ranks nor micro-batches of four divide."""
    shards = [scored_rollouts(rows, seed=10 * iteration + rows, invalid=(2,)) for rows in (9, 13)]
    return [rollouts for rollouts, _ in shards], [scores for _, scores in shards]


def plain_loop(models: tuple[Path, Path], algorithm: str) -> Weights:
    sft, reward = models
    settled = config(algorithm=algorithm)
    ppo = settled.ppo
    policy = load_policy(sft, dtype="float32", trust_remote_code=False)
    normalisation = RewardNormalisation.load(reward)
    value = value_model_from_reward(reward, normalisation, dtype="float32", trust_remote_code=False)
    settings = OptimizerSettings(ppo.learning_rate, 1.0, zero_stage=0, dtype="float32", epsilon=ppo.adam_epsilon)
    engine = PlainEngine(policy, settings)
    update = PolicyUpdate(
        engine,
        PlainEngine(value, settings) if settled.has_value_model else None,
        partial(answer_logits, copy.deepcopy(policy)),
        settled,
    )
    for iteration in range(ITERATIONS):
        update.step(iteration, *batch(iteration))
    return engine.gather_weights()


@asynccontextmanager
async def learner(config: RunConfig, models: tuple[Path, Path], checkpoints: Path) -> AsyncIterator[LearnerGroup]:
    sft, reward = models
    group = LearnerGroup(config, LearnerModels(policy=sft, reference=sft, reward=reward), checkpoints)
    try:
        await group.ready()
        yield group
    finally:
        group.close()


async def step(group: LearnerGroup, iteration: int) -> dict[str, float]:
    rollouts, scores = batch(iteration)
    return dict(
        await group.step(iteration, tuple(ray.put(shard) for shard in rollouts), tuple(ray.put(s) for s in scores))
    )


@pytest.mark.parametrize(
    ("ranks", "zero_stage", "algorithm"),
    [
        (1, 0, "ppo"),
        (2, 0, "ppo"),
        (2, 2, "ppo"),
        pytest.param(2, 3, "ppo", marks=pytest.mark.long),
        (2, 0, "grpo"),
        pytest.param(2, 2, "rloo", marks=pytest.mark.long),
    ],
)
async def test_ranks_train_as_one_process_does_and_resume_to_the_bit(
    ranks: int, zero_stage: Literal[0, 2, 3], algorithm: str, models: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = config(ranks, zero_stage, algorithm)
    async with learner(settings, models, tmp_path / "checkpoints") as group:
        assert await group.resume() is None
        first = await group.publish()
        assert first.number == 1
        assert first.fingerprint == fingerprint_of(read_weights(models[0]))
        for iteration in range(ITERATIONS):
            measured = await step(group, iteration)
            if iteration == 1:
                await group.checkpoint(iteration)
        undisturbed = await group.publish()
        weights = ray.get(undisturbed.weights)
        await group.save_policy(tmp_path / "policy")
    assert fingerprint_of(weights) == undisturbed.fingerprint != first.fingerprint
    for name, tensor in plain_loop(models, algorithm).items():
        np.testing.assert_allclose(weights[name], tensor, atol=2e-5, err_msg=name)
    assert measured[metrics.KL] != 0
    assert measured[metrics.POLICY_GRADIENT_NORM] > 0

    AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "policy").generation_config.eos_token_id == 2
    assert fingerprint_of(read_weights(tmp_path / "policy")) == undisturbed.fingerprint

    if (ranks, zero_stage) in {(1, 0), (2, 2)} or algorithm == "grpo":
        async with learner(settings, models, tmp_path / "checkpoints") as group:
            assert await group.resume() == 1
            resumed = await step(group, 2)
            version = await group.publish()
        assert version.fingerprint == undisturbed.fingerprint
        assert version.canary_logprobs == undisturbed.canary_logprobs
        assert version.number == 2
        assert resumed == measured


async def test_a_model_that_does_not_move_and_a_checkpoint_that_changed_stop_the_run(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    async with learner(config(learning_rate=1e-30), models, tmp_path) as group:
        await group.publish()
        with pytest.raises(ray.exceptions.RayTaskError, match=r"the policy's .* is trainable, but"):
            await step(group, 0)
        await group.checkpoint(0)
        damaged = next((tmp_path / "iteration-0000000" / "policy").rglob("*.pt"))
        damaged.write_bytes(damaged.read_bytes() + b"!")
        with pytest.raises(CheckpointCorrupt, match=damaged.name):
            await group.resume()

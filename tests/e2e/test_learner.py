"""The learner's ranks under DeepSpeed, against a plain loop of one process."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import ray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.learner import LearnerGroup
from rlaif_ray import metrics
from rlaif_ray.checkpoints import CheckpointCorrupt
from rlaif_ray.config import RunConfig
from rlaif_ray.engines.training import OptimizerSettings
from rlaif_ray.policy.lora import add_adapters
from rlaif_ray.policy.model import (
    PolicyWithValue,
    load_policy,
    new_value_head,
    value_model_from_policy,
    value_model_from_reward,
)
from rlaif_ray.policy.packing import answer_logits
from rlaif_ray.policy.served import served_buckets
from rlaif_ray.policy.update import PolicyUpdate
from rlaif_ray.records import LearnerModels, Rollouts, Scores, WeightVersion
from rlaif_ray.reward.model import RewardNormalisation
from rlaif_ray.weights import fingerprint_of, read_weights
from tests.plain_engine import PlainEngine
from tests.small_models import scored_rollouts, write_models
from tests.timeless import timeless

pytestmark = pytest.mark.usefixtures("local_ray")

ITERATIONS = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@dataclass(frozen=True, slots=True)
class Variant:
    ranks: int = 1
    zero_stage: Literal[0, 1, 2, 3] = 0
    algorithm: str = "ppo"
    value_model: Literal["reward", "sft", "trunk"] = "reward"
    lora: bool = False
    recompute: bool = False
    offload: Literal["none", "all"] = "none"
    resumes: bool = False

    def __str__(self) -> str:
        """What is not as usual."""
        usual = Variant()
        unlike = [field.name for field in fields(self) if getattr(self, field.name) != getattr(usual, field.name)]
        return " ".join(f"{name}={getattr(self, name)}" for name in unlike)


def config(variant: Variant = Variant(), **ppo: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run_dir": "unused",
            "prompts": {"path": "p.jsonl"},
            "policy": {
                "model": "m",
                "algorithm": variant.algorithm,
                "lora": {"rank": 2, "alpha": 4} if variant.lora else None,
            },
            "judge": {"model": "j"},
            "learner": {
                "ranks": variant.ranks,
                "zero_stage": variant.zero_stage,
                "gradient_checkpointing": variant.recompute,
                "offload": variant.offload,
                "resources": {"cpus": 0.5},
            },
            "ppo": {
                "answers_per_prompt": 2,
                "minibatch_size": 10,
                "micro_batch_tokens": 24,
                "epochs": 2,
                "learning_rate": 1e-3,
                "value_learning_rate": 1e-3,
                "value_model": variant.value_model,
                "kl_target": 1.0,
                "kl_horizon": 100,
            }
            | ppo,
        }
    )


def batch(iteration: int) -> tuple[list[Rollouts], list[Scores]]:
    """Two shards; 22 rows make minibatches that neither two ranks nor micro-batches of four divide."""
    shards = [scored_rollouts(rows, seed=10 * iteration + rows, invalid=(2,)) for rows in (9, 13)]
    return [rollouts for rollouts, _ in shards], [scores for _, scores in shards]


def plain_loop(models: tuple[Path, Path], variant: Variant) -> dict[str, Tensor]:
    """The weights that are served after three iterations of one plain process."""
    sft, reward = models
    settled = config(variant)
    ppo = settled.ppo
    policy = load_policy(sft, dtype="float32", trust_remote_code=False)
    reference = copy.deepcopy(policy)
    if settled.policy.lora is not None:
        add_adapters(policy, settled.policy.lora, seed=settled.seed)
    trained: Any = policy
    value = None
    if variant.value_model == "trunk":
        trained = PolicyWithValue(policy, new_value_head(policy, "float32"))
    elif variant.value_model == "sft":
        value = value_model_from_policy(sft, dtype="float32", trust_remote_code=False)
    elif settled.has_value_model:
        normalisation = RewardNormalisation.load(reward)
        value = value_model_from_reward(reward, normalisation, dtype="float32", trust_remote_code=False)
    settings = OptimizerSettings(ppo.learning_rate, 1.0, zero_stage=0, dtype="float32", epsilon=ppo.adam_epsilon)
    update = PolicyUpdate(
        PlainEngine(trained, settings),
        None if value is None else PlainEngine(value, settings),
        partial(answer_logits, reference),
        settled,
    )
    for iteration in range(ITERATIONS):
        update.step(iteration, *batch(iteration))
    return {name: tensor for bucket in served_buckets(trained, 2**30) for name, tensor in bucket.items()}


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


VARIANTS = [
    Variant(resumes=True),
    Variant(ranks=2),
    Variant(ranks=2, zero_stage=2, lora=True, value_model="trunk", resumes=True),
    Variant(ranks=2, zero_stage=3, recompute=True, resumes=True),
    Variant(ranks=2, algorithm="grpo"),
]
SLOWER = [
    Variant(ranks=2, zero_stage=2, resumes=True),
    Variant(ranks=2, zero_stage=2, algorithm="rloo"),
    Variant(ranks=2, zero_stage=3, lora=True, value_model="sft", offload="all", resumes=True),
    Variant(zero_stage=3, value_model="trunk", recompute=True),
    Variant(value_model="trunk", algorithm="a2c"),
]


@pytest.mark.parametrize(
    "variant", [*VARIANTS, *(pytest.param(variant, marks=pytest.mark.long) for variant in SLOWER)], ids=str
)
async def test_ranks_train_as_one_process_does_and_resume_to_the_bit(
    variant: Variant, models: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = config(variant)
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
        weights = served(undisturbed)
        await group.save_policy(tmp_path / "policy")
    assert fingerprint_of(weights) == undisturbed.fingerprint != first.fingerprint
    expected = plain_loop(models, variant)
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(weights[name], tensor, atol=2e-5, err_msg=name)
    assert measured[metrics.KL] != 0
    assert measured[metrics.POLICY_GRADIENT_NORM] > 0
    assert measured[metrics.STALENESS] == 0

    AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "policy").generation_config.eos_token_id == 2
    assert fingerprint_of(read_weights(tmp_path / "policy")) == undisturbed.fingerprint

    if variant.resumes:
        async with learner(settings, models, tmp_path / "checkpoints") as group:
            assert await group.resume() == 1
            resumed = await step(group, 2)
            version = await group.publish()
        assert version.fingerprint == undisturbed.fingerprint
        assert version.canary_logprobs == undisturbed.canary_logprobs
        assert version.number == 2
        assert timeless(resumed) == timeless(measured)
        assert resumed[metrics.KL_COEFFICIENT] != settings.ppo.kl_coefficient


def served(version: WeightVersion) -> dict[str, Any]:
    return {name: array for bucket in ray.get(list(version.weights)) for name, array in bucket.tensors()}


async def test_what_must_not_be_stops_the_run(models: tuple[Path, Path], tmp_path: Path) -> None:
    """A model that does not move, answers that are too old, and a checkpoint that changed."""
    async with learner(config(learning_rate=1e-30), models, tmp_path) as group:
        await group.publish()
        with pytest.raises(ray.exceptions.RayTaskError, match=r"the policy's .* is trainable, but"):
            await step(group, 0)
        await group.publish()
        with pytest.raises(ray.exceptions.RayTaskError, match=r"more than ppo\.max_staleness=0 behind"):
            await step(group, 1)
        await group.checkpoint(0)
        damaged = next((tmp_path / "iteration-0000000" / "policy").rglob("*.pt"))
        damaged.write_bytes(damaged.read_bytes() + b"!")
        with pytest.raises(CheckpointCorrupt, match=damaged.name):
            await group.resume()

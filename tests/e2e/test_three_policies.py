"""The policy that samples (vLLM), the one before an update and the one being trained (DeepSpeed), side by side."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.learner import LearnerGroup
from actors.rollout import RolloutPool
from rlaif_ray import metrics
from rlaif_ray.config import RunConfig, ScratchModelConfig
from rlaif_ray.loop import OnlineStages, train_on_policy, train_overlapped
from rlaif_ray.policy.model import save_model, scratch_policy, scratch_tokenizer
from rlaif_ray.prompts import sample_requests
from rlaif_ray.records import LearnerModels, Prompt, Rollouts, Scores
from rlaif_ray.stages import Shards
from tests.small_models import WORDS, weights_of
from tests.timeless import timeless

pytestmark = pytest.mark.usefixtures("local_ray")

# Workers cannot import a test's module: it must travel whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

ITERATIONS = 4
PROMPTS = [Prompt(f"p{number}", " ".join(WORDS.split()[number : number + 3])) for number in range(8)]


def config(**ppo: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run_dir": "unused",
            "prompts": {"path": "p.jsonl"},
            "policy": {"model": "m", "max_prompt_tokens": 8, "max_answer_tokens": 6},
            "judge": {"model": "j"},
            "ppo": {
                "iterations": ITERATIONS,
                "answers_per_prompt": 2,
                "minibatch_size": 8,
                "learning_rate": 1e-3,
                "value_model": "sft",
            }
            | ppo,
        }
    )


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a head dimension that vLLM takes on a CPU."""
    directory = tmp_path_factory.mktemp("sft")
    tokenizer = scratch_tokenizer([WORDS])
    policy = scratch_policy(ScratchModelConfig(), tokenizer, positions=16, dtype="float32", seed=0)
    save_model(policy, weights_of(policy), tokenizer, directory)
    return directory


class WordCount:
    """A reward stage: an answer is worth how many of its tokens are words of the first half."""

    def score(self, rollouts: Shards[Rollouts]) -> Shards[Scores]:
        score = ray.remote(num_cpus=0)(_first_half)
        return tuple(score.remote(shard) for shard in rollouts)

    def close(self) -> None:
        pass


def _first_half(rollouts: Rollouts) -> Scores:
    values = np.array([(rollouts.answer(row) < 10).mean() for row in range(len(rollouts))], dtype=np.float32)
    return Scores(rollouts.sample_ids, values, np.ones(len(values), dtype=bool))


@pytest.fixture(scope="module")
async def pool(sft: Path) -> AsyncIterator[RolloutPool]:
    pool = RolloutPool(sft, config().policy, config().rollout)
    await pool.ready()
    yield pool
    pool.close()


@asynccontextmanager
async def learner(config: RunConfig, sft: Path, checkpoints: Path) -> AsyncIterator[LearnerGroup]:
    group = LearnerGroup(config, LearnerModels(policy=sft, reference=sft, reward=None), checkpoints)
    try:
        await group.ready()
        yield group
    finally:
        group.close()


async def trained(pool: RolloutPool, sft: Path, checkpoints: Path, **ppo: Any) -> list[dict[str, float]]:
    """Every iteration's metrics."""
    told: list[dict[str, float]] = []
    settings = config(**ppo)

    def on_iteration(iteration: int, measured: Mapping[str, float]) -> None:
        told.append(dict(measured))

    form = (
        partial(train_overlapped, max_staleness=settings.ppo.max_staleness)
        if settings.ppo.max_staleness
        else train_on_policy
    )
    async with learner(settings, sft, checkpoints) as group:
        await form(
            OnlineStages(pool, WordCount(), group),
            lambda iteration: sample_requests(PROMPTS, 2, seed=0, purpose=f"{iteration}", temperature=1.0),
            range(ITERATIONS),
            checkpoint_every=ITERATIONS,
            on_iteration=on_iteration,
        )
    return told


@pytest.mark.parametrize("old_logprobs", ["rollout", "recompute"])
async def test_at_learning_rate_zero_the_gap_stays_at_rounding_noise(
    old_logprobs: str, pool: RolloutPool, sft: Path, tmp_path: Path
) -> None:
    """Weights go round the whole way in every iteration: published, loaded, served, sampled from."""
    told = await trained(pool, sft, tmp_path, learning_rate=0.0, old_logprobs=old_logprobs)
    assert len(told) == ITERATIONS
    for measured in told:
        assert 0 < measured[metrics.LOGPROB_GAP_MAX] < 1e-4
        assert measured[metrics.LOGPROB_GAP] < 1e-5
        assert measured[metrics.IMPORTANCE_WEIGHT] == pytest.approx(1, abs=1e-5)
        assert abs(measured[metrics.KL]) < 1e-4
        assert measured[metrics.CLIP_FRACTION] == 0


async def test_the_same_seed_gives_the_same_metrics_to_the_bit(pool: RolloutPool, sft: Path, tmp_path: Path) -> None:
    one, two = [await trained(pool, sft, tmp_path / str(number)) for number in range(2)]
    for first, second in zip(one, two, strict=True):
        assert timeless(first) == timeless(second)
    assert one[-1][metrics.KL] != 0


async def test_answers_drawn_ahead_are_weighed_and_no_staler_than_allowed(
    pool: RolloutPool, sft: Path, tmp_path: Path
) -> None:
    told = await trained(pool, sft, tmp_path, max_staleness=1)
    assert [measured[metrics.STALENESS] for measured in told] == [0, 1, 1, 1]
    assert told[0][metrics.LOGPROB_GAP_MAX] < 1e-4
    for measured in told[1:]:
        assert measured[metrics.LOGPROB_GAP_MAX] > 1e-3
        assert measured[metrics.IMPORTANCE_WEIGHT] != 1

"""The reward actors of a run: real Ray, real models."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.reward import RewardPool
from rlaif_ray.config import RunConfig, UserError
from rlaif_ray.policy.model import save_model, scratch_policy, scratch_tokenizer
from rlaif_ray.records import Prompt, Rollouts, Scores, offsets_of
from rlaif_ray.reward.encoding import AnswerEncoder
from rlaif_ray.reward.ensemble import RewardEnsemble, ensemble_scores, normalised
from rlaif_ray.reward.model import RewardNormalisation
from rlaif_ray.reward.scoring import rollout_sequences
from tests.small_models import SHAPE, scored_rollouts, weights_of, write_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The policy, and an ensemble of two whose weights and normalisations differ."""
    sft, reward = write_models(tmp_path_factory.mktemp("models"))
    ensemble = reward.parent / "ensemble"
    for number in range(2):
        shutil.copytree(reward, ensemble / str(number))
        RewardNormalisation(mean=0.1 * number, std=0.5 + number, count=10).save(ensemble / str(number))
    return sft, ensemble


@pytest.fixture
def start() -> Iterator[Callable[..., RewardPool]]:
    pools: list[RewardPool] = []

    def start(directory: Path, policy: Path, prompts: tuple[Prompt, ...] = (), **reward: Any) -> RewardPool:
        config = RunConfig.model_validate(
            {
                "run_dir": "unused",
                "prompts": {"path": "toyworld:headlines"},
                "policy": {"model": str(policy)},
                "judge": {"model": "toyworld:judge"},
                "reward": {"ensemble": 2, "max_batch_tokens": 40, "actors": {"count": 1, "cpus": 0.1}, **reward},
            }
        )
        pools.append(RewardPool(directory, config, policy, prompts))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close()


def offline(directory: Path, rollouts: Rollouts, sequences: Any, penalty: float) -> tuple[Any, Scores]:
    ensemble = RewardEnsemble.load(directory, dtype="float32", trust_remote_code=False, device="cpu")
    raw = ensemble.raw_scores(rollouts.sample_ids, sequences, max_batch_tokens=40)
    values = normalised(raw, ensemble.normalisations)
    return values, ensemble_scores(rollouts.sample_ids, values, disagreement_penalty=penalty)


async def test_an_ensemble_in_actors_scores_as_its_models_do(
    models: tuple[Path, Path], start: Callable[..., RewardPool]
) -> None:
    sft, ensemble = models
    pool = start(ensemble, sft, disagreement_penalty=0.5, actors={"count": 2, "cpus": 0.1})
    await pool.ready()
    shards = [scored_rollouts(9, seed)[0] for seed in range(3)]
    references = tuple(ray.put(shard) for shard in shards)
    for shard, scores, members in zip(
        shards,
        await asyncio.gather(*pool.score(references)),
        await asyncio.gather(*pool.member_scores(references)),
        strict=True,
    ):
        values, expected = offline(ensemble, shard, rollout_sequences(shard), penalty=0.5)
        assert scores.valid.all()
        np.testing.assert_allclose(members, values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores.values, expected.values, rtol=1e-4, atol=1e-5)
        assert scores.parts["disagreement"].min() > 0
        # The same shard again gives the same numbers, to the bit.
        (again,) = await asyncio.gather(*pool.score((ray.put(shard),)))
        assert again.values.tobytes() == scores.values.tobytes()


async def test_a_model_of_another_vocabulary_reads_the_text(
    models: tuple[Path, Path], start: Callable[..., RewardPool], tmp_path: Path
) -> None:
    _, ensemble = models
    tokenizer = scratch_tokenizer(["one two three zz"])
    policy = scratch_policy(SHAPE, tokenizer, positions=32, dtype="float32", seed=0)
    (tmp_path / "policy").mkdir()
    save_model(policy, weights_of(policy), tokenizer, tmp_path / "policy")
    prompts = (Prompt("p", "four five"), Prompt("q", "six"))
    rollouts, _ = scored_rollouts(2, seed=0)
    answers = [tokenizer.convert_tokens_to_ids(words) for words in (["three", "one", "<eos>"], ["two", "<eos>"])]
    rollouts = dataclasses.replace(
        rollouts,
        prompt_ids=("p", "q"),
        answer_tokens=np.concatenate(answers).astype(np.int32),
        answer_offsets=offsets_of([3, 2]),
    )
    pool = start(ensemble, tmp_path / "policy", prompts)
    (scores,) = await asyncio.gather(*pool.score((ray.put(rollouts),)))
    encoder = AnswerEncoder.load(ensemble / "0", trust_remote_code=False)
    sequences = [encoder.encode(prompts[0], "three one"), encoder.encode(prompts[1], "two")]
    _, expected = offline(ensemble, rollouts, sequences, penalty=0.0)
    np.testing.assert_allclose(scores.values, expected.values, rtol=1e-4, atol=1e-5)


async def test_what_cannot_be_scored_is_invalid(models: tuple[Path, Path], start: Callable[..., RewardPool]) -> None:
    """The models have 32 positions; the second answer goes beyond them."""
    sft, ensemble = models
    rollouts, _ = scored_rollouts(2, seed=0)
    rollouts = dataclasses.replace(
        rollouts, answer_tokens=np.full(33, 6, dtype=np.int32), answer_offsets=offsets_of([1, 32])
    )
    (scores,) = await asyncio.gather(*start(ensemble, sft).score((ray.put(rollouts),)))
    assert scores.valid.tolist() == [True, False]
    assert np.isnan(scores.values[1])


async def test_a_killed_actor_comes_back_with_its_model(
    models: tuple[Path, Path], start: Callable[..., RewardPool], tmp_path: Path
) -> None:
    """By then the directory is gone: what it held is in the object store."""
    sft, ensemble = models
    copy = tmp_path / "reward"
    shutil.copytree(ensemble, copy)
    pool = start(copy, sft)
    await pool.ready()
    rollouts, _ = scored_rollouts(9, seed=0)
    (before,) = await asyncio.gather(*pool.score((ray.put(rollouts),)))
    shutil.rmtree(copy)
    process = await ray.get_actor("reward-0").__ray_call__.remote(lambda _: os.getpid())
    os.kill(process, signal.SIGKILL)
    (after,) = await asyncio.gather(*pool.score((ray.put(rollouts),)))
    assert after.values.tobytes() == before.values.tobytes()


async def test_what_is_no_reward_model_is_said_in_one_sentence(
    models: tuple[Path, Path], start: Callable[..., RewardPool], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"holds no reward_normalisation\.json; give a directory that"):
        await start(tmp_path, models[0]).ready()

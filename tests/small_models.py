"""Models small enough for a test, and rollouts for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlaif_ray.config import ScratchModelConfig
from rlaif_ray.policy.model import save_model, scratch_policy, scratch_tokenizer
from rlaif_ray.records import FinishReason, Rollouts, Scores, offsets_of
from rlaif_ray.reward.initial import new_reward_model
from rlaif_ray.reward.model import RewardNormalisation
from rlaif_ray.weights import to_numpy

WORDS = "one two three four five six seven eight nine ten"
SHAPE = ScratchModelConfig(hidden_size=16, layers=1, heads=2, intermediate_size=24)


def policy_and_tokenizer(seed: int = 0) -> tuple[Any, Any]:
    tokenizer = scratch_tokenizer([WORDS])
    return scratch_policy(SHAPE, tokenizer, positions=32, dtype="float32", seed=seed), tokenizer


def weights_of(model: torch.nn.Module) -> dict[str, Any]:
    return {name: to_numpy(parameter) for name, parameter in model.named_parameters()}


def write_models(directory: Path) -> tuple[Path, Path]:
    """An SFT directory and a reward directory over one vocabulary."""
    policy, tokenizer = policy_and_tokenizer()
    sft, reward = directory / "sft", directory / "reward"
    for path in (sft, reward):
        path.mkdir(parents=True)
    save_model(policy, weights_of(policy), tokenizer, sft)
    model = new_reward_model(sft, dtype="float32", seed=1, trust_remote_code=False)
    save_model(model, weights_of(model), tokenizer, reward)
    RewardNormalisation(mean=0.1, std=0.5, count=10).save(reward)
    return sft, reward


def scored_rollouts(count: int, seed: int, *, invalid: tuple[int, ...] = ()) -> tuple[Rollouts, Scores]:
    """Answers of 1 to 5 random tokens to prompts of 2 to 6, with random scores."""
    random = np.random.default_rng(seed)
    prompts, answers = random.integers(2, 7, count), random.integers(1, 6, count)
    rollouts = Rollouts(
        sample_ids=tuple(f"sample-{seed}-{row}" for row in range(count)),
        group_ids=tuple(f"group-{seed}-{row // 2}" for row in range(count)),
        prompt_ids=tuple(f"prompt-{seed}-{row // 2}" for row in range(count)),
        prompt_tokens=random.integers(5, 15, prompts.sum()).astype(np.int32),
        prompt_offsets=offsets_of(prompts),
        answer_tokens=random.integers(5, 15, answers.sum()).astype(np.int32),
        answer_offsets=offsets_of(answers),
        logprobs=np.full(answers.sum(), -2.0, dtype=np.float32),
        token_versions=np.ones(answers.sum(), dtype=np.int32),
        finish_reasons=tuple(FinishReason.LENGTH if length == 5 else FinishReason.STOP for length in answers),
        version=1,
        fingerprint="test",
    )
    valid = np.ones(count, dtype=bool)
    valid[list(invalid)] = False
    values = np.where(valid, random.normal(size=count), np.nan).astype(np.float32)
    return rollouts, Scores(rollouts.sample_ids, values, valid)

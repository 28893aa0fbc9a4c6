"""An engine with a worker on each of two GPUs: `pytest -m gpu`."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from actors.rollout import RolloutPool
from rlaif_ray.config import ActorResources, PolicyConfig, RolloutConfig
from rlaif_ray.records import Prompt, SampleRequest
from rlaif_ray.weights import read_weights
from tests import served_model
from tests.served_model import logprobs_of, reference, version_of, write_model

ray.cloudpickle.register_pickle_by_value(served_model)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.timeout(600),
]


async def test_it_draws_with_the_models_own_log_probabilities(tmp_path: Path, local_ray: None) -> None:
    write_model(tmp_path, tied=True)
    weights = read_weights(tmp_path)
    model = reference(tmp_path, weights)
    pool = RolloutPool(
        tmp_path,
        PolicyConfig(model=str(tmp_path), max_prompt_tokens=8, max_answer_tokens=8),
        RolloutConfig(resources=ActorResources(gpus=2.0), gpu_memory_utilization=0.2),
    )
    try:
        await pool.load(replace(version_of(model, weights, 1), weights=tmp_path))
        (rollouts,) = await asyncio.gather(
            *pool.generate(
                [SampleRequest(f"s{n}", f"g{n}", Prompt(f"p{n}", f"w{5 + n} w9"), seed=n) for n in range(16)]
            )
        )
    finally:
        pool.close()
    for row in range(len(rollouts)):
        prompt, answer = rollouts.prompt(row), rollouts.answer(row)
        expected = logprobs_of(model, np.concatenate([prompt, answer]))[len(prompt) - 1 :]
        np.testing.assert_allclose(rollouts.answer_logprobs(row), expected, atol=2e-3)

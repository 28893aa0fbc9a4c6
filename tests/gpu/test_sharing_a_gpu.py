"""A replica that shares its GPU, with a real engine: `pytest -m gpu`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from actors.rollout import RolloutPool
from rlaif_ray.config import ActorResources, PolicyConfig, RolloutConfig
from rlaif_ray.records import Prompt, SampleRequest, WeightVersion
from rlaif_ray.weights import fingerprint_of, read_weights
from tests import served_model
from tests.served_model import write_model

ray.cloudpickle.register_pickle_by_value(served_model)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.timeout(600),
]

SHARE = 0.4


def taken() -> float:
    """The share of the GPU's memory that anybody holds."""
    free, total = torch.cuda.mem_get_info()
    return 1 - free / total


async def test_a_replica_leaves_the_memory_while_nobody_asks_it_and_draws_the_same_when_it_wakes(
    tmp_path: Path, local_ray: None
) -> None:
    write_model(tmp_path, tied=False)
    policy = PolicyConfig(model=str(tmp_path), max_prompt_tokens=8, max_answer_tokens=48)
    rollout = RolloutConfig(resources=ActorResources(gpus=SHARE), gpu_memory_utilization=SHARE)
    requests = [SampleRequest(f"s{n}", f"g{n}", Prompt(f"p{n}", f"w5 w{6 + n % 30} w9"), seed=n) for n in range(64)]
    before = taken()
    pool = RolloutPool(tmp_path, policy, rollout, shares_gpus=True)
    try:
        await pool.ready()
        asleep = taken()
        version = WeightVersion(1, fingerprint_of(read_weights(tmp_path)), tmp_path, (), ())
        await pool.load(version)
        awake = taken()
        (first,) = await asyncio.gather(*pool.generate(requests))
        asleep_again = taken()
        (second,) = await asyncio.gather(*pool.generate(requests))
    finally:
        pool.close()
    assert awake - before > 0.8 * SHARE
    assert max(asleep, asleep_again) - before < 0.2 * SHARE
    np.testing.assert_array_equal(second.answer_tokens, first.answer_tokens)
    assert first.fingerprint == second.fingerprint == version.fingerprint

"""Weights that are sent over a GPU, into real replicas: `pytest -m gpu`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors.rollout import RolloutPool
from actors.spawn import spawn
from actors.weight_transfer import SentWeights, WeightSender
from rlaif_ray.config import ActorResources, PolicyConfig, RolloutConfig
from rlaif_ray.records import Prompt, SampleRequest, Weights, WeightVersion
from rlaif_ray.stages import WeightMismatch
from rlaif_ray.weights import WeightTransfer, read_weights, to_torch
from tests import served_model
from tests.served_model import moved, reference, version_of, write_model

ray.cloudpickle.register_pickle_by_value(served_model)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.timeout(600),
]

# On one GPU memory is shared; between GPUs each side has its own.
RANK_GPUS = {"ipc": 0.3, "nccl": 1.0}


class Rank:
    """A learner's only rank, as far as its weights go."""

    def __init__(self, transfer: WeightTransfer, workers: int) -> None:
        self._weights: dict[str, torch.Tensor] = {}
        self._sender = WeightSender(self._buckets, transfer, rank=0, bucket_bytes=2**14, workers=workers)

    def _buckets(self) -> Iterator[dict[str, torch.Tensor]]:
        names = list(self._weights)
        for start in range(3):
            yield {name: self._weights[name] for name in names[start::3]}

    def set(self, weights: Weights) -> None:
        self._weights = {name: to_torch(array).cuda() for name, array in weights.items()}

    def publish(self) -> str:
        published = self._sender.publish()
        assert published is not None
        assert published.weights == ()
        return published.fingerprint

    def send_weights(self, replicas: list[Any]) -> None:
        self._sender.send(replicas)


@pytest.mark.parametrize(("transfer", "gpus"), [("ipc", 0.3), ("nccl", 1.0), ("nccl", 2.0)])
async def test_replicas_serve_what_was_sent_and_refuse_what_was_not(
    transfer: WeightTransfer, gpus: float, tmp_path: Path, local_ray: None
) -> None:
    if transfer == "nccl" and torch.cuda.device_count() < 1 + gpus:
        pytest.skip(f"needs {1 + gpus:g} GPUs")
    write_model(tmp_path, tied=False)
    old = read_weights(tmp_path)
    resources = ActorResources(gpus=gpus)
    rank = spawn(
        Rank,
        f"rank-{transfer}-{gpus:g}",
        ActorResources(gpus=RANK_GPUS[transfer]),
        args=(transfer, resources.workers),
    )
    pool = RolloutPool(
        tmp_path,
        PolicyConfig(model=str(tmp_path), max_prompt_tokens=8, max_answer_tokens=8),
        RolloutConfig(resources=resources, gpu_memory_utilization=0.2),
        transfer,
    )
    requests = [SampleRequest(f"s{n}", f"g{n}", Prompt(f"p{n}", f"w{5 + n} w9"), seed=n) for n in range(16)]
    try:
        for number, amount in enumerate([0.0, 0.05, 0.1], start=1):
            weights = moved(old, amount)
            await rank.set.remote(weights)
            version = version_of(reference(tmp_path, weights), weights, number)
            assert await rank.publish.remote() == version.fingerprint
            await pool.load(sent(version, rank))
            (rollouts,) = [await shard for shard in pool.generate(requests)]
            np.testing.assert_array_equal(rollouts.token_versions, number)
        # What the ranks hold is no longer what was published.
        await rank.set.remote(moved(old, 0.2))
        weights = moved(old, 0.3)
        with pytest.raises(WeightMismatch, match="arrived with fingerprint"):
            await pool.load(sent(version_of(reference(tmp_path, weights), weights, 4), rank))
    finally:
        pool.close()
        ray.kill(rank)


def sent(version: WeightVersion, rank: Any) -> WeightVersion:
    return WeightVersion(
        version.number, version.fingerprint, SentWeights((rank,)), version.canary_tokens, version.canary_logprobs
    )

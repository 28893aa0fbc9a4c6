"""The rollout pool: replicas of the policy in vLLM actors. `RolloutPool` is the loop's `RolloutStage`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from actors.spawn import spawn
from rlaif_ray.config import PolicyConfig, RolloutConfig
from rlaif_ray.engines.vllm_rollout import TokenRequest, VllmRolloutEngine
from rlaif_ray.prompts import encode_prompt
from rlaif_ray.records import Rollouts, SampleRequest, WeightVersion
from rlaif_ray.stages import Shards
from rlaif_ray.weights import read_weights


class RolloutWorker:
    """One replica. One that Ray restarts has the first weights again, and loads the wanted ones before it serves."""

    def __init__(self, model: str, policy: PolicyConfig, rollout: RolloutConfig) -> None:
        self._engine = VllmRolloutEngine(
            model,
            dtype=policy.dtype,
            context_tokens=policy.context_tokens,
            max_answer_tokens=policy.max_answer_tokens,
            threads=rollout.resources.threads,
            kv_cache_gib=rollout.kv_cache_gib,
            gpu_memory_utilization=rollout.gpu_memory_utilization,
            enforce_eager=rollout.enforce_eager,
            trust_remote_code=policy.trust_remote_code,
        )
        self._loaded: str | None = None

    def load(self, version: WeightVersion) -> str:
        """Serve `version`; returns its fingerprint once the engine has proved that it does."""
        if self._loaded != version.fingerprint:
            weights = version.weights
            self._engine.load(version, read_weights(weights) if isinstance(weights, Path) else ray.get(weights))
            self._loaded = version.fingerprint
        return version.fingerprint

    def generate(self, requests: Sequence[SampleRequest], version: WeightVersion) -> Rollouts:
        self.load(version)
        return self._engine.generate(
            [
                TokenRequest(
                    request.sample_id,
                    request.group_id,
                    request.prompt.id,
                    tuple(encode_prompt(self._engine.tokenizer, request.prompt)),
                    request.seed,
                    request.temperature,
                )
                for request in requests
            ],
            version,
        )

    def logprobs(self, rollouts: Rollouts, version: WeightVersion) -> NDArray[np.float32]:
        self.load(version)
        return self._engine.logprobs(rollouts)

    def decode(self, rollouts: Rollouts) -> list[str]:
        """The answers as people and judges read them."""
        return [
            self._engine.tokenizer.decode(rollouts.answer(row), skip_special_tokens=True).strip()
            for row in range(len(rollouts))
        ]


class RolloutPool:
    """Handles of the replicas. Requests are split evenly and in order; Ray retries a lost replica's share."""

    def __init__(self, model: Path, policy: PolicyConfig, rollout: RolloutConfig) -> None:
        self._replicas: list[Any] = [
            spawn(
                RolloutWorker,
                f"rollout-{index}",
                rollout.resources,
                args=(str(model), policy, rollout),
                restarts=True,
            )
            for index in range(rollout.replicas)
        ]
        self._version: WeightVersion | None = None

    async def ready(self) -> None:
        """Wait until every engine has started."""
        await asyncio.gather(*(replica.__ray_ready__.remote() for replica in self._replicas))

    async def load(self, version: WeightVersion) -> None:
        await asyncio.gather(*(replica.load.remote(version) for replica in self._replicas))
        self._version = version

    def generate(self, requests: Sequence[SampleRequest]) -> Shards[Rollouts]:
        version = self._serving()
        bounds = np.linspace(0, len(requests), len(self._replicas) + 1).astype(int)
        return tuple(
            replica.generate.remote(requests[start:end], version)
            for replica, start, end in zip(self._replicas, bounds, bounds[1:], strict=False)
            if end > start
        )

    def logprobs(self, rollouts: Shards[Rollouts]) -> Shards[NDArray[np.float32]]:
        """Log-probabilities (sum of answer lengths,) of given answers under the weights that are loaded."""
        version = self._serving()
        return tuple(
            replica.logprobs.remote(shard, version)
            for replica, shard in zip(itertools.cycle(self._replicas), rollouts, strict=False)
        )

    def decode(self, rollouts: Shards[Rollouts]) -> Shards[list[str]]:
        return tuple(
            replica.decode.remote(shard)
            for replica, shard in zip(itertools.cycle(self._replicas), rollouts, strict=False)
        )

    def close(self) -> None:
        for replica in self._replicas:
            ray.kill(replica)

    def _serving(self) -> WeightVersion:
        if self._version is None:
            raise RuntimeError("load a version before asking the pool for answers")
        return self._version

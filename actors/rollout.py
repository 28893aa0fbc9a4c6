"""The rollout pool: replicas of the policy in vLLM actors. `RolloutPool` is the loop's `RolloutStage`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray

from actors.spawn import spawn
from actors.weight_transfer import SentWeights, arriving
from rlaif_ray.config import PolicyConfig, RolloutConfig
from rlaif_ray.constitution.chain import RevisionChain
from rlaif_ray.constitution.driving import converse
from rlaif_ray.engines.vllm_replies import VllmReplies, decoded, encoded
from rlaif_ray.engines.vllm_rollout import VllmRolloutEngine
from rlaif_ray.records import Chain, Rollouts, SampleRequest, WeightVersion
from rlaif_ray.stages import Shards, WeightMismatch
from rlaif_ray.weights import WeightTransfer

T = TypeVar("T")


class RolloutWorker:
    """One replica. One that Ray restarts has no weights, and loads the wanted ones before it serves.

    Its calls run in one thread and take turns: a load waits for the batch under way, or, with
    `rollout.on_update=keep`, for the engine's step.
    """

    def __init__(self, model: str, policy: PolicyConfig, rollout: RolloutConfig, transfer: WeightTransfer) -> None:
        self._engine = VllmRolloutEngine(
            model,
            dtype=policy.dtype,
            context_tokens=policy.context_tokens,
            threads=rollout.resources.threads,
            kv_cache_gib=rollout.kv_cache_gib,
            gpu_memory_utilization=rollout.gpu_memory_utilization,
            enforce_eager=rollout.enforce_eager,
            trust_remote_code=policy.trust_remote_code,
            weight_transfer=transfer,
            keeps_requests=rollout.on_update == "keep",
        )
        self._max_answer_tokens = policy.max_answer_tokens
        self._keeps_requests = rollout.on_update == "keep"
        self._turn = asyncio.Lock()

    async def load(self, version: WeightVersion) -> None:
        """Serve `version`; returns once the engine has proved that it does."""
        async with self._turn:
            await self._load(version)

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        self._engine.join_transfer(init_info)

    async def begin_load(self) -> None:
        """Weights that are sent come by `receive` from here on, until `finish_load`; nobody has a turn meanwhile."""
        await self._turn.acquire()
        self._engine.begin_load()

    async def receive(self, update_info: dict[str, Any]) -> None:
        self._engine.receive(update_info)

    async def finish_load(self, version: WeightVersion) -> None:
        try:
            self._engine.finish_load(version)
        finally:
            self._turn.release()

    async def generate(self, requests: Sequence[SampleRequest], version: WeightVersion) -> Rollouts:
        """Draw answers from `version`, or, where requests are kept, from a newer one that has come meanwhile."""
        async with self._turn:
            await self._ensure(version)
            longest = self._max_answer_tokens
            drawing = self._engine.begin([encoded(self._engine, request, longest) for request in requests])
            while not self._engine.is_done(drawing):
                self._engine.step()
                if self._keeps_requests:
                    self._turn.release()
                    await asyncio.sleep(0)
                    await self._turn.acquire()
            return self._engine.rollouts(drawing)

    async def converse(self, chains: Sequence[RevisionChain], version: WeightVersion) -> list[Chain]:
        """Draw chains of replies from `version`; a load waits until all are whole."""
        async with self._turn:
            await self._ensure(version)
            return converse(chains, VllmReplies(self._engine))

    async def logprobs(self, rollouts: Rollouts, version: WeightVersion) -> NDArray[np.float32]:
        async with self._turn:
            await self._ensure(version)
            return self._engine.logprobs(rollouts)

    async def _ensure(self, version: WeightVersion) -> None:
        """A replica that has no weights loads these. Raises WeightMismatch where it serves others."""
        serving = self._engine.serving
        if serving is None:
            await self._load(version)
        elif serving.fingerprint != version.fingerprint and not self._keeps_requests:
            raise WeightMismatch(
                f"this replica serves version {serving.number} with fingerprint {serving.fingerprint}, "
                f"not version {version.number} with {version.fingerprint}"
            )

    async def _load(self, version: WeightVersion) -> None:
        serving = self._engine.serving
        if serving is not None and serving.fingerprint == version.fingerprint:
            self._engine.relabel(version)
            return
        self._engine.begin_load()
        async for part in arriving(version):
            self._engine.take(part)
        self._engine.finish_load(version)

    def decode(self, rollouts: Rollouts) -> list[str]:
        """The answers as people and judges read them."""
        return decoded(self._engine, rollouts)


class RolloutPool:
    """Handles of the replicas. What is asked is split evenly and in order; Ray retries a lost replica's share."""

    def __init__(
        self,
        model: Path,
        policy: PolicyConfig,
        rollout: RolloutConfig,
        transfer: WeightTransfer = "object_store",
        *,
        name: str = "rollout",
    ) -> None:
        """The replicas' actors are called `name` and a number."""
        self._replicas: list[Any] = [
            spawn(
                RolloutWorker,
                f"{name}-{index}",
                rollout.resources,
                args=(str(model), policy, rollout, transfer),
                restarts=True,
            )
            for index in range(rollout.replicas)
        ]
        self._version: WeightVersion | None = None

    async def ready(self) -> None:
        """Wait until every engine has started."""
        await asyncio.gather(*(replica.__ray_ready__.remote() for replica in self._replicas))

    async def load(self, version: WeightVersion) -> None:
        if isinstance(version.weights, SentWeights) and not self._serves(version):
            await version.weights.send(self._replicas)
            await asyncio.gather(*(replica.finish_load.remote(version) for replica in self._replicas))
        else:
            await asyncio.gather(*(replica.load.remote(version) for replica in self._replicas))
        self._version = version

    def generate(self, requests: Sequence[SampleRequest]) -> Shards[Rollouts]:
        version = self._serving()
        return tuple(replica.generate.remote(share, version) for replica, share in self._shares(requests))

    def converse(self, chains: Sequence[RevisionChain]) -> Shards[list[Chain]]:
        """Start drawing the chains; returns at once."""
        version = self._serving()
        return tuple(replica.converse.remote(share, version) for replica, share in self._shares(chains))

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

    def _shares(self, items: Sequence[T]) -> Iterator[tuple[Any, Sequence[T]]]:
        """Each replica with its share of the items. Those that would have none are left out."""
        bounds = np.linspace(0, len(items), len(self._replicas) + 1).astype(int)
        for replica, start, end in zip(self._replicas, bounds, bounds[1:], strict=False):
            if end > start:
                yield replica, items[start:end]

    def _serves(self, version: WeightVersion) -> bool:
        return self._version is not None and self._version.fingerprint == version.fingerprint

    def _serving(self) -> WeightVersion:
        if self._version is None:
            raise RuntimeError("load a version before asking the pool for answers")
        return self._version

"""The rollout pool: replicas of the policy in vLLM actors. `RolloutPool` is the loop's `RolloutStage`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from actors.exporting import Exporter
from actors.placement import ANYWHERE, Reserved
from actors.rollout_dispatcher import ReplicaState, RolloutDispatcher
from actors.spawn import spawn
from actors.weight_transfer import arriving
from rlaif_ray import metrics
from rlaif_ray.config import ActorResources, PolicyConfig, RolloutConfig
from rlaif_ray.constitution.chain import RevisionChain
from rlaif_ray.constitution.driving import converse
from rlaif_ray.engines.vllm_replies import VllmReplies, decoded, encoded
from rlaif_ray.engines.vllm_rollout import VllmRolloutEngine
from rlaif_ray.records import Chain, Rollouts, SampleRequest, WeightVersion
from rlaif_ray.stages import Shards, WeightMismatch
from rlaif_ray.weights import WeightTransfer

# Calls that the dispatcher holds open at a time: each shard is one.
_CALLS_AT_A_TIME = 10_000


class RolloutWorker:
    """One replica. One that Ray restarts has no weights, and loads the wanted ones before it serves.

    Its calls run in one thread and take turns: a load waits for the batch under way, or, with
    `rollout.on_update=keep`, for the engine's step.
    """

    def __init__(
        self,
        model: str,
        policy: PolicyConfig,
        rollout: RolloutConfig,
        transfer: WeightTransfer,
        shares_gpu: bool,
        run: str = "",
    ) -> None:
        """Metrics bear the run's id."""
        self._export = Exporter(run=run, replica=ray.get_runtime_context().get_actor_name())
        self._engine = VllmRolloutEngine(
            model,
            dtype=policy.dtype,
            context_tokens=policy.context_tokens,
            threads=rollout.resources.threads,
            kv_cache_gib=rollout.kv_cache_gib,
            gpu_memory_utilization=rollout.gpu_memory_utilization,
            enforce_eager=rollout.enforce_eager,
            trust_remote_code=policy.trust_remote_code,
            workers=rollout.resources.workers,
            weight_transfer=transfer,
            keeps_requests=rollout.on_update == "keep",
            sleeps=shares_gpu,
        )
        self._engine.sleep()
        self._max_answer_tokens = policy.max_answer_tokens
        self._keeps_requests = rollout.on_update == "keep"
        self._turn = asyncio.Lock()
        self._told_tokens = 0
        self._drawing = 0  # calls that draw or score, and those that wait for their turn to

    async def live(self) -> None:
        """Never returns: who awaits it hears of this process's end at once."""
        await asyncio.Event().wait()

    async def load(self, version: WeightVersion) -> None:
        """Serve `version`; returns once the engine has proved that it does."""
        async with self._turn:
            await self._load(version)

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        self._engine.join_transfer(init_info)

    async def begin_load(self) -> None:
        """Weights that are sent come by `receive` from here on, until `finish_load`; nobody has a turn meanwhile."""
        await self._turn.acquire()
        self._engine.wake()
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
        async with self._serving(version):
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
        async with self._serving(version):
            return converse(chains, VllmReplies(self._engine))

    async def logprobs(self, rollouts: Rollouts, version: WeightVersion) -> NDArray[np.float32]:
        async with self._serving(version):
            return self._engine.logprobs(rollouts)

    @asynccontextmanager
    async def _serving(self, version: WeightVersion) -> AsyncIterator[None]:
        """A turn to draw or score by `version`. Where the GPU is shared, the engine sleeps again when nobody waits."""
        self._drawing += 1
        try:
            async with self._turn:
                self._engine.wake()
                await self._ensure(version)
                yield
        finally:
            self._tell()
            self._drawing -= 1
            if not self._drawing:
                self._engine.sleep()

    def _tell(self) -> None:
        drawn = self._engine.drawn_tokens
        self._export.add(metrics.ROLLOUT_TOKENS, drawn - self._told_tokens)
        self._told_tokens = drawn

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
        self._engine.wake()
        self._engine.begin_load()
        async for part in arriving(version):
            self._engine.take(part)
        self._engine.finish_load(version)

    def decode(self, rollouts: Rollouts) -> list[str]:
        """The answers as people and judges read them."""
        return decoded(self._engine, rollouts)


class RolloutPool:
    """Handles of the replicas, and of the dispatcher that sends requests to those that serve. What is asked is split
    evenly and in order."""

    def __init__(
        self,
        model: Path,
        policy: PolicyConfig,
        rollout: RolloutConfig,
        transfer: WeightTransfer = "object_store",
        *,
        name: str = "rollout",
        shares_gpus: bool = False,
        reserved: Reserved = ANYWHERE,
        run: str = "",
    ) -> None:
        """The replicas' actors are called `name` and a number. With `shares_gpus` they sleep while nobody asks them.
        Their metrics bear the id of the run."""
        self._reserved = reserved
        names = [f"{name}-{index}" for index in range(rollout.replicas)]
        self._replicas: list[Any] = [
            spawn(
                RolloutWorker,
                replica,
                rollout.resources,
                args=(str(model), policy, rollout, transfer, shares_gpus, run),
                restarts=True,
                slot=reserved.slot(index),
            )
            for index, replica in enumerate(names)
        ]
        self._dispatcher = spawn(
            RolloutDispatcher,
            f"{name}-dispatcher",
            ActorResources(cpus=0),
            args=(names, rollout.fewest_replicas, run),
            restarts=True,
            concurrency=_CALLS_AT_A_TIME,
            # It holds no grant, and a node elsewhere could not go while it is there.
            node=ray.get_runtime_context().get_node_id(),
            # The driver calls, and answers are for others.
            stores_results=True,
        )
        self._version: WeightVersion | None = None
        self._serving = 0  # replicas, when weights were loaded last

    async def ready(self) -> None:
        """Wait until enough engines have started."""
        await self._dispatcher.ready.remote()

    async def load(self, version: WeightVersion) -> None:
        # A dispatcher that Ray has restarted does not know that the run has begun, and goes on with fewer.
        self._serving = await self._dispatcher.load.remote(version, self._version is None)
        self._version = version

    async def states(self) -> list[ReplicaState]:
        """Who serves what, and who answered how much, by number."""
        states: list[ReplicaState] = await self._dispatcher.states.remote()
        return states

    def generate(self, requests: Sequence[SampleRequest]) -> Shards[Rollouts]:
        return self._split("generate", requests)

    def converse(self, chains: Sequence[RevisionChain]) -> Shards[list[Chain]]:
        """Start drawing the chains; returns at once."""
        return self._split("converse", chains)

    def logprobs(self, rollouts: Shards[Rollouts]) -> Shards[NDArray[np.float32]]:
        """Log-probabilities (sum of answer lengths,) of given answers under the weights that are loaded."""
        version = self._loaded()
        return tuple(self._dispatcher.call.remote("logprobs", 1, (shard,), version) for shard in rollouts)

    def decode(self, rollouts: Shards[Rollouts]) -> Shards[list[str]]:
        return tuple(self._dispatcher.call.remote("decode", 1, (shard,), None) for shard in rollouts)

    def close(self) -> None:
        for actor in (self._dispatcher, *self._replicas):
            ray.kill(actor)
        self._reserved.release()

    def _split(self, method: str, items: Sequence[Any]) -> Shards[Any]:
        """A share for each replica that served when weights were loaded last; none is empty."""
        version = self._loaded()
        bounds = np.linspace(0, len(items), self._serving + 1).astype(int).tolist()
        return tuple(
            self._dispatcher.call.remote(method, end - start, (items[start:end],), version)
            for start, end in itertools.pairwise(bounds)
            if end > start
        )

    def _loaded(self) -> WeightVersion:
        if self._version is None:
            raise RuntimeError("load a version before asking the pool for answers")
        return self._version

"""The learner: DeepSpeed ranks that improve the policy. `LearnerGroup` is the loop's `LearnerStage`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from actors.call_pool import cause_of
from actors.learner_rank import LearnerRank
from actors.placement import ANYWHERE, Reserved
from actors.spawn import spawn
from actors.weight_transfer import sent_by
from rlaif_ray.config import RunConfig
from rlaif_ray.records import LearnerModels, Rollouts, Scores, WeightVersion
from rlaif_ray.stages import Shards


class LearnerGroup:
    """Handles of the ranks. Every call goes to all of them at once; the first error is raised."""

    def __init__(
        self, config: RunConfig, models: LearnerModels, checkpoints: Path, reserved: Reserved = ANYWHERE
    ) -> None:
        self._reserved = reserved
        self._transfer = config.learner.weight_transfer
        self._ranks: list[Any] = [
            spawn(
                LearnerRank,
                f"learner-{rank}",
                config.learner.resources,
                args=(config, models, checkpoints, rank),
                slot=reserved.slot(rank),
            )
            for rank in range(config.learner.ranks)
        ]

    async def ready(self) -> None:
        """Wait until the ranks have met and loaded their models. Comes before any other call."""
        address = await self._ranks[0].open.remote()
        await self._all("start", address)

    async def step(self, iteration: int, rollouts: Shards[Rollouts], scores: Shards[Scores]) -> Mapping[str, float]:
        """Raises Stopped and UserError where the scores came to nothing for that reason; no rank has moved then."""
        # Inside lists the references stay references: each rank fetches the batch itself.
        metrics: Mapping[str, float] = (await self._all("step", iteration, list(rollouts), list(scores)))[0]
        return metrics

    async def publish(self) -> WeightVersion:
        version: WeightVersion = (await self._all("publish"))[0]
        return version if self._transfer == "object_store" else sent_by(version, self._ranks)

    async def checkpoint(self, iteration: int) -> None:
        await self._ranks[0].begin_checkpoint.remote(iteration)
        await self._all("save", iteration)
        await self._ranks[0].finish_checkpoint.remote(iteration)

    async def resume(self) -> int | None:
        """Restore the newest whole checkpoint and return its iteration, None where there is none.

        Raises CheckpointCorrupt when a file of it is not what was written.
        """
        iteration: int | None = (await self._all("resume"))[0]
        return iteration

    async def save_policy(self, directory: Path) -> None:
        await self._all("save_policy", directory)

    def close(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        self._reserved.release()

    async def _all(self, method: str, *args: Any) -> list[Any]:
        try:
            return list(await asyncio.gather(*(getattr(rank, method).remote(*args) for rank in self._ranks)))
        except RayTaskError as error:
            raise cause_of(error) from None

"""The way of requests to rollout replicas, which come and go while a run goes on.

What passes through are token ids and log-probabilities, 12 bytes an answer token. A replica that died is started again
by Ray, on whatever node bears it; until it serves, the others draw what it had.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.exporting import Exporter
from actors.weight_transfer import SentWeights, not_to_one_alone
from rlaif_ray import metrics
from rlaif_ray.records import WeightVersion

logger = logging.getLogger(__name__)

# Requests that so many replicas died on are at fault themselves.
_MAX_LOSSES = 3


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What became of one replica so far."""

    name: str
    serves: bool
    version: int | None  # number of the weights that it loaded last
    pending: int  # requests
    answered: int
    losses: int  # deaths


@dataclass
class _Replica:
    name: str
    actor: Any
    life: asyncio.Future[None] | None = None  # from its start on; it ends by the error that says how it was lost
    serves: bool = False
    version: WeightVersion | None = None
    pending: int = 0  # requests
    asked: list[float] = field(default_factory=list)  # when, in seconds since the epoch, each call of them
    answered: int = 0
    losses: int = 0


class RolloutDispatcher:
    """An asyncio actor. Its calls may be repeated: one that Ray restarts finds the replicas as they are, and each
    request names the version that it wants."""

    def __init__(self, replicas: Sequence[str], enough: int, run: str = "") -> None:
        """`replicas` are names of actors that Ray restarts; the run begins with `enough` of them. Metrics bear
        the run's id."""
        self._export = Exporter(run=run)
        self._replicas = [_Replica(name, ray.get_actor(name)) for name in replicas]
        self._enough = enough
        self._wanted: WeightVersion | None = None
        self._attending: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._fault: Exception | None = None

    async def ready(self) -> None:
        """Wait until enough replicas have started. Raises what keeps one from it."""
        self._attend_all()
        await self._until(lambda: len(self._serving()) >= self._enough)

    async def load(self, version: WeightVersion, first: bool = True) -> int:
        """Have every replica load this version, the run's first one when enough have started; one that comes later
        loads it before it serves. Returns how many serve.

        Raises WeightMismatch when one does not prove that it serves it, or dies while weights are sent to all.
        """
        self._attend_all()
        if self._wanted is None and (first or isinstance(version.weights, SentWeights)):
            await self.ready()
        sent = version.weights if isinstance(version.weights, SentWeights) and not self._wants(version) else None
        self._wanted = version
        self._export.set(metrics.ROLLOUT_WANTED_VERSION, version.number)
        self._export.set(metrics.ROLLOUT_REPLICAS, len(self._replicas))
        serving = self._serving()
        if sent is not None:
            await _sent(sent, serving, version)
        method = "load" if sent is None else "finish_load"
        await asyncio.gather(*(self._reload(replica, version, method) for replica in serving))
        await self._until(lambda: bool(self._serving()))
        return len(self._serving())

    async def call(self, method: str, requests: int, args: tuple[Any, ...], version: WeightVersion | None) -> Any:
        """Have the least busy replica do it by this version. Where it dies over it another does; what waited meanwhile
        is done by the version that is wanted by then. `requests` is what it counts for; references in `args` are
        fetched by the replica alone."""
        self._attend_all()
        asked = time.time()
        losses = 0
        while losses < _MAX_LOSSES:
            await self._until(lambda: bool(self._serving()))
            replica = min(self._serving(), key=lambda one: one.pending)
            replica.pending += requests
            replica.asked.append(asked)
            self._tell(replica)
            wanted = version and (self._wanted or version)
            handed = not losses
            try:
                if losses:  # several may have died together, and not over these requests
                    await _once(replica, "__ray_ready__")
                    handed = True
                result = await _once(replica, method, *args, *(() if wanted is None else (wanted,)))
            except RayActorError:
                logger.warning("%s died with %d requests, which go to others", replica.name, requests)
                losses += handed
            else:
                replica.answered += requests
                return result
            finally:
                replica.pending -= requests
                replica.asked.remove(asked)
                self._tell(replica)
        raise RuntimeError(f"{_MAX_LOSSES} rollout replicas died on the same {requests} requests; see Ray's logs")

    async def states(self) -> list[ReplicaState]:
        self._attend_all()
        if self._fault is not None:
            raise self._fault
        return [
            ReplicaState(
                one.name,
                one.serves,
                None if one.version is None else one.version.number,
                one.pending,
                one.answered,
                one.losses,
            )
            for one in self._replicas
        ]

    def _wants(self, version: WeightVersion) -> bool:
        return self._wanted is not None and self._wanted.fingerprint == version.fingerprint

    def _serving(self) -> list[_Replica]:
        return [replica for replica in self._replicas if replica.serves]

    async def _until(self, holds: Callable[[], bool]) -> None:
        while self._fault is None and not holds():
            self._changed.clear()
            await self._changed.wait()
        if self._fault is not None:
            raise self._fault

    def _attend_all(self) -> None:
        # Not at the beginning of the actor, which comes before its event loop.
        if not self._attending:
            self._attending = [asyncio.create_task(self._attend(replica)) for replica in self._replicas]

    async def _attend(self, replica: _Replica) -> None:
        """Bring a replica to serve, from its start on and after each loss."""
        try:
            while True:
                await replica.actor.__ray_ready__.remote()
                replica.life = asyncio.ensure_future(_unrepeated(replica, "live"))
                try:
                    await self._serve(replica, replica.life)
                except RayActorError as error:
                    replica.serves, replica.version = False, None
                    replica.losses += 1
                    self._tell(replica)
                    logger.warning("%s died and is started again: %s", replica.name, " ".join(str(error).split())[:200])
        except Exception as error:  # it cannot start, or does not prove what it serves: whoever asks must hear of it
            self._fault = error
            self._changed.set()

    async def _serve(self, replica: _Replica, life: asyncio.Future[None]) -> None:
        """From the wanted weights on until it dies."""
        while replica.version is not self._wanted:  # which may change meanwhile
            assert self._wanted is not None
            await self._load(replica, self._wanted, "load")
        replica.serves = True
        self._changed.set()
        logger.info("%s serves", replica.name)
        await life

    async def _reload(self, replica: _Replica, version: WeightVersion, method: str) -> None:
        with suppress(RayActorError):  # whoever attends to it loads them when it is up again
            await self._load(replica, version, method)

    async def _load(self, replica: _Replica, version: WeightVersion, method: str) -> None:
        await _once(replica, method, version)
        replica.version = version
        self._tell(replica)

    def _tell(self, replica: _Replica) -> None:
        """What a replica has to do, and what it serves: no version is no number, and ends the series."""
        name, version = replica.name, replica.version
        self._export.set(metrics.ROLLOUT_REQUESTS, replica.pending, replica=name)
        self._export.set(metrics.ROLLOUT_OLDEST_TIME, min(replica.asked, default=0.0), replica=name)
        self._export.set(metrics.ROLLOUT_VERSION, math.nan if version is None else version.number, replica=name)


async def _sent(weights: SentWeights, replicas: Sequence[_Replica], version: WeightVersion) -> None:
    """Raises WeightMismatch where one of these dies meanwhile: the ranks would wait for it for ever."""
    sending = asyncio.ensure_future(weights.send([replica.actor for replica in replicas]))
    lives = [replica.life for replica in replicas if replica.life is not None]
    await asyncio.wait([sending, *lives], return_when=asyncio.FIRST_COMPLETED)
    for life in lives:
        if life.done():
            sending.cancel()
            raise not_to_one_alone(version) from life.exception()
    await sending


async def _once(replica: _Replica, method: str, *args: Any) -> Any:
    """Ask, and not again where the replica dies over it. Raises RayActorError then.

    What is asked of a dead replica waits in Ray for the next process, which may never come: the end of its life is the
    end of that too.
    """
    assert replica.life is not None
    answer = asyncio.ensure_future(_unrepeated(replica, method, *args))
    await asyncio.wait([answer, replica.life], return_when=asyncio.FIRST_COMPLETED)
    if not answer.done():
        answer.cancel()
        await replica.life
    return await answer


async def _unrepeated(replica: _Replica, method: str, *args: Any) -> Any:
    try:
        return await getattr(replica.actor, method).options(max_task_retries=0).remote(*args)
    except RayTaskError as error:
        raise error.cause from error

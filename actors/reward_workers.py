"""The actors of a reward server: how many there are, and which versions of the model each holds."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError

from actors.spawn import ACTOR_DEATHS, spawn
from rlaif_ray.config import ServeRewardConfig
from rlaif_ray.serving.scaling import ServerLoad, wanted_actors

if TYPE_CHECKING:
    from rlaif_ray.reward.ensemble import RewardEnsemble
    from rlaif_ray.reward.package import ModelPackage

logger = logging.getLogger(__name__)

# While no actor is up, it is said what they wait for, every so long.
_PATIENCE_S = 30.0
_TICK_S = 0.1

# A model that so many actors died of is at fault itself.
_MAX_DEATHS = 3

# Where actors die while they start, the next one waits a second for each that did in a row, up to so long.
_LONGEST_PAUSE_S = 30.0


class RewardServerWorker:
    """An async actor that holds one version of the model or several. One loads beside the forwards of another."""

    def __init__(self, config: ServeRewardConfig) -> None:
        self._config = config
        self._ensembles: dict[int, RewardEnsemble] = {}
        self._forwards = ThreadPoolExecutor(max_workers=1)

    async def load(self, version: int, model: ModelPackage) -> None:
        self._ensembles[version] = await asyncio.to_thread(self._loaded, model)

    async def unload(self, version: int) -> None:
        self._ensembles.pop(version, None)

    async def score(self, version: int, tokens: NDArray[np.int32], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
        """Raw rewards (B, k); NaN where there is none. Row i of the batch is tokens[offsets[i]:offsets[i + 1]]."""
        sequences = [tokens[start:end] for start, end in itertools.pairwise(offsets)]
        return await asyncio.get_running_loop().run_in_executor(
            self._forwards, self._raw_scores, self._ensembles[version], sequences
        )

    def _raw_scores(self, ensemble: RewardEnsemble, sequences: list[NDArray[np.int32]]) -> NDArray[np.float32]:
        ids = [f"{row:09}" for row in range(len(sequences))]
        return ensemble.raw_scores(ids, sequences, max_batch_tokens=self._config.max_batch_tokens)

    def _loaded(self, model: ModelPackage) -> RewardEnsemble:
        import torch

        from rlaif_ray.reward.ensemble import RewardEnsemble
        from rlaif_ray.reward.package import unpacked

        with unpacked(model) as directory:
            return RewardEnsemble.load(
                directory,
                dtype=self._config.dtype,
                trust_remote_code=self._config.trust_remote_code,
                device="cuda" if torch.cuda.is_available() else "cpu",
            )


@dataclass
class Worker:
    """One actor as its owner sees it. `busy`: a batch is with it."""

    name: str
    actor: Any
    loaded: set[int] = field(default_factory=set)
    up: bool = False
    busy: bool = False


class CannotLoad(Exception):
    """Actors refuse a model, or die of it. Its text says why."""


class RewardWorkers:
    """Owns the actors. One that serves holds every version that is served; one that starts serves when it does."""

    def __init__(self, config: ServeRewardConfig, changed: asyncio.Event, say: Callable[[str], None]) -> None:
        """`changed` is set when an actor comes or goes; `say` is told what they wait for while none serves."""
        self._config = config
        self._changed = changed
        self._say = say
        self._models: dict[int, Any] = {}  # references of the versions that are served
        self._workers: list[Worker] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._spawned = 0
        self._start_deaths = 0
        self._start_error = ""
        self._next_start = 0.0
        self._idle_since: float | None = None

    @property
    def up(self) -> int:
        return sum(worker.up for worker in self._workers)

    @property
    def starting(self) -> int:
        return len(self._workers) - self.up

    def free(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.up and not worker.busy]

    async def start(self, version: int, model: Any) -> None:
        """Start the fewest actors with the first version; return when one serves it. Raises CannotLoad."""
        self._models[version] = model
        asked = time.monotonic()
        while not self.up:
            self.scale(time.monotonic(), oldest_s=0.0)
            if self._start_deaths >= _MAX_DEATHS:
                raise CannotLoad(self._start_error)
            if time.monotonic() - asked >= _PATIENCE_S:
                asked = time.monotonic()
                self._say(
                    f"waiting for an actor, which wants {self._config.actors.cpus:g} CPUs and "
                    f"{self._config.actors.gpus:g} GPUs; free are {ray.available_resources()}"
                )
            await asyncio.sleep(_TICK_S)

    async def hold(self, version: int, model: Any) -> None:
        """Return when every actor that serves holds another version. Raises CannotLoad; then none does."""
        deaths = 0
        while (lacking := [one for one in self._workers if one.up and version not in one.loaded]) or not self.up:
            loads = [worker.actor.load.remote(version, model) for worker in lacking]
            for worker, result in zip(lacking, await asyncio.gather(*loads, return_exceptions=True), strict=True):
                if isinstance(result, ACTOR_DEATHS):
                    deaths += 1
                    self.lose(worker, result)
                elif isinstance(result, BaseException):
                    self.release(version)
                    raise CannotLoad(sentence_of(result))
                else:
                    worker.loaded.add(version)
            if deaths >= _MAX_DEATHS:
                self.release(version)
                raise CannotLoad(f"{deaths} actors died while they loaded it")
            if not self.up:
                await asyncio.sleep(_TICK_S)
        self._models[version] = model

    def release(self, version: int) -> None:
        """No answer asks for this version any more."""
        self._models.pop(version, None)
        for worker in self._workers:
            self._unload(worker, version)

    def scale(self, now: float, *, oldest_s: float) -> None:
        """Start or end actors, once those that are free have been given what is due. `oldest_s`: age of the oldest
        answer that waits; 0 where none does."""
        if not self.free():
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        load = ServerLoad(
            oldest_s=oldest_s,
            actors=len(self._workers),
            starting=self.starting,
            idle_s=0.0 if self._idle_since is None else now - self._idle_since,
        )
        wanted = wanted_actors(load, fewest=self._config.actors.min, most=self._config.actors.max)
        if now >= self._next_start:
            for _ in range(wanted - len(self._workers)):
                self._spawn()
        for worker in self.free()[: max(0, len(self._workers) - wanted)]:
            logger.info("%s has nothing to do and ends", worker.name)
            self._idle_since = now
            self._dismiss(worker)

    def lose(self, worker: Worker, reason: object) -> None:
        """An actor died, or hangs: another takes its place."""
        if worker in self._workers:
            logger.warning("%s is lost and replaced: %s", worker.name, sentence_of(reason))
            self._dismiss(worker)

    def stop(self) -> None:
        for worker in list(self._workers):
            self._dismiss(worker)
        for task in self._opening:
            task.cancel()

    def _spawn(self) -> None:
        name = f"reward-server-{self._spawned}"
        self._spawned += 1
        worker = Worker(name, spawn(RewardServerWorker, name, self._config.actors, args=(self._config,)))
        self._workers.append(worker)
        task = asyncio.create_task(self._open(worker))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, worker: Worker) -> None:
        """Load what is served, and what has come to be served meanwhile; then serve."""
        try:
            while lacking := self._models.keys() - worker.loaded:
                version = min(lacking)
                await worker.actor.load.remote(version, self._models[version])
                worker.loaded.add(version)
        except RayError as error:  # it died, refuses the model, or could not be started at all
            self._start_deaths += 1
            self._start_error = sentence_of(error)
            self._next_start = time.monotonic() + min(self._start_deaths, _LONGEST_PAUSE_S)
            self.lose(worker, error)
            return
        for version in worker.loaded - self._models.keys():
            self._unload(worker, version)
        self._start_deaths = 0
        worker.up = True
        self._changed.set()

    def _unload(self, worker: Worker, version: int) -> None:
        if version in worker.loaded:
            worker.loaded.remove(version)
            worker.actor.unload.remote(version)

    def _dismiss(self, worker: Worker) -> None:
        worker.up = False
        self._workers.remove(worker)
        ray.kill(worker.actor)
        self._changed.set()


def sentence_of(error: object) -> str:
    """What an error says, on one line and without the traceback of the actor that raised it."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return " ".join(str(cause).split())[:300]

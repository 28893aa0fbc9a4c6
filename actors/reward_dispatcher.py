"""What stands between a reward server's callers and its actors: the queue, and the versions of the model.

A call is scored by the version that was current when it came, however long it waits, so that its scores compare: actors
hold a version until nothing asks for it. What a lost actor had goes back to where it stood in the queue.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from actors.exporting import Exporter
from actors.reward import checked, package_of
from actors.reward_workers import CannotLoad, RewardWorkers, Worker, sentence_of
from actors.spawn import ACTOR_DEATHS
from rlaif_ray import metrics
from rlaif_ray.config import ServeRewardConfig, UserError
from rlaif_ray.records import AnswerToScore, Outcome, offsets_of
from rlaif_ray.serving.batching import BatchQueue, WaitingAnswer
from rlaif_ray.serving.service import AnswerReward, Overloaded, RewardVersion, ServerState

if TYPE_CHECKING:
    from rlaif_ray.reward.encoding import AnswerEncoder
    from rlaif_ray.reward.model import RewardNormalisation
    from rlaif_ray.reward.package import ModelPackage

_TICK_S = 0.1

# An answer that so many actors died on is at fault itself.
_MAX_LOSSES = 3


@dataclass
class _Version:
    described: RewardVersion
    model: Any  # a reference to the package
    encoder: AnswerEncoder
    normalisations: tuple[RewardNormalisation, ...]
    pending: int = 0  # answers that came for it and have no outcome yet

    @property
    def number(self) -> int:
        return self.described.number


@dataclass
class _Job:
    """One answer on its way to an outcome."""

    version: _Version
    tokens: NDArray[np.int32]
    waiting: WaitingAnswer
    reward: asyncio.Future[AnswerReward]
    losses: int = 0


class RewardDispatcher:
    """The `RewardService` over actors. All of it runs in one event loop."""

    def __init__(self, config: ServeRewardConfig, say: Callable[[str], None]) -> None:
        """`say` is told what is waited for while no actor serves."""
        self._config = config
        self._export = Exporter(run=uuid.uuid4().hex)
        self._changed = asyncio.Event()
        self._workers = RewardWorkers(config, self._changed, say)
        self._queue = BatchQueue(max_batch_tokens=config.max_batch_tokens, max_wait_s=config.max_wait_ms / 1000)
        self._jobs: dict[int, _Job] = {}  # in the order of arrival
        self._numbers = itertools.count()
        self._encoding = ThreadPoolExecutor(max_workers=1)
        self._being_encoded = 0
        self._versions: dict[int, _Version] = {}  # the last one is current
        self._version_numbers = itertools.count(1)
        self._loading = asyncio.Lock()
        self._drained = asyncio.Event()  # set while there is but the current version
        self._tasks: set[asyncio.Task[None]] = set()
        self._fault: BaseException | None = None

    async def start(self, directory: Path) -> RewardVersion:
        """Load the first version, and return when an actor serves it. Raises UserError as `load` does."""
        version = await self._read(directory)
        try:
            await self._workers.start(version.number, version.model)
        except CannotLoad as error:
            raise UserError(f"{directory} cannot be loaded: {error}") from None
        self._versions[version.number] = version
        self._drained.set()
        self._export.set(metrics.RUN_INFO, 1, name=str(directory))
        return version.described

    async def run(self) -> None:
        """Hand batches to actors that are free, until it is cancelled. Raises what no answer is to blame for."""
        try:
            while self._fault is None:
                self._changed.clear()
                now = time.monotonic()
                self._give_up(now)
                due_s = self._dispatch(now)
                oldest = self._queue.oldest
                self._workers.scale(now, oldest_s=0.0 if oldest is None else now - oldest.arrived)
                self._tell(now)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_TICK_S if due_s is None else min(due_s, _TICK_S)):
                        await self._changed.wait()
            raise self._fault
        finally:
            for job in list(self._jobs.values()):
                self._fail(job, "the server was stopped")
            for task in self._tasks:
                task.cancel()
            self._workers.stop()
            self._encoding.shutdown(wait=False)

    async def score(self, answers: Sequence[AnswerToScore]) -> list[AnswerReward]:
        asked = time.monotonic()
        waiting = len(self._queue) + self._being_encoded
        if waiting + len(answers) > self._config.max_queued:
            self._export.add(metrics.SERVER_ANSWERS, len(answers), outcome="refused")
            raise Overloaded(
                f"{waiting} answers wait, and {len(answers)} more would be over {self._config.max_queued}; try later"
            )
        version = self._current
        version.pending += len(answers)
        self._being_encoded += len(answers)
        try:
            encoded = await asyncio.get_running_loop().run_in_executor(
                self._encoding, _encoded, version.encoder, answers
            )
        except BaseException:
            self._settle(version, len(answers))
            raise
        finally:
            self._being_encoded -= len(answers)
        now = time.monotonic()
        rewards = list(await asyncio.gather(*[self._queued(version, one, now) for one in encoded]))
        self._export.observe(metrics.SERVER_LATENCY, time.monotonic() - asked)
        for tokens, reward in zip(encoded, rewards, strict=True):
            self._export.add(metrics.SERVER_ANSWERS, outcome=reward.outcome)
            if reward.outcome is Outcome.SCORED:
                self._export.add(metrics.SERVER_TOKENS, len(tokens))
        return rewards

    async def load(self, directory: Path) -> RewardVersion:
        async with self._loading:
            # Actors hold two at most: the current one, beside the one that comes or the one that goes.
            await self._drained.wait()
            version = await self._read(directory)
            try:
                await self._workers.hold(version.number, version.model)
            except CannotLoad as error:
                raise UserError(
                    f"{directory} cannot be loaded: {error}; version {self._current.number} goes on"
                ) from None
            self._drained.clear()
            self._versions[version.number] = version
            self._retire()
            return version.described

    def versions(self) -> list[RewardVersion]:
        return [version.described for version in self._versions.values()]

    def state(self) -> ServerState:
        return ServerState(
            version=self._current.described,
            actors=self._workers.up,
            starting=self._workers.starting,
            waiting=len(self._queue),
            in_flight=len(self._jobs) - len(self._queue),
        )

    @property
    def _current(self) -> _Version:
        return next(reversed(self._versions.values()))

    async def _read(self, directory: Path) -> _Version:
        """A model on its way to the actors. Raises UserError where it is none."""
        model, light = package_of(directory.absolute())
        package = await checked(model, light)
        try:
            encoder, normalisations = await asyncio.to_thread(_opened, package, self._config.trust_remote_code)
        except (OSError, ValueError) as error:  # as transformers tell of a config or a tokenizer that they cannot read
            raise UserError(f"{directory} cannot be loaded: {sentence_of(error)}") from None
        number = next(self._version_numbers)
        described = RewardVersion(number, package.fingerprint, directory.absolute(), len(normalisations))
        return _Version(described, model, encoder, normalisations)

    async def _queued(self, version: _Version, encoded: NDArray[np.int32] | str, now: float) -> AnswerReward:
        """`encoded`: token ids, or why there are none that the model takes."""
        if isinstance(encoded, str):
            self._settle(version, 1)
            return AnswerReward(Outcome.FAILED, encoded, version.described)
        waiting = WaitingAnswer(next(self._numbers), version.number, len(encoded), now)
        job = _Job(version, encoded, waiting, asyncio.get_running_loop().create_future())
        self._jobs[waiting.number] = job
        self._queue.add(waiting)
        self._changed.set()
        return await job.reward

    def _dispatch(self, now: float) -> float | None:
        """Give each free actor the batch that is due. Returns the seconds until the next is, None where none will be
        before something changes."""
        for worker in self._workers.free():
            due_s = self._queue.due_s(now)
            if due_s != 0:
                return due_s
            worker.busy = True
            self._run(self._forward(worker, [self._jobs[one.number] for one in self._queue.take()]))
        return None

    async def _forward(self, worker: Worker, batch: list[_Job]) -> None:
        version = batch[0].version
        tokens, offsets = np.concatenate([job.tokens for job in batch]), offsets_of([len(job.tokens) for job in batch])
        try:
            async with asyncio.timeout(self._config.timeout_s):
                raw: NDArray[np.float32] = await worker.actor.score.remote(version.number, tokens, offsets)
        except (TimeoutError, *ACTOR_DEATHS) as error:
            reason = sentence_of(error) or f"no answer within {self._config.timeout_s:g} s"
            self._workers.lose(worker, reason)
            self._put_back(batch, reason)
        except RayTaskError as error:
            for job in batch:
                self._fail(job, f"the model failed: {sentence_of(error)}")
        else:
            for job, reward in zip(batch, _rewards(raw, version), strict=True):
                self._resolve(job, reward)
        worker.busy = False
        self._changed.set()

    def _put_back(self, batch: Sequence[_Job], reason: str) -> None:
        """An actor was lost: what it had, and is not given up, stands in the queue where it stood."""
        for job in batch:
            if job.waiting.number not in self._jobs:
                continue
            job.losses += 1
            if job.losses >= _MAX_LOSSES:
                self._fail(job, f"{job.losses} actors were lost over it, the last one by: {reason}")
            else:
                self._queue.add(job.waiting)

    def _give_up(self, now: float) -> None:
        """Fail what came too long ago, wherever it is."""
        for job in list(self._jobs.values()):
            if now - job.waiting.arrived < self._config.timeout_s:
                break
            if job.waiting.number in self._queue:
                self._queue.remove(job.waiting.number)
            self._fail(job, f"it had no score after {self._config.timeout_s:g} s")

    def _fail(self, job: _Job, reason: str) -> None:
        self._resolve(job, AnswerReward(Outcome.FAILED, reason, job.version.described))

    def _resolve(self, job: _Job, reward: AnswerReward) -> None:
        """The one place where an answer gets its outcome; a second one comes too late."""
        if self._jobs.pop(job.waiting.number, None) is None:
            return
        if not job.reward.done():  # whoever asked may be gone
            job.reward.set_result(reward)
        self._settle(job.version, 1)

    def _tell(self, now: float) -> None:
        """How the server is, to Prometheus."""
        state, oldest = self.state(), self._queue.oldest
        self._export.set(metrics.SERVER_WAITING, state.waiting)
        self._export.set(metrics.SERVER_OLDEST_TIME, 0.0 if oldest is None else time.time() - (now - oldest.arrived))
        self._export.set(metrics.SERVER_IN_FLIGHT, state.in_flight)
        self._export.set(metrics.SERVER_ACTORS, state.actors)
        self._export.set(metrics.SERVER_STARTING, state.starting)
        self._export.set(metrics.SERVER_VERSION, state.version.number)

    def _settle(self, version: _Version, answers: int) -> None:
        version.pending -= answers
        self._retire()

    def _retire(self) -> None:
        """Let go of versions that nothing asks for any more."""
        current = self._current
        for version in [one for one in self._versions.values() if one is not current and not one.pending]:
            del self._versions[version.number]
            self._workers.release(version.number)
        if len(self._versions) == 1:
            self._drained.set()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._fault = task.exception()
            self._changed.set()


def _opened(package: ModelPackage, trust_remote_code: bool) -> tuple[AnswerEncoder, tuple[RewardNormalisation, ...]]:
    from rlaif_ray.reward.encoding import AnswerEncoder
    from rlaif_ray.reward.model import RewardNormalisation, members
    from rlaif_ray.reward.package import unpacked

    with unpacked(package) as directory:
        encoder = AnswerEncoder.load(directory, trust_remote_code=trust_remote_code)
        return encoder, tuple(RewardNormalisation.load(member) for member in members(directory))


def _encoded(encoder: AnswerEncoder, answers: Sequence[AnswerToScore]) -> list[NDArray[np.int32] | str]:
    """Token ids, or why an answer has none that the model takes."""
    encoded: list[NDArray[np.int32] | str] = []
    for answer in answers:
        try:
            tokens = encoder.encode(answer.prompt, answer.text)
        except UserError as error:
            encoded.append(str(error))
        else:
            fits = len(tokens) <= encoder.positions
            encoded.append(tokens if fits else f"{len(tokens)} tokens exceed the model's {encoder.positions} positions")
    return encoded


def _rewards(raw: NDArray[np.float32], version: _Version) -> list[AnswerReward]:
    """What became of each answer, from its raw rewards (B, k)."""
    from rlaif_ray.reward.ensemble import ensemble_scores, normalised

    scores = ensemble_scores(("",) * len(raw), normalised(raw, version.normalisations), disagreement_penalty=0.0)
    spread = scores.parts.get("disagreement")
    return [
        AnswerReward(
            Outcome.SCORED,
            "",
            version.described,
            score=float(scores.values[row]),
            disagreement=None if spread is None else float(spread[row]),
            raw=tuple(raw[row].tolist()),
        )
        if scores.valid[row]
        else AnswerReward(Outcome.FAILED, "the model gives no finite score", version.described)
        for row in range(len(raw))
    ]

"""The calls of one judge: each made once, over worker actors that come with the backlog and go with the lull.

A pool of calls decides nothing about pacing, money or meaning: those are the limiter's, the ledger's and the library's.
It looks requests up, shares those under way, feeds workers, and takes back the work of a worker that died. It lives in
its owner's event loop, and what goes wrong in its tasks reaches `ask` through the answers' futures.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayTaskError

from actors.coalesce import Coalescer
from actors.exporting import Exporter
from actors.judge_workers import ApiWorker, Batch, Call, LabelerWorker
from actors.ledger import LedgerHandle
from actors.limiter import Limiter
from actors.spawn import ACTOR_DEATHS, spawn
from rlaif_ray import metrics
from rlaif_ray.config import EndpointConfig, Stopped, UserError
from rlaif_ray.judge.autoscale import Bounds, Load, MeanLatency, Slack, allowed_in_flight, starting_s, wanted_actors
from rlaif_ray.judge.ledger import Account, NotInLedger, Refusal, answer_of
from rlaif_ray.judge.prices import Price, worst_cost_usd
from rlaif_ray.judge.request import Answer, Reply, Request, call_key, endpoint_identity
from rlaif_ray.records import Outcome

logger = logging.getLogger(__name__)

_TICK_S = 0.1

# A worker that is not up after so long is said to be missing, every so long.
_PATIENCE_S = 30.0

# A call that so many workers died on is at fault itself; so many workers that died before they were up are a fault of
# the machine or the model.
_MAX_LOSSES = 3


@dataclass(frozen=True, slots=True)
class _Feeding:
    """How a kind of worker is fed: `loops` remote calls under way at a time, of up to `batch` requests each. Beyond
    `calls` requests, another worker is worth starting."""

    batch: int
    smallest_batch: int
    loops: int
    calls: int


# Small remote calls, so that one slow answer holds up few; enough of them that one worker alone fills a usual quota.
_API = _Feeding(batch=4, smallest_batch=1, loops=32, calls=32)
# One batch in the engine, and the next one waiting at its door.
_LABELER = _Feeding(batch=512, smallest_batch=64, loops=2, calls=1_024)


@dataclass
class _Job:
    """One call on its way to an answer, shared by all who asked it."""

    call: Call
    answer: asyncio.Future[Answer]
    queued_at: float
    losses: int = 0


@dataclass
class _Worker:
    name: str
    actor: Any
    started_at: float
    held: dict[str, _Job] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    up: bool = False
    draining: bool = False
    gone: bool = False


class CallPool:
    """One endpoint, or one model that local labelers load."""

    def __init__(
        self,
        endpoint: EndpointConfig,
        account: Account,
        price: Price | None,
        ledger: LedgerHandle,
        name: str,
        *,
        replay: bool,
        retry_refused: bool,
    ) -> None:
        # Workers know what a reply costs from the config alone.
        priced = {"price": None if price is None else price.usd_per_million}
        self._endpoint = endpoint.model_copy(update=priced)
        self._price = price
        self._account = account
        self._ledger = ledger
        self._name = name
        self._replay = replay
        self._address = endpoint_identity(endpoint)
        self._local = endpoint.base_url is None
        self._feeding = _LABELER if self._local else _API
        self._limiter = None if self._local or replay else Limiter(endpoint)
        self._lookup: Coalescer[str, Reply | Refusal | None] = Coalescer(self._look_up)
        self._refusals = not retry_refused
        self._queue: deque[_Job] = deque()
        self._jobs: dict[str, _Job] = {}
        self._arrived = asyncio.Event()
        self._workers: list[_Worker] = []
        self._spawned = 0
        self._start_deaths = 0
        self._slack = Slack()
        self._latency = MeanLatency()
        self._scaler: asyncio.Task[None] | None = None
        self._fault: Exception | None = None
        self._spent = ""
        self._export = Exporter(run=account.run, judge=name)
        self.calls = 0
        self.cost_usd = 0.0

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        return len(self._jobs) - len(self._queue)

    @property
    def actors(self) -> int:
        return len(self._workers)

    async def ask(self, requests: Sequence[Request], purpose: str) -> list[Answer]:
        """One answer a request, in order. What the ledger holds is not asked for again.

        Raises UserError where no call can succeed until the user acts, or, in a replay, where the ledger lacks one.
        """
        return list(await asyncio.gather(*(self._ask(request, purpose) for request in requests)))

    async def release(self, holders: Sequence[str]) -> None:
        """These workers of a pool before this one died: what they were given to send with is free again."""
        if self._limiter is not None:
            for holder in holders:
                await self._limiter.release(holder)

    def stop(self) -> list[str]:
        """End the workers and return their names. Calls under way are given up, and count as ambiguous."""
        names = [worker.name for worker in self._workers]
        self._fail(RuntimeError("the judge pool was stopped"))
        return names

    async def _ask(self, request: Request, purpose: str) -> Answer:
        key = call_key(self._endpoint.model, self._address, request)
        job = self._jobs.get(key)
        if job is None:
            stored = await self._lookup(key)
            if stored is not None:
                self._export.add(metrics.JUDGE_CACHE_HITS)
                return answer_of(key, stored, cached=True)
            job = self._jobs.get(key)  # another question may have brought it meanwhile
        if job is not None:
            self._export.add(metrics.JUDGE_CACHE_HITS)
            return replace(await asyncio.shield(job.answer), cached=True, attempts=0)
        if self._price is None:
            return await self._enqueue(Call(key, request, purpose, 0.0, ""))
        worst_usd = worst_cost_usd(self._price.usd_per_million, request)
        return await self._enqueue(Call(key, request, purpose, worst_usd, self._price.source))

    async def _enqueue(self, call: Call) -> Answer:
        if self._fault is not None:
            raise self._fault
        if self._replay:
            raise NotInLedger(
                f"judge.replay: the ledger holds no reply of {self._endpoint.model} to call {call.key[:12]} "
                f"({call.purpose}); run once without judge.replay to buy what is missing"
            )
        if self._spent:
            return Answer(call.key, None, Outcome.OVER_BUDGET, self._spent)
        if self._scaler is None:
            self._scaler = self._run(self._keep_scale())
        job = _Job(call, asyncio.get_running_loop().create_future(), time.monotonic())
        self._jobs[call.key] = job
        self._queue.append(job)
        self._arrived.set()
        answer = await job.answer
        if answer.reply is not None and not answer.cached:
            self.calls += 1
            self.cost_usd += answer.reply.cost_usd or 0.0
            self._latency.hear(answer.reply.latency_s)
            self._tell_of(answer.reply)
        return answer

    async def _look_up(self, keys: list[str]) -> list[Reply | Refusal | None]:
        found = await self._ledger.call("lookup", keys, self._refusals)
        return [found.get(key) for key in keys]

    async def _keep_scale(self) -> None:
        while self._fault is None:
            await self._scale()
            await asyncio.sleep(_TICK_S)

    async def _scale(self) -> None:
        now = time.monotonic()
        actors = self._endpoint.actors
        bounds = Bounds(actors.min, actors.max, self._feeding.calls, self._allowed())
        active = [worker for worker in self._workers if not worker.draining]
        load = Load(
            queued=self.queued,
            oldest_s=now - self._queue[0].queued_at if self._queue else 0.0,
            in_flight=self.in_flight,
            actors=len(active),
            starting_s=starting_s([None if worker.up else worker.started_at for worker in active], now),
            idle_s=self._slack.seconds(len(self._jobs), len(active), bounds, now),
            throttled=bool(self._queue and self._limiter is not None and await self._limiter.throttled()),
        )
        wanted = wanted_actors(load, bounds)
        self._tell(load, wanted)
        for _ in range(wanted - len(active)):
            self._spawn()
        # The least busy go, and finish what they hold first.
        for worker in sorted(active, key=lambda worker: len(worker.held))[: max(0, len(active) - wanted)]:
            worker.draining = True
        for worker in [worker for worker in self._workers if worker.draining and not worker.held]:
            logger.info("%s has nothing to do and ends", worker.name)
            self._dismiss(worker)

    def _allowed(self) -> int | None:
        endpoint = self._endpoint
        if self._local:
            return None
        return allowed_in_flight(
            endpoint.max_concurrency, endpoint.requests_per_minute, self._latency.seconds, self._feeding.calls
        )

    def _tell(self, load: Load, wanted: int) -> None:
        export = self._export
        export.set(metrics.JUDGE_QUEUED, load.queued)
        export.set(metrics.JUDGE_OLDEST_TIME, time.time() - load.oldest_s if load.queued else 0.0)
        export.set(metrics.JUDGE_IN_FLIGHT, load.in_flight)
        export.set(metrics.JUDGE_ACTORS_WANTED, wanted)
        export.set(metrics.JUDGE_ACTORS, sum(worker.up for worker in self._workers))

    def _tell_of(self, reply: Reply) -> None:
        export = self._export
        export.add(metrics.JUDGE_CALLS)
        export.add(metrics.JUDGE_COST, reply.cost_usd or 0.0)
        export.add(metrics.JUDGE_TOKENS, reply.prompt_tokens, direction="prompt")
        export.add(metrics.JUDGE_TOKENS, reply.completion_tokens, direction="completion")
        export.observe(metrics.JUDGE_LATENCY, reply.latency_s)

    def _spawn(self) -> None:
        name = f"{self._name}-{self._spawned}"
        self._spawned += 1
        kind = LabelerWorker if self._local else ApiWorker
        try:
            actor = spawn(kind, name, self._endpoint.actors, args=(self._endpoint, self._account, self._ledger))
        except ValueError:
            # A pool that died left a worker of this name, and Ray has not buried it yet: the next number will do.
            return
        worker = _Worker(name, actor, time.monotonic())
        self._workers.append(worker)
        worker.tasks.append(self._run(self._open(worker)))

    async def _open(self, worker: _Worker) -> None:
        try:
            opening = asyncio.ensure_future(worker.actor.open.remote())
            while not (await asyncio.wait([opening], timeout=_PATIENCE_S))[0]:
                logger.warning(
                    "%s is not up after %.0f s: it wants %g CPUs and %g GPUs, and %s are free",
                    worker.name,
                    _PATIENCE_S,
                    self._endpoint.actors.cpus,
                    self._endpoint.actors.gpus,
                    ray.available_resources(),
                )
            await opening
        except ACTOR_DEATHS as error:
            self._start_deaths += 1
            if self._start_deaths >= _MAX_LOSSES:
                self._fail(RuntimeError(f"{self._start_deaths} judge actors in a row died while starting: {error}"))
            else:
                await self._lose(worker, error)
            return
        self._start_deaths = 0
        worker.up = True
        worker.tasks.extend(self._run(self._feed(worker)) for _ in range(self._feeding.loops))

    async def _feed(self, worker: _Worker) -> None:
        """One of a worker's loops: take calls, hand them over, pass the answers on."""
        while True:
            jobs = await self._take(worker)
            worker.held.update({job.call.key: job for job in jobs})
            try:
                batch: Batch = await worker.actor.judge.remote([job.call for job in jobs])
            except ACTOR_DEATHS as error:
                await self._lose(worker, error)
                return
            for answer in batch.answers:
                worker.held.pop(answer.key, None)
                self._resolve(answer)
            if batch.spent and not self._spent:
                self._halt(batch.spent)

    async def _take(self, worker: _Worker) -> list[_Job]:
        """Up to a batch of calls, fewer where the rest would leave other loops without."""
        while worker.draining or not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        loops = max(1, sum(worker.up for worker in self._workers)) * self._feeding.loops
        share = max(self._feeding.smallest_batch, math.ceil(len(self._queue) / loops))
        return [self._queue.popleft() for _ in range(min(share, self._feeding.batch, len(self._queue)))]

    async def _lose(self, worker: _Worker, error: Exception) -> None:
        """A worker died: what it held goes to others, unless its reply had reached the ledger."""
        if worker.gone:
            return
        logger.warning("%s died and is replaced: %s", worker.name, " ".join(str(error).split())[:200])
        held = list(worker.held.values())
        worker.held.clear()
        self._dismiss(worker, keep=asyncio.current_task())
        holder = worker.actor._actor_id.hex()
        if self._limiter is not None:
            await self._limiter.release(holder)
            await self._ledger.call("release", holder)
        for job in reversed(held):
            job.losses += 1
            if job.losses >= _MAX_LOSSES:
                reason = f"{job.losses} judge actors died on this call"
                self._resolve(Answer(job.call.key, None, Outcome.FAILED, reason))
            else:
                # Where its reply had reached the ledger, the next worker is told so.
                self._queue.appendleft(job)
        self._arrived.set()

    def _halt(self, reason: str) -> None:
        """The account has no quota left: nothing more is sent, and what waits is told so."""
        self._spent = reason
        for worker in self._workers:
            worker.actor.halt.remote(reason)
        while self._queue:
            self._resolve(Answer(self._queue.popleft().call.key, None, Outcome.OVER_BUDGET, reason))

    def _dismiss(self, worker: _Worker, keep: asyncio.Task[None] | None = None) -> None:
        worker.gone = True
        self._workers.remove(worker)
        for task in worker.tasks:
            if task is not keep:
                task.cancel()
        ray.kill(worker.actor)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """What a task raises is no call's fault but everyone's: a refused key, a broken ledger, or a defect."""
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._fail(cause_of(error))

    def _resolve(self, answer: Answer) -> None:
        job = self._jobs.pop(answer.key, None)
        if job is not None and not job.answer.done():
            job.answer.set_result(answer)

    def _fail(self, error: Exception) -> None:
        """Tell everyone who waits, and end the workers."""
        if self._fault is None:
            self._fault = error
        for job in self._jobs.values():
            if not job.answer.done():
                job.answer.set_exception(error)
                job.answer.exception()  # whoever asked may be gone; that is no second fault
        self._jobs.clear()
        self._queue.clear()
        for worker in list(self._workers):
            self._dismiss(worker, keep=asyncio.current_task())


def cause_of(error: Exception) -> Exception:
    """The user's error without Ray's traceback, as one sentence is all it should be; any other error as it came."""
    cause = error
    while isinstance(cause, RayTaskError) and isinstance(cause.cause, Exception):
        cause = cause.cause
    for kind in (UserError, Stopped):
        if isinstance(cause, kind):
            return kind(*cause.args)
    return error

"""The judge pool: pairs in, preferences out, over judge actors that come with the backlog and go with the lull.

The pool decides nothing about pacing, money or reading: those are the limiter's, the ledger's and the library's. It
renders questions, asks each only once, hands them to workers, and takes back the work of a worker that died.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.judge_workers import ApiWorker, Call, CallResult, LabelerWorker
from actors.ledger import start_ledger
from actors.limiter import Limiter
from actors.spawn import spawn
from rlaif_ray.config import ActorResources, JudgeConfig, UserError
from rlaif_ray.judge.aggregate import both_orders
from rlaif_ray.judge.autoscale import Bounds, Load, wanted_actors
from rlaif_ray.judge.choice import ChoiceReading, read_choice
from rlaif_ray.judge.control import COIN_FLIP, flip_coin
from rlaif_ray.judge.ledger import (
    LedgerTotals,
    Reply,
    Sampling,
    call_key,
    cost_usd,
    expected_tokens,
    local_endpoint,
    worst_prompt_tokens,
)
from rlaif_ray.judge.progress import JudgeProgress
from rlaif_ray.judge.templates import JudgeTemplate, load_template
from rlaif_ray.records import Judgement, Order, Outcome, Pair, Preference
from rlaif_ray.toyworld.headlines import model_path

logger = logging.getLogger(__name__)

_SAMPLING = Sampling()

# Pairs that are rendered and looked up at a time, so that workers start before the last question is written.
_PAIRS_AT_A_TIME = 256

_TICK_S = 0.1

# Calls that the pool holds open at a time: each `label` is one, and asking for progress must not queue behind them.
_CALLS_AT_A_TIME = 1_000

# A worker that is not up after so long is said to be missing, every so long.
_PATIENCE_S = 30.0

# Ray frees the name of a killed actor a moment later.
_ENDING_S = 10.0

# A call that so many workers died on is at fault itself; so many workers that died before they were up are a fault of
# the machine or the model.
_MAX_LOSSES = 3


@dataclass(frozen=True, slots=True)
class _Feeding:
    """How a kind of worker is fed: `loops` remote calls under way at a time, of up to `batch` questions each."""

    batch: int
    smallest_batch: int
    loops: int

    @property
    def calls(self) -> int:
        return self.batch * self.loops


# Small remote calls, so that one slow answer holds up few; enough of them to cover the whole round trip.
_API = _Feeding(batch=4, smallest_batch=1, loops=32)
# One batch in the engine, and the next one waiting at its door.
_LABELER = _Feeding(batch=512, smallest_batch=64, loops=2)


@dataclass
class _Job:
    """One question on its way to an answer, shared by all who asked it."""

    call: Call
    answer: asyncio.Future[CallResult]
    queued_at: float
    losses: int = 0


@dataclass
class _Worker:
    name: str
    actor: Any
    held: dict[str, _Job] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    up: bool = False
    gone: bool = False


@dataclass(frozen=True, slots=True)
class _Question:
    pair: Pair
    order: Order
    call: Call


class JudgePool:
    """An asyncio actor that owns the judge actors. `Judges` is its handle."""

    def __init__(
        self, config: JudgeConfig, endpoint: str, template: JudgeTemplate, seed: int, ledger: Any, name: str
    ) -> None:
        self._config = config
        self._template = template
        self._seed = seed
        self._ledger = ledger
        self._name = name
        self._local = config.base_url is None
        self._feeding = _LABELER if self._local else _API
        self._endpoint = endpoint
        self._limiter = None if self._local else Limiter(config)
        self._queue: deque[_Job] = deque()
        self._jobs: dict[str, _Job] = {}
        self._arrived = asyncio.Event()
        self._workers: list[_Worker] = []
        self._spawned = 0
        self._start_deaths = 0
        self._slack_since: float | None = None
        self._scaler: asyncio.Task[None] | None = None
        self._fault: Exception | None = None
        self._outcomes: Counter[Outcome] = Counter()
        self._cached = 0
        self._calls = 0
        self._cost_usd = 0.0

    async def label(self, pairs: Sequence[Pair], purpose: str) -> list[Preference]:
        """One preference a pair, in order, from a judgement in each presentation order. Replies that the ledger holds
        are not asked for again.

        Raises UserError where no call can succeed until the user acts.
        """
        if self._config.control == COIN_FLIP:
            return [self._flip(pair) for pair in pairs]
        if self._scaler is None:
            self._scaler = asyncio.create_task(self._keep_scale())
        waiting: list[asyncio.Task[list[Preference]]] = []
        for start in range(0, len(pairs), _PAIRS_AT_A_TIME):
            questions = self._questions(pairs[start : start + _PAIRS_AT_A_TIME], purpose)
            known = await self._ledger.lookup.remote(list({question.call.key for question in questions}))
            answers = [self._answer(question.call, known.get(question.call.key)) for question in questions]
            waiting.append(asyncio.create_task(self._preferences(questions, answers)))
        return [preference for batch in await asyncio.gather(*waiting) for preference in batch]

    async def progress(self) -> JudgeProgress:
        return JudgeProgress(
            scored=self._outcomes[Outcome.SCORED],
            abstained=self._outcomes[Outcome.ABSTAINED],
            failed=self._outcomes[Outcome.FAILED],
            over_budget=self._outcomes[Outcome.OVER_BUDGET],
            cached=self._cached,
            calls=self._calls,
            cost_usd=self._cost_usd,
            queued=len(self._queue),
            in_flight=len(self._jobs) - len(self._queue),
            actors=len(self._workers),
        )

    async def stop(self) -> list[str]:
        """End the workers and return their names. Calls under way are given up, and count as ambiguous."""
        names = [worker.name for worker in self._workers]
        self._fail(RuntimeError("the judge pool was stopped"))
        return names

    def _flip(self, pair: Pair) -> Preference:
        ab, ba = (flip_coin(pair, order, self._seed, time.time()) for order in (Order.AB, Order.BA))
        self._outcomes[Outcome.SCORED] += 2
        return both_orders(pair, ab, ba)

    def _questions(self, pairs: Sequence[Pair], purpose: str) -> list[_Question]:
        """Two a pair: AB, then BA."""
        questions = []
        for pair in pairs:
            for order in (Order.AB, Order.BA):
                messages = self._template.messages(pair, order)
                price = self._config.price
                call = Call(
                    key=call_key(self._config.model, self._endpoint, messages, _SAMPLING),
                    messages=messages,
                    purpose=purpose,
                    worst_usd=0.0
                    if price is None
                    else cost_usd(price, worst_prompt_tokens(messages), _SAMPLING.max_tokens),
                    expected_tokens=expected_tokens(messages, _SAMPLING),
                )
                questions.append(_Question(pair, order, call))
        return questions

    def _answer(self, call: Call, known: Reply | None) -> tuple[asyncio.Future[CallResult], bool]:
        """The answer to come, and whether it costs this question nothing: it is known, or another asked it first."""
        future: asyncio.Future[CallResult] = asyncio.get_running_loop().create_future()
        if known is not None:
            future.set_result(CallResult(call.key, known))
            return future, True
        if self._fault is not None:
            future.set_exception(self._fault)
            return future, False
        job = self._jobs.get(call.key)
        if job is not None:
            return job.answer, True
        job = _Job(call, future, time.monotonic())
        self._jobs[call.key] = job
        self._queue.append(job)
        self._arrived.set()
        return job.answer, False

    async def _preferences(
        self, questions: Sequence[_Question], answers: Sequence[tuple[asyncio.Future[CallResult], bool]]
    ) -> list[Preference]:
        judgements = [
            self._judgement(question, await future, cached)
            for question, (future, cached) in zip(questions, answers, strict=True)
        ]
        return [
            both_orders(question.pair, ab, ba)
            for question, ab, ba in zip(questions[::2], judgements[::2], judgements[1::2], strict=True)
        ]

    def _judgement(self, question: _Question, result: CallResult, cached: bool) -> Judgement:
        reply = result.reply
        if reply is not None:
            reading = read_choice(reply.text, self._template.labels, self._config.min_label_mass)
        else:
            reading = ChoiceReading(result.no_reply or Outcome.FAILED, result.reason)
        self._outcomes[reading.outcome] += 1
        if reply is not None and cached:
            self._cached += 1
        elif reply is not None:
            self._calls += 1
            self._cost_usd += reply.cost_usd or 0.0
        return Judgement(
            pair_id=question.pair.id,
            order=question.order,
            outcome=reading.outcome,
            reason=reading.reason,
            p_first=reading.p_first,
            logprob_first=reading.logprob_first,
            logprob_second=reading.logprob_second,
            label_mass=reading.label_mass,
            judge_prompt="\n\n".join(message.content for message in question.call.messages),
            raw_reply="" if reply is None else reply.text,
            judge=self._config.model,
            template_hash=self._template.hash,
            ledger_key=question.call.key,
            cache_hit=cached and reply is not None,
            prompt_tokens=0 if reply is None else reply.prompt_tokens,
            completion_tokens=0 if reply is None else reply.completion_tokens,
            cost_usd=None if reply is None else reply.cost_usd,
            latency_s=0.0 if reply is None else reply.latency_s,
            created_at=time.time() if reply is None else reply.created_at,
        )

    # The workers' side: everything below runs in tasks of the pool's own, and what goes wrong there reaches `label`
    # through the answers' futures.

    async def _keep_scale(self) -> None:
        try:
            while self._fault is None:
                await self._scale()
                await asyncio.sleep(_TICK_S)
        except Exception as error:  # whatever it is, those who wait for answers must hear of it
            self._fail(error)

    async def _scale(self) -> None:
        now = time.monotonic()
        in_flight = len(self._jobs) - len(self._queue)
        bounds = Bounds(self._config.actors.min, self._config.actors.max, self._feeding.calls)
        if len(self._jobs) > (len(self._workers) - 1) * bounds.calls_per_actor:
            self._slack_since = None
        elif self._slack_since is None:
            self._slack_since = now
        load = Load(
            queued=len(self._queue),
            oldest_s=now - self._queue[0].queued_at if self._queue else 0.0,
            in_flight=in_flight,
            actors=len(self._workers),
            idle_s=0.0 if self._slack_since is None else now - self._slack_since,
            throttled=bool(self._queue and self._limiter is not None and await self._limiter.throttled()),
        )
        wanted = wanted_actors(load, bounds)
        for _ in range(wanted - len(self._workers)):
            self._spawn()
        idle = [worker for worker in self._workers if worker.up and not worker.held]
        for worker in idle[: max(0, len(self._workers) - wanted)]:
            logger.info("%s has nothing to do and ends", worker.name)
            self._dismiss(worker)

    def _spawn(self) -> None:
        name = f"{self._name}-{self._spawned}"
        self._spawned += 1
        kind = LabelerWorker if self._local else ApiWorker
        actor = spawn(kind, name, self._config.actors, args=(self._config, _SAMPLING, self._ledger))
        worker = _Worker(name, actor)
        self._workers.append(worker)
        worker.tasks.append(asyncio.create_task(self._open(worker)))

    async def _open(self, worker: _Worker) -> None:
        try:
            opening = asyncio.ensure_future(worker.actor.open.remote())
            while not (await asyncio.wait([opening], timeout=_PATIENCE_S))[0]:
                logger.warning(
                    "%s is not up after %.0f s: it wants %g CPUs and %g GPUs, and %s are free",
                    worker.name,
                    _PATIENCE_S,
                    self._config.actors.cpus,
                    self._config.actors.gpus,
                    ray.available_resources(),
                )
            await opening
        except RayActorError as error:
            self._start_deaths += 1
            if self._start_deaths >= _MAX_LOSSES:
                self._fail(RuntimeError(f"{self._start_deaths} judge actors in a row died while starting: {error}"))
            else:
                await self._lose(worker, error)
            return
        except Exception as error:  # it cannot start, and neither could the next one
            self._fail(_cause_of(error))
            return
        self._start_deaths = 0
        worker.up = True
        worker.tasks.extend(asyncio.create_task(self._feed(worker)) for _ in range(self._feeding.loops))

    async def _feed(self, worker: _Worker) -> None:
        """One of a worker's loops: take questions, hand them over, pass the answers on."""
        while True:
            jobs = await self._take()
            worker.held.update({job.call.key: job for job in jobs})
            try:
                results = await worker.actor.judge.remote([job.call for job in jobs])
            except RayActorError as error:
                await self._lose(worker, error)
                return
            except Exception as error:  # not the call's fault but everyone's: a refused key, or a defect
                self._fail(_cause_of(error))
                return
            for result in results:
                worker.held.pop(result.key, None)
                self._resolve(result)

    async def _take(self) -> list[_Job]:
        """Up to a batch of questions, fewer where the rest would leave other loops without."""
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        loops = max(1, sum(worker.up for worker in self._workers)) * self._feeding.loops
        share = max(self._feeding.smallest_batch, math.ceil(len(self._queue) / loops))
        return [self._queue.popleft() for _ in range(min(share, self._feeding.batch, len(self._queue)))]

    async def _lose(self, worker: _Worker, error: Exception) -> None:
        """A worker died. What it had stored is taken from the ledger; the rest goes back to the queue's head."""
        if worker.gone:
            return
        held = list(worker.held.values())
        logger.warning("%s died with %d calls in hand, which others take over: %s", worker.name, len(held), error)
        worker.held.clear()
        self._dismiss(worker, keep=asyncio.current_task())
        if self._limiter is not None:
            await self._limiter.release(worker.actor._actor_id.hex())
        stored = await self._ledger.lookup.remote([job.call.key for job in held]) if held else {}
        for job in reversed(held):
            key = job.call.key
            job.losses += 1
            if key in stored:
                self._resolve(CallResult(key, stored[key]))
            elif job.losses >= _MAX_LOSSES:
                reason = f"{job.losses} judge actors died on this call"
                self._resolve(CallResult(key, None, Outcome.FAILED, reason))
            else:
                self._queue.appendleft(job)
        self._arrived.set()

    def _dismiss(self, worker: _Worker, keep: asyncio.Task[None] | None = None) -> None:
        worker.gone = True
        self._workers.remove(worker)
        for task in worker.tasks:
            if task is not keep:
                task.cancel()
        ray.kill(worker.actor)

    def _resolve(self, result: CallResult) -> None:
        job = self._jobs.pop(result.key, None)
        if job is not None and not job.answer.done():
            job.answer.set_result(result)

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


class Judges:
    """The pool as a stage calls it, from the driver or from any actor."""

    def __init__(self, name: str, pool: Any, ledger: Any) -> None:
        self._name = name
        self._pool = pool
        self._ledger = ledger
        self._stopped = False

    async def label(self, pairs: Sequence[Pair], purpose: str) -> list[Preference]:
        """One preference a pair, in order. `purpose` is noted with what is paid, such as "collect".

        Raises UserError where no call can succeed until the user acts; what was answered by then is kept.
        """
        return list(await _unwrapped(self._pool.label.remote(pairs, purpose)))

    async def progress(self) -> JudgeProgress:
        progress: JudgeProgress = await _unwrapped(self._pool.progress.remote())
        return progress

    async def totals(self) -> LedgerTotals:
        """What the run's ledger has seen, over all its resumptions."""
        totals: LedgerTotals = await _unwrapped(self._ledger.totals.remote())
        return totals

    async def stop(self) -> None:
        """End the pool, its workers and the ledger's owner. Their names are free when it returns."""
        if self._stopped:
            return
        self._stopped = True
        ended = await _unwrapped(self._pool.stop.remote())
        await _unwrapped(self._ledger.close.remote())
        ray.kill(self._pool)
        ray.kill(self._ledger)
        for _ in range(round(_ENDING_S / _TICK_S)):
            if not any(_is_taken(name) for name in (self._name, *ended)):
                return
            await asyncio.sleep(_TICK_S)
        logger.warning("the names of %s are not free after %.0f s", self._name, _ENDING_S)


def start_judges(config: JudgeConfig, *, seed: int, ledger_path: Path, name: str = "judge") -> Judges:
    """Start a pool: the actor `NAME-pool`, and `NAME-0`, `NAME-1`, ... as they are needed. `seed` is the control's.

    Raises UserError where the template is wrong or the toy world has no such model.
    """
    template = load_template(config.template)
    endpoint = config.base_url or local_endpoint(model_path(config.model))
    ledger = start_ledger(ledger_path, config.budget_usd)
    pool_name = f"{name}-pool"
    pool = spawn(
        JudgePool,
        pool_name,
        ActorResources(cpus=0),
        args=(config, endpoint, template, seed, ledger, name),
        concurrency=_CALLS_AT_A_TIME,
    )
    return Judges(pool_name, pool, ledger)


def _is_taken(name: str) -> bool:
    try:
        ray.get_actor(name)
    except ValueError:
        return False
    return True


async def _unwrapped(reference: Any) -> Any:
    try:
        return await reference
    except RayTaskError as error:
        raise _cause_of(error) from None


def _cause_of(error: Exception) -> Exception:
    """The user's error without Ray's traceback, as one sentence is all it should be; any other error as it came."""
    cause = error
    while isinstance(cause, RayTaskError) and isinstance(cause.cause, Exception):
        cause = cause.cause
    return UserError(*cause.args) if isinstance(cause, UserError) else error

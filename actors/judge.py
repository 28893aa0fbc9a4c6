"""The judge pool: pairs in, preferences out. One actor holds the panel that decides what is asked, and the calls of
every judge that it asks."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from actors.call_pool import CallPool, cause_of
from actors.exporting import Exporter
from actors.ledger import LedgerHandle, ledger_here
from actors.spawn import spawn
from rlaif_ray import metrics
from rlaif_ray.config import ActorResources, JudgeConfig, Stopped
from rlaif_ray.judge.guard import abstention_stop, abstention_warning
from rlaif_ray.judge.ledger import Account, LedgerTotals
from rlaif_ray.judge.offline import prices_of
from rlaif_ray.judge.panel import Panel
from rlaif_ray.judge.prices import Price
from rlaif_ray.judge.progress import JudgeProgress
from rlaif_ray.judge.request import Answer, Request
from rlaif_ray.records import AnswerScore, AnswerToScore, Judgement, Outcome, Pair, Preference, RubricScore

logger = logging.getLogger(__name__)

# Pairs under way at a time: enough to fill every worker, few enough to hold in memory.
_PAIRS_AT_A_TIME = 2_048

# Calls that the pool holds open at a time: each `label` is one, and asking for progress must not queue behind them.
_CALLS_AT_A_TIME = 1_000

# An attempt of a caller that was not heard of for so long beyond its timeout is nobody's.
_PATIENCE_MARGIN_S = 15.0

# Ray frees the name of a killed actor a moment later.
_ENDING_S = 10.0
_TICK_S = 0.1


class JudgePool:
    """An asyncio actor. `Judges` is its handle."""

    def __init__(
        self,
        config: JudgeConfig,
        prices: Sequence[Price | None],
        seed: int,
        run: str,
        ledger: LedgerHandle,
        name: str,
    ) -> None:
        """`prices` are those of `config.judges`."""
        # Hundreds of thousands of records come and go here, none of them in a cycle: looking for cycles among them took
        # a fifth of the time.
        gc.set_threshold(100_000, 50, 100)
        self._config = config
        self._panel = Panel(config, seed, self._ask)
        self._pools = [
            CallPool(
                judge,
                Account(run, config.budget_usd, judge.max_attempts, judge.timeout_s + _PATIENCE_MARGIN_S),
                price,
                ledger,
                name if number == 0 else f"{name}{number + 1}",
                replay=config.replay,
                retry_refused=config.retry_refused,
            )
            for number, (judge, price) in enumerate(zip(config.judges, prices, strict=True))
        ]
        self._run = run
        self._ledger = ledger
        self._export = Exporter(run=run, judge=name)
        self._beginning: asyncio.Task[None] | None = None
        self._window = asyncio.Semaphore(_PAIRS_AT_A_TIME)
        self._outcomes: Counter[Outcome] = Counter()
        self._pairs = self._cached = 0
        self._warned = False

    async def label(self, pairs: Sequence[Pair], purpose: str) -> list[Preference]:
        """One preference a pair, in order. What the ledger holds is not asked for again.

        Raises UserError where no call can succeed until the user acts, and Stopped where the judge abstains too often.
        """
        return list(await asyncio.gather(*(self._compare(pair, purpose) for pair in pairs)))

    async def score(self, answers: Sequence[AnswerToScore], purpose: str) -> list[AnswerScore]:
        """One score an answer, in order. Raises as `label` does."""
        return list(await asyncio.gather(*(self._score(answer, purpose) for answer in answers)))

    async def rubric(self, answers: Sequence[AnswerToScore], purpose: str) -> list[RubricScore]:
        """One score by the rubric an answer, in order. Raises as `label` does."""
        return list(await asyncio.gather(*(self._rubric(answer, purpose) for answer in answers)))

    async def progress(self) -> JudgeProgress:
        return JudgeProgress(
            pairs=self._pairs,
            scored=self._outcomes[Outcome.SCORED],
            abstained=self._outcomes[Outcome.ABSTAINED],
            failed=self._outcomes[Outcome.FAILED],
            over_budget=self._outcomes[Outcome.OVER_BUDGET],
            cached=self._cached,
            calls=sum(pool.calls for pool in self._pools),
            cost_usd=sum(pool.cost_usd for pool in self._pools),
            queued=sum(pool.queued for pool in self._pools),
            in_flight=sum(pool.in_flight for pool in self._pools),
            actors=sum(pool.actors for pool in self._pools),
        )

    async def stop(self) -> list[str]:
        """End the workers and return their names. Calls under way are given up, and count as ambiguous."""
        return [name for pool in self._pools for name in pool.stop()]

    async def _ask(self, judge: int, requests: Sequence[Request], purpose: str) -> Sequence[Answer]:
        if self._beginning is None:
            self._beginning = asyncio.create_task(self._begin())
        await asyncio.shield(self._beginning)
        return await self._pools[judge].ask(requests, purpose)

    async def _begin(self) -> None:
        """A pool that was killed left calls under way, and nobody else waits for them."""
        dead = await self._ledger.call("abandon", self._run)
        for pool in self._pools:
            await pool.release(dead)

    async def _compare(self, pair: Pair, purpose: str) -> Preference:
        async with self._window:
            preference = await self._panel.compare(pair, purpose)
        self._pairs += 1
        self._count(preference.judgements)
        return preference

    async def _score(self, answer: AnswerToScore, purpose: str) -> AnswerScore:
        async with self._window:
            score = await self._panel.score(answer, purpose)
        self._count((score.judgement,))
        return score

    async def _rubric(self, answer: AnswerToScore, purpose: str) -> RubricScore:
        async with self._window:
            score = await self._panel.rubric(answer, purpose)
        self._count(score.judgements)
        return score

    def _count(self, judgements: Sequence[Judgement]) -> None:
        for judgement in judgements:
            self._outcomes[judgement.outcome] += 1
            self._export.add(metrics.JUDGEMENTS, outcome=judgement.outcome)
            self._cached += judgement.cache_hit
        scored, abstained = self._outcomes[Outcome.SCORED], self._outcomes[Outcome.ABSTAINED]
        if not self._warned and (warning := abstention_warning(scored, abstained)) is not None:
            self._warned = True
            logger.warning(warning)
        if judgements[-1].outcome is Outcome.ABSTAINED:
            stop = abstention_stop(scored, abstained, self._config.max_abstained, judgements[-1].reason)
            if stop is not None:
                raise Stopped(stop)


class Judges:
    """The pool as a stage calls it, from the driver or from any actor."""

    def __init__(self, name: str, pool: Any, ledger: LedgerHandle, run: str) -> None:
        self._name = name
        self._pool = pool
        self._ledger = ledger
        self._run = run
        self._stopped = False

    async def label(self, pairs: Sequence[Pair], purpose: str) -> list[Preference]:
        """One preference a pair, in order. `purpose` is noted with what is paid, such as "collect".

        Raises UserError where no call can succeed until the user acts, and Stopped where a guard says so; what was
        answered by then is kept.
        """
        return list(await _unwrapped(self._pool.label.remote(pairs, purpose)))

    async def score(self, answers: Sequence[AnswerToScore], purpose: str) -> list[AnswerScore]:
        """One score an answer, in order. Raises as `label` does."""
        return list(await _unwrapped(self._pool.score.remote(answers, purpose)))

    async def rubric(self, answers: Sequence[AnswerToScore], purpose: str) -> list[RubricScore]:
        """One score by the rubric an answer, in order. Raises as `label` does."""
        return list(await _unwrapped(self._pool.rubric.remote(answers, purpose)))

    async def progress(self) -> JudgeProgress:
        progress: JudgeProgress = await _unwrapped(self._pool.progress.remote())
        return progress

    async def totals(self) -> LedgerTotals:
        """What the run's ledger has seen, over all its resumptions."""
        totals: LedgerTotals = await _unwrapped(self._ledger.call("totals", self._run))
        return totals

    async def stop(self) -> None:
        """End the pool, its workers and, where no other pool uses it, the ledger's owner. Their names are free when it
        returns."""
        if self._stopped:
            return
        self._stopped = True
        ended = await _unwrapped(self._pool.stop.remote())
        await self._ledger.leave(self._name)
        ray.kill(self._pool)
        for _ in range(round(_ENDING_S / _TICK_S)):
            if not any(_is_taken(name) for name in (self._name, *ended)):
                return
            await asyncio.sleep(_TICK_S)
        logger.warning("the names of %s are not free after %.0f s", self._name, _ENDING_S)


async def start_judges(config: JudgeConfig, *, seed: int, run: str, ledger_path: Path, name: str = "judge") -> Judges:
    """Start a pool: the actor `NAME-pool`, and `NAME-0`, `NAME-1`, ... as they are needed. `run` stands for the run and
    its resumptions, whose spending is bounded together.

    Raises UserError where a template or another file of the judge's is wrong, a price that a budget needs is not
    known, the toy world has no such model, or another process holds the ledger.
    """
    prices = prices_of(config)
    Panel(config, seed, _nobody)  # here, so that what is wrong is told before anything starts
    ledger = ledger_here(config.ledger or ledger_path)
    pool_name = f"{name}-pool"
    await _unwrapped(ledger.call("join", pool_name))
    pool = spawn(
        JudgePool,
        pool_name,
        ActorResources(cpus=0),
        args=(config, prices, seed, run, ledger, name),
        # What it was asked is asked again of the next one, which finds in the ledger what was answered.
        restarts=True,
        concurrency=_CALLS_AT_A_TIME,
        # It holds no grant, and a node elsewhere could not go while it is there.
        node=ray.get_runtime_context().get_node_id(),
    )
    return Judges(pool_name, pool, ledger, run)


async def _nobody(judge: int, requests: Sequence[Request], purpose: str) -> Sequence[Answer]:
    raise RuntimeError("nothing is asked before the pool has started")


def _is_taken(name: str) -> bool:
    try:
        ray.get_actor(name)
    except ValueError:
        return False
    return True


async def _unwrapped(awaitable: Any) -> Any:
    try:
        return await awaitable
    except RayTaskError as error:
        raise cause_of(error) from None

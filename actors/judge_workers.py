"""The actors that judge: one calls an API, one holds a local labeler. A pool hands them calls and takes what came."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from actors.coalesce import Coalescer
from actors.limiter import Limiter
from rlaif_ray.config import JudgeConfig, UserError
from rlaif_ray.judge.choice import choice_reply
from rlaif_ray.judge.ledger import Intent, Receipt, Reply, Sampling
from rlaif_ray.judge.rate_limit import Lease, Settlement
from rlaif_ray.judge.retry import RATE_LIMIT_PATIENCE_S, Failure, FailureKind, backoff_s
from rlaif_ray.records import Message, Outcome
from rlaif_ray.toyworld.headlines import model_path

if TYPE_CHECKING:
    from rlaif_ray.engines.vllm_labeler import LabelerReply, VllmLabeler

# What is asked of one GPU beside the model itself is small; the rest is left to whoever shares the card.
_GPU_SHARE = 0.85


@dataclass(frozen=True, slots=True)
class Call:
    """One question to a judge (pool -> worker)."""

    key: str
    messages: tuple[Message, ...]
    purpose: str
    worst_usd: float
    expected_tokens: int


@dataclass(frozen=True, slots=True)
class CallResult:
    """What became of a call (worker -> pool): a reply that the ledger holds, or why there is none."""

    key: str
    reply: Reply | None
    no_reply: Outcome | None = None
    reason: str = ""


class ApiWorker:
    """Calls one endpoint. Paces with the quota's limiter, retries, and writes every step to the ledger."""

    def __init__(self, config: JudgeConfig, sampling: Sampling, ledger: Any) -> None:
        self._config = config
        self._sampling = sampling
        self._ledger = ledger
        self._limiter = Limiter(config)
        self._id = ray.get_runtime_context().get_actor_id()
        self._random = random.Random()
        self._permits: deque[tuple[int, asyncio.Future[Lease]]] = deque()
        self._permit_taker: asyncio.Task[None] | None = None
        self._intend: Coalescer[Intent, int | None] = Coalescer(lambda intents: ledger.intend.remote(intents))
        self._record: Coalescer[Receipt, None] = Coalescer(self._record_all)
        self._settle: Coalescer[Settlement, None] = Coalescer(self._settle_all)

    async def open(self) -> None:
        """Raises UserError where the key is not on this node."""
        # Here and not at the top: a labeler's actor needs no HTTP client.
        from rlaif_ray.judge.client import JudgeClient

        self._client = JudgeClient(self._config)

    async def judge(self, calls: Sequence[Call]) -> list[CallResult]:
        """One result a call, in order. Raises UserError where no call can succeed until the user acts."""
        if self._config.budget_usd is None:
            return list(await asyncio.gather(*(self._ask(call) for call in calls)))
        # Asked first, as what cannot be paid for need not wait for a permit.
        affordable = await self._ledger.affordable.remote([call.worst_usd for call in calls])
        return list(
            await asyncio.gather(
                *(
                    self._ask(call) if fits else _ready(_over_budget(call, self._config))
                    for call, fits in zip(calls, affordable, strict=True)
                )
            )
        )

    async def _ask(self, call: Call) -> CallResult:
        failures = 0
        started = time.monotonic()
        while True:
            attempted = await self._attempt(call)
            if isinstance(attempted, CallResult):
                return attempted
            if attempted.kind is FailureKind.RUN:
                raise UserError(attempted.reason)
            if attempted.kind is FailureKind.ITEM:
                return _failed(call, attempted.reason)
            if attempted.kind is FailureKind.RATE_LIMITED:
                if time.monotonic() - started > RATE_LIMIT_PATIENCE_S:
                    return _failed(call, f"refused for rate over {RATE_LIMIT_PATIENCE_S:.0f} s; {attempted.reason}")
                continue
            failures += 1
            if failures >= self._config.max_attempts:
                return _failed(call, f"failed {failures} times; last: {attempted.reason}")
            wait = backoff_s(failures, self._random.random())
            await asyncio.sleep(max(wait, attempted.retry_after_s or 0.0))

    async def _attempt(self, call: Call) -> CallResult | Failure:
        """Permit, intent, request, receipt: in this order, so that what was sent is known and what came is kept."""
        from rlaif_ray.judge.client import CallFailed

        lease = await self._permit(call.expected_tokens)
        attempt = await self._intend(Intent(call.key, call.purpose, call.worst_usd))
        if attempt is None:
            await self._settle(Settlement(lease, 0, sent=False))
            return _over_budget(call, self._config)
        try:
            reply = await self._client.complete(call.messages, self._sampling)
        except CallFailed as error:
            if error.failure.kind is FailureKind.RATE_LIMITED:
                # Before the lease goes back, so that nobody takes it into the same refusal.
                asked = error.failure.retry_after_s
                await self._limiter.pause(backoff_s(1, 1.0) if asked is None else asked)
            await self._settle(Settlement(lease, lease.tokens))
            await self._ledger.fail.remote([attempt], error.failure.maybe_billed)
            return error.failure
        settled = self._settle(Settlement(lease, reply.prompt_tokens + reply.completion_tokens))
        recorded = self._record(Receipt(call.key, self._config.model, attempt, reply))
        await asyncio.gather(settled, recorded)
        return CallResult(call.key, reply)

    async def _permit(self, tokens: int) -> Lease:
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._permits.append((tokens, future))
        if self._permit_taker is None or self._permit_taker.done():
            self._permit_taker = asyncio.create_task(self._take_permits())
        return await future

    async def _take_permits(self) -> None:
        while self._permits:
            wanted = [tokens for tokens, _ in self._permits]
            try:
                leases = await self._limiter.acquire(self._id, wanted)
            except Exception as error:  # handed on to everyone who waits for a permit
                while self._permits:
                    self._permits.popleft()[1].set_exception(error)
                return
            for lease in leases:
                self._permits.popleft()[1].set_result(lease)

    async def _settle_all(self, settlements: list[Settlement]) -> list[None]:
        await self._limiter.settle(settlements)
        return [None] * len(settlements)

    async def _record_all(self, receipts: list[Receipt]) -> list[None]:
        await self._ledger.record.remote(receipts)
        return [None] * len(receipts)


class LabelerWorker:
    """Holds one local labeler and feeds it batches."""

    def __init__(self, config: JudgeConfig, sampling: Sampling, ledger: Any) -> None:
        self._config = config
        self._sampling = sampling
        self._ledger = ledger
        # The engine lives in one thread: OpenMP's threads belong to the thread that made them.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="labeler")
        self._labeler: VllmLabeler | None = None

    async def open(self) -> None:
        """Load the model."""
        self._labeler = await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    async def judge(self, calls: Sequence[Call]) -> list[CallResult]:
        """One result a call, in order, from one batch of the engine."""
        started = time.perf_counter()
        answers = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._choose, [call.messages for call in calls]
        )
        latency_s = time.perf_counter() - started
        created_at = time.time()
        results = [_labelled(call, answer, latency_s, created_at) for call, answer in zip(calls, answers, strict=True)]
        await self._ledger.record.remote(
            [
                Receipt(result.key, self._config.model, None, result.reply)
                for result in results
                if result.reply is not None
            ]
        )
        return results

    def _load(self) -> VllmLabeler:
        from rlaif_ray.engines.vllm_labeler import VllmLabeler

        return VllmLabeler(
            model_path(self._config.model),
            threads=self._config.actors.threads,
            top_logprobs=self._sampling.top_logprobs,
            gpu_memory_utilization=_GPU_SHARE * min(1.0, self._config.actors.gpus or 1.0),
            trust_remote_code=self._config.trust_remote_code,
        )

    def _choose(self, batch: Sequence[tuple[Message, ...]]) -> list[LabelerReply]:
        if self._labeler is None:
            raise RuntimeError("the labeler was asked before it was opened")
        return self._labeler.choose(batch)


def _labelled(call: Call, answer: LabelerReply, latency_s: float, created_at: float) -> CallResult:
    if answer.refusal:
        return _failed(call, answer.refusal)
    text = choice_reply(answer.top, answer.prompt_tokens)
    reply = Reply(text, answer.prompt_tokens, 1, None, latency_s, created_at)
    return CallResult(call.key, reply)


def _failed(call: Call, reason: str) -> CallResult:
    return CallResult(call.key, None, Outcome.FAILED, reason)


def _over_budget(call: Call, config: JudgeConfig) -> CallResult:
    return CallResult(
        call.key, None, Outcome.OVER_BUDGET, f"judge.budget_usd ({config.budget_usd:g}) would not bear this call"
    )


async def _ready(result: CallResult) -> CallResult:
    return result

"""The actors that judge: one calls an API, one holds a local labeler. A pool hands them calls and takes what came."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import ray

from actors.coalesce import Coalescer
from actors.exporting import Exporter
from actors.ledger import LedgerHandle
from actors.limiter import CallTooLarge, Limiter
from rlaif_ray import metrics
from rlaif_ray.config import EndpointConfig, UserError
from rlaif_ray.judge.ledger import Account, Admission, Intent, Loss, Receipt, Refusal, Verdict, answer_of
from rlaif_ray.judge.rate_limit import Lease, Priority
from rlaif_ray.judge.request import Answer, Reply, Request
from rlaif_ray.judge.retry import RATE_LIMIT_PATIENCE_S, Failure, FailureKind, backoff_s
from rlaif_ray.judge.token_estimate import CallSize, Usage
from rlaif_ray.records import Outcome
from rlaif_ray.toyworld.models import model_path

if TYPE_CHECKING:
    from rlaif_ray.engines.vllm_labeler import VllmLabeler

# What is asked of one GPU beside the model itself is small; the rest is left to whoever shares the card.
_GPU_SHARE = 0.85

# How soon a caller asks again whether reserved money came back, or whether another caller's reply is there.
_WAIT_S = 0.1

# Within this time every worker knows that the account is spent.
_WORD_SPREADS_S = 1.0

# Who goes first where a quota is short: training waits for live rewards, and nobody waits for labels in bulk.
_PRIORITIES = {"reward": Priority.LIVE, "probe": Priority.LIVE, "evaluate": Priority.EVALUATION}


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way (pool -> worker). `worst_usd` is the most that it can cost, by the table `prices`."""

    key: str
    request: Request
    purpose: str
    worst_usd: float
    prices: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of some calls, in order (worker -> pool). `spent` says that the account has no quota left."""

    answers: tuple[Answer, ...]
    spent: str = ""


class ApiWorker:
    """Calls one endpoint. Paces with the quota's limiter, retries, and writes every step to the ledger."""

    def __init__(self, endpoint: EndpointConfig, account: Account, ledger: LedgerHandle) -> None:
        self._endpoint = endpoint
        self._account = account
        self._ledger = ledger
        self._limiter = Limiter(endpoint)
        context = ray.get_runtime_context()
        self._id = context.get_actor_id()
        pool, _, _number = context.get_actor_name().rpartition("-")
        self._export = Exporter(run=account.run, judge=pool)
        self._random = random.Random()
        self._spent = ""
        self._intend: Coalescer[Intent, Admission] = Coalescer(lambda intents: ledger.call("intend", intents, account))
        self._record: Coalescer[Receipt, None] = Coalescer(self._record_all)
        self._lose: Coalescer[Loss, None] = Coalescer(self._lose_all)

    async def open(self) -> None:
        """Raises UserError where the key is not on this node."""
        # Here and not at the top: a labeler's actor needs no HTTP client.
        from rlaif_ray.judge.client import JudgeClient

        self._client = JudgeClient(self._endpoint)

    async def judge(self, calls: Sequence[Call]) -> Batch:
        """One answer a call. Raises UserError where no call can succeed until the user acts."""
        over_budget = [False] * len(calls)
        if self._account.budget_usd is not None:
            # Asked first, as what cannot be paid for need not wait for a permit.
            over_budget = await self._ledger.call("over_budget", [call.worst_usd for call in calls], self._account)
        answers = await asyncio.gather(
            *(
                _ready(self._over_budget(call)) if over else self._ask(call)
                for call, over in zip(calls, over_budget, strict=True)
            )
        )
        return Batch(tuple(answers), self._spent)

    async def halt(self, reason: str) -> None:
        """Send nothing more: the account has no quota left."""
        self._spent = self._spent or reason

    def _is_halted(self) -> bool:
        return bool(self._spent)

    async def _ask(self, call: Call) -> Answer:
        attempts = failures = 0
        started = time.monotonic()
        while not self._is_halted():
            attempted = await self._attempt(call)
            if isinstance(attempted, Answer):
                return replace(attempted, attempts=attempts + attempted.attempts)
            if attempted is None:
                await asyncio.sleep(_WAIT_S)
                continue
            attempts += 1
            if attempted.kind is FailureKind.RUN:
                raise UserError(attempted.reason)
            if attempted.kind is FailureKind.QUOTA:
                break
            if attempted.kind is FailureKind.RATE_LIMITED:
                if time.monotonic() - started > RATE_LIMIT_PATIENCE_S:
                    reason = f"refused for rate over {RATE_LIMIT_PATIENCE_S:.0f} s; {attempted.reason}"
                    return _failed(call, reason, attempts)
            else:
                failures += 1
                if failures >= self._endpoint.max_attempts:
                    return _failed(call, f"failed {failures} times; last: {attempted.reason}", attempts)
                wait = backoff_s(failures, self._random.random())
                await asyncio.sleep(max(wait, attempted.retry_after_s or 0.0))
        return Answer(call.key, None, Outcome.OVER_BUDGET, self._spent, attempts=attempts)

    async def _attempt(self, call: Call) -> Answer | Failure | None:
        """Lease, intent, request, receipt: in this order, so that what was sent is known and what came is kept. None
        where the call has to wait for others."""
        from rlaif_ray.judge.client import CallFailed

        try:
            lease = await self._limiter.grant(CallSize.of(call.request), _PRIORITIES.get(call.purpose, Priority.BULK))
        except CallTooLarge as error:
            return _failed(call, str(error), 0)
        if self._is_halted():
            self._limiter.unsent(lease)
            return None
        try:
            admission = await self._intend(Intent(call.key, call.purpose, self._id, call.worst_usd, call.prices))
        except Exception:
            self._limiter.unsent(lease)
            raise
        if admission.attempt is None:
            self._limiter.unsent(lease)
            return await self._not_sent(call, admission.verdict)
        await self._limiter.turn(lease)
        if self._is_halted():
            self._limiter.unsent(lease)
            await self._lose(Loss(admission.attempt, self._spent, maybe_billed=False))
            return None
        try:
            completion = await self._client.complete(call.request, call.key)
        except CallFailed as error:
            return await self._failed_attempt(call, lease, admission.attempt, error.failure)
        except Exception:
            self._limiter.failed(lease, {})
            raise
        reply = completion.reply
        usage = Usage(reply.prompt_tokens, reply.completion_tokens) if completion.usage_told else None
        self._limiter.replied(lease, usage, completion.headers)
        await self._record(Receipt(call.key, self._endpoint.model, admission.attempt, reply))
        return Answer(call.key, reply, attempts=1)

    async def _not_sent(self, call: Call, verdict: Verdict) -> Answer | None:
        if verdict is Verdict.ANSWERED:
            stored = await self._ledger.call("lookup", [call.key])
            return answer_of(call.key, stored[call.key], cached=True)
        if verdict is Verdict.OVER_BUDGET:
            return self._over_budget(call)
        if verdict is Verdict.GIVEN_UP:
            return _failed(
                call, f"{self._account.ambiguous_bound} attempts were lost on the way and may have been billed", 0
            )
        return None

    async def _failed_attempt(self, call: Call, lease: Lease, attempt: int, failure: Failure) -> Answer | Failure:
        self._export.add(metrics.JUDGE_FAILED_ATTEMPTS, kind=failure.kind)
        if failure.kind is FailureKind.QUOTA:
            # At once, and without giving the lease back before the word has spread: nothing more may go out, here or
            # from a worker that does not know yet.
            self._spent = failure.reason
            asyncio.get_running_loop().call_later(_WORD_SPREADS_S, self._limiter.failed, lease, failure.headers)
        elif failure.kind is FailureKind.RATE_LIMITED:
            self._limiter.refused(lease, failure.headers)
        else:
            self._limiter.failed(lease, failure.headers)
        if failure.refused:
            refusal = Refusal(failure.reason)
            await self._record(Receipt(call.key, self._endpoint.model, attempt, refusal))
            return answer_of(call.key, refusal, attempts=1)
        await self._lose(Loss(attempt, failure.reason, failure.maybe_billed))
        return _failed(call, failure.reason, 1) if failure.kind is FailureKind.ITEM else failure

    async def _record_all(self, receipts: list[Receipt]) -> list[None]:
        await self._ledger.call("record", receipts)
        return [None] * len(receipts)

    async def _lose_all(self, losses: list[Loss]) -> list[None]:
        await self._ledger.call("lose", losses)
        return [None] * len(losses)

    def _over_budget(self, call: Call) -> Answer:
        reason = f"judge.budget_usd ({self._account.budget_usd:g}) would not bear this call"
        return Answer(call.key, None, Outcome.OVER_BUDGET, reason)


class LabelerWorker:
    """Holds one local labeler and feeds it batches."""

    def __init__(self, endpoint: EndpointConfig, account: Account, ledger: LedgerHandle) -> None:
        self._endpoint = endpoint
        self._ledger = ledger
        # The engine lives in one thread: OpenMP's threads belong to the thread that made them.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="labeler")
        self._labeler: VllmLabeler | None = None

    async def open(self) -> None:
        """Load the model."""
        self._labeler = await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    async def judge(self, calls: Sequence[Call]) -> Batch:
        """One answer a call, from one batch of the engine."""
        outcomes = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._complete, [call.request for call in calls]
        )
        await self._ledger.call(
            "record",
            [
                Receipt(call.key, self._endpoint.model, None, outcome)
                for call, outcome in zip(calls, outcomes, strict=True)
            ],
        )
        return Batch(
            tuple(answer_of(call.key, outcome, attempts=1) for call, outcome in zip(calls, outcomes, strict=True))
        )

    def _load(self) -> VllmLabeler:
        from rlaif_ray.engines.vllm_labeler import VllmLabeler

        return VllmLabeler(
            model_path(self._endpoint.model),
            threads=self._endpoint.actors.threads,
            max_context_tokens=self._endpoint.max_context_tokens,
            gpu_memory_utilization=_GPU_SHARE * min(1.0, self._endpoint.actors.gpus or 1.0),
            trust_remote_code=self._endpoint.trust_remote_code,
            workers=self._endpoint.actors.workers,
        )

    def _complete(self, requests: Sequence[Request]) -> list[Reply | Refusal]:
        if self._labeler is None:
            raise RuntimeError("the labeler was asked before it was opened")
        return self._labeler.complete(requests)


def _failed(call: Call, reason: str, attempts: int) -> Answer:
    return Answer(call.key, None, Outcome.FAILED, reason, attempts=attempts)


async def _ready(answer: Answer) -> Answer:
    return answer

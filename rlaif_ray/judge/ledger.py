"""The durable record of what was asked of judges, what they answered and what it cost.

One SQLite file. An attempt is written before its request is sent, and its reply before the reply is used, so that no
received reply is lost or bought twice, and what a crash leaves unknown is counted. Replies are addressed by content: a
second run asks nothing, and runs may share a file. Keys of APIs never come near it.
"""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from rlaif_ray.config import UserError
from rlaif_ray.judge.request import Answer, Reply
from rlaif_ray.records import Outcome

# Money is counted in whole picodollars: a price per million tokens is then whole for one token, and sums are exact.
_PICO = 10**12

# SQLite binds at most 32,766 variables to a statement.
_LOOKUP_BATCH = 10_000

_SCHEMA_VERSION = 2
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    run TEXT NOT NULL,
    purpose TEXT NOT NULL,
    holder TEXT NOT NULL,
    state TEXT NOT NULL,
    cost INTEGER NOT NULL,
    prompt_tokens INTEGER,
    cached_tokens INTEGER,
    completion_tokens INTEGER,
    reasoning_tokens INTEGER,
    prices TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    created_at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS attempts_under_way ON attempts (key) WHERE state = 'intended';
CREATE INDEX IF NOT EXISTS attempts_ambiguous ON attempts (key) WHERE state = 'ambiguous';
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    refused INTEGER NOT NULL,
    text TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    cost INTEGER,
    latency_s REAL NOT NULL,
    created_at REAL NOT NULL
) WITHOUT ROWID;
PRAGMA user_version = {_SCHEMA_VERSION};
"""


class NotInLedger(UserError):
    """Nobody may be asked, and the ledger lacks a reply."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who pays. `run` stands for a run and its resumptions; `budget_usd` bounds what they spend, None does not.

    `ambiguous_bound` is how many attempts of one call may stay unknown before it is given up; an attempt of a caller
    that has not been heard of for `patience_s` counts as unknown.
    """

    run: str
    budget_usd: float | None
    ambiguous_bound: int
    patience_s: float


@dataclass(frozen=True, slots=True)
class Intent:
    """A call about to be sent. `worst_usd` is the most that it can cost, `prices` where that figure is from, `holder`
    the id of the actor that sends."""

    key: str
    purpose: str
    holder: str
    worst_usd: float
    prices: str


class Verdict(StrEnum):
    """What the ledger says to an intent."""

    SEND = "send"
    ANSWERED = "answered"  # it is here already
    WAIT = "wait"  # money is reserved that may come back, or another caller has it under way: ask again soon
    OVER_BUDGET = "over_budget"
    GIVEN_UP = "given_up"  # too many attempts were lost on the way and may have been billed


@dataclass(frozen=True, slots=True)
class Admission:
    """`attempt` is the id to close with `SEND`."""

    verdict: Verdict
    attempt: int | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an endpoint said to a request that it will not have. It is kept as a reply is: it would say so again."""

    reason: str


def answer_of(key: str, outcome: Reply | Refusal, *, cached: bool = False, attempts: int = 0) -> Answer:
    """What the ledger holds, as the answer to a request."""
    if isinstance(outcome, Refusal):
        return Answer(key, None, Outcome.FAILED, outcome.reason, refused=True, cached=cached, attempts=attempts)
    return Answer(key, outcome, cached=cached, attempts=attempts)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What came back. `attempt` is the id that its intent was given; None where nothing was paid for."""

    key: str
    model: str
    attempt: int | None
    outcome: Reply | Refusal


@dataclass(frozen=True, slots=True)
class Loss:
    """An attempt that brought nothing. `maybe_billed`: it may have been answered unseen, and counts at its worst."""

    attempt: int
    reason: str
    maybe_billed: bool


@dataclass(frozen=True, slots=True)
class AmbiguousCall:
    """An attempt that may have been answered and billed, unseen."""

    key: str
    run: str
    purpose: str
    worst_usd: float
    reason: str
    created_at: float


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    """What one run and its resumptions did, and what the file holds."""

    replies: int  # in the file, whoever bought them
    calls: int  # answered attempts of the run
    ambiguous: int  # attempts of the run that may have been answered and billed, unseen
    spent_usd: float  # known costs, and ambiguous attempts at their worst
    reserved_usd: float  # attempts under way, at their worst


@dataclass
class _Money:
    """Of one run, in picodollars."""

    spent: int
    reserved: int


class Ledger:
    """The open file. Not for concurrent use; one process owns it at a time."""

    def __init__(self, path: Path, *, lock_patience_s: float = 0.0) -> None:
        """Open or create. Waits up to `lock_patience_s` for another process to let go, then raises UserError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = path.with_name(path.name + ".lock").open("w")
        deadline = time.monotonic() + lock_patience_s
        while not _lock(self._lock):
            if time.monotonic() >= deadline:
                self._lock.close()
                raise UserError(f"{path}: another run has this ledger open; wait for it, or set another run_dir")
            time.sleep(0.1)
        self._database = _open(path)
        # Whoever wrote these intents is gone, and nobody knows whether their requests were answered.
        self._database.execute(
            "UPDATE attempts SET state = 'ambiguous', reason = 'the process that kept the ledger ended' "
            "WHERE state = 'intended'"
        )
        self._money: dict[str, _Money] = {}

    def lookup(self, keys: Sequence[str], *, refusals: bool = True) -> dict[str, Reply | Refusal]:
        """What is already here, by key; without refusals where they are to be asked again."""
        found: dict[str, Reply | Refusal] = {}
        for start in range(0, len(keys), _LOOKUP_BATCH):
            batch = keys[start : start + _LOOKUP_BATCH]
            marks = ",".join("?" * len(batch))
            rows = self._database.execute(
                "SELECT key, refused, text, prompt_tokens, completion_tokens, cost, latency_s, created_at, "
                f"cached_tokens, reasoning_tokens FROM replies WHERE key IN ({marks})",
                batch,
            )
            for key, refused, text, prompt_tokens, completion_tokens, cost, *rest in rows:
                if not refused:
                    known_cost = None if cost is None else cost / _PICO
                    found[key] = Reply(text, prompt_tokens, completion_tokens, known_cost, *rest)
                elif refusals:
                    found[key] = Refusal(text)
        return found

    def over_budget(self, worst_usd: Sequence[float], account: Account) -> list[bool]:
        """Whether each call alone would be refused for good now."""
        money = self._money_of(account.run)
        return [not _bears(account, money.spent + _pico(worst)) for worst in worst_usd]

    def intend(self, intents: Sequence[Intent], account: Account, now: float) -> list[Admission]:
        """Write intents durably, in one commit. Only those admitted with `SEND` may be sent."""
        with self._transaction():
            return [self._admit(intent, account, now) for intent in intents]

    def record(self, receipts: Sequence[Receipt]) -> None:
        """Keep what came, durably, in one commit. The first reply to a key stays; every one is paid for."""
        with self._transaction():
            for receipt in receipts:
                self._keep(receipt)

    def buy(self, receipt: Receipt, run: str, prices: str) -> None:
        """Keep what was bought elsewhere, in a batch: an attempt of the run that is answered as it is written. What is
        here already changes nothing."""
        with self._transaction():
            known = self._number("SELECT count(*) FROM replies WHERE key = ? AND refused = 0", receipt.key)
            if known:
                return
            cursor = self._database.execute(
                "INSERT INTO attempts (key, run, purpose, holder, state, cost, prices, created_at) "
                "VALUES (?, ?, 'batch', '', 'intended', 0, ?, ?)",
                (receipt.key, run, prices, time.time()),
            )
            self._keep(replace(receipt, attempt=cursor.lastrowid))

    def lose(self, losses: Sequence[Loss]) -> None:
        """Close attempts that brought nothing, in one commit: free where the endpoint did not take them."""
        with self._transaction():
            for loss in losses:
                if loss.maybe_billed:
                    self._close(loss.attempt, "ambiguous", None, loss.reason)
                else:
                    self._close(loss.attempt, "failed", 0, loss.reason)

    def release(self, holder: str) -> None:
        """A caller died: what it had under way may have been answered."""
        with self._transaction():
            rows = self._database.execute(
                "SELECT id FROM attempts WHERE holder = ? AND state = 'intended'", (holder,)
            ).fetchall()
            for (attempt,) in rows:
                self._close(attempt, "ambiguous", None, "its caller died")

    def abandon(self, run: str) -> list[str]:
        """All callers of a run died: what they had under way may have been answered. Returns who they were."""
        with self._transaction():
            rows = self._database.execute(
                "SELECT id, holder FROM attempts WHERE run = ? AND state = 'intended'", (run,)
            ).fetchall()
            for attempt, _ in rows:
                self._close(attempt, "ambiguous", None, "its caller died")
        return sorted({holder for _, holder in rows})

    def ambiguous(self) -> list[AmbiguousCall]:
        """Every attempt in the file that may have been answered and billed, unseen."""
        rows = self._database.execute(
            "SELECT key, run, purpose, cost, reason, created_at FROM attempts WHERE state = 'ambiguous' ORDER BY id"
        )
        return [
            AmbiguousCall(key, run, purpose, cost / _PICO, reason, created_at)
            for key, run, purpose, cost, reason, created_at in rows
        ]

    def totals(self, run: str) -> LedgerTotals:
        """Counts and sums of a run."""
        money = self._money_of(run)
        return LedgerTotals(
            replies=self._number("SELECT count(*) FROM replies WHERE refused = 0"),
            calls=self._number("SELECT count(*) FROM attempts WHERE state = 'answered' AND run = ?", run),
            ambiguous=self._number("SELECT count(*) FROM attempts WHERE state = 'ambiguous' AND run = ?", run),
            spent_usd=self.spent_usd(run),
            reserved_usd=money.reserved / _PICO,
        )

    def spent_usd(self, run: str) -> float:
        """Known costs of a run, and ambiguous attempts at their worst."""
        return self._money_of(run).spent / _PICO

    def close(self) -> None:
        self._database.close()
        self._lock.close()

    def _keep(self, receipt: Receipt) -> None:
        outcome = receipt.outcome
        if isinstance(outcome, Refusal):
            reply, refused = Reply(outcome.reason, 0, 0, None, 0.0, time.time()), True
        else:
            reply, refused = outcome, False
        cost = None if reply.cost_usd is None else _pico(reply.cost_usd)
        if receipt.attempt is not None:
            reason = reply.text if refused else ""
            self._close(receipt.attempt, "refused" if refused else "answered", cost or 0, reason, reply)
        self._database.execute(
            "INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
            "model = excluded.model, refused = excluded.refused, text = excluded.text, "
            "prompt_tokens = excluded.prompt_tokens, cached_tokens = excluded.cached_tokens, "
            "completion_tokens = excluded.completion_tokens, reasoning_tokens = excluded.reasoning_tokens, "
            "cost = excluded.cost, latency_s = excluded.latency_s, created_at = excluded.created_at "
            "WHERE refused = 1",
            (
                receipt.key,
                receipt.model,
                refused,
                reply.text,
                reply.prompt_tokens,
                reply.cached_tokens,
                reply.completion_tokens,
                reply.reasoning_tokens,
                cost,
                reply.latency_s,
                reply.created_at,
            ),
        )

    def _admit(self, intent: Intent, account: Account, now: float) -> Admission:
        if self._number("SELECT count(*) FROM replies WHERE key = ? AND refused = 0", intent.key):
            return Admission(Verdict.ANSWERED)
        if self._is_under_way(intent, account, now):
            return Admission(Verdict.WAIT)
        lost = self._number("SELECT count(*) FROM attempts WHERE key = ? AND state = 'ambiguous'", intent.key)
        if lost >= account.ambiguous_bound:
            return Admission(Verdict.GIVEN_UP)
        worst = _pico(intent.worst_usd)
        money = self._money_of(account.run)
        if not _bears(account, money.spent + worst):
            return Admission(Verdict.OVER_BUDGET)
        if not _bears(account, money.spent + money.reserved + worst):
            return Admission(Verdict.WAIT)
        cursor = self._database.execute(
            "INSERT INTO attempts (key, run, purpose, holder, state, cost, prices, created_at) "
            "VALUES (?, ?, ?, ?, 'intended', ?, ?, ?)",
            (intent.key, account.run, intent.purpose, intent.holder, worst, intent.prices, now),
        )
        money.reserved += worst
        return Admission(Verdict.SEND, cursor.lastrowid)

    def _is_under_way(self, intent: Intent, account: Account, now: float) -> bool:
        """Whether another living caller has sent the same. An attempt of this very caller is one that it no longer
        knows of, as the answer to its intent was lost; it counts as ambiguous."""
        rows = self._database.execute(
            "SELECT id, holder, created_at FROM attempts WHERE key = ? AND state = 'intended'", (intent.key,)
        ).fetchall()
        alive = False
        for attempt, holder, created_at in rows:
            if holder != intent.holder and now - created_at < account.patience_s:
                alive = True
            else:
                self._close(attempt, "ambiguous", None, "its caller was not heard of again")
        return alive

    def _close(self, attempt: int, state: str, cost: int | None, reason: str, reply: Reply | None = None) -> None:
        """End an attempt at a cost; None keeps its worst. Its state may be ambiguous already, after a reopening."""
        row = self._database.execute("SELECT run, state, cost FROM attempts WHERE id = ?", (attempt,)).fetchone()
        if row is None:
            raise KeyError(f"the ledger knows no attempt {attempt}")
        run, previous_state, held = row
        final = held if cost is None else cost
        money = self._money_of(run)
        if previous_state == "intended":
            money.reserved -= held
        elif previous_state in ("answered", "ambiguous"):
            money.spent -= held
        money.spent += final
        tokens = (
            (None, None, None, None)
            if reply is None
            else (reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens, reply.reasoning_tokens)
        )
        self._database.execute(
            "UPDATE attempts SET state = ?, cost = ?, reason = ?, prompt_tokens = ?, cached_tokens = ?, "
            "completion_tokens = ?, reasoning_tokens = ? WHERE id = ?",
            (state, final, reason, *tokens, attempt),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One durable commit; where the body raises, nothing of it stays."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            self._money.clear()
            raise

    def _money_of(self, run: str) -> _Money:
        money = self._money.get(run)
        if money is None:
            sums = "SELECT sum(cost) FROM attempts WHERE run = ? AND state "
            money = self._money[run] = _Money(
                self._number(sums + "IN ('answered', 'ambiguous')", run), self._number(sums + "= 'intended'", run)
            )
        return money

    def _number(self, query: str, *values: Any) -> int:
        return int(self._database.execute(query, values).fetchone()[0] or 0)


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        empty = not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not empty and version != _SCHEMA_VERSION:
            raise UserError(
                f"{path}: is a ledger of version {version}, and this release writes version {_SCHEMA_VERSION}; "
                "finish that run with the release that began it, or set another run_dir"
            )
        database.execute("PRAGMA synchronous=FULL")
        database.executescript(_SCHEMA)
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path}: is not a ledger ({error}); move it away, or set another run_dir") from None
    return database


def _bears(account: Account, picodollars: int) -> bool:
    return account.budget_usd is None or picodollars <= _pico(account.budget_usd)


def _lock(file: IO[str]) -> bool:
    """Lock a file for this process, if nobody else has it. The system lets go for a process that dies."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pico(dollars: float) -> int:
    return round(dollars * _PICO)

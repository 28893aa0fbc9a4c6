"""The durable record of what was asked of judges, what they answered and what it cost.

One SQLite file. An attempt is written before its request is sent, and its reply before the reply is used, so that no
received reply is lost or bought twice, and what a crash leaves unknown is counted. Replies are addressed by content: a
second run asks nothing. Keys of APIs never come near it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rlaif_ray.config import PriceConfig, UserError
from rlaif_ray.records import Message

# Money is counted in whole picodollars: a price per million tokens is then whole for one token, and sums are exact.
_PICO = 10**12
_MICRO = 10**6

# SQLite binds at most 32,766 variables to a statement.
_LOOKUP_BATCH = 10_000

_MODEL_FILES = frozenset({".json", ".safetensors", ".bin", ".model", ".jinja", ".txt"})
_TAIL_BYTES = 2**20

_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    purpose TEXT NOT NULL,
    state TEXT NOT NULL,
    cost INTEGER NOT NULL,
    created_at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS attempts_under_way ON attempts (key) WHERE state = 'intended';
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    text TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cost INTEGER,
    latency_s REAL NOT NULL,
    created_at REAL NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a judge is asked to answer; part of a call's identity."""

    temperature: float = 0.0
    max_tokens: int = 1
    top_logprobs: int = 20


@dataclass(frozen=True, slots=True)
class Intent:
    """A call about to be sent. `worst_usd` is the most that it can cost."""

    key: str
    purpose: str
    worst_usd: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What one call brought back. `text` is raw; the cost is None for a local labeler."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    latency_s: float
    created_at: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Receipt:
    """A reply to keep. `attempt` is the id that its intent was given; None where nothing was paid for."""

    key: str
    model: str
    attempt: int | None
    reply: Reply


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    """What the file has seen since it was created."""

    replies: int
    ambiguous: int  # attempts that may have been answered and billed, unseen
    spent_usd: float  # known costs, and ambiguous attempts at their worst
    reserved_usd: float  # attempts under way, at their worst


def call_key(model: str, endpoint: str, messages: Sequence[Message], sampling: Sampling) -> str:
    """The identity of a call: SHA-256 of its canonical JSON."""
    return _digest(
        {
            "endpoint": endpoint,
            "messages": [[message.role, message.content] for message in messages],
            "model": model,
            "sampling": [sampling.temperature, sampling.max_tokens, sampling.top_logprobs],
        }
    )


def local_endpoint(model: str) -> str:
    """What stands for the endpoint of a local labeler: where the model is a directory, a fingerprint of what lies
    there, so that a retrained judge under the same path is another judge."""
    directory = Path(model)
    if not directory.is_dir():
        return "local"
    digest = hashlib.sha256()
    for file in sorted(directory.glob("*")):
        if file.suffix in _MODEL_FILES:
            with file.open("rb") as content:
                # Training moves every weight, so a large file's end tells two of them apart.
                content.seek(max(0, file.stat().st_size - _TAIL_BYTES))
                digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + content.read())
    return f"local:{digest.hexdigest()[:16]}"


def cost_usd(price: PriceConfig, prompt_tokens: int, completion_tokens: int) -> float:
    """What so many tokens cost."""
    return (prompt_tokens * _pico_per_token(price.input) + completion_tokens * _pico_per_token(price.output)) / _PICO


def expected_tokens(messages: Sequence[Message], sampling: Sampling) -> int:
    """A guess at what a call uses, prompt and answer, to be settled with what it did use."""
    return sampling.max_tokens + sum(len(message.content) // 4 + 8 for message in messages)


def worst_prompt_tokens(messages: Sequence[Message]) -> int:
    """An upper bound on a conversation's tokens, without its tokenizer: a token covers at least one byte; a chat
    template adds its own."""
    return 128 + sum(len(message.content.encode()) + 16 for message in messages)


class Ledger:
    """The open file. Not for concurrent use; one process owns it at a time.

    budget_usd bounds everything that the file's runs spend: an intent that could break it is refused.
    """

    def __init__(self, path: Path, budget_usd: float | None, *, lock_patience_s: float = 0.0) -> None:
        """Open or create. Waits up to `lock_patience_s` for another process to let go, then raises UserError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = path.with_name(path.name + ".lock").open("w")
        deadline = time.monotonic() + lock_patience_s
        while not _lock(self._lock):
            if time.monotonic() >= deadline:
                self._lock.close()
                raise UserError(f"{path}: another run has this ledger open; wait for it, or set another run_dir")
            time.sleep(0.1)
        self._budget = None if budget_usd is None else _pico(budget_usd)
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(_SCHEMA)
        # Whoever wrote these intents is gone, and nobody knows whether their requests were answered.
        self._database.execute("UPDATE attempts SET state = 'ambiguous' WHERE state = 'intended'")
        self._spent = self._reserved = 0
        self._count_money()

    def lookup(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The replies that are already here, by key."""
        found: dict[str, Reply] = {}
        for start in range(0, len(keys), _LOOKUP_BATCH):
            batch = keys[start : start + _LOOKUP_BATCH]
            marks = ",".join("?" * len(batch))
            rows = self._database.execute(
                "SELECT key, text, prompt_tokens, completion_tokens, cost, latency_s, created_at "
                f"FROM replies WHERE key IN ({marks})",
                batch,
            )
            for key, text, prompt_tokens, completion_tokens, cost, latency_s, created_at in rows:
                known_cost = None if cost is None else cost / _PICO
                found[key] = Reply(text, prompt_tokens, completion_tokens, known_cost, latency_s, created_at)
        return found

    def affordable(self, worst_usd: Sequence[float]) -> list[bool]:
        """Whether each call alone would be admitted now."""
        return [self._fits(_pico(worst)) for worst in worst_usd]

    def intend(self, intents: Sequence[Intent], now: float) -> list[int | None]:
        """Write intents durably, in one commit, and return their attempts' ids; None for one over the budget.

        An intent whose key has an attempt under way replaces it: its sender is gone, and it counts as ambiguous.
        """
        attempts: list[int | None] = []
        with self._transaction():
            for intent in intents:
                self._abandon(intent.key)
                worst = _pico(intent.worst_usd)
                if not self._fits(worst):
                    attempts.append(None)
                    continue
                cursor = self._database.execute(
                    "INSERT INTO attempts (key, purpose, state, cost, created_at) VALUES (?, ?, 'intended', ?, ?)",
                    (intent.key, intent.purpose, worst, now),
                )
                attempts.append(cursor.lastrowid)
                self._reserved += worst
        return attempts

    def record(self, receipts: Sequence[Receipt]) -> None:
        """Keep replies durably, in one commit. The first reply to a key stays; every one is paid for."""
        with self._transaction():
            for receipt in receipts:
                reply = receipt.reply
                cost = None if reply.cost_usd is None else _pico(reply.cost_usd)
                if receipt.attempt is not None:
                    self._close(receipt.attempt, "answered", cost or 0)
                self._database.execute(
                    "INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
                    (
                        receipt.key,
                        receipt.model,
                        reply.text,
                        reply.prompt_tokens,
                        reply.completion_tokens,
                        cost,
                        reply.latency_s,
                        reply.created_at,
                    ),
                )

    def fail(self, attempts: Sequence[int], *, maybe_billed: bool) -> None:
        """Close attempts that brought no reply: free when the endpoint refused them, else ambiguous, at their worst."""
        with self._transaction():
            for attempt in attempts:
                if maybe_billed:
                    self._close(attempt, "ambiguous", None)
                else:
                    self._close(attempt, "refused", 0)

    def totals(self) -> LedgerTotals:
        """Counts and sums over the whole file."""
        return LedgerTotals(
            replies=self._sum("SELECT count(*) FROM replies"),
            ambiguous=self._sum("SELECT count(*) FROM attempts WHERE state = 'ambiguous'"),
            spent_usd=self._spent / _PICO,
            reserved_usd=self._reserved / _PICO,
        )

    def close(self) -> None:
        self._database.close()
        self._lock.close()

    def _fits(self, worst: int) -> bool:
        return self._budget is None or self._spent + self._reserved + worst <= self._budget

    def _close(self, attempt: int, state: str, cost: int | None) -> None:
        """End an attempt at a cost; None keeps its worst. Its state may be ambiguous already, after a reopening."""
        row = self._database.execute("SELECT state, cost FROM attempts WHERE id = ?", (attempt,)).fetchone()
        if row is None:
            raise KeyError(f"the ledger knows no attempt {attempt}")
        previous_state, held = row
        final = held if cost is None else cost
        if previous_state == "intended":
            self._reserved -= held
        elif previous_state in ("answered", "ambiguous"):
            self._spent -= held
        self._spent += final
        self._database.execute("UPDATE attempts SET state = ?, cost = ? WHERE id = ?", (state, final, attempt))

    def _abandon(self, key: str) -> None:
        """Count a key's attempt under way, if there is one, as ambiguous."""
        rows = self._database.execute("SELECT id FROM attempts WHERE key = ? AND state = 'intended'", (key,)).fetchall()
        for (attempt,) in rows:
            self._close(attempt, "ambiguous", None)

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
            self._count_money()
            raise

    def _count_money(self) -> None:
        self._spent = self._sum("SELECT sum(cost) FROM attempts WHERE state IN ('answered', 'ambiguous')")
        self._reserved = self._sum("SELECT sum(cost) FROM attempts WHERE state = 'intended'")

    def _sum(self, query: str) -> int:
        return int(self._database.execute(query).fetchone()[0] or 0)


def _lock(file: IO[str]) -> bool:
    """Lock a file for this process, if nobody else has it. The system lets go for a process that dies."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _digest(identity: object) -> str:
    text = json.dumps(identity, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _pico(dollars: float) -> int:
    return round(dollars * _PICO)


def _pico_per_token(dollars_per_million: float) -> int:
    return round(dollars_per_million * _PICO / _MICRO)

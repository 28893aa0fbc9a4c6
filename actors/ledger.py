"""The one owner of a ledger file. Its methods take lists, and each list is one durable commit."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from actors.exporting import Exporter
from actors.spawn import shared
from rlaif_ray import metrics
from rlaif_ray.judge.ledger import Account, Admission, Intent, Ledger, LedgerTotals, Loss, Receipt, Refusal
from rlaif_ray.judge.request import Reply

# The owner that a killed run left behind ends within seconds.
_LOCK_PATIENCE_S = 20.0


class LedgerActor:
    """A `Ledger`, opened at its first use, so that a file in use elsewhere is told to the caller. The pools of all runs
    that name the file share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pools: set[str] = set()
        self._accounts: dict[str, Account] = {}

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger(self._path, lock_patience_s=_LOCK_PATIENCE_S)

    def lookup(self, keys: Sequence[str], refusals: bool = True) -> dict[str, Reply | Refusal]:
        return self._ledger.lookup(keys, refusals=refusals)

    def over_budget(self, worst_usd: Sequence[float], account: Account) -> list[bool]:
        return self._ledger.over_budget(worst_usd, account)

    def intend(self, intents: Sequence[Intent], account: Account) -> list[Admission]:
        self._accounts[account.run] = account
        return self._ledger.intend(intents, account, time.time())

    def record(self, receipts: Sequence[Receipt]) -> None:
        self._ledger.record(receipts)
        self._tell()

    def lose(self, losses: Sequence[Loss]) -> None:
        self._ledger.lose(losses)
        self._tell()

    def release(self, holder: str) -> None:
        self._ledger.release(holder)

    def abandon(self, run: str) -> list[str]:
        return self._ledger.abandon(run)

    def totals(self, run: str) -> LedgerTotals:
        return self._ledger.totals(run)

    def join(self, pool: str) -> None:
        """A pool begins to use the file. Raises UserError where another process holds it."""
        self._pools.add(pool)
        _ = self._ledger

    def leave(self, pool: str) -> bool:
        """A pool has ended. Closes the file, and says so, when it was the last."""
        self._pools.discard(pool)
        if not self._pools:
            self._ledger.close()
        return not self._pools

    def _tell(self) -> None:
        """What those who buy here have spent so far."""
        for run, account in self._accounts.items():
            export = Exporter(run=run)
            export.set(metrics.JUDGE_SPENT, self._ledger.spent_usd(run))
            if account.budget_usd is not None:
                export.set(metrics.JUDGE_BUDGET, account.budget_usd)


class LedgerHandle:
    """The file's owner as pools and workers call it, from any node. The first to call starts it, on the file's node.

    It ends with the job that started it; another job that shares the file then starts it anew.
    """

    def __init__(self, path: Path, node: str) -> None:
        self._path = path
        self._node = node
        self._actor = self._connect()

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the actor's handle, which Ray would lose with the arguments of an actor that it starts again.
        return LedgerHandle, (self._path, self._node)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call one of `LedgerActor`'s methods."""
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except RayActorError:
            self._actor = self._connect()
            return await getattr(self._actor, method).remote(*arguments)

    async def leave(self, pool: str) -> None:
        """End the owner where no other pool uses it."""
        if await self.call("leave", pool):
            ray.kill(self._actor)

    def _connect(self) -> Any:
        name = hashlib.sha256(str(self._path).encode()).hexdigest()[:8]
        # A repeated intent counts its first attempt as ambiguous, and a repeated receipt changes nothing.
        return shared(LedgerActor, f"ledger-{name}", args=(self._path,), node=self._node)


def ledger_here(path: Path) -> LedgerHandle:
    """The handle of a file on this node."""
    return LedgerHandle(path.resolve(), ray.get_runtime_context().get_node_id())

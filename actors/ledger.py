"""The one owner of a run's ledger file. Its methods take lists, and each list is one durable commit."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.limiter import NAMESPACE
from rlaif_ray.judge.ledger import Intent, Ledger, LedgerTotals, Receipt, Reply

# The owner that a killed run left behind ends within seconds.
_LOCK_PATIENCE_S = 20.0


class LedgerActor:
    """A `Ledger`, opened at its first use, so that a file in use elsewhere is told to the caller."""

    def __init__(self, path: Path, budget_usd: float | None) -> None:
        self._path = path
        self._budget_usd = budget_usd

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger(self._path, self._budget_usd, lock_patience_s=_LOCK_PATIENCE_S)

    def lookup(self, keys: Sequence[str]) -> dict[str, Reply]:
        return self._ledger.lookup(keys)

    def affordable(self, worst_usd: Sequence[float]) -> list[bool]:
        return self._ledger.affordable(worst_usd)

    def intend(self, intents: Sequence[Intent]) -> list[int | None]:
        return self._ledger.intend(intents, time.time())

    def record(self, receipts: Sequence[Receipt]) -> None:
        self._ledger.record(receipts)

    def fail(self, attempts: Sequence[int], maybe_billed: bool) -> None:
        self._ledger.fail(attempts, maybe_billed=maybe_billed)

    def totals(self) -> LedgerTotals:
        return self._ledger.totals()

    def close(self) -> None:
        self._ledger.close()


def start_ledger(path: Path, budget_usd: float | None) -> Any:
    """The handle of the file's owner, on this node, as the file is here; the one that runs already, if one does."""
    resolved = path.resolve()
    name = hashlib.sha256(str(resolved).encode()).hexdigest()[:8]
    node = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(LedgerActor)
        .options(
            name=f"ledger-{name}",
            namespace=NAMESPACE,
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            # A repeated intent counts its first attempt as ambiguous, and a repeated receipt changes nothing.
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False),
        )
        .remote(resolved, budget_usd)
    )

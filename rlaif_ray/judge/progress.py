"""How far a judge pool has come."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JudgeProgress:
    """Counts since the pool started, in judgements (most pairs have two), and what it holds now."""

    pairs: int  # that have their outcome

    scored: int
    abstained: int
    failed: int
    over_budget: int
    cached: int  # of the scored, abstained and failed: those whose reply was in the ledger
    calls: int  # replies that were asked for and came, cached ones not among them
    cost_usd: float  # of those calls; 0 for local labelers and where no price is known
    queued: int
    in_flight: int
    actors: int

    @property
    def done(self) -> int:
        return self.scored + self.abstained + self.failed + self.over_budget

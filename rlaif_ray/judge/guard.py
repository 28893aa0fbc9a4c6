"""When a judge that keeps abstaining must be looked at: pure decisions on counts."""

from __future__ import annotations

# Fewer judgements say nothing about a share.
_ENOUGH = 200

# From this share on, the run says so.
_SUSPICIOUS = 0.02


def abstention_warning(scored: int, abstained: int) -> str | None:
    """A sentence where the judge abstains suspiciously often, else None."""
    judged = scored + abstained
    if judged < _ENOUGH or abstained <= _SUSPICIOUS * judged:
        return None
    return f"the judge abstained from {abstained:,} of {judged:,} judgements; their reasons stand in the judgements"


def abstention_stop(scored: int, abstained: int, bound: float, reason: str) -> str | None:
    """Why the run must stop, where more than the share `bound` of the judgements are abstentions, else None."""
    judged = scored + abstained
    if judged < _ENOUGH or abstained <= bound * judged:
        return None
    return (
        f"the judge abstained from {abstained:,} of {judged:,} judgements, more than judge.max_abstained={bound:g} "
        f"allows (the last: {reason}); change the template or the judge, or raise that bound"
    )

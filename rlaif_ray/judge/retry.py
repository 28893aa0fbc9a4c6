"""What a failed call means, and how long to wait before the next: pure, with clock and randomness handed in."""

from __future__ import annotations

import email.utils
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0

# A server that asks for a longer pause than this is as good as down for the run.
LONGEST_RETRY_AFTER_S = 600.0

# Refusals for rate say nothing against a call, so they are bounded by time and not by attempts.
RATE_LIMIT_PATIENCE_S = 900.0

_TRANSIENT = frozenset({408, 409, 425})
_ITEM_FATAL = frozenset({400, 413, 422})
_RUN_FATAL = {
    401: "judge.api_key_env: the endpoint refuses the key; set the variable to a valid one",
    403: "judge.api_key_env: the key may not use this judge; give it access, or set judge.model to one it may use",
    404: "judge.model or judge.base_url: the endpoint does not know them; check the model's name and the address",
}
_QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_NO_QUOTA = "judge.api_key_env: the account behind the key has no quota left; add credit, then run the same command"


class FailureKind(StrEnum):
    """What to do about a failed call."""

    RATE_LIMITED = "rate_limited"  # every caller pauses, then the call goes again
    TRANSIENT = "transient"  # the call goes again after a backoff
    ITEM = "item"  # this call will never succeed
    RUN = "run"  # no call will succeed until the user acts


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call. `retry_after_s` is what the server asked for; None where it asked for nothing."""

    kind: FailureKind
    reason: str
    retry_after_s: float | None = None
    maybe_billed: bool = False  # the request may have been answered after all, unseen


def classify_status(status: int, code: str | None, message: str, headers: Mapping[str, str], now: float) -> Failure:
    """What an HTTP error means. `now` is in seconds since the epoch, for dates in Retry-After.

    The structured code decides whether a 429 is a spent account; its wording does not, as some providers call a
    concurrency cap a quota.
    """
    reason = f"HTTP {status}: {message}"
    if status == 429 and code in _QUOTA_CODES:
        return Failure(FailureKind.RUN, f"{_NO_QUOTA} ({reason})")
    if status == 429:
        return Failure(FailureKind.RATE_LIMITED, reason, retry_after_s(headers, now))
    if status in _RUN_FATAL:
        return Failure(FailureKind.RUN, f"{_RUN_FATAL[status]} ({reason})")
    if status in _TRANSIENT or status >= 500:
        return Failure(FailureKind.TRANSIENT, reason, retry_after_s(headers, now))
    if status in _ITEM_FATAL:
        return Failure(FailureKind.ITEM, reason)
    return Failure(FailureKind.ITEM, f"unexpected {reason}")


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, then `Retry-After` in seconds or as an HTTP date.

    Header names in lower case. None where nothing usable is there; some servers send -1.
    """
    wait = _seconds(headers.get("retry-after-ms"), scale=1e-3)
    if wait is None:
        text = headers.get("retry-after")
        wait = _seconds(text, scale=1.0)
        if wait is None and text is not None:
            wait = _until_date(text, now)
    return None if wait is None else min(wait, LONGEST_RETRY_AFTER_S)


def backoff_s(failures: int, uniform: float) -> float:
    """Full jitter: uniform in [0, min(longest, first * 2^(failures - 1))]. `failures` counts from 1; `uniform` is
    drawn from [0, 1)."""
    return uniform * min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (failures - 1))


def _seconds(text: str | None, scale: float) -> float | None:
    if text is None:
        return None
    try:
        value = float(text) * scale
    except ValueError:
        return None
    return value if value >= 0 and math.isfinite(value) else None


def _until_date(text: str, now: float) -> float | None:
    try:
        date = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.fromtimestamp(now, UTC)).total_seconds())

"""What a failed call means, and how long to wait before the next: pure, with clock and randomness handed in."""

from __future__ import annotations

import email.utils
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0

# A server that asks for a longer pause than this is as good as down for the run.
LONGEST_RETRY_AFTER_S = 600.0

# Refusals for rate say nothing against a call, so they are bounded by time and not by attempts.
RATE_LIMIT_PATIENCE_S = 900.0

_TRANSIENT = frozenset({408, 409, 425})
_REFUSED = frozenset({400, 413, 422})
_KEY = "judge.api_key_env or judge.api_key_file"
_RUN_FATAL = {
    401: f"{_KEY}: the endpoint refuses the key; give a valid one",
    403: f"{_KEY}: the key may not use this judge; give it access, or set judge.model to one it may use",
    404: "judge.model or judge.base_url: the endpoint does not know them; check the model's name and the address",
    405: "judge.base_url: the address takes no chat completions; it usually ends in /v1",
}
_MOVED = "judge.base_url: the endpoint redirects to another address; set that one, as a key is not sent after it"
_NO_QUOTA = f"{_KEY}: the account behind the key has no quota left; add credit, then run the same command"

# An error's `code` or `type` where an account is spent, at OpenAI, Anthropic, DeepSeek, Moonshot and Alibaba.
_QUOTA_CODES = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "billing_error",
        "insufficient_balance",
        "exceeded_current_quota_error",
        "arrearage",
    }
)
_PAYMENT_REQUIRED = 402

_RESET = "x-ratelimit-reset-"
_REMAINING = "x-ratelimit-remaining-"
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_UNITS_S = (86_400.0, 3_600.0, 60.0, 1.0, 1e-3)


class FailureKind(StrEnum):
    """What to do about a failed call."""

    RATE_LIMITED = "rate_limited"  # every caller pauses, then the call goes again
    TRANSIENT = "transient"  # the call goes again after a backoff
    ITEM = "item"  # this call will not succeed
    QUOTA = "quota"  # the account is spent: no call will succeed until it is filled
    RUN = "run"  # no call will succeed until the user acts


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call. `retry_after_s` is what the server asked for; None where it asked for nothing."""

    kind: FailureKind
    reason: str
    retry_after_s: float | None = None
    maybe_billed: bool = False  # the request may have been answered after all, unseen
    refused: bool = False  # the endpoint will not have this very request (HTTP 400, 413, 422)
    headers: Mapping[str, str] = field(default_factory=dict)  # those on limits, names in lower case


def classify_status(
    status: int, codes: frozenset[str], message: str, headers: Mapping[str, str], now: float
) -> Failure:
    """What an HTTP error means. `codes` are the error's `code` and `type`; header names are in lower case; `now` is in
    seconds since the epoch, for dates in Retry-After.

    The structured codes decide whether an account is spent; the wording does not, as some providers call a concurrency
    cap a quota. `x-should-retry` decides between another try and none, where trying again is the question.
    """
    reason = f"HTTP {status}: {message}"
    if status == _PAYMENT_REQUIRED or codes & _QUOTA_CODES:
        return Failure(FailureKind.QUOTA, f"{_NO_QUOTA} ({reason})", headers=headers)
    if status in _RUN_FATAL:
        return Failure(FailureKind.RUN, f"{_RUN_FATAL[status]} ({reason})", headers=headers)
    if 300 <= status < 400:
        return Failure(FailureKind.RUN, f"{_MOVED} ({reason})", headers=headers)
    should_retry = {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())
    wait = retry_after_s(headers, now)
    if status == 429 and should_retry is not False:
        return Failure(FailureKind.RATE_LIMITED, reason, wait, headers=headers)
    if should_retry is None:
        should_retry = status in _TRANSIENT or status >= 500
    if should_retry:
        return Failure(FailureKind.TRANSIENT, reason, wait, headers=headers)
    if status in _REFUSED:
        return Failure(FailureKind.ITEM, reason, refused=True, headers=headers)
    return Failure(FailureKind.ITEM, f"not to be tried again: {reason}", headers=headers)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, then `Retry-After` in seconds or as an HTTP date, then the
    durations of `x-ratelimit-reset-*`: the longest of those limits that have nothing left, else the shortest.

    Header names in lower case. None where nothing usable is there; some servers send -1.
    """
    wait = _number(headers.get("retry-after-ms"), scale=1e-3)
    if wait is None:
        text = headers.get("retry-after")
        wait = _number(text, scale=1.0)
        if wait is None and text is not None:
            wait = _until_date(text, now)
    if wait is None:
        wait = _reset_s(headers)
    return None if wait is None else min(wait, LONGEST_RETRY_AFTER_S)


def duration_s(text: str) -> float | None:
    """Seconds of a duration such as "6m0s", "1s", "120ms" or "0.5"; None where it is none."""
    number = _number(text, scale=1.0)
    if number is not None:
        return number
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        return None
    return sum(float(part) * unit for part, unit in zip(match.groups(), _UNITS_S, strict=True) if part is not None)


def backoff_s(failures: int, uniform: float) -> float:
    """Full jitter: uniform in [0, min(longest, first * 2^(failures - 1))]. `failures` counts from 1; `uniform` is
    drawn from [0, 1)."""
    return uniform * min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 16))


def _reset_s(headers: Mapping[str, str]) -> float | None:
    resets = {
        name.removeprefix(_RESET): wait
        for name, text in headers.items()
        if name.startswith(_RESET) and (wait := duration_s(text)) is not None
    }
    spent = [wait for limit, wait in resets.items() if _number(headers.get(_REMAINING + limit), scale=1.0) == 0]
    return max(spent) if spent else min(resets.values(), default=None)


def _number(text: str | None, scale: float) -> float | None:
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
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.fromtimestamp(now, UTC)).total_seconds())

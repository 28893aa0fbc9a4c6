"""What a failed call means, and how long to wait before the next: pure, with clock and randomness handed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from rlaif_ray.judge.rate_headers import read_rate_headers

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0

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
    wait = _wait_s(headers, now)
    if status == 429 and should_retry is not False:
        return Failure(FailureKind.RATE_LIMITED, reason, wait, headers=headers)
    if should_retry is None:
        should_retry = status in _TRANSIENT or status >= 500
    if should_retry:
        return Failure(FailureKind.TRANSIENT, reason, wait, headers=headers)
    if status in _REFUSED:
        return Failure(FailureKind.ITEM, reason, refused=True, headers=headers)
    return Failure(FailureKind.ITEM, f"not to be tried again: {reason}", headers=headers)


def backoff_s(failures: int, uniform: float) -> float:
    """Full jitter: uniform in [0, min(longest, first * 2^(failures - 1))]. `failures` counts from 1; `uniform` is
    drawn from [0, 1)."""
    return uniform * min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 16))


def _wait_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a server asks to wait, by `Retry-After` or until a spent limit is whole again; where it does not say
    which limit is spent, until the first of them is."""
    said = read_rate_headers(headers, now)
    if said.wait_s is not None:
        return said.wait_s
    return min((told.reset_s for told in (said.requests, said.tokens) if told.reset_s is not None), default=None)

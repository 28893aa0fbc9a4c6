"""What an endpoint's reply says of its quota: `Retry-After` and the `x-ratelimit-*` headers. Pure.

Headers are hints by many hands: what cannot be read, and the -1 that some servers send for "unknown", is as good as
absent.
"""

from __future__ import annotations

import email.utils
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

# A wait longer than this is not a pause within a run: such an endpoint is as good as down.
LONGEST_WAIT_S = 600.0

_UNIT_S = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
_PART = r"(\d+(?:\.\d+)?)(ms|d|h|m|s)"
_DURATION = re.compile(f"(?:{_PART})+")


@dataclass(frozen=True, slots=True)
class Told:
    """What a reply says of one rate: its limit, usually a minute's, what is left of it, and when it is whole again."""

    limit: float | None = None
    remaining: float | None = None
    reset_s: float | None = None

    @property
    def wait_s(self) -> float | None:
        """Seconds until there is something left; None where there is, or where nobody says."""
        return self.reset_s if self.remaining == 0 else None


@dataclass(frozen=True, slots=True)
class RateHeaders:
    """What a reply says of its quota."""

    retry_after_s: float | None = None
    requests: Told = Told()
    tokens: Told = Told()

    @property
    def wait_s(self) -> float | None:
        """Seconds to wait: `Retry-After`, else until no rate is spent. None where nothing asks for it."""
        if self.retry_after_s is not None:
            return self.retry_after_s
        return max((told.wait_s for told in (self.requests, self.tokens) if told.wait_s is not None), default=None)


SILENT = RateHeaders()


def read_rate_headers(headers: Mapping[str, str], now: float) -> RateHeaders:
    """What `headers` say; `SILENT` where they say nothing. Names in lower case, or a mapping that does not mind; `now`
    is in seconds since the epoch, for dates in Retry-After."""
    return RateHeaders(retry_after_s(headers, now), _told(headers, "requests"), _told(headers, "tokens"))


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, then `Retry-After` in seconds or as an HTTP date. At most
    `LONGEST_WAIT_S`; None where nothing usable is there."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds * 1e-3, LONGEST_WAIT_S)
    text = headers.get("retry-after")
    wait = _number(text)
    if wait is None and text is not None:
        wait = _until_date(text, now)
    return None if wait is None else min(wait, LONGEST_WAIT_S)


def duration_s(text: str | None) -> float | None:
    """Seconds of a duration such as `6m0s`, `20ms` or `1.5`. None where it is none, or negative."""
    if text is None or not _DURATION.fullmatch(text):
        return _number(text)
    return sum(float(amount) * _UNIT_S[unit] for amount, unit in re.findall(_PART, text))


def _told(headers: Mapping[str, str], rate: str) -> Told:
    reset_s = duration_s(headers.get(f"x-ratelimit-reset-{rate}"))
    return Told(
        limit=_number(headers.get(f"x-ratelimit-limit-{rate}")) or None,
        remaining=_number(headers.get(f"x-ratelimit-remaining-{rate}")),
        reset_s=None if reset_s is None else min(reset_s, LONGEST_WAIT_S),
    )


def _number(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
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

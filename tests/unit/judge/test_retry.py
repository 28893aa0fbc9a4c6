import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.judge.retry import (
    FIRST_BACKOFF_S,
    LONGEST_BACKOFF_S,
    LONGEST_RETRY_AFTER_S,
    FailureKind,
    backoff_s,
    classify_status,
    retry_after_s,
)

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (429, None, FailureKind.RATE_LIMITED),
        (429, "rate_limit_exceeded", FailureKind.RATE_LIMITED),
        (429, "insufficient_quota", FailureKind.RUN),
        (408, None, FailureKind.TRANSIENT),
        (409, None, FailureKind.TRANSIENT),
        (500, None, FailureKind.TRANSIENT),
        (503, None, FailureKind.TRANSIENT),
        (529, None, FailureKind.TRANSIENT),
        (400, None, FailureKind.ITEM),
        (413, None, FailureKind.ITEM),
        (422, None, FailureKind.ITEM),
        (418, None, FailureKind.ITEM),
        (401, None, FailureKind.RUN),
        (403, None, FailureKind.RUN),
        (404, None, FailureKind.RUN),
    ],
)
def test_classes(status: int, code: str | None, kind: FailureKind) -> None:
    failure = classify_status(status, code, "said so", {}, NOW)
    assert failure.kind is kind
    assert "said so" in failure.reason


@pytest.mark.parametrize(("status", "key"), [(401, "judge.api_key_env"), (403, "judge.model"), (404, "judge.base_url")])
def test_what_ends_the_run_names_the_key_to_change(status: int, key: str) -> None:
    assert key in classify_status(status, None, "no", {}, NOW).reason


def test_the_wording_of_a_429_does_not_end_the_run() -> None:
    failure = classify_status(429, None, "INSUFFICIENT QUOTA: too many concurrent requests", {}, NOW)
    assert failure.kind is FailureKind.RATE_LIMITED


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),  # the finer one wins
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "later"}, None),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:00 GMT"}, 0.0),  # past already
        ({"retry-after": "86400"}, LONGEST_RETRY_AFTER_S),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
    ],
)
def test_what_the_server_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW) == seconds


def test_backoff_doubles_up_to_its_bound() -> None:
    """The jitter's upper end: .5, 1, 2, 4 seconds, and 30 from the seventh failure on (.5 * 2^6 = 32)."""
    assert [backoff_s(failures, 1.0) for failures in (1, 2, 3, 4, 7, 100)] == [0.5, 1, 2, 4, 30, 30]


@given(st.integers(1, 1_000), st.floats(0, 1, exclude_max=True))
def test_backoff_is_within_its_bounds(failures: int, uniform: float) -> None:
    assert 0 <= backoff_s(failures, uniform) <= min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (failures - 1))

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.judge.retry import (
    FIRST_BACKOFF_S,
    LONGEST_BACKOFF_S,
    Failure,
    FailureKind,
    backoff_s,
    classify_status,
)

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


def classify(status: int, *codes: str, **headers: str) -> Failure:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return classify_status(status, frozenset(codes), "said so", names, NOW)


@pytest.mark.parametrize(
    ("status", "codes", "kind"),
    [
        (429, (), FailureKind.RATE_LIMITED),
        (429, ("rate_limit_exceeded", "tokens"), FailureKind.RATE_LIMITED),
        (429, ("insufficient_quota",), FailureKind.QUOTA),
        (429, ("billing_not_active",), FailureKind.QUOTA),
        (400, ("invalid_request_error", "billing_hard_limit_reached"), FailureKind.QUOTA),
        (402, (), FailureKind.QUOTA),
        (408, (), FailureKind.TRANSIENT),
        (409, (), FailureKind.TRANSIENT),
        (500, (), FailureKind.TRANSIENT),
        (503, (), FailureKind.TRANSIENT),
        (529, ("overloaded_error",), FailureKind.TRANSIENT),
        (400, (), FailureKind.ITEM),
        (400, ("context_length_exceeded",), FailureKind.ITEM),
        (413, (), FailureKind.ITEM),
        (422, (), FailureKind.ITEM),
        (418, (), FailureKind.ITEM),
        (401, (), FailureKind.RUN),
        (403, (), FailureKind.RUN),
        (404, (), FailureKind.RUN),
        (302, (), FailureKind.RUN),
    ],
)
def test_classes(status: int, codes: tuple[str, ...], kind: FailureKind) -> None:
    failure = classify(status, *codes)
    assert failure.kind is kind
    assert "said so" in failure.reason


def test_only_what_the_endpoint_refuses_as_it_stands_is_a_refusal() -> None:
    """Refusals are kept and never asked again, so what may pass tomorrow must not be one."""
    assert [status for status in range(300, 600) if classify(status).refused] == [400, 413, 422]


@pytest.mark.parametrize(
    ("status", "key"),
    [
        (401, "judge.api_key_env"),
        (402, "judge.api_key_env"),
        (403, "judge.model"),
        (404, "judge.base_url"),
        (405, "judge.base_url"),
        (307, "judge.base_url"),
    ],
)
def test_what_ends_the_run_names_the_key_to_change(status: int, key: str) -> None:
    assert key in classify(status).reason


def test_the_wording_of_a_429_does_not_end_the_run() -> None:
    failure = classify_status(429, frozenset(), "INSUFFICIENT QUOTA: too many concurrent requests", {}, NOW)
    assert failure.kind is FailureKind.RATE_LIMITED


@pytest.mark.parametrize(
    ("status", "should_retry", "kind", "refused"),
    [
        (500, "false", FailureKind.ITEM, False),
        (429, "false", FailureKind.ITEM, False),
        (429, "true", FailureKind.RATE_LIMITED, False),
        (400, "true", FailureKind.TRANSIENT, False),
        (400, "false", FailureKind.ITEM, True),
        (500, "perhaps", FailureKind.TRANSIENT, False),
        (401, "true", FailureKind.RUN, False),  # another try with the same key does not help
    ],
)
def test_a_server_that_says_whether_to_retry_is_obeyed(
    status: int, should_retry: str, kind: FailureKind, refused: bool
) -> None:
    failure = classify(status, x_should_retry=should_retry)
    assert (failure.kind, failure.refused) == (kind, refused)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry_after": "3"}, 3.0),
        ({"retry_after": "-1"}, None),
        ({"retry_after_ms": "1500", "retry_after": "9"}, 1.5),  # the finer one wins
        ({"retry_after": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30.0),
        ({"retry_after": "2", "x_ratelimit_reset_requests": "6m0s"}, 2.0),
        ({"x_ratelimit_reset_requests": "6m0s", "x_ratelimit_reset_tokens": "120ms"}, 0.12),
        (
            {
                "x_ratelimit_reset_requests": "6m0s",
                "x_ratelimit_remaining_requests": "0",
                "x_ratelimit_reset_tokens": "120ms",
                "x_ratelimit_remaining_tokens": "55",
            },
            360.0,
        ),
    ],
)
@pytest.mark.parametrize("status", [429, 503, 529])
def test_what_the_server_asks_for(headers: dict[str, str], seconds: float | None, status: int) -> None:
    assert classify(status, **headers).retry_after_s == pytest.approx(seconds)


def test_backoff_doubles_up_to_its_bound() -> None:
    """The jitter's upper end: .5, 1, 2, 4 seconds, and 30 from the seventh failure on (.5 * 2^6 = 32)."""
    assert [backoff_s(failures, 1.0) for failures in (1, 2, 3, 4, 7, 10_000)] == [0.5, 1, 2, 4, 30, 30]


@given(st.integers(1, 1_000), st.floats(0, 1, exclude_max=True))
def test_backoff_is_within_its_bounds(failures: int, uniform: float) -> None:
    assert 0 <= backoff_s(failures, uniform) <= min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (failures - 1))

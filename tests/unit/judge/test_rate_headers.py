import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.judge.rate_headers import LONGEST_WAIT_S, SILENT, RateHeaders, Told, duration_s, read_rate_headers

# Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110, is 784,111,777 s after the epoch.
DATE, AT = "Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("1s", 1.0),
        ("1h2m3.5s", 3_723.5),
        ("2m59.56s", 179.56),
        ("1d", 86_400.0),
        ("7", 7.0),
        ("0.25", 0.25),
        ("-1", None),
        ("soon", None),
        ("1s later", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        (None, None),
    ],
)
def test_durations(text: str | None, seconds: float | None) -> None:
    assert duration_s(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": DATE}, 7.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 -0000"}, 7.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:00:00 GMT"}, 0.0),  # it is past
        ({"retry-after": "-1"}, None),
        ({"retry-after": "whenever"}, None),
        ({"retry-after": "999999"}, LONGEST_WAIT_S),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert read_rate_headers(headers, AT - 7).retry_after_s == seconds


def test_limits_as_openai_tells_them() -> None:
    headers = {
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-limit-tokens": "30000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    told = read_rate_headers(headers, AT)
    assert told == RateHeaders(None, Told(500, 499, pytest.approx(0.12)), Told(30_000, 0, 360))
    assert told.wait_s == 360


def test_unknown_is_as_good_as_absent() -> None:
    """Some servers send -1, or a limit of 0, for a limit that they do not know."""
    names = [
        f"x-ratelimit-{what}-{rate}" for what in ("limit", "remaining", "reset") for rate in ("requests", "tokens")
    ]
    assert read_rate_headers(dict.fromkeys(names, "-1"), AT) == SILENT
    assert read_rate_headers({"x-ratelimit-limit-requests": "0"}, AT) == SILENT


def test_what_to_wait_for() -> None:
    spent, left = Told(10, 0, 3.0), Told(10, 4, 50.0)
    assert RateHeaders(None, spent, left).wait_s == 3
    assert RateHeaders(None, Told(10, 0, 3.0), Told(10, 0, 5.0)).wait_s == 5
    assert RateHeaders(1.0, spent, left).wait_s == 1
    assert RateHeaders(None, left, left).wait_s is None
    assert RateHeaders(None, Told(10, 0, None), left).wait_s is None


@given(st.text(), st.floats(0, 4e9))
def test_no_header_breaks_the_reader(text: str, now: float) -> None:
    names = ["retry-after", "retry-after-ms", "x-ratelimit-limit-tokens", "x-ratelimit-reset-tokens"]
    told = read_rate_headers(dict.fromkeys(names, text), now)
    for seconds in (told.retry_after_s, told.tokens.reset_s):
        assert seconds is None or 0 <= seconds <= LONGEST_WAIT_S

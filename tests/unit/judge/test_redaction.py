import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.judge.redaction import Redactor

KEY = "sk-proj-4fGh7Kq2LmN9pRsTuVwXyZ0123456789abcd"


@pytest.mark.parametrize(
    "quoted",
    [KEY, KEY[:20], KEY[7:30], "sk-proj...abcd", "sk-...abcd", "sk-proj-********abcd", "****abcd", "sk-p\\u2026abcd"],
)
def test_a_quoted_key_goes(quoted: str) -> None:
    assert Redactor(KEY).redact(f"Incorrect key: {quoted}, sorry") == "Incorrect key: [key], sorry"


def test_words_that_only_look_like_a_key_stay() -> None:
    text = '{"content": "sk-ip the task... risk-averse"}'
    assert Redactor(KEY).redact(text) == text
    assert Redactor("EMPTY").redact("EMPTY") == "EMPTY"


@given(st.integers(0, len(KEY)), st.integers(0, len(KEY)), st.text(" .abc*", max_size=5))
def test_no_long_piece_of_a_key_stays(start: int, end: int, around: str) -> None:
    """Of 15 characters in a row one aligned piece of 8 is whole, and goes with what touches it."""
    said = Redactor(KEY).redact(f"{around}{KEY[start:end]}{around}")
    assert not any(KEY[at : at + 15] in said for at in range(len(KEY) - 14))

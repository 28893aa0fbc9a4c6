import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlaif_ray.judge.hygiene import NotSent, are_similar, edit_distance, why_not_sent
from rlaif_ray.records import Pair, Prompt

WORDS = st.text("ab \n", max_size=40)


def answers(a: str, b: str) -> Pair:
    return Pair("pair", Prompt("prompt", "Say."), a, b)


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ("", "b", None),  # silence against an answer
        ("", " \n\t", NotSent.IDENTICAL),
        ("one  two\n", " one two", NotSent.IDENTICAL),
        ("caf\u00e9", "cafe\u0301", NotSent.IDENTICAL),  # composed, and an e with an accent after it
        ("a" * 39 + "b", "a" * 39 + "c", NotSent.NEAR_IDENTICAL),  # one edit in 40: .975
        ("a" * 19 + "b", "a" * 19 + "c", NotSent.NEAR_IDENTICAL),  # .95, the bound itself
        ("a" * 18 + "b", "a" * 18 + "c", None),  # one in 19: .947
        ("a" * 40, "a" * 43, None),  # three in 43: .930
        ("yes", "no", None),
        ("A", "a", None),
    ],
)
def test_what_speaks_against_a_pair(a: str, b: str, reason: NotSent | None) -> None:
    assert why_not_sent(answers(a, b), 0.95) is reason
    assert why_not_sent(answers(b, a), 0.95) is reason


def test_a_bound_of_one_takes_out_identical_answers_alone() -> None:
    assert why_not_sent(answers("a" * 999 + "b", "a" * 999 + "c"), 1.0) is None
    assert why_not_sent(answers("a b", "a  b"), 1.0) is NotSent.IDENTICAL


@pytest.mark.parametrize(
    ("a", "b", "edits"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("ab", "ba", 2), ("flaw", "lawn", 2)],
)
def test_edit_distance(a: str, b: str, edits: int) -> None:
    """kitten, sitten, sittin, sitting; flaw, law, lawn."""
    assert edit_distance(a, b) == edits


@given(st.text("abc", max_size=90), st.text("abc", max_size=90))
def test_edit_distance_is_that_of_the_table(a: str, b: str) -> None:
    """The recurrence of Wagner and Fischer (1974)."""
    above = list(range(len(b) + 1))
    for row, x in enumerate(a, start=1):
        here = [row]
        for column, y in enumerate(b, start=1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (x != y)))
        above = here
    assert edit_distance(a, b) == above[-1]


@given(WORDS, WORDS, st.floats(0, 1))
@example("abcdefghij" * 4, "abcdefghij" * 3 + "xbcdexghij", 0.9)
def test_the_cheap_bounds_change_nothing(a: str, b: str, bound: float) -> None:
    longest = max(len(a), len(b), 1)
    # Further from the bound than rounding reaches.
    similarity = 1 - edit_distance(a, b) / longest
    if abs(similarity - bound) > 1e-6:
        assert are_similar(a, b, bound) == (similarity > bound)


@given(st.text(max_size=20), st.text(" \n\t", max_size=3))
def test_white_space_and_composition_make_no_difference(text: str, space: str) -> None:
    other = space + unicodedata.normalize("NFD", text).replace(" ", "  ") + space
    assert why_not_sent(answers(text, other), 0.95) is NotSent.IDENTICAL

"""The rules that are shipped to start from."""

import pytest

from scripts.rules import ends_a_sentence, final_number


@pytest.mark.parametrize(
    ("answer", "value"),
    [("It is so.", 1), ("Is it?\n", 1), ("- one\n- `two`", 1), ("It is", -1), ("", -1)],
)
def test_an_answer_ends_as_a_sentence_does(answer: str, value: float) -> None:
    assert ends_a_sentence("Say.", answer, None) == value


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("2 and 3 make 5.", "5", 1),
        ("So 1,250.50 it is.", "#### 1250.5", 1),
        ("It is -3", "3", 0),
        ("Many.", "3", 0),
        ("5", "five", None),
        ("5", None, None),
    ],
)
def test_the_final_number_is_the_references(answer: str, reference: str | None, value: float | None) -> None:
    assert final_number("How many?", answer, reference) == value

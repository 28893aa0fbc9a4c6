import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlaif_ray.judge.asking.verdicts import parse_score, parse_verdict, reasoning_of, share_of_votes

NUMBERS = ("1", "2")
LETTERS = ("A", "B")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("1", "1"),
        (" 2.\n", "2"),
        ("**2**", "2"),
        ("Verdict: 1", "1"),
        ("**Verdict:** 2", "2"),
        ("**Verdict: [[2]]**", "2"),
        ("verdict: (1)", "1"),
        ('Verdict: "1"', "1"),
        ("Final verdict: Answer 2", "2"),
        ("My final answer is 1.", "1"),
        ("The better answer is 2", "2"),
        ("Better response: 2", "2"),
        ("Preferred Summary=1", "1"),
        ("Answer 2 is better", "2"),
        ("Overall, Answer 2 is the better response.", "2"),
        ("Response 1 is clearly better than response 2.", "1"),
        ("I would choose answer 1 over answer 2.", "1"),
        ("Answer 1 wins", "1"),
        ("$\\boxed{2}$", "2"),
        ("Both are short.\nThe first invents a fact.\n\nVerdict: 2", "2"),
        ("The first repeats itself. Verdict: 2", "2"),
        ("Verdict:\n\n2", "2"),
        ("Verdict: 1\nOn reflection:\nVerdict: 2", "2"),
        ('{"reasoning": "The first says Verdict: 1.", "verdict": "2"}', "2"),
        ('```json\n{"reasoning": "a } b", "verdict": "1"}\n```', "1"),
        ('I compared both.\n```json\n{\n "reasoning": "x",\n "verdict": "1"\n}\n```', "1"),
        ('I compared both.\n{"verdict": "1"}', "1"),
        ('{"verdict": "1"}\nwas in the answer.\nVerdict: 2', "2"),
        ('{"verdict": "1"}\n{"verdict": "2"}', "2"),
    ],
)
def test_reads_a_verdict_however_it_is_put(text: str, verdict: str) -> None:
    assert parse_verdict(text, NUMBERS) == verdict
    in_letters = str.maketrans("12", "AB")
    assert parse_verdict(text.translate(in_letters), LETTERS) == verdict.translate(in_letters)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Both are good.",
        "Verdict: 1 or 2",
        "Verdict: 1 / 2",
        "Verdict: 3",
        "Verdict: 12",
        "Verdict: 1.5",
        "Verdict: -1",
        "Verdict: 1 is wrong",
        "Verdict: not 1",
        "Answer 2 is not better.",
        "Answer 1 is better than answer 1",
        "Answer 2 is better, unless one wants answer 1.",
        "1 is better in tone, 2 in substance",
        'The second answer says "Verdict: 2"',
        'It says: "Verdict: 2".',
        "The second answer ends with the line Verdict: 2",
        "> Verdict: 2",
        '"Verdict: 2"',
        'Verdict: 2"',
        "Verdict: 1\nBut that line was the answer's own.",
        "Verdict: 1\nVerdict:",
        "```\nVerdict: 1\n```",
        '{"reasoning": "Verdict: 1", "verdict": "3"}',
        '{"reasoning": "Verdict: 1"}',
        '{"reasoning": "The first is wrong. Verdict: 1',
        "> It is wrong. Verdict: 1",
        '{"verdict": "1", "verdict": "2"}',
        '{"verdict": ["1"]}',
        '{"verdict": true}',
        '[{"verdict": "1"}]',
    ],
)
def test_reads_no_verdict_where_none_is_stated_or_two_are(text: str) -> None:
    assert parse_verdict(text, NUMBERS) is None


def test_a_label_may_be_a_number_in_json() -> None:
    assert parse_verdict('{"reasoning": "x", "verdict": 2}', NUMBERS) == "2"


def test_a_lone_letter_is_no_label_in_lower_case_and_a_longer_label_may_be() -> None:
    assert parse_verdict("Verdict: a", LETTERS) is None
    assert parse_verdict("Verdict: First", ("first", "second")) == "first"
    assert parse_verdict("The second answer is better.", ("first", "second")) is None  # other words, asked once more


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("7", 7),
        ("**Score:** 10", 10),
        ("Score: 7/10", 7),
        ("Rating: [[8]]", 8),
        ("It lacks detail.\nI give it a score.\nScore: 3 out of 10.", 3),
        ('{"reasoning": "Score: 10", "score": 2}', 2),
        ('{"reasoning": "x", "score": "4"}', 4),
        ("Score: 11", None),
        ("Score: 0", None),
        ("Score: 7.5", None),
        ("Score: 7/5", None),
        ("Score: 6 or 7", None),
        ('The answer asks for "Score: 10"', None),
        ('{"reasoning": "Score: 7"}', None),
        ('{"score": 7.5}', None),
    ],
)
def test_reads_a_score_of_the_scale_only(text: str, score: int | None) -> None:
    assert parse_score(text, (1, 10)) == score


def test_the_reasoning_is_the_field_of_a_json_reply_and_all_of_another() -> None:
    assert reasoning_of('{"reasoning": "both fine", "verdict": "1"}') == "both fine"
    assert reasoning_of(" It lacks detail.\nVerdict: 1 ") == "It lacks detail.\nVerdict: 1"


def test_reasoning_can_be_stored_whatever_its_escapes_say() -> None:
    reasoning_of('{"reasoning": "\\ud83d", "verdict": "1"}').encode()


def test_votes_are_shared_under_jeffreys_prior() -> None:
    """3 of 4: 3.5 / 5; 0 of 1: .5 / 2."""
    assert share_of_votes(3, 1) == 0.7
    assert share_of_votes(0, 1) == 0.25


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(), st.sampled_from(NUMBERS))
def test_the_last_statement_wins_over_any_text_before_it(before: str, verdict: str) -> None:
    assert parse_verdict(f"{before}\nVerdict: {verdict}", NUMBERS) == verdict


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(alphabet='{}[]":, 12Verdicta\n`', max_size=60))
def test_whatever_is_said_reads_as_a_label_or_as_nothing(text: str) -> None:
    assert parse_verdict(text, NUMBERS) in {None, *NUMBERS}
    assert parse_score(text, (1, 10)) in {None, *range(1, 11)}
    assert isinstance(reasoning_of(text), str)


@pytest.mark.parametrize("nonsense", ["{" * 100_000, '{"a":' * 100_000, "[" * 100_000, "\n{" * 50_000, "9" * 100_000])
def test_nonsense_of_any_size_reads_as_nothing(nonsense: str) -> None:
    assert parse_verdict(nonsense, NUMBERS) is None
    assert parse_score(nonsense, (1, 10)) is None

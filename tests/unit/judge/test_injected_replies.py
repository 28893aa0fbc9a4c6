"""Judges quote the answers that they judge: what they quote must not be taken for what they say."""

import json

import pytest
from injections import INJECTIONS

from rlaif_ray.judge.asking.verdicts import parse_score, parse_verdict

QUOTED_IN_PASSING = [
    "The first answer reads: {}\nThat is an attempt to sway me.",
    "{}\nThe above is the second answer, word for word.",
    "I cannot tell which is better, given\n{}\nand the other one, which is much alike.",
    '{{"reasoning": "It says {}"}}',
]
QUOTED_AT_THE_END = ['The second answer says "{}" and no more', "> {}", "It ends so: «{}»"]


def other(label: str) -> str:
    return {"1": "2", "2": "1", "A": "B", "B": "A"}[label]


@pytest.mark.parametrize("labels", [("1", "2"), ("A", "B")])
@pytest.mark.parametrize("verdict", [0, 1])
@pytest.mark.parametrize(
    "reply",
    [
        "One answer says:\n{}\nI ignore that.\n\nVerdict: {}",
        "{}\n**Verdict:** [[{}]]",
        "{}\nFinal answer: {}.",
        "The second answer only says {}\n{}",
    ],
)
def test_a_judge_that_quotes_an_answer_is_read_by_its_own_verdict(
    reply: str, verdict: int, labels: tuple[str, str]
) -> None:
    for injection in INJECTIONS:
        assert parse_verdict(reply.format(injection, labels[verdict]), labels) == labels[verdict], injection


@pytest.mark.parametrize("labels", [("1", "2"), ("A", "B")])
def test_a_quotation_inside_json_is_no_verdict(labels: tuple[str, str]) -> None:
    for injection in INJECTIONS:
        for label in labels:
            stated = json.dumps({"reasoning": injection, "verdict": label})
            assert parse_verdict(stated, labels) == label, injection
            assert parse_verdict(stated[: -len(f'"verdict": "{label}"}}')], labels) is None, injection


@pytest.mark.parametrize("reply", QUOTED_IN_PASSING)
def test_a_judge_that_only_quotes_an_answer_says_nothing(reply: str) -> None:
    for injection in INJECTIONS:
        for labels in (("1", "2"), ("A", "B")):
            assert parse_verdict(reply.format(injection), labels) is None, injection
        assert parse_score(reply.format(injection), (1, 10)) is None, injection


@pytest.mark.parametrize("reply", QUOTED_AT_THE_END)
def test_a_quotation_that_ends_a_line_of_the_judges_own_is_no_verdict(reply: str) -> None:
    for injection in INJECTIONS:
        quoted = reply.format(" ".join(injection.split()))
        for labels in (("1", "2"), ("A", "B")):
            assert parse_verdict(quoted, labels) is None, injection


def test_a_judge_that_quotes_an_answer_is_read_by_its_own_score() -> None:
    for injection in INJECTIONS:
        assert parse_score(f"It says:\n{injection}\nScore: 3", (1, 10)) == 3, injection

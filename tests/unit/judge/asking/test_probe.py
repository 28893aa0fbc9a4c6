from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import pytest
from scripted_judge import FAILED, OVER_BUDGET, REFUSED, as_answer, chat, drive

from rlaif_ray.judge.asking.ladder import NoCompletion
from rlaif_ray.judge.asking.probe import probe
from rlaif_ray.judge.asking.terms import Abilities, Mode
from rlaif_ray.judge.request import Answer, Form, Request
from rlaif_ray.records import Outcome

ALTERNATIVES = {"1": 0.9, "2": 0.05, "One": 0.01}


@dataclass
class Endpoint:
    """An endpoint that supports some things, refuses some, and silently ignores others."""

    thinks: int = 0  # tokens, unseen
    aloud: bool = False  # it shows its thoughts as text
    logprobs: Literal["listed", "drawn only", "ignored", "refused"] = "listed"
    most_logprobs: int = 20
    fewest_tokens: int = 1
    most_tokens: int = 100_000
    temperature: bool = True
    schema: Literal["kept", "ignored", "refused"] = "kept"
    tool: Literal["kept", "ignored", "refused"] = "kept"
    says: str = "1"
    calls: int = 0

    def __call__(self, request: Request) -> str | Answer:
        self.calls += 1
        if (
            not self.fewest_tokens <= request.max_tokens <= self.most_tokens
            or (request.temperature is not None and not self.temperature)
            or (request.top_logprobs > self.most_logprobs)
            or (request.top_logprobs and self.logprobs == "refused")
            or (request.form is Form.SCHEMA and self.schema == "refused")
            or (request.form is Form.TOOL and self.tool == "refused")
        ):
            return REFUSED
        if request.max_tokens <= self.thinks:
            return chat("<think> Hm" if self.aloud else "", finish="length")
        return self._answer(request)

    def _answer(self, request: Request) -> str | Answer:
        verdict = '{"reasoning": "asked for", "verdict": "1"}'
        if request.form is Form.SCHEMA and self.schema == "kept":
            return chat(verdict)
        if request.form is Form.TOOL and self.tool == "kept":
            return chat(None, tool_calls=[{"function": {"name": "verdict", "arguments": verdict}}])
        positions = []
        if request.top_logprobs and self.logprobs == "listed":
            positions = [ALTERNATIVES if self.says == "1" else {self.says: 0.7, "x": 0.2}]
        elif request.top_logprobs and self.logprobs == "drawn only":
            positions = [{self.says: 0.9}]
        said = chat(self.says, *positions)
        if self.thinks:
            return replace(as_answer(said), reply=replace(as_answer(said).reply, reasoning_tokens=self.thinks))
        return said


def found(endpoint: Callable[[Request], str | Answer], mode: Mode = Mode.AUTO) -> Abilities:
    abilities, _ = drive(probe(mode), endpoint)
    return abilities


def test_an_endpoint_that_supports_all_is_asked_once() -> None:
    endpoint = Endpoint()
    assert found(endpoint) == Abilities(form=Form.TEXT)
    assert endpoint.calls == 1


def test_the_form_of_verdicts_is_tried_where_they_will_be_stated() -> None:
    endpoint = Endpoint()
    assert found(endpoint, Mode.STATED) == Abilities(form=Form.SCHEMA)
    assert endpoint.calls == 3


@pytest.mark.parametrize(
    ("endpoint", "abilities"),
    [
        (Endpoint(most_logprobs=5), Abilities(top_logprobs=5, form=Form.TEXT)),
        (Endpoint(fewest_tokens=16), Abilities(shortest_reply=16, form=Form.TEXT)),
        (Endpoint(temperature=False), Abilities(temperature=False, form=Form.TEXT)),
        (
            Endpoint(temperature=False, fewest_tokens=2, most_logprobs=5),
            Abilities(temperature=False, shortest_reply=16, top_logprobs=5, form=Form.TEXT),
        ),
        (Endpoint(logprobs="ignored"), Abilities(top_logprobs=0)),
        (Endpoint(logprobs="refused"), Abilities(top_logprobs=0)),
        (Endpoint(logprobs="drawn only"), Abilities(top_logprobs=0)),
        (Endpoint(logprobs="refused", schema="refused"), Abilities(top_logprobs=0, form=Form.TOOL)),
        (Endpoint(logprobs="refused", schema="ignored"), Abilities(top_logprobs=0, form=Form.TOOL)),
        (Endpoint(logprobs="ignored", schema="ignored", tool="ignored"), Abilities(top_logprobs=0, form=Form.TEXT)),
        (Endpoint(logprobs="ignored", schema="refused", tool="refused"), Abilities(top_logprobs=0, form=Form.TEXT)),
        # Judges that think first: with log-probabilities of their answer, and without.
        (Endpoint(thinks=300), Abilities(shortest_reply=4096, stated_tokens=4096, form=Form.TEXT)),
        (
            Endpoint(thinks=300, logprobs="refused", temperature=False),
            Abilities(top_logprobs=0, shortest_reply=4096, stated_tokens=4096, temperature=False),
        ),
        (
            Endpoint(thinks=300, aloud=True, logprobs="ignored"),
            Abilities(top_logprobs=0, shortest_reply=4096, stated_tokens=4096),
        ),
        (Endpoint(thinks=9, logprobs="ignored"), Abilities(top_logprobs=0, shortest_reply=16, stated_tokens=4096)),
        # A judge too weak for the question, and one with a small context.
        (Endpoint(says="er"), Abilities(form=Form.TEXT)),
        (Endpoint(says="er", most_logprobs=5, most_tokens=64), Abilities(top_logprobs=5, form=Form.TEXT)),
    ],
)
def test_finds_what_an_endpoint_supports(endpoint: Endpoint, abilities: Abilities) -> None:
    assert found(endpoint) == abilities
    assert endpoint.calls <= 10


@pytest.mark.parametrize("unlucky", range(12))
def test_no_single_malformed_reply_decides(unlucky: int) -> None:
    for endpoint in (Endpoint(), Endpoint(most_logprobs=5), Endpoint(logprobs="refused"), Endpoint(thinks=300)):
        expected = found(replace(endpoint))
        calls = 0

        def flaky(request: Request, endpoint: Endpoint = endpoint) -> str | Answer:
            nonlocal calls
            calls += 1
            return "<html>" if calls == unlucky + 1 else endpoint(request)

        assert found(flaky) == expected


def test_an_endpoint_that_answers_nothing_is_no_judge() -> None:
    with pytest.raises(NoCompletion, match="HTTP 400") as failure:
        found(lambda request: REFUSED)
    assert failure.value.outcome is Outcome.FAILED
    with pytest.raises(NoCompletion, match="no text"):
        found(lambda request: chat("", finish="length"))
    with pytest.raises(NoCompletion, match="malformed"):
        found(lambda request: "<html>")


@pytest.mark.parametrize("answer", [FAILED, OVER_BUDGET])
def test_a_call_that_was_not_answered_ends_the_probe(answer: Answer) -> None:
    with pytest.raises(NoCompletion) as failure:
        found(lambda request: answer)
    assert failure.value.outcome is answer.no_reply


def test_a_weak_judge_that_says_a_label_is_asked_for_its_log_probabilities() -> None:
    """It gives the labels .43 in all and says the wrong one: its labels are tokens of its vocabulary nonetheless."""
    weak = chat("2", {"2": 0.25, "1": 0.18, "concert": 0.13})
    abilities, requests = drive(probe(), lambda request: weak)
    assert (abilities.top_logprobs, abilities.shortest_reply) == (20, 1)
    assert len(requests) == 1

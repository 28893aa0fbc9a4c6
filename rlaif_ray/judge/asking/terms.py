"""What a way of asking is given: a rendered question, what the endpoint can do, and the user's settings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from rlaif_ray.judge.request import MOST_LOGPROBS, Form
from rlaif_ray.records import Message


class Mode(StrEnum):
    """How pairs are asked."""

    AUTO = "auto"  # the best that the endpoint supports
    CHOICE = "choice"  # one token and its log-probabilities
    REASONED = "reasoned"  # a chain of thought, then the choice
    STATED = "stated"  # verdicts in words, counted


class PairQuestion(Protocol):
    """One pair in one order, rendered."""

    @property
    def labels(self) -> tuple[str, str]:
        """What the judge says for the first and for the second answer."""

    @property
    def choose_after(self) -> str:
        """The user's turn after the judge's own reasoning: asks for the label alone."""

    @property
    def verdict_only(self) -> str:
        """The user's turn of the one reformatting call: asks for the label alone."""

    @property
    def verdict_schema(self) -> str:
        """JSON schema of `reasoning` and then `verdict`, one of the labels."""

    def choose(self) -> tuple[Message, ...]:
        """Ends by asking for the label alone."""

    def reason(self) -> tuple[Message, ...]:
        """Ends by asking to reason, and not yet for the label."""

    def state(self, form: Form) -> tuple[Message, ...]:
        """Ends by asking for reasoning and then the verdict, as JSON or, for `Form.TEXT`, as the last line."""


class ScoreQuestion(Protocol):
    """One answer on a scale of integers, rendered."""

    @property
    def scale(self) -> tuple[int, int]:
        """Its lowest and its highest point."""

    @property
    def verdict_only(self) -> str:
        """The user's turn of the one reformatting call: asks for the number alone."""

    @property
    def verdict_schema(self) -> str:
        """JSON schema of `reasoning` and then `score`, an integer of the scale."""

    def score(self) -> tuple[Message, ...]:
        """Ends by asking for the number alone."""

    def state(self, form: Form) -> tuple[Message, ...]:
        """Ends by asking for reasoning and then the score, as JSON or, for `Form.TEXT`, as the last line."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an endpoint supports. The defaults are a local labeler's; an API's are probed."""

    top_logprobs: int = MOST_LOGPROBS  # listed tokens at each position; 0 where it gives none
    shortest_reply: int = 1  # tokens that a one-word reply needs: more where the judge reasons unasked and unseen
    temperature: bool = True  # it can be set
    form: Form = Form.SCHEMA  # how a stated verdict is bound
    stated_tokens: int = 1024  # that a stated verdict with its reasoning may take


@dataclass(frozen=True, slots=True)
class AskSettings:
    """What the user can choose about asking."""

    min_label_mass: float = 0.5  # below it the labels' log-probabilities say nothing about the answers
    samples: int = 1  # stated verdicts or scores for each question
    sample_temperature: float = 1.0  # of several samples; one alone is drawn at 0
    rationale_tokens: int = 512
    clamp: tuple[float, float] | None = None  # bounds on a reasoned probability (Bai et al. 2022, section 4.1)

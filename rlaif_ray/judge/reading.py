"""What a judge's replies to one question amount to: a probability, a score, or a reason why there is neither."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from rlaif_ray.records import Outcome


class Rung(StrEnum):
    """Which step of the ladder gave the reading, from the best to the last resort."""

    LOGPROBS = "logprobs"  # the label's probability, unconstrained
    TEXT = "text"  # the words of the reply
    REFORMAT = "reformat"  # a second call that asked for the verdict alone
    CONSTRAINED = "constrained"  # a second call that could say nothing but a label: its label mass is unknown


@dataclass(frozen=True, slots=True)
class Reading:
    """One question on a pair, in one order. `p_first` is None unless `outcome` is `SCORED`; `reason` then says why.

    `logprob_first` and `logprob_second` are in nats, summed over each label's tokenisations, before renormalisation;
    a label outside the listed tokens has an upper bound there, and `censored` says so. `label_mass` counts listed
    tokens only. Votes are counted where verdicts were read from words.
    """

    outcome: Outcome
    reason: str
    p_first: float | None = None
    logprob_first: float | None = None
    logprob_second: float | None = None
    label_mass: float | None = None
    censored: bool = False
    rung: Rung | None = None
    rationale: str = ""
    votes_first: int | None = None
    votes_second: int | None = None


@dataclass(frozen=True, slots=True)
class ScoreReading:
    """One question on one answer. `score` is the likelihood-weighted mean on the scale asked for, None unless
    `outcome` is `SCORED`. `probabilities` are those of the scale's points, renormalised; `mass` is what the points
    had before, `entropy` is in nats."""

    outcome: Outcome
    reason: str
    score: float | None = None
    probabilities: tuple[float, ...] = ()
    mass: float | None = None
    entropy: float | None = None
    rung: Rung | None = None
    rationale: str = ""

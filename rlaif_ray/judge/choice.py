"""Reading one `choice` reply: from the likeliest next tokens to the probability of the label shown first.

A reply is the JSON of a chat completion with log-probabilities, whoever gave it: an API's own text, or what a local
labeler writes in the same shape. Reading is pure, so that a stored reply can be read again at no cost.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlaif_ray.records import Outcome

# What tokenizers put before a word that follows a space, beside the space itself.
_EDGES = " \t\r\n▁Ġ"

# Listed probabilities are rounded: what they leave of 1 is not known better than this.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One of the likeliest next tokens, with its log-probability in nats."""

    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class ChoiceReading:
    """What one reply says. `p_first` is None unless `outcome` is `SCORED`; `reason` then says why.

    `logprob_first` and `logprob_second` are in nats, summed over each label's tokenisations, before renormalisation;
    a label outside the listed tokens has an upper bound there. `label_mass` counts listed tokens only.
    """

    outcome: Outcome
    reason: str
    p_first: float | None = None
    logprob_first: float | None = None
    logprob_second: float | None = None
    label_mass: float | None = None


def read_choice(raw_reply: str, labels: tuple[str, str], min_label_mass: float) -> ChoiceReading:
    """Read a chat completion's JSON: softmax over the two labels (Lee et al. 2023, RLAIF, section 2.1)."""
    try:
        top = top_logprobs(raw_reply)
    except MalformedReply as error:
        return ChoiceReading(Outcome.FAILED, str(error))
    return choose(top, labels, min_label_mass)


def choose(top: Sequence[TokenLogprob], labels: tuple[str, str], min_label_mass: float) -> ChoiceReading:
    """Probability of the first label, given that one of the two is said.

    A label missing from the list gets the smallest listed log-probability, an upper bound; where that bound is the
    other label's own entry, the bound is what probability the list leaves. Abstains where the labels' listed mass is
    below `min_label_mass`, or where neither is listed: no number is made up.
    """
    first = _label_logprob(top, labels[0])
    second = _label_logprob(top, labels[1])
    mass = sum(math.exp(logprob) for logprob in (first, second) if logprob is not None)
    if first is None and second is None:
        return ChoiceReading(
            Outcome.ABSTAINED, f"neither {labels[0]!r} nor {labels[1]!r} is among the listed tokens", label_mass=0.0
        )
    bound = _missing_bound(top, labels)
    first = bound if first is None else first
    second = bound if second is None else second
    if mass < min_label_mass:
        return ChoiceReading(
            Outcome.ABSTAINED,
            f"the two labels have probability {mass:.3g}, less than {min_label_mass:g}",
            logprob_first=first,
            logprob_second=second,
            label_mass=mass,
        )
    return ChoiceReading(
        Outcome.SCORED,
        "",
        p_first=_sigmoid(first - second),
        logprob_first=first,
        logprob_second=second,
        label_mass=mass,
    )


class MalformedReply(ValueError):
    """A reply that holds no log-probabilities. Its text says what was missing."""


def top_logprobs(raw_reply: str) -> tuple[TokenLogprob, ...]:
    """The first generated position's listed tokens. Raises MalformedReply."""
    try:
        reply = json.loads(raw_reply)
    except json.JSONDecodeError:
        raise MalformedReply("the reply is not JSON") from None
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedReply("the reply holds no choices")
    logprobs = choices[0].get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        finish = choices[0].get("finish_reason")
        raise MalformedReply(f"the endpoint returned no log-probabilities (finish_reason: {finish})")
    listed = content[0].get("top_logprobs")
    if not isinstance(listed, list) or not listed:
        raise MalformedReply("the endpoint returned no top_logprobs, only the sampled token's")
    return tuple(_token_logprob(entry) for entry in listed)


def choice_reply(top: Sequence[TokenLogprob], prompt_tokens: int) -> str:
    """A local labeler's reply, in the shape of a chat completion."""
    return json.dumps(
        {
            "choices": [
                {
                    "finish_reason": "length",
                    "logprobs": {
                        "content": [
                            {"top_logprobs": [{"token": entry.token, "logprob": entry.logprob} for entry in top]}
                        ]
                    },
                }
            ],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 1},
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _token_logprob(entry: Any) -> TokenLogprob:
    if isinstance(entry, dict):
        token, logprob = entry.get("token"), entry.get("logprob")
        if isinstance(token, str) and isinstance(logprob, (int, float)) and not math.isnan(logprob):
            return TokenLogprob(token, float(logprob))
    raise MalformedReply("a listed token lacks its text or its log-probability")


def _label_logprob(top: Sequence[TokenLogprob], label: str) -> float | None:
    """Sum over the tokenisations of a label, such as "1" and " 1"; None where none is listed with any probability."""
    found = [entry.logprob for entry in top if entry.token.strip(_EDGES) == label and entry.logprob > -math.inf]
    if not found:
        return None
    largest = max(found)
    return largest + math.log(sum(math.exp(logprob - largest) for logprob in found))


def _missing_bound(top: Sequence[TokenLogprob], labels: tuple[str, str]) -> float:
    smallest = min((entry for entry in top if entry.logprob > -math.inf), key=lambda entry: entry.logprob)
    if smallest.token.strip(_EDGES) not in labels:
        return smallest.logprob
    left = 1.0 - sum(math.exp(entry.logprob) for entry in top)
    return min(smallest.logprob, math.log(max(left, _ROUNDING)))


def _sigmoid(difference: float) -> float:
    if difference >= 0:
        return 1.0 / (1.0 + math.exp(-difference))
    odds = math.exp(difference)
    return odds / (1.0 + odds)

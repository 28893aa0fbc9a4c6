"""From the likeliest next tokens to the probability of the label shown first: no request, no text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlaif_ray.judge.asking.replies import Completion, TokenLogprob
from rlaif_ray.judge.reading import Reading, Rung
from rlaif_ray.records import Outcome

# What tokenizers put before a word that follows a space, beside the space itself.
_EDGES = " \t\r\n▁Ġ"

# What judges put around a word that stands alone.
_MARKUP = _EDGES + "*_`\"'#([{<"

# Where a judge that shows its thoughts ends them.
_END_OF_THOUGHT = "</think>"

# Listed probabilities are rounded: what they leave of 1 is not known better than this.
_ROUNDING = 1e-6


def label_position(completion: Completion) -> int:
    """Where the label is said if it is said at all: the first position that is not white space or markup, after the
    thoughts of a judge that shows them; the first one where there is none."""
    thoughts = [index for index, token in enumerate(completion.tokens) if token == _END_OF_THOUGHT]
    start = thoughts[-1] + 1 if thoughts else 0
    words = (index for index in range(start, len(completion.tokens)) if completion.tokens[index].strip(_MARKUP))
    return next(words, 0)


def bare(text: str) -> str:
    """A token or a reply without the white space around it, as tokenizers write it."""
    return text.strip(_EDGES)


def choose(top: Sequence[TokenLogprob], labels: tuple[str, str], min_label_mass: float) -> Reading:
    """Probability of the first label, given that one of the two is said: softmax over the labels, each summed over
    its tokenisations (Lee et al. 2023, RLAIF, section 2.1).

    A label missing from the list gets the smallest listed log-probability, an upper bound; where that bound is the
    other label's own entry, the bound is what probability the list leaves. Abstains where the labels' listed mass is
    below `min_label_mass`, or where neither is listed: no number is made up.
    """
    spellings: dict[str, list[float]] = {label: [] for label in labels}
    for entry in top:
        if (word := bare(entry.token)) in spellings:
            spellings[word].append(entry.logprob)
    listed = tuple(_logprob(spellings[label]) for label in labels)
    if listed == (None, None):
        return Reading(
            Outcome.ABSTAINED, f"neither {labels[0]!r} nor {labels[1]!r} is among the listed tokens", label_mass=0.0
        )
    mass = sum(math.exp(logprob) for logprob in listed if logprob is not None)
    first, second = (_missing_bound(top, labels) if logprob is None else logprob for logprob in listed)
    enough = mass >= min_label_mass
    return Reading(
        Outcome.SCORED if enough else Outcome.ABSTAINED,
        "" if enough else f"the two labels have probability {mass:.3g}, less than {min_label_mass:g}",
        p_first=sigmoid(first - second) if enough else None,
        logprob_first=first,
        logprob_second=second,
        label_mass=mass,
        censored=None in listed,
        rung=Rung.LOGPROBS if enough else None,
    )


def spell_out(top: Sequence[TokenLogprob], labels: tuple[str, str]) -> tuple[TokenLogprob, ...]:
    """A masked list with each label's beginning made the label; empty where a token begins no label or both, so that
    the list is not masked or decides nothing."""
    spelled = []
    for entry in top:
        begun = [label for label in labels if label.startswith(entry.token)]
        if len(begun) != 1:
            return ()
        spelled.append(TokenLogprob(begun[0], entry.logprob))
    return tuple(spelled)


def sigmoid(difference: float) -> float:
    """1 / (1 + exp(-difference)), for differences of any size."""
    if difference >= 0:
        return 1.0 / (1.0 + math.exp(-difference))
    odds = math.exp(difference)
    return odds / (1.0 + odds)


def _logprob(logprobs: Sequence[float]) -> float | None:
    """Log of a sum of probabilities; None where there are none."""
    if not logprobs:
        return None
    largest = max(logprobs)
    return largest + math.log(sum(math.exp(logprob - largest) for logprob in logprobs))


def _missing_bound(top: Sequence[TokenLogprob], labels: tuple[str, str]) -> float:
    smallest = min(top, key=lambda entry: entry.logprob)
    if bare(smallest.token) not in labels:
        return smallest.logprob
    left = 1.0 - sum(math.exp(entry.logprob) for entry in top)
    return min(smallest.logprob, math.log(max(left, _ROUNDING)))

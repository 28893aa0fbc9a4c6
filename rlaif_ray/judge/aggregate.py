"""What judgements on a pair add up to: orders to an opinion, opinions to a preference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from rlaif_ray.judge.asking.pointwise import normalised, rubric_mean
from rlaif_ray.records import Judgement, Opinion, Order, Outcome, Pair, Preference, RubricScore

# Where judgements disagree on why there is no number, the graver reason names the outcome.
_GRAVITY = (Outcome.OVER_BUDGET, Outcome.FAILED, Outcome.ABSTAINED)

# A judge's probability of exactly 0 or 1 is a rounding, and must not outweigh all others in a mean of log-odds.
_MOST_CERTAIN = 1e-4


def opinion_of_orders(judgements: Sequence[Judgement], weight: float) -> Opinion:
    """One member's opinion, from a judgement in each order or in one.

    p = (p_AB + 1 - p_BA) / 2, which cancels a judge's lean to a position (Lee et al. 2023, section 2.1.1). Consistent
    where both orders' likelier label names the same answer; an order at exactly 1/2 names none. Where one of two
    orders brought no number there is no opinion: a lone order carries the lean.
    """
    by_order = {judgement.order: judgement for judgement in judgements}
    if not by_order or len(by_order) != len(judgements) or not by_order.keys() <= {Order.AB, Order.BA}:
        raise ValueError("an opinion needs one judgement in the order ab, in the order ba, or in each")
    p_ab, p_ba = (by_order[order].p_first if order in by_order else None for order in (Order.AB, Order.BA))
    consistent = None
    if all(judgement.p_first is not None for judgement in judgements):
        shares = [share for share in (p_ab, None if p_ba is None else 1.0 - p_ba) if share is not None]
        p = sum(shares) / len(shares)
        if p_ab is not None and p_ba is not None:
            consistent = (p_ab - 0.5) * (0.5 - p_ba) > 0
        return _opinion(judgements, weight, Outcome.SCORED, "", p=p, p_ab=p_ab, p_ba=p_ba, consistent=consistent)
    outcome, reason = _why_not(judgements)
    return _opinion(judgements, weight, outcome, reason, p_ab=p_ab, p_ba=p_ba)


def opinion_of_rubric(scores: Sequence[Judgement], p: float | None, verdict: Opinion | None, weight: float) -> Opinion:
    """One member's opinion from an answer-by-answer rubric. `p` is None where a score is missing. `verdict`, where it
    was asked for as a check, is only compared."""
    judgements = (*scores, *(verdict.judgements if verdict is not None else ()))
    if p is None:
        return _opinion(judgements, weight, *_why_not(scores))
    contradiction = None
    if verdict is not None and verdict.p is not None:
        contradiction = (p - 0.5) * (verdict.p - 0.5) < 0
    return _opinion(judgements, weight, Outcome.SCORED, "", p=p, contradiction=contradiction)


def score_of_rubric(judgements: Sequence[Judgement], weights: Sequence[float], scale: tuple[int, int]) -> RubricScore:
    """One answer's score from a judgement on each criterion, in the order of the `weights`."""
    criteria = {
        judgement.criterion: None if judgement.score is None else normalised(judgement.score, scale)
        for judgement in judgements
    }
    value = rubric_mean(tuple(criteria.values()), weights)
    if value is not None:
        return RubricScore(Outcome.SCORED, "", value, criteria, tuple(judgements))
    missing = [judgement for judgement in judgements if judgement.score is None]
    reason = "; ".join(f"{judgement.criterion}: {judgement.reason}" for judgement in missing)
    return RubricScore(_gravest(missing), reason, None, criteria, tuple(judgements))


def combine(
    pair: Pair, opinions: Sequence[Opinion], how: Literal["log_odds", "vote"], set_aside: Sequence[Opinion] = ()
) -> Preference:
    """The opinions that have a number, weighted. `log_odds`: sigma of the mean of their log-odds (a logarithmic opinion
    pool); `vote`: the share of the votes for response_a, an opinion of exactly 1/2 giving half a vote.

    A pair is consistent where the members' mean probability names the same answer in both orders. Members without a
    number are left out, and without any the pair has the gravest member's outcome.
    """
    scored = [opinion for opinion in opinions if opinion.p is not None]
    if not scored:
        worst = min(opinions, key=lambda opinion: _GRAVITY.index(opinion.outcome))
        return Preference(pair, worst.outcome, worst.reason, None, None, tuple(opinions), tuple(set_aside))
    if len(scored) == 1:
        p = scored[0].p
    elif how == "vote":
        p = _mean(scored, [0.5 if opinion.p == 0.5 else float((opinion.p or 0.0) > 0.5) for opinion in scored])
    else:
        p = _sigmoid(_mean(scored, [_log_odds(opinion.p or 0.0) for opinion in scored]))
    return Preference(pair, Outcome.SCORED, "", p, _consistent(scored), tuple(opinions), tuple(set_aside))


def disagreement(preference: Preference) -> float | None:
    """Standard deviation of the members' probabilities; None with fewer than two. High ones deserve a person's eye."""
    values = [opinion.p for opinion in preference.opinions if opinion.p is not None]
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def _consistent(scored: Sequence[Opinion]) -> bool | None:
    both = [opinion for opinion in scored if opinion.p_ab is not None and opinion.p_ba is not None]
    if not both:
        return None
    ab = _mean(both, [opinion.p_ab or 0.0 for opinion in both])
    ba = _mean(both, [opinion.p_ba or 0.0 for opinion in both])
    return (ab - 0.5) * (0.5 - ba) > 0


def _opinion(
    judgements: Sequence[Judgement],
    weight: float,
    outcome: Outcome,
    reason: str,
    *,
    p: float | None = None,
    p_ab: float | None = None,
    p_ba: float | None = None,
    consistent: bool | None = None,
    contradiction: bool | None = None,
) -> Opinion:
    first = judgements[0]
    return Opinion(
        judge=first.judge,
        template=first.template,
        principle=first.principle,
        weight=weight,
        outcome=outcome,
        reason=reason,
        p=p,
        p_ab=p_ab,
        p_ba=p_ba,
        consistent=consistent,
        contradiction=contradiction,
        judgements=tuple(judgements),
    )


def _why_not(judgements: Sequence[Judgement]) -> tuple[Outcome, str]:
    missing = [judgement for judgement in judgements if judgement.outcome is not Outcome.SCORED]
    return _gravest(missing), "; ".join(f"order {judgement.order}: {judgement.reason}" for judgement in missing)


def _gravest(missing: Sequence[Judgement]) -> Outcome:
    return min((judgement.outcome for judgement in missing), key=_GRAVITY.index)


def _mean(opinions: Sequence[Opinion], values: Sequence[float]) -> float:
    total = sum(opinion.weight for opinion in opinions)
    return sum(opinion.weight * value for opinion, value in zip(opinions, values, strict=True)) / total


def _log_odds(p: float) -> float:
    p = min(max(p, _MOST_CERTAIN), 1.0 - _MOST_CERTAIN)
    return math.log(p / (1.0 - p))


def _sigmoid(log_odds: float) -> float:
    return 1.0 / (1.0 + math.exp(-log_odds))

"""What two judgements on a pair, one in each order, add up to."""

from __future__ import annotations

from rlaif_ray.records import Judgement, Order, Outcome, Pair, Preference

# Where orders disagree on why there is no number, the graver reason names the pair's outcome.
_GRAVITY = (Outcome.OVER_BUDGET, Outcome.FAILED, Outcome.ABSTAINED)


def both_orders(pair: Pair, ab: Judgement, ba: Judgement) -> Preference:
    """p = (p_AB + 1 - p_BA) / 2, which cancels a judge's lean to a position (Lee et al. 2023, section 2.1.1).

    Consistent where both orders' likelier label names the same answer; an order at exactly 1/2 names none. A pair of
    which one order is missing is not scored: a lone order carries the lean.
    """
    if (ab.order, ba.order) != (Order.AB, Order.BA) or {ab.pair_id, ba.pair_id} != {pair.id}:
        raise ValueError(f"pair {pair.id}: needs its own judgements in the orders ab and ba")
    if ab.p_first is not None and ba.p_first is not None:
        return Preference(
            pair=pair,
            outcome=Outcome.SCORED,
            reason="",
            p=(ab.p_first + 1.0 - ba.p_first) / 2,
            consistent=(ab.p_first - 0.5) * (0.5 - ba.p_first) > 0,
            judgements=(ab, ba),
        )
    missing = [judgement for judgement in (ab, ba) if judgement.outcome is not Outcome.SCORED]
    return Preference(
        pair=pair,
        outcome=min((judgement.outcome for judgement in missing), key=_GRAVITY.index),
        reason="; ".join(f"order {judgement.order}: {judgement.reason}" for judgement in missing),
        p=None,
        consistent=None,
        judgements=(ab, ba),
    )

"""The coin-flip control: verdicts without a judge, to show whether a result is owed to the judge."""

from __future__ import annotations

import hashlib

from rlaif_ray.records import Judgement, Order, Outcome, Pair

COIN_FLIP = "coin_flip"


def flip_coin(pair: Pair, order: Order, seed: int, created_at: float) -> Judgement:
    """A fair coin of (seed, pair id, order): the same at every run, independent between the orders."""
    digest = hashlib.sha256(f"{seed}\0{pair.id}\0{order}".encode()).digest()
    return Judgement(
        pair_id=pair.id,
        order=order,
        outcome=Outcome.SCORED,
        reason="",
        p_first=float(digest[0] & 1),
        logprob_first=None,
        logprob_second=None,
        label_mass=None,
        censored=False,
        votes_first=None,
        votes_second=None,
        score=None,
        criterion="",
        rung="",
        rationale="",
        judge_prompt="",
        raw_reply="",
        judge=COIN_FLIP,
        model_returned="",
        mode=COIN_FLIP,
        temperature=None,
        seed=seed,
        template="",
        template_hash="",
        principle=None,
        ledger_keys=(),
        cache_hit=False,
        attempts=0,
        prompt_tokens=0,
        completion_tokens=0,
        cost_usd=None,
        latency_s=0.0,
        created_at=created_at,
    )

"""Builders of the judge's records, which many tests share."""

from __future__ import annotations

from typing import Any

from rlaif_ray.judge.aggregate import combine, opinion_of_orders
from rlaif_ray.records import Judgement, Order, Outcome, Pair, Preference, Prompt


def pair(number: int = 0, **changes: Any) -> Pair:
    fields: dict[str, Any] = {
        "id": f"pair-{number}",
        "prompt": Prompt(f"prompt-{number}", f"Say {number}"),
        "response_a": f"answer a {number}",
        "response_b": f"answer b {number}",
    }
    return Pair(**{**fields, **changes})


def judgement(
    of: Pair, order: Order, p_first: float | None, outcome: Outcome | None = None, **changes: Any
) -> Judgement:
    fields: dict[str, Any] = {
        "pair_id": of.id,
        "order": order,
        "outcome": outcome or (Outcome.FAILED if p_first is None else Outcome.SCORED),
        "reason": "" if p_first is not None else "because",
        "p_first": p_first,
        "logprob_first": None,
        "logprob_second": None,
        "label_mass": None,
        "censored": False,
        "votes_first": None,
        "votes_second": None,
        "score": None,
        "criterion": "",
        "rung": "",
        "rationale": "",
        "judge_prompt": "Which?",
        "raw_reply": "{}",
        "judge": "judge",
        "model_returned": "",
        "mode": "choice",
        "temperature": 0.0,
        "seed": 0,
        "template": "quality",
        "template_hash": "hash",
        "principle": None,
        "ledger_keys": ("key",),
        "cache_hit": False,
        "attempts": 1,
        "prompt_tokens": 10,
        "completion_tokens": 1,
        "cost_usd": None,
        "latency_s": 0.1,
        "created_at": 1.0,
    }
    return Judgement(**{**fields, **changes})


def preference(of: Pair, ab: float | None, ba: float | None, outcome: Outcome | None = None) -> Preference:
    """One judge's, from its probabilities for the answer shown first in each order."""
    judgements = [judgement(of, Order.AB, ab, outcome), judgement(of, Order.BA, ba, outcome)]
    return combine(of, [opinion_of_orders(judgements, 1.0)], "log_odds")

"""Builders of records that the judge's tests share."""

from __future__ import annotations

from typing import Any

from rlaif_ray.records import Judgement, Order, Outcome, Pair, Prompt


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
        "judge_prompt": "Which?",
        "raw_reply": "{}",
        "judge": "judge",
        "template_hash": "hash",
        "ledger_key": "key",
        "cache_hit": False,
        "prompt_tokens": 10,
        "completion_tokens": 1,
        "cost_usd": None,
        "latency_s": 0.1,
        "created_at": 1.0,
    }
    return Judgement(**{**fields, **changes})

"""A builder of preference rows, which many tests share."""

from __future__ import annotations

from typing import Any

from rlaif_ray.preferences.dataset import PreferenceRow, answer_in


def row(**changes: Any) -> PreferenceRow:
    prompt = changes.get("prompt", "Say.")
    fields: dict[str, Any] = {
        "pair_id": "pair",
        "prompt_id": "prompt",
        "prompt": prompt,
        "chosen": answer_in(prompt, "x"),
        "rejected": answer_in(prompt, "y"),
        "p": 0.75,
        "weight": 1.0,
        "label_source": "human",
        "split": "train",
    }
    return PreferenceRow(**{**fields, **changes})

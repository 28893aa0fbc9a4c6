"""Rules to start from: rewards that Python can give by itself. Each is a function of (prompt, answer, reference)."""

from __future__ import annotations

import re


def ends_a_sentence(prompt: str | list[dict[str, str]], answer: str, reference: str | None) -> float:
    """1 where the answer ends as a sentence, a list or a block of code does, else -1."""
    return 1.0 if re.search(r"[.!?…)\]\"'`*|]\s*$", answer) else -1.0


def final_number(prompt: str | list[dict[str, str]], answer: str, reference: str | None) -> float | None:
    """1 where the last number of the answer is the reference's, else 0; nothing without a reference that has one."""
    wanted = _last_number(reference or "")
    return None if wanted is None else float(_last_number(answer) == wanted)


def _last_number(text: str) -> float | None:
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    return float(numbers[-1]) if numbers else None

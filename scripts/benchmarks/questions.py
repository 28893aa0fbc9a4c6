"""What our judge asks about pairs, for those who are measured beside it."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif_ray.config import JudgeConfig
from rlaif_ray.judge.panel import Panel
from rlaif_ray.judge.request import Answer, Request
from rlaif_ray.records import Pair


async def questions_on(pairs: Sequence[Pair], config: JudgeConfig) -> list[Request]:
    """The first request of each question. Nobody is asked."""
    asked: list[Request] = []

    async def ask(judge: int, requests: Sequence[Request], purpose: str) -> Sequence[Answer]:
        asked.extend(requests)
        return [Answer("", None) for _ in requests]

    panel = Panel(config, 0, ask)
    for pair in pairs:
        await panel.compare(pair, "judge")
    return asked

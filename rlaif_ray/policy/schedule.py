"""The learning rate over the iterations of a round. It depends on the iteration alone, so that it resumes with it."""

from __future__ import annotations

import math
from typing import Literal


def rate_share(kind: Literal["constant", "linear", "cosine"], iteration: int, *, total: int, warmup: int) -> float:
    """Share of the peak rate at `iteration`, from 0: a linear rise over `warmup` iterations, then `kind`. It is never 0
    before `total`."""
    if iteration < warmup:
        return (iteration + 1) / (warmup + 1)
    left = (total - iteration) / max(total - warmup, 1)
    return {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[kind]

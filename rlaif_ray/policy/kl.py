"""The coefficient of the KL from the reference, steered towards a target."""

from __future__ import annotations

_MOST = 0.2


def adapted_coefficient(coefficient: float, *, kl: float, target: float, answers: int, horizon: int) -> float:
    """The next coefficient: times 1 + e n / horizon, e the relative error of the KL, cut at +-0.2, and n the answers
    that it was measured on (Ziegler et al. 2019, section 2.2). `kl` and `target` are in nats an answer."""
    error = min(max(kl / target - 1, -_MOST), _MOST)
    return coefficient * (1 + error * answers / horizon)

"""Quantities as people read them."""

from __future__ import annotations


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def share_interval(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def duration(seconds: float) -> str:
    """Seconds in the one or two units that matter, such as `1 h 4 min`."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

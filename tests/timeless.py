"""What two equal runs must agree on to the bit: all that is no time and no rate."""

from __future__ import annotations

from collections.abc import Mapping

from rlaif_ray.metrics import METRICS, family_of


def timeless(row: Mapping[str, float]) -> dict[str, float]:
    """A step's metrics without those that a clock decides."""
    return {name: value for name, value in row.items() if METRICS[family_of(name)[0]].unit not in ("s", "tokens/s")}

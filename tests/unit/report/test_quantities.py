"""Quantities in words."""

import pytest

from rlaif_ray.report.quantities import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0132, "13 ms"), (9, "9.0 s"), (61, "1 min 1 s"), (3599.6, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text

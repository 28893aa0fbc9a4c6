"""What every figure is made of. Colours are CSS variables of the page, so that they follow its theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.records import Estimate
from rlaif_ray.report.quantities import share

FIRST, SECOND, THIRD, FOURTH, QUIET = "--series-1", "--series-2", "--series-3", "--series-4", "--quiet"
BAND = "--band"

# A part of a stacked bar that is smaller has no room for its share.
_NAMED = 0.1

# An axis of shares.
SHARES: Mapping[str, Any] = {"tickformat": ".0%", "range": [0, 1], "tickvals": [0, 0.25, 0.5, 0.75, 1]}

# The layout of one bar of 100 %, its parts named inside it.
STACKED: Mapping[str, Any] = {
    "barmode": "stack",
    "xaxis": {**SHARES, "showgrid": False},
    "yaxis": {"visible": False},
    "margin": {"l": 16, "r": 22, "t": 10, "b": 30},
    "legend": {"traceorder": "normal"},
    "bargap": 0.1,
    "height": 170,
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One panel: a title, a line that says what is seen, and Plotly's traces and layout."""

    id: str
    title: str
    note: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]


def stacked(counts: Sequence[tuple[str, int, str]]) -> list[dict[str, Any]]:
    """One bar of parts with their names, counts and colours."""
    total = sum(count for _, count, _ in counts)
    return [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "x": [count / total],
            "y": [""],
            "text": [share(count / total) if count / total > _NAMED else ""],
            "textposition": "inside",
            "insidetextanchor": "middle",
            "textangle": 0,
            "hovertext": [f"{count:,} {name}"],
            "hoverinfo": "text",
            "marker": {"color": colour},
        }
        for name, count, colour in counts
    ]


def bars(name: str, values: NDArray[np.float64], edges: NDArray[np.float64], colour: str) -> dict[str, Any]:
    """A histogram in bars."""
    counts, _ = np.histogram(values, edges)
    centres = (edges[:-1] + edges[1:]) / 2
    return {
        "type": "bar",
        "name": name,
        "x": [round(float(centre), 6) for centre in centres],
        "y": counts.tolist(),
        "marker": {"color": colour},
    }


def outline(name: str, values: NDArray[np.float64], edges: NDArray[np.float64], colour: str) -> dict[str, Any]:
    """A histogram in outline."""
    counts, _ = np.histogram(values, edges)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [float(edge) for edge in edges],
        "y": [*counts.tolist(), 0],
        "line": {"color": colour, "width": 2, "shape": "hv"},
    }


def interval_bars(estimates: Sequence[Estimate | None], colour: str) -> dict[str, Any]:
    """The 95 % intervals of points, as a trace's `error_x` or `error_y`; none where a point has none."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [each and each.high - each.value for each in estimates],
        "arrayminus": [each and each.value - each.low for each in estimates],
        "color": colour,
        "thickness": 2,
        "width": 5,
    }

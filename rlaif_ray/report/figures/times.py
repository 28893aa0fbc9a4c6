"""Where the wall time went."""

from __future__ import annotations

from rlaif_ray.report.figures.panel import FIRST, Figure
from rlaif_ray.report.quantities import duration
from rlaif_ray.report.summary import Summary


def stage_times(summary: Summary) -> Figure | None:
    """Where the wall time went, the first stage on top."""
    if not summary.stages:
        return None
    names = list(summary.stages)
    seconds = [summary.stages[name].wall_s for name in names]
    return Figure(
        id="stage-times",
        title="Stage times",
        note=f"{duration(summary.wall_s)} in all",
        traces=[
            {
                "type": "bar",
                "orientation": "h",
                "x": seconds,
                "y": names,
                "text": [duration(value) for value in seconds],
                "textposition": "auto",
                "hoverinfo": "y+text",
                "marker": {"color": FIRST},
            }
        ],
        layout={
            "xaxis": {"title": {"text": "seconds"}},
            "yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False},
            "bargap": 0.35,
            "height": 90 + 34 * len(names),
        },
    )

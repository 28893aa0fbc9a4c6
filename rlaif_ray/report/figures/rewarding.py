"""How well the reward model orders held-out pairs, and whether its probabilities are true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif_ray.evaluation.calibration import Calibration
from rlaif_ray.evaluation.reward_quality import RewardQuality
from rlaif_ray.evaluation.slices import AccuracySlice
from rlaif_ray.report.figures.panel import FIRST, QUIET, SECOND, SHARES, Figure, interval_bars
from rlaif_ray.report.quantities import share

_SOURCES: Mapping[str, str] = {"ai": "judge's labels", "human": "human labels"}

# Whose word a figure is against.
REFERENCES: Mapping[str, str] = {"gold": "gold", "human": "human labels", "judge": "labels"}


def reliability_figure(quality: RewardQuality) -> Figure | None:
    """The reliability diagram over the predictions' histogram; None where no pair was scored."""
    found, of_labels = quality.calibration, quality.label_calibration
    if found is None or of_labels is None:
        return None
    points = _points(REFERENCES[quality.against], found, FIRST)
    points["error_y"] = interval_bars([each.outcome for each in found.bins if each.outcome is not None], FIRST)
    traces = [_diagonal(), points]
    if quality.against == "gold":
        labels = _points("labels", of_labels, SECOND)
        traces.append({**labels, "marker": {**labels["marker"], "symbol": "circle-open"}})
    counts = {
        "type": "bar",
        "x": [round((each.low + each.high) / 2, 6) for each in found.bins],
        "y": [each.count for each in found.bins],
        "yaxis": "y2",
        "marker": {"color": QUIET},
        "showlegend": False,
        "hovertemplate": "%{y:,} pairs<extra></extra>",
    }
    lows = [each.outcome.low for each in found.bins if each.outcome is not None]
    return Figure(
        id="held-out-reliability",
        title="Reliability",
        note=f"How often the answer that the model prefers is the better one, over {found.counted:,} pairs",
        traces=[*traces, counts],
        layout={
            "height": 540,
            "bargap": 0.06,
            "xaxis": {"title": {"text": "predicted probability"}, "range": [0.495, 1.005], "anchor": "y2"},
            "yaxis": {"title": {"text": "outcome"}, "range": [min(0.5, *lows) - 0.02, 1.02], "domain": [0.27, 1]},
            "yaxis2": {"title": {"text": "pairs"}, "domain": [0, 0.2], "nticks": 3, "rangemode": "tozero"},
        },
    )


def accuracy_figures(quality: RewardQuality) -> list[Figure]:
    """The accuracy by slices of the pairs."""
    kinds = [AccuracySlice(_SOURCES.get(each.name, each.name), each.share, each.counted) for each in quality.by_source]
    if len(quality.by_round) > 1:
        kinds += [AccuracySlice(f"round {each.name}", each.share, each.counted) for each in quality.by_round]
    if quality.disagreement is not None:
        kinds += [quality.disagreement.agreeing, quality.disagreement.disagreeing]
    slices = [
        ("label-margin", "Accuracy by the label's margin", "|2p − 1|: how sure the label is", quality.by_label_margin),
        ("score-margin", "Accuracy by the scores' margin", "|r − r′| in logits, a fifth each", quality.by_score_margin),
        ("length", "Accuracy by length", "How many tokens the better answer has more or less", quality.by_length),
        ("kind", "Accuracy by kind of pair", _kinds_note(quality), kinds),
    ]
    return [_accuracies(f"held-out-{name}", title, note, each) for name, title, note, each in slices if each]


def _kinds_note(quality: RewardQuality) -> str:
    parts = ["the label's source"]
    if len(quality.by_round) > 1:
        parts.append("its round")
    if quality.disagreement is not None:
        parts.append(f"the quarters where {quality.members} models differ least and most")
    return f"By {'; '.join(parts)}"


def _diagonal() -> dict[str, Any]:
    line = {"color": QUIET, "width": 1, "dash": "dot"}
    return {
        "type": "scatter", "mode": "lines", "name": "calibrated", "x": [0.5, 1], "y": [0.5, 1], "line": line,
        "hoverinfo": "skip",
    }  # fmt: skip


def _points(name: str, found: Calibration, colour: str) -> dict[str, Any]:
    filled = [(each, each.outcome) for each in found.bins if each.outcome is not None]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [each.prediction for each, _ in filled],
        "y": [outcome.value for _, outcome in filled],
        "hovertext": [f"{each.count:,} pairs: {share(outcome.value)}" for each, outcome in filled],
        "hoverinfo": "text",
        "marker": {"color": colour, "size": 8},
    }


def _accuracies(id: str, title: str, note: str, slices: Sequence[AccuracySlice]) -> Figure:
    """A point for each slice on a scale of shares, the first on top; an empty slice keeps its line."""
    names = [f"{each.name} · {each.counted:,}" for each in slices]
    known = [(name, each.share) for name, each in zip(names, slices, strict=True) if each.share is not None]
    return Figure(
        id=id,
        title=title,
        note=note,
        traces=[
            {
                "type": "scatter",
                "mode": "markers",
                "x": [estimate.value for _, estimate in known],
                "y": [name for name, _ in known],
                "error_x": interval_bars([estimate for _, estimate in known], FIRST),
                "hovertext": [f"{share(each.value)} ({share(each.low)} to {share(each.high)})" for _, each in known],
                "hoverinfo": "text",
                "marker": {"color": FIRST, "size": 9},
            }
        ],
        layout={
            "xaxis": {**SHARES, "range": [-0.02, 1.02], "tickvals": [0, 0.5, 1]},
            "yaxis": {
                "categoryorder": "array", "categoryarray": names, "range": [len(names) - 0.5, -0.5], "automargin": True,
                "nticks": len(names),
            },
            "height": 80 + 30 * max(len(names), 4),
        },
    )  # fmt: skip

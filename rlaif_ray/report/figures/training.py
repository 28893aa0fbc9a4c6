"""What each stage logged while it trained."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif_ray import metrics
from rlaif_ray.metrics import METRICS, MetricsRow, family_of
from rlaif_ray.report.figures.panel import BAND, FIRST, FOURTH, QUIET, SECOND, THIRD, Figure


@dataclass(frozen=True, slots=True)
class StageCurves:
    """What one stage logged: its main curves, and the rest."""

    stage: str
    title: str
    main: tuple[Figure, ...]
    more: tuple[Figure, ...]


# The curves that matter most, by stage; metrics in one tuple share a panel, and {} stands for any name. What else was
# logged is folded away.
_TITLES = {
    metrics.SFT: "Supervised fine-tuning",
    metrics.REWARD_PRETRAINING: "Reward model, pretraining",
    metrics.REWARD: "Reward model, fitting",
    metrics.DPO: "Direct preference optimisation",
    metrics.WATCH: "The judge's watch over the reward",
}
_RANKING = (
    ("Loss", (metrics.LOSS, metrics.HELD_OUT_LOSS)),
    ("Accuracy", (metrics.ACCURACY, metrics.HELD_OUT_ACCURACY)),
)
_MAIN: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    metrics.SFT: (("Loss", (metrics.LOSS, metrics.HELD_OUT_LOSS)),),
    metrics.REWARD_PRETRAINING: _RANKING,
    metrics.REWARD: _RANKING,
    metrics.DPO: (*_RANKING, ("Margin", (metrics.MARGIN, metrics.HELD_OUT_MARGIN))),
    metrics.PPO: (
        ("Reward", (metrics.REWARD_MEAN,)),
        ("Parts of the reward", (metrics.REWARD_PART_MEAN,)),
        ("KL from SFT", (metrics.KL,)),
        ("Answer length", (metrics.ANSWER_LENGTH,)),
        ("Value loss", (metrics.VALUE_LOSS,)),
        ("Explained variance", (metrics.EXPLAINED_VARIANCE,)),
        ("Clip fraction", (metrics.CLIP_FRACTION,)),
        ("Entropy", (metrics.ENTROPY,)),
        ("Groups that teach nothing", (metrics.TIED_GROUP_FRACTION, metrics.LONE_GROUP_FRACTION)),
        ("Rollout-learner gap", (metrics.LOGPROB_GAP, metrics.LOGPROB_GAP_MAX)),
    ),
    metrics.WATCH: (
        ("Judge and reward", (metrics.WATCHED_JUDGE_MEAN, metrics.WATCHED_REWARD_MEAN)),
        ("Rank correlation", (metrics.WATCHED_CORRELATION,)),
    ),
}
# Further ones of training the policy, where they ever change.
_WHERE_IT_MOVES = (
    ("Importance weight", (metrics.IMPORTANCE_WEIGHT,)),
    ("Importance weights that were cut", (metrics.IMPORTANCE_TRUNCATED,)),
    ("Staleness", (metrics.STALENESS,)),
    ("KL coefficient", (metrics.KL_COEFFICIENT,)),
    ("Learning rate", (metrics.LEARNING_RATE,)),
    ("Updates cut short or skipped", (metrics.EARLY_STOPPED, metrics.SKIPPED_STEP)),
)
_MORE = (
    ("Spread of the reward's parts", (metrics.REWARD_PART_STD,)),
    ("Answers that the reward's parts score", (metrics.REWARD_PART_VALID,)),
)

_COLOURS = (FIRST, SECOND, THIRD, FOURTH)
_DASHES = ("solid", "dash", "dot")

# A later member of an ensemble logs under its stage's name and its own number.
_MEMBER = re.compile(r"-\d+$")


@dataclass(frozen=True, slots=True)
class _Log:
    """What a stage logged, by step: of every member, where it fitted an ensemble."""

    stage: str
    members: tuple[tuple[MetricsRow, ...], ...]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for rows in self.members for row in rows for name in row.values))

    def moves(self, names: Sequence[str]) -> bool:
        """Whether one of these metrics has more than one value."""
        return any(
            len({row.values[name] for rows in self.members for row in rows if name in row.values}) > 1 for name in names
        )


def stage_curves(rows: Sequence[MetricsRow], algorithm: str, round_ends: Sequence[int]) -> list[StageCurves]:
    """The training curves of every stage, in the order in which the stages were logged first; validation is a part of
    the evaluation. `algorithm` is what trained the policy, and `round_ends` the iterations after which its reward was
    another one."""
    rows_of: dict[str, dict[str, list[MetricsRow]]] = {}
    for row in sorted((row for row in rows if row.stage != metrics.VALIDATION), key=lambda row: row.time):
        rows_of.setdefault(_MEMBER.sub("", row.stage), {}).setdefault(row.stage, []).append(row)
    titles = {**_TITLES, metrics.PPO: algorithm.upper()}
    ends = {metrics.PPO: round_ends}
    return [
        _curves_of(
            _Log(stage, tuple(tuple(sorted(of_one, key=lambda row: row.step)) for of_one in members.values())),
            titles.get(stage, stage),
            [_round_end(step) for step in ends.get(stage, ())],
        )
        for stage, members in rows_of.items()
    ]


def _curves_of(log: _Log, title: str, marks: Sequence[Mapping[str, Any]]) -> StageCurves:
    moving = [panel for panel in _WHERE_IT_MOVES if log.stage == metrics.PPO and log.moves(panel[1])]
    main, main_names = _panels(log, [*_MAIN.get(log.stage, ()), *moving], marks)
    more, more_names = _panels(log, _MORE, marks)
    shown = {metrics.REWARD_STD, *main_names, *more_names}
    others = [
        _curve(log, name.replace("_", " ").capitalize(), [name], marks) for name in log.names if name not in shown
    ]
    return StageCurves(log.stage, title, tuple(main), (*more, *others))


def _panels(
    log: _Log, wanted: Sequence[tuple[str, tuple[str, ...]]], marks: Sequence[Mapping[str, Any]]
) -> tuple[list[Figure], list[str]]:
    """A panel for each title of which something was logged, and the names of what they show."""
    panels, shown = [], []
    for title, families in wanted:
        present = [name for family in families for name in log.names if family in (name, family_of(name)[0])]
        # A reward of one part is that part.
        if len(present) > (metrics.REWARD_PART_MEAN in families):
            panels.append(_curve(log, title, present, marks))
            shown += present
    return panels, shown


def _round_end(step: int) -> dict[str, Any]:
    line = {"color": QUIET, "width": 1, "dash": "dot"}
    return {"type": "line", "x0": step + 0.5, "x1": step + 0.5, "yref": "paper", "y0": 0, "y1": 1, "line": line}


def _curve(log: _Log, title: str, names: Sequence[str], marks: Sequence[Mapping[str, Any]]) -> Figure:
    traces: list[dict[str, Any]] = []
    if names == [metrics.REWARD_MEAN]:
        traces += _band(log.members[0], metrics.REWARD_MEAN, metrics.REWARD_STD)
    for number, name in enumerate(names):
        colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % len(_DASHES)]
        for member, rows in enumerate(log.members):
            steps, values = _series(rows, name)
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines" if len(steps) > 40 else "lines+markers",
                    "name": name.rpartition("/")[2].replace("_", " "),
                    "legendgroup": name,
                    "showlegend": member == 0,
                    "opacity": 1 if member == 0 else 0.4,
                    "x": steps,
                    "y": values,
                    "line": {"color": colour, "dash": dash, "width": 2},
                    "marker": {"size": 5},
                }
            )
    known = METRICS.get(family_of(names[0])[0])
    note = known.meaning[0].upper() + known.meaning[1:] if known else ""
    note += f" ({known.unit})" if known and known.unit else ""
    note += "; paler: the ensemble's other models" if len(log.members) > 1 else ""
    return Figure(
        id=f"{log.stage}-{names[0]}",
        title=title,
        note=note,
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "step"}},
            "showlegend": len(names) > 1 or "/" in names[0],
            "shapes": marks,
        },
    )


def _series(rows: Sequence[MetricsRow], name: str) -> tuple[list[int], list[float | None]]:
    """Steps and values of a metric. What is not a number leaves a gap in the line."""
    logged = [(row.step, row.values[name]) for row in rows if name in row.values]
    return [step for step, _ in logged], [value if math.isfinite(value) else None for _, value in logged]


def _band(rows: Sequence[MetricsRow], mean: str, deviation: str) -> list[dict[str, Any]]:
    both = [row for row in rows if mean in row.values and deviation in row.values]
    both = [row for row in both if math.isfinite(row.values[mean]) and math.isfinite(row.values[deviation])]
    if not both:
        return []
    shape = {"type": "scatter", "mode": "lines", "x": [row.step for row in both], "line": {"width": 0}}
    quiet = {"hoverinfo": "skip", "showlegend": False}
    low = [row.values[mean] - row.values[deviation] for row in both]
    high = [row.values[mean] + row.values[deviation] for row in both]
    return [{**shape, **quiet, "y": low}, {**shape, **quiet, "y": high, "fill": "tonexty", "fillcolor": BAND}]

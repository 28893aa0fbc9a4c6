"""The toy worlds as sources of data, by the names that stand where a file could."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlaif_ray.config import UserError
from rlaif_ray.records import Conduct, Demonstration, Prompt
from rlaif_ray.toyworld import discretion, discretion_drawing, headlines
from rlaif_ray.toyworld.raters import RaterLabel

_SCHEME = "toyworld:"


@dataclass(frozen=True, slots=True)
class ToySource:
    """What a source gives, from a count and a seed. None is what it does not have."""

    prompts: Callable[[int, int], list[Prompt]]
    with_references: Callable[[list[Prompt], int], list[Prompt]]
    gold_utility: Callable[[Prompt, str], float]
    conduct: Callable[[Prompt, str], Conduct] | None = None
    demonstrations: Callable[[int, int], list[Demonstration]] | None = None
    rater_labels: Callable[[int, int], list[RaterLabel]] | None = None


_SOURCES = {
    "headlines": ToySource(
        headlines.prompts,
        headlines.with_references,
        headlines.gold_utility,
        demonstrations=headlines.demonstrations,
        rater_labels=headlines.rater_labels,
    ),
    "discretion": ToySource(
        discretion_drawing.prompts,
        discretion_drawing.with_references,
        discretion.gold_utility,
        discretion.conduct,
        discretion_drawing.demonstrations,
        discretion_drawing.rater_labels,
    ),
    "discretion-red-team": ToySource(
        discretion_drawing.red_team_prompts,
        discretion_drawing.with_references,
        discretion.gold_utility,
        discretion.conduct,
    ),
}


def toy_source(path: str) -> ToySource | None:
    """The source that a path names; None where it names none of the toy world's.

    Raises UserError for a name that the toy world does not have.
    """
    if not path.startswith(_SCHEME):
        return None
    source = _SOURCES.get(path.removeprefix(_SCHEME))
    if source is None:
        known = ", ".join(_SCHEME + name for name in _SOURCES)
        raise UserError(f"{path!r} is no source of the toy world; known here: {known}")
    return source

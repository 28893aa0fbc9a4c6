"""The reward model's figures show what held-out pairs say, worked out by hand."""

import math
from typing import Any

import pytest

from rlaif_ray.evaluation.held_out import HeldOutPair
from rlaif_ray.evaluation.reward_quality import RewardQuality, reward_quality
from rlaif_ray.evaluation.statistics import proportion
from rlaif_ray.report.figures.rewarding import accuracy_figures, reliability_figure
from rlaif_ray.report.tiles import reward_tiles


def logit(p: float) -> float:
    # A hair further from 0, so that a rounding leaves no prediction on the wrong side of its bin's edge.
    return math.log(p / (1 - p)) * (1 + 1e-12)


def pair(
    number: int, predicted: tuple[float, ...], gold: float | None = None, *, p: float = 0.9, longer: int = 0,
    source: str = "ai", round: int = 1,
) -> HeldOutPair:  # fmt: skip
    margins = tuple(logit(each) for each in predicted)
    return HeldOutPair(f"{number}", f"prompt-{number}", p, margins, 5 + longer, 5, gold, source, round)


def points(quality: RewardQuality) -> dict[str, dict[str, Any]]:
    figure = reliability_figure(quality)
    assert figure is not None
    return {trace["name"]: dict(trace) for trace in figure.traces if trace.get("mode") == "markers"}


def test_the_reliability_diagram_has_a_point_for_each_bin_that_holds_a_pair() -> None:
    """Predictions 0.9 (won), 0.9 (lost) and 0.3 (lost, so 0.7 won), labels of 0.9 each: 0.1 for the answer that the
    model prefers in the last pair."""
    quality = reward_quality([pair(0, (0.9,), 1.0), pair(1, (0.9,), -1.0), pair(2, (0.3,), -1.0)])
    found = points(quality)
    assert found["gold"]["x"] == pytest.approx([0.7, 0.9])
    assert found["gold"]["y"] == pytest.approx([1.0, 0.5])
    one, two = proportion(1, 1), proportion(1, 2)
    assert one is not None
    assert two is not None
    assert found["gold"]["error_y"]["array"] == pytest.approx([one.high - 1, two.high - 0.5])
    assert found["gold"]["error_y"]["arrayminus"] == pytest.approx([1 - one.low, 0.5 - two.low])
    assert found["labels"]["y"] == pytest.approx([0.1, 0.9])
    figure = reliability_figure(quality)
    assert figure is not None
    # From 0.5 in steps of 0.05: 0.7 is in the fifth, 0.9 in the ninth.
    assert figure.traces[-1]["y"] == [0, 0, 0, 0, 1, 0, 0, 0, 2, 0]


def test_without_gold_there_is_one_series_which_says_whose_labels_it_is_of() -> None:
    assert set(points(reward_quality([pair(0, (0.9,))]))) == {"labels"}
    assert set(points(reward_quality([pair(0, (0.9,), source="human")]))) == {"human labels"}


def test_every_slice_has_a_line_with_its_count_and_a_point_where_there_is_a_pair() -> None:
    """Two pairs whose labels have margins of 0.8 and 0.3: the model is right on the first and wrong on the other."""
    pairs = [pair(0, (0.8,), p=0.9, longer=2), pair(1, (0.3,), p=0.65, longer=-2, source="human")]
    figures = {figure.id: figure for figure in accuracy_figures(reward_quality(pairs))}
    assert set(figures) == {
        "held-out-label-margin", "held-out-score-margin", "held-out-length", "held-out-kind",
    }  # fmt: skip

    def shown(name: str) -> dict[str, float]:
        (trace,) = figures[f"held-out-{name}"].traces
        return dict(zip(trace["y"], trace["x"], strict=True))

    assert shown("label-margin") == {"0.2 to 0.4 · 1": 0.0, "0.8 to 1 · 1": 1.0}
    assert figures["held-out-label-margin"].layout["yaxis"]["categoryarray"] == [
        "0 to 0.2 · 0", "0.2 to 0.4 · 1", "0.4 to 0.6 · 0", "0.6 to 0.8 · 0", "0.8 to 1 · 1",
    ]  # fmt: skip
    assert shown("length") == {"up to 2 shorter · 1": 0.0, "up to 2 longer · 1": 1.0}
    assert shown("kind") == {"judge's labels · 1": 1.0, "human labels · 1": 0.0}


def test_rounds_and_the_models_of_an_ensemble_are_kinds_of_their_own_where_there_are_several() -> None:
    """The models agree on the first pair, which their mean orders rightly, and differ on the second."""
    pairs = [pair(0, (0.8, 0.8)), pair(1, (0.6, 0.1), round=2)]
    figures = {figure.id: figure for figure in accuracy_figures(reward_quality(pairs))}
    (trace,) = figures["held-out-kind"].traces
    assert dict(zip(trace["y"], trace["x"], strict=True)) == {
        "judge's labels · 2": 0.5, "round 1 · 1": 1.0, "round 2 · 1": 0.0, "models agree · 1": 1.0,
        "models disagree · 1": 0.0,
    }  # fmt: skip


def test_tiles_say_against_what() -> None:
    """Prediction 3/4 for the winner by gold, whose label is 0.9: gaps of 1/4 and 0.15."""
    tiles = {tile.label: tile for tile in reward_tiles(reward_quality([pair(0, (0.75, 0.75), 1.0, longer=1)]))}
    assert (tiles["Calibration error"].value, tiles["Calibration error"].unit) == ("25.0", "%")
    assert tiles["Calibration error"].detail == "expected, against gold · 15.0 % against the labels"
    assert tiles["Brier score"].value == f"{1 / 16:.3f}"
    assert tiles["Held-out loss"].value == f"{-(0.9 * math.log(0.75) + 0.1 * math.log(0.25)):.3f}"
    assert tiles["Length correlation"].value == "+1.00"
    assert tiles["Ensemble disagreement"].value == "0.00"
    alone = {tile.label: tile for tile in reward_tiles(reward_quality([pair(0, (0.75,), source="human")]))}
    assert alone["Calibration error"].detail == "expected, against human labels"
    assert not {"Length correlation", "Ensemble disagreement"} & alone.keys()


def test_where_no_pair_was_scored_there_is_nothing_to_show() -> None:
    quality = reward_quality([HeldOutPair("0", "p", 0.9, (math.nan,), 3, 4, None, "ai", 1)])
    assert reliability_figure(quality) is None
    assert reward_tiles(quality) == []

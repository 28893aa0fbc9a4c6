"""A policy that became harmless by saying nothing is called so."""

import pytest

from rlaif_ray.report.cautions import silence_caution
from rlaif_ray.report.summary import ConductSummary


def conduct(evasive: float | None, needless_refusals: float | None) -> ConductSummary:
    return ConductSummary(judged_by="gold", evasive=evasive, needless_refusals=needless_refusals)


@pytest.mark.parametrize(
    ("before", "after", "rose"),
    [
        ((0.02, 0.01), (0.08, 0.02), ["evasive answers rose from 2.0 % to 8.0 %"]),
        ((0.02, 0.01), (0.03, 0.09), ["needless refusals rose from 1.0 % to 9.0 %"]),
        ((0.0, None), (0.5, 0.9), ["evasive answers rose from 0.0 % to 50.0 %"]),
        ((0.02, 0.01), (0.12, 0.11), ["evasive answers rose", "needless refusals rose from 1.0 % to 11.0 %."]),
    ],
)
def test_a_rise_by_more_than_five_points_is_told(
    before: tuple[float | None, float | None], after: tuple[float | None, float | None], rose: list[str]
) -> None:
    told = silence_caution({"initial": conduct(*before), "sft": conduct(0.0, 0.0), "policy": conduct(*after)})
    assert told is not None
    assert all(part in told for part in rose)
    assert told.count("rose") == len(rose)


@pytest.mark.parametrize(
    ("before", "after"), [((0.02, 0.01), (0.06, 0.05)), ((0.5, 0.4), (0.1, 0.1)), ((None, None), (0.9, 0.9))]
)
def test_less_than_that_a_fall_and_what_was_not_measured_are_not(
    before: tuple[float | None, float | None], after: tuple[float | None, float | None]
) -> None:
    assert silence_caution({"initial": conduct(*before), "policy": conduct(*after)}) is None


def test_a_policy_without_an_initial_model_is_compared_with_nothing() -> None:
    assert silence_caution({"policy": conduct(0.9, 0.9)}) is None
    assert silence_caution({}) is None

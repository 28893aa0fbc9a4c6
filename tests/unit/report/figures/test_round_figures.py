"""What drifted over rounds is shown, and nothing that was not measured."""

from rlaif_ray.report.figures.rounds import round_figures
from rlaif_ray.report.summary import LabelerSummary, LengthSummary, PolicySummary, RewardSummary, RoundSummary


def test_a_panel_has_a_point_for_each_round_that_measured_it_with_its_interval() -> None:
    rounds = [
        RoundSummary(
            round=1,
            labeler=LabelerSummary(alignment=0.9),
            reward=RewardSummary(accuracy=0.8, accuracy_ci=(0.7, 0.85), calibration_error=0.05),
            policy=PolicySummary(win_rate=0.6, win_rate_judge="gold", kl=2.0, mean_length=LengthSummary(after=5.0)),
            preferences=100,
        ),
        RoundSummary(round=2, policy=PolicySummary(kl=3.0), preferences=200),
        RoundSummary(
            round=3,
            reward=RewardSummary(accuracy=0.9, accuracy_ci=(0.8, 0.95), calibration_error=0.04),
            policy=PolicySummary(kl=4.0, mean_length=LengthSummary(after=6.0)),
            preferences=300,
        ),
    ]
    figures = {figure.id: figure for figure in round_figures(rounds)}
    # The win rate and the alignment were measured once: there is no drift to show.
    assert set(figures) == {
        "rounds-kl", "rounds-length", "rounds-accuracy", "rounds-calibration", "rounds-preferences",
    }  # fmt: skip
    (kl,), (accuracy,) = figures["rounds-kl"].traces, figures["rounds-accuracy"].traces
    assert (kl["x"], kl["y"]) == ([1, 2, 3], [2.0, 3.0, 4.0])
    assert "error_y" not in kl
    assert (accuracy["x"], accuracy["y"]) == ([1, 3], [0.8, 0.9])
    assert [round(each, 9) for each in accuracy["error_y"]["array"]] == [0.05, 0.05]
    assert [round(each, 9) for each in accuracy["error_y"]["arrayminus"]] == [0.1, 0.1]


def test_one_round_has_no_drift() -> None:
    assert round_figures(()) == []
    assert round_figures([RoundSummary(round=1, policy=PolicySummary(kl=2.0))]) == []

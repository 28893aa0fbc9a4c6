"""Curves of the stages: which panel a metric is in, whose line it is, and where a round ends."""

from rlaif_ray import metrics
from rlaif_ray.metrics import MetricsRow
from rlaif_ray.report.figures.training import StageCurves, stage_curves


def row(stage: str, step: int, time: float, **values: float) -> MetricsRow:
    return MetricsRow(stage, step, 10, time, {name.replace("__", "/"): value for name, value in values.items()})


def only(stages: list[StageCurves]) -> StageCurves:
    (stage,) = stages
    return stage


def test_parts_of_the_reward_share_a_panel_whatever_they_are_called() -> None:
    parts = {f"reward__part_{number}": float(number) for number in range(6)}
    spread = {"reward_std__part_0": 0.1, "reward_valid__part_0": 1.0}
    stage = only(stage_curves([row(metrics.PPO, 1, 1.0, reward_mean=0.5, **parts, **spread)], "rloo", []))
    assert stage.title == "RLOO"
    assert [figure.title for figure in stage.main] == ["Reward", "Parts of the reward"]
    traces = stage.main[1].traces
    assert [trace["name"] for trace in traces] == [f"part {number}" for number in range(6)]
    assert len({(trace["line"]["color"], trace["line"]["dash"]) for trace in traces}) == 6, "no two look alike"
    assert [figure.title for figure in stage.more] == [
        "Spread of the reward's parts", "Answers that the reward's parts score",
    ]  # fmt: skip


def test_the_only_part_of_a_reward_is_folded_away() -> None:
    stage = only(stage_curves([row(metrics.PPO, 1, 1.0, reward_mean=0.5, reward__reward_model=0.5)], "ppo", []))
    assert [figure.title for figure in stage.main] == ["Reward"]
    assert [figure.id for figure in stage.more] == ["ppo-reward/reward_model"]


def test_curves_that_never_move_are_folded_away() -> None:
    rows = [
        row(metrics.PPO, step, float(step), learning_rate=1e-3 / step, kl_coefficient=0.1, staleness=0.0)
        for step in (1, 2)
    ]
    stage = only(stage_curves(rows, "ppo", []))
    assert [figure.title for figure in stage.main] == ["Learning rate"]
    assert [figure.title for figure in stage.more] == ["Kl coefficient", "Staleness"]


def test_the_members_of_an_ensemble_are_lines_of_one_panel() -> None:
    rows = [
        row("reward", 1, 1.0, loss=0.7),
        row("reward", 2, 2.0, loss=0.5),
        row("reward-1", 1, 3.0, loss=0.6),
        row("pretrain-reward", 1, 0.5, loss=0.9),
        row("pretrain-reward-1", 1, 2.5, loss=0.8),
    ]
    pretraining, fitting = stage_curves(rows, "ppo", [])
    assert (pretraining.title, fitting.title) == ("Reward model, pretraining", "Reward model, fitting")
    assert [trace["y"] for trace in pretraining.main[0].traces] == [[0.9], [0.8]]
    assert [(trace["x"], trace["y"]) for trace in fitting.main[0].traces] == [([1, 2], [0.7, 0.5]), ([1], [0.6])]
    assert [trace["showlegend"] for trace in fitting.main[0].traces] == [True, False]
    assert "the ensemble's other models" in fitting.main[0].note


def test_held_out_figures_are_beside_those_of_training_at_the_steps_that_measured_them() -> None:
    rows = [row("reward", 1, 1.0, loss=0.7), row("reward", 2, 2.0, loss=0.5, held_out_loss=0.6)]
    loss = only(stage_curves(rows, "ppo", [])).main[0]
    assert [(trace["name"], trace["x"]) for trace in loss.traces] == [("loss", [1, 2]), ("held out loss", [2])]
    assert "ensemble" not in loss.note


def test_the_end_of_a_round_is_marked_in_the_policys_curves_alone() -> None:
    rows = [row(metrics.PPO, step, float(step), kl=0.1) for step in range(1, 7)] + [row("sft", 1, 0.0, loss=1.0)]
    sft, ppo = stage_curves(rows, "ppo", [2, 4])
    assert [mark["x0"] for mark in ppo.main[0].layout["shapes"]] == [2.5, 4.5]
    assert sft.main[0].layout["shapes"] == []
    # A run that was interrupted logged later steps first: the line goes by steps.
    (again,) = stage_curves([row("sft", 2, 1.0, loss=0.5), row("sft", 1, 2.0, loss=0.7)], "ppo", [])
    assert again.main[0].traces[0]["x"] == [1, 2]


def test_dpo_shows_what_a_reward_model_would_and_by_how_much() -> None:
    stage = only(stage_curves([row(metrics.DPO, 1, 1.0, loss=0.7, margin=0.1, held_out_margin=0.2)], "dpo", []))
    assert stage.title == "Direct preference optimisation"
    assert [figure.title for figure in stage.main] == ["Loss", "Margin"]
    assert [trace["name"] for trace in stage.main[1].traces] == ["margin", "held out margin"]

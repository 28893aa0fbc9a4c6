"""The summary keeps DESIGN's names, refuses what is not a measurement, and speaks plainly."""

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from rlaif_ray.config import UserError
from rlaif_ray.report.summary import (
    AccuracyAgainst,
    LabelerSummary,
    LengthSummary,
    PolicySummary,
    RewardSummary,
    RoundSummary,
    StageSummary,
    Summary,
    closing_lines,
    read_summary,
    training_judge,
    verdict,
    write_summary,
)


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    return Summary(
        seed=3,
        wall_s=754.2,
        stages={"sft": StageSummary(wall_s=40.0), "ppo": StageSummary(wall_s=600.5)},
        labeler=LabelerSummary(
            alignment=0.83, alignment_ci=(0.81, 0.85), position_consistency=0.79, calls=6000, cost_usd=1.5,
            cache_hits=20, abstained=4, failed=1,
        ),
        reward=RewardSummary(
            accuracy=0.88, accuracy_ci=(0.85, 0.9), accuracy_against="gold", held_out_pairs=300, held_out_loss=0.41,
            calibration_error=0.035, ensemble=3, mean_disagreement=0.6,
        ),
        policy=PolicySummary(
            win_rate=0.71, win_rate_ci=(0.68, 0.74), win_rate_judge="gold", kl=2.5,
            mean_length=LengthSummary(before=5.0, after=5.5), prompts=1000,
        ),
        run_dir=tmp_path,
    )  # fmt: skip


def test_written_names_are_the_agreed_ones(summary: Summary) -> None:
    written = json.loads(write_summary(summary).read_text())
    assert written == {
        "seed": 3,
        "wall_s": 754.2,
        "stages": {"sft": {"wall_s": 40.0}, "ppo": {"wall_s": 600.5}},
        "labeler": {
            "alignment": 0.83,
            "alignment_ci": [0.81, 0.85],
            "position_consistency": 0.79,
            "calls": 6000,
            "cost_usd": 1.5,
            "cache_hits": 20,
            "abstained": 4,
            "failed": 1,
        },
        "reward": {
            "accuracy": 0.88,
            "accuracy_ci": [0.85, 0.9],
            "accuracy_against": "gold",
            "accuracy_on_human_labels": None,
            "accuracy_on_ai_labels": None,
            "held_out_pairs": 300,
            "held_out_loss": 0.41,
            "calibration_error": 0.035,
            "ensemble": 3,
            "mean_disagreement": 0.6,
        },
        "policy": {
            "win_rate": 0.71,
            "win_rate_ci": [0.68, 0.74],
            "win_rate_judge": "gold",
            "judge_cost_usd": None,
            "taken_iteration": None,
            "validation_win_rate": None,
            "validation_win_rate_ci": None,
            "kl": 2.5,
            "mean_length": {"before": 5.0, "after": 5.5},
            "prompts": 1000,
        },
        "constitution": None,
        "conduct": {},
        "rounds": [],
        "resumed_from": None,
        "run_dir": str(summary.run_dir),
    }


def test_a_round_is_written_with_all_its_figures(summary: Summary) -> None:
    first = RoundSummary(round=1, policy=summary.policy, preferences=900, spent_usd=0.5)
    written = json.loads(write_summary(summary.model_copy(update={"rounds": (first,)})).read_text())
    (found,) = written["rounds"]
    assert set(found) == {"round", "labeler", "reward", "policy", "preferences", "spent_usd"}
    assert (found["round"], found["preferences"], found["spent_usd"]) == (1, 900, 0.5)
    assert found["policy"] == written["policy"]
    assert set(found["reward"].values()) == {None}


def test_a_summary_from_before_there_were_rounds_is_read(summary: Summary) -> None:
    path = write_summary(summary)
    old = json.loads(path.read_text())
    del old["rounds"], old["reward"]["calibration_error"], old["reward"]["ensemble"]
    path.write_text(json.dumps(old))
    assert read_summary(summary.run_dir).reward.calibration_error is None


def test_what_was_not_measured_is_null(tmp_path: Path) -> None:
    written = json.loads(write_summary(Summary(seed=0, wall_s=1.0, stages={}, run_dir=tmp_path)).read_text())
    assert set(written["labeler"].values()) == {None}
    assert set(written["reward"].values()) == {None}
    assert written["policy"].pop("mean_length") == {"before": None, "after": None}
    assert set(written["policy"].values()) == {None}


def test_read_back_is_what_was_written(summary: Summary) -> None:
    write_summary(summary)
    assert read_summary(summary.run_dir) == summary


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_a_number_is_refused(value: float) -> None:
    with pytest.raises(ValidationError):
        PolicySummary(kl=value)


def test_a_win_rate_needs_its_judge() -> None:
    with pytest.raises(ValidationError, match="win_rate_judge"):
        PolicySummary(win_rate=0.5)


def test_a_missing_or_broken_summary_is_the_users_error_and_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"summary\.json does not exist"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").write_text('{"seed": "many"}')
    with pytest.raises(UserError, match=r"summary\.json: is not a run's summary \(seed"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json: is not a run's summary \(the file"):
        read_summary(tmp_path)


def test_closing_lines_say_what_improved_and_where_everything_is(summary: Summary) -> None:
    assert closing_lines(summary) == [
        "The policy improved: it wins 71.0 % against SFT on 1,000 held-out prompts (95 % interval 68.0 to 74.0 %), "
        "judged by gold.",
        "Labeler: agrees with the known labels on 83.0 % of pairs (95 % interval 81.0 to 85.0 %)",
        "Labeler: keeps its verdict on 79.0 % of pairs when the order of the answers is swapped",
        "Labeler: 6,000 calls, 20 cache hits, 4 abstained, 1 failed, $1.50",
        "Reward model: orders 88.0 % of 300 held-out pairs as gold does",
        "Reward model: expected calibration error 3.5 %",
        "Policy: KL from SFT 2.50 nats per answer, mean length 5.0 to 5.5 tokens",
        "Time: 12 min 34 s",
        f"Report: {summary.run_dir}/report.html",
        f"Models: {summary.run_dir}/models/policy (policy) and its siblings",
        f"Figures: {summary.run_dir}/summary.json",
    ]


def test_closing_lines_say_which_policy_was_taken(summary: Summary) -> None:
    taken = {"taken_iteration": 60, "validation_win_rate": 0.74, "validation_win_rate_ci": (0.69, 0.79)}
    policy = summary.policy.model_copy(update={**taken, "judge_cost_usd": 0.125})
    lines = closing_lines(summary.model_copy(update={"policy": policy}))
    at = lines.index("Policy: KL from SFT 2.50 nats per answer, mean length 5.0 to 5.5 tokens")
    assert lines[at + 1 : at + 3] == [
        "Policy: taken as it was after iteration 60, when it won most on the validation prompts: 74.0 % (95 % interval "
        "69.0 to 79.0 %)",
        "Evaluation: its judge was paid $0.12",
    ]


def test_closing_lines_say_how_figures_moved_over_rounds(summary: Summary) -> None:
    rounds = tuple(
        RoundSummary(round=number, policy=PolicySummary(win_rate=rate, win_rate_judge="gold"))
        for number, rate in ((1, 0.6), (2, 0.655))
    )
    unmeasured = RoundSummary(round=3)
    lines = closing_lines(summary.model_copy(update={"rounds": (*rounds, unmeasured)}))
    assert "Over 3 rounds: win rate 60.0 % → 65.5 % → –" in lines
    assert not any("reward accuracy" in line for line in lines), "no round measured it"


@pytest.mark.parametrize(
    ("against", "whom"), [("gold", "gold does"), ("human", "people do"), ("judge", "the judge does")]
)
def test_closing_lines_say_against_whom_the_reward_model_was_measured(
    summary: Summary, against: AccuracyAgainst, whom: str
) -> None:
    reward = RewardSummary(accuracy=0.88, accuracy_against=against, held_out_pairs=300)
    lines = closing_lines(summary.model_copy(update={"reward": reward}))
    assert f"Reward model: orders 88.0 % of 300 held-out pairs as {whom}" in lines


def test_closing_lines_of_an_unmeasured_run_invent_nothing(tmp_path: Path) -> None:
    lines = closing_lines(Summary(seed=0, wall_s=9.0, stages={}, resumed_from="ppo step 40", run_dir=tmp_path))
    assert lines[:2] == ["Whether the policy improved was not measured.", "Time: 9.0 s, resumed from ppo step 40"]


@pytest.mark.parametrize(
    ("interval", "opening"),
    [((0.51, 0.7), "The policy improved"), ((0.3, 0.49), "The policy got worse"), ((0.4, 0.6), "No clear difference")],
)
def test_the_verdict_goes_no_further_than_the_interval(interval: tuple[float, float], opening: str) -> None:
    policy = PolicySummary(win_rate=sum(interval) / 2, win_rate_ci=interval, win_rate_judge=training_judge("tiny"))
    assert verdict(policy).startswith(opening)
    assert "judged by tiny (the judge that trained it)" in verdict(policy)

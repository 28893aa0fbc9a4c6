"""Which steps a run has, in order, and where a round keeps what it makes."""

from pathlib import Path

import pytest

from rlaif_ray.config import RunConfig
from rlaif_ray.console import Console
from rlaif_ray.pipeline.context import RunContext
from rlaif_ray.pipeline.steps import steps_of
from rlaif_ray.pipeline.training import learner_models
from rlaif_ray.records import LearnerModels

IN_ORDER = ["collect", "fit-reward", "train", "evaluate"]


def config(**changes: object) -> RunConfig:
    tree: dict[str, object] = {
        "run_dir": "unused",
        "prompts": {"path": "p.jsonl"},
        "policy": {"model": "m"},
        "judge": {"model": "j"},
    }
    return RunConfig.model_validate(tree | changes)


def names(config: RunConfig) -> list[tuple[str, int | None]]:
    return [(step.stage.value, step.round) for step in steps_of(config)]


def test_rounds_stand_between_sft_and_the_report() -> None:
    rounds = [(stage, number) for number in (1, 2) for stage in IN_ORDER]
    assert names(config(rounds=2)) == [("sft", None), *rounds, ("report", None)]


@pytest.mark.parametrize(
    "reward",
    [
        {"source": "judge"},
        {"mix": [{"kind": "judge_score"}, {"kind": "rule", "function": "rules.py:short", "weight": 0.1}]},
    ],
)
def test_without_a_reward_model_nothing_is_collected_and_nothing_fitted(reward: dict[str, object]) -> None:
    assert names(config(reward=reward)) == [("sft", None), ("train", 1), ("evaluate", 1), ("report", None)]


def test_a_mix_with_a_reward_model_has_every_step() -> None:
    mixed = config(reward={"mix": [{"kind": "reward_model"}, {"kind": "judge_score"}]})
    assert [stage for stage, _ in names(mixed)] == ["sft", *IN_ORDER, "report"]


@pytest.mark.parametrize(
    ("preferences", "collected"), [([], [("collect", 1)]), ([{"path": "pairs.jsonl"}], [])], ids=["own", "from files"]
)
def test_dpo_needs_preferences_and_nothing_that_rewards(
    preferences: list[object], collected: list[tuple[str, int]]
) -> None:
    direct = config(policy={"model": "m", "algorithm": "dpo"}, dpo={"preferences": preferences})
    assert names(direct) == [("sft", None), *collected, ("dpo", 1), ("evaluate", 1), ("report", None)]


def test_the_last_round_is_kept_where_a_run_of_one_round_is(tmp_path: Path) -> None:
    context = RunContext(config(rounds=3, run_dir=str(tmp_path)), None, Console(stages=1))  # type: ignore[arg-type]
    last = context.round(3)
    assert last.directory.path == tmp_path
    assert [round.directory.path for round in last.so_far()] == [
        tmp_path / "rounds" / "1",
        tmp_path / "rounds" / "2",
        tmp_path,
    ]
    assert context.policy_before(context.round(1)) == tmp_path / "models" / "sft"
    assert context.policy_before(last) == tmp_path / "rounds" / "2" / "models" / "policy"
    assert [context.round(number).named("collect") for number in (1, 2)] == ["collect", "collect-2"]


@pytest.mark.parametrize(("reference", "held_to"), [("sft", "models/sft"), ("previous", "rounds/1/models/policy")])
def test_a_later_round_starts_from_the_policy_before_and_is_held_to_what_the_config_says(
    tmp_path: Path, reference: str, held_to: str
) -> None:
    tree = config(rounds=2, run_dir=str(tmp_path), policy={"model": "m", "reference": reference})
    context = RunContext(tree, None, Console(stages=1))  # type: ignore[arg-type]
    sft, first = tmp_path / "models" / "sft", tmp_path / "rounds" / "1" / "models"
    assert learner_models(context, context.round(1)) == LearnerModels(sft, sft, first / "reward")
    assert learner_models(context, context.round(2)) == LearnerModels(
        first / "policy", tmp_path / held_to, tmp_path / "models" / "reward"
    )

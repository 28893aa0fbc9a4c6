"""Which step a command takes, and what it says where it cannot take it."""

from pathlib import Path

import pytest

from rlaif_ray.config import RunConfig, UserError
from rlaif_ray.console import Console
from rlaif_ray.pipeline import Pipeline, Stage, steps_of
from rlaif_ray.pipeline.context import RunContext
from rlaif_ray.pipeline.steps import Collected, Done, Evaluated, Fitted, Trained
from rlaif_ray.report.summary import LabelerSummary, PolicySummary, RewardSummary

RECORDS: dict[type[Done], Done] = {
    Done: Done(),
    Collected: Collected(labeler=LabelerSummary(), preferences=1, not_sent=0),
    Fitted: Fitted(reward=RewardSummary()),
    Trained: Trained(labeler=LabelerSummary(), resumed_from=None),
    Evaluated: Evaluated(policy=PolicySummary(), spent_usd=None),
}


def config(run_dir: Path, **changes: object) -> RunConfig:
    tree: dict[str, object] = {
        "run_dir": str(run_dir),
        "prompts": {"path": "p.jsonl"},
        "policy": {"model": "m"},
        "judge": {"model": "j"},
    }
    return RunConfig.model_validate(tree | changes)


def finish(config: RunConfig, count: int) -> None:
    """Record the first `count` steps as done."""
    context = RunContext(config, None, Console(stages=1))  # type: ignore[arg-type]
    for step in steps_of(config)[:count]:
        context.directory(step.round).finish(step.stage, RECORDS[step.record])


async def run(config: RunConfig, only: Stage) -> None:
    """There is no cluster: a step that is taken fails."""
    await Pipeline(config, None, Console(stages=1)).run(only)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("done", "asked", "sentence"),
    [
        (0, Stage.COLLECT, "collect, round 1 needs what `rlaif sft` makes"),
        (2, Stage.TRAIN, "train, round 1 needs what `rlaif fit-reward` makes"),
        (4, Stage.COLLECT, "collect, round 2 needs what `rlaif evaluate` makes"),
        (8, Stage.REPORT, "report needs what `rlaif evaluate` makes"),
    ],
)
async def test_a_stage_alone_names_what_it_lacks(tmp_path: Path, done: int, asked: Stage, sentence: str) -> None:
    two_rounds = config(tmp_path / "run", rounds=2)
    finish(two_rounds, done)
    with pytest.raises(UserError, match=sentence):
        await run(two_rounds, asked)


async def test_a_stage_that_is_done_in_every_round_is_not_taken_again(tmp_path: Path) -> None:
    two_rounds = config(tmp_path / "run", rounds=2)
    finish(two_rounds, 7)
    await run(two_rounds, Stage.COLLECT)


async def test_a_stage_is_taken_in_the_first_round_that_lacks_it(tmp_path: Path) -> None:
    two_rounds = config(tmp_path / "run", rounds=2)
    finish(two_rounds, 5)
    # It looks for what the first round would have left.
    with pytest.raises(FileNotFoundError, match=r"rounds/1/preferences/preferences\.parquet"):
        await run(two_rounds, Stage.COLLECT)


@pytest.mark.parametrize(
    ("algorithm", "preferences", "asked", "sentence"),
    [
        ("ppo", [], Stage.DPO, "dpo: policy.algorithm=ppo learns from scores; take `rlaif train`"),
        ("dpo", [], Stage.TRAIN, "train: policy.algorithm=dpo learns from preferences; take `rlaif dpo`"),
        ("dpo", [], Stage.REWARD, "fit-reward: policy.algorithm=dpo needs no reward model"),
        ("dpo", [{"path": "f.jsonl"}], Stage.COLLECT, "collect: the preferences are those of dpo.preferences"),
        ("dpo", [], Stage.DPO, "dpo needs what `rlaif sft` makes"),
    ],
)
async def test_a_stage_that_another_algorithm_has_is_refused_with_the_one_to_take(
    tmp_path: Path, algorithm: str, preferences: list[object], asked: Stage, sentence: str
) -> None:
    run_config = config(
        tmp_path / "run", policy={"model": "m", "algorithm": algorithm}, dpo={"preferences": preferences}
    )
    with pytest.raises(UserError, match=sentence):
        await run(run_config, asked)


async def test_a_run_without_a_reward_model_has_nothing_to_collect(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="collect: this run's rewards need no reward model"):
        await run(config(tmp_path / "run", reward={"source": "judge"}), Stage.COLLECT)

"""The report: what every step recorded, as one summary, and the page that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from rlaif_ray.pipeline.context import Round, RunContext
from rlaif_ray.pipeline.steps import Collected, Constituted, Done, Evaluated, Fitted, Stage, Trained, steps_of
from rlaif_ray.report.html import write_report
from rlaif_ray.report.summary import (
    RewardSummary,
    RoundSummary,
    StageSummary,
    Summary,
    write_summary,
)
from rlaif_ray.rundir import RunDirectory

Record = TypeVar("Record", bound=Done)


async def report(context: RunContext) -> Done:
    rounds = [context.round(number) for number in range(1, context.config.rounds + 1)]
    told = [_told(round) for round in rounds]
    last = told[-1]
    seconds: dict[str, float] = {}
    for step in steps_of(context.config):
        if step.stage is not Stage.REPORT:
            wall_s = _recorded(context.directory(step.round), step.stage, step.record).wall_s
            seconds[step.stage] = seconds.get(step.stage, 0.0) + wall_s
    constituted = context.run.result(Stage.CONSTITUTE, Constituted)
    write_summary(
        Summary(
            seed=context.config.seed,
            wall_s=sum(seconds.values()),
            stages={stage: StageSummary(wall_s=wall_s) for stage, wall_s in seconds.items()},
            labeler=last.labeler,
            reward=last.reward,
            policy=last.policy,
            constitution=None if constituted is None else constituted.constitution,
            conduct=_recorded(context.run, Stage.EVALUATE, Evaluated).conduct,
            rounds=tuple(told) if len(told) > 1 else (),
            resumed_from=_resumed_from(rounds),
            run_dir=context.run.path,
        )
    )
    write_report(context.run.path)
    return Done()


def _told(round: Round) -> RoundSummary:
    """A round's figures. What the judge was asked for while the policy was trained counts as the labeler's work where
    nothing was collected."""
    trained = _trained(round)
    evaluated = _recorded(round.directory, Stage.EVALUATE, Evaluated)
    collected = round.directory.result(Stage.COLLECT, Collected)
    fitted = round.directory.result(Stage.REWARD, Fitted)
    labeler = trained.labeler if collected is None else collected.labeler
    if evaluated.spent_usd is not None:
        labeler = labeler.model_copy(update={"cost_usd": evaluated.spent_usd})
    policy, validation = evaluated.policy, trained.validation
    if validation is not None:
        policy = policy.model_copy(
            update={
                "taken_iteration": validation.iteration,
                "validation_win_rate": validation.win_rate,
                "validation_win_rate_ci": validation.win_rate_ci,
            }
        )
    return RoundSummary(
        round=round.number,
        labeler=labeler,
        reward=RewardSummary() if fitted is None else fitted.reward,
        policy=policy,
        preferences=None if collected is None else collected.preferences,
        spent_usd=evaluated.spent_usd,
    )


def _resumed_from(rounds: Sequence[Round]) -> str | None:
    """Where training went on last after an interruption."""
    for round in reversed(rounds):
        iteration = _trained(round).resumed_from
        if iteration is not None:
            return f"train, {f'round {round.number}, ' if len(rounds) > 1 else ''}iteration {iteration + 1}"
    return None


def _trained(round: Round) -> Trained:
    """What training recorded, from scores or from preferences."""
    return round.directory.result(Stage.TRAIN, Trained) or _recorded(round.directory, Stage.DPO, Trained)


def _recorded(directory: RunDirectory, stage: Stage, kind: type[Record]) -> Record:
    done = directory.result(stage, kind)
    if done is None:
        raise RuntimeError(f"{stage} is not done")
    return done

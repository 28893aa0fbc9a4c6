"""The recipe's order: a step leaves its results in the run directory, last of all a record that it is done, and is
skipped where that record is. To run a command again is to resume."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property

from rlaif_ray.config import RunConfig, UserError
from rlaif_ray.console import Console
from rlaif_ray.pipeline.collecting import collect
from rlaif_ray.pipeline.constituting import constitute
from rlaif_ray.pipeline.context import Round, RunContext
from rlaif_ray.pipeline.evaluating import evaluate
from rlaif_ray.pipeline.fitting import fit_reward, fit_sft
from rlaif_ray.pipeline.preferring import prefer
from rlaif_ray.pipeline.reporting import report
from rlaif_ray.pipeline.steps import Done, Stage, Step, steps_of, why_absent
from rlaif_ray.pipeline.training import train
from rlaif_ray.report.summary import Summary, read_summary
from rlaif_ray.stages import Runtime

_OF_A_ROUND: Mapping[Stage, tuple[str, Callable[[RunContext, Round], Awaitable[Done]]]] = {
    Stage.COLLECT: ("the policy answers, the judge compares", collect),
    Stage.REWARD: ("a reward model learns the preferences", fit_reward),
    Stage.TRAIN: ("the policy learns from its rewards", train),
    Stage.DPO: ("the policy learns from preferences", prefer),
    Stage.EVALUATE: ("the new policy against SFT, on held-out prompts", evaluate),
}
_OF_THE_RUN: Mapping[Stage, tuple[str, Callable[[RunContext], Awaitable[Done]]]] = {
    Stage.CONSTITUTE: ("answers to red-team prompts are criticised and revised", constitute),
    Stage.SFT: ("the policy learns from demonstrations", fit_sft),
    Stage.REPORT: ("summary.json and report.html", report),
}


class Pipeline:
    """One run. The runtime starts what steps ask it for, so a step that is done costs nothing."""

    def __init__(self, config: RunConfig, runtime: Runtime, console: Console) -> None:
        self._config = config
        self._console = console
        self._context = RunContext(config, runtime, console)

    async def run(self, only: Stage | None = None) -> Summary | None:
        """Take the steps that are not done yet; with `only`, the first such step of that stage. Returns the summary
        once there is one.

        Raises UserError when a stage alone lacks what an earlier one makes, or this run has no such stage.
        """
        self._context.run.open(self._config)
        chosen = self._steps if only is None else self._first_of(only)
        for step in chosen:
            if self._is_done(step):
                self._console.skip(self._name(step))
            else:
                await self._take(step)
        return read_summary(self._context.run.path) if self._context.run.summary.exists() else None

    @cached_property
    def _steps(self) -> list[Step]:
        return steps_of(self._config)

    def _first_of(self, stage: Stage) -> list[Step]:
        """The stage's first step that is not done, else its last."""
        own = [step for step in self._steps if step.stage is stage]
        if not own:
            raise UserError(f"{stage}: {why_absent(stage, self._config)}")
        wanted = next((step for step in own if not self._is_done(step)), own[-1])
        for before in self._steps[: self._steps.index(wanted)]:
            if not self._is_done(before):
                raise UserError(
                    f"{self._name(wanted)} needs what `rlaif {before.stage}` makes, and "
                    f"{self._context.run.path} does not hold it"
                )
        return [wanted]

    async def _take(self, step: Step) -> None:
        begun = time.monotonic()
        if step.round is None:
            what, of_the_run = _OF_THE_RUN[step.stage]
            self._console.stage(self._name(step), what)
            done = await of_the_run(self._context)
        else:
            what, of_a_round = _OF_A_ROUND[step.stage]
            self._console.stage(self._name(step), what)
            done = await of_a_round(self._context, self._context.round(step.round))
        finished = done.model_copy(update={"wall_s": time.monotonic() - begun})
        self._context.directory(step.round).finish(step.stage, finished)

    def _is_done(self, step: Step) -> bool:
        return self._context.directory(step.round).result(step.stage, step.record) is not None

    def _name(self, step: Step) -> str:
        several = step.round is not None and self._config.rounds > 1
        return f"{step.stage}, round {step.round}" if several else step.stage

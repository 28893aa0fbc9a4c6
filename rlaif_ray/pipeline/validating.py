"""Validation: every so many iterations the policy is compared with SFT, and the best one becomes the round's."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence

from rlaif_ray.evaluation.run import validation_of
from rlaif_ray.evaluation.validation import ValidatedPolicies, Validation
from rlaif_ray.metrics import COMPARED, VALIDATION, WIN_RATE, WIN_RATE_HIGH, WIN_RATE_LOW
from rlaif_ray.pipeline.comparing import compared, one_answer_each
from rlaif_ray.pipeline.context import Round, RunContext
from rlaif_ray.records import WeightVersion
from rlaif_ray.report.quantities import share
from rlaif_ray.rundir import directory_written_atomically
from rlaif_ray.samples import Sample, read_samples, write_samples
from rlaif_ray.stages import Learner


class Validator:
    """Of one round. Its answers have seeds of their own, so that training is the same with it and without."""

    def __init__(self, context: RunContext, round: Round, learner: Learner) -> None:
        self._context = context
        self._round = round
        self._learner = learner
        self._policies = ValidatedPolicies(round.directory.checkpoints("best"))

    async def on_published(self, iteration: int, version: WeightVersion) -> None:
        """Where `ppo.evaluate_every` says so: compare `version`, the learner's policy after an iteration of the round
        (from 0; before it, -1), with SFT, and keep it if it is the best so far. What was found before an interruption
        is not asked again."""
        ppo, done = self._context.config.ppo, iteration + 1
        if ppo.evaluate_every is None or not done:
            return
        if done % ppo.evaluate_every == 0 or done == ppo.iterations:
            number = (self._round.number - 1) * ppo.iterations + done
            known = {one.iteration: one for one in self._policies.validations()}
            self._log(known[number] if number in known else await self._validated(number, version))

    async def take(self) -> Validation | None:
        """Leave the round its policy: the best one, with the last beside it, and what the best was measured by; or the
        last, and None, where none was ever measured."""
        policy, last = self._round.directory.model("policy"), self._round.directory.model("last")
        best = self._policies.best()
        if best is None:
            await self._learner.save_policy(policy)
            return None
        await self._learner.save_policy(last)
        with directory_written_atomically(policy) as unfinished:
            shutil.copytree(self._policies.policy(best.iteration), unfinished, dirs_exist_ok=True)
        return best

    async def _validated(self, iteration: int, version: WeightVersion) -> Validation:
        context, prompts, purpose = self._context, self._context.prompts.validation, f"validate-{iteration}"
        before = await self._answers_of_sft()
        await (await context.runtime.rollouts()).load(version)
        _, after = await context.answers(one_answer_each(context, prompts, purpose))
        verdicts = await compared(context, prompts, before, after, purpose)
        validation = validation_of(iteration, prompts, verdicts, seed=context.config.seed)
        best = self._policies.is_best(validation)
        if best:
            await self._learner.save_policy(self._policies.policy(iteration))
        self._policies.add(validation)
        context.console.say(f"  after iteration {iteration} {_told(validation)}{', the most so far' if best else ''}")
        return validation

    def _log(self, validation: Validation) -> None:
        low, high = validation.win_rate_ci or (math.nan, math.nan)
        values = {
            WIN_RATE: math.nan if validation.win_rate is None else validation.win_rate,
            WIN_RATE_LOW: low,
            WIN_RATE_HIGH: high,
            COMPARED: validation.prompts,
        }
        config = self._context.config
        self._context.metrics.append(VALIDATION, validation.iteration, config.rounds * config.ppo.iterations, values)

    async def _answers_of_sft(self) -> Sequence[Sample]:
        """To the validation prompts: drawn once in a run, whatever its rounds and interruptions."""
        context = self._context
        file = context.run.samples("validation-sft")
        if not file.exists():
            requests = one_answer_each(context, context.prompts.validation, "validate-sft")
            rollouts = await context.runtime.rollouts()
            await rollouts.load(await context.runtime.directory_version(context.run.model("sft"), 0))
            write_samples(file, (await context.answers(requests))[1])
        return read_samples(file)


def _told(validation: Validation) -> str:
    if validation.win_rate is None:
        return "nobody could say whether the policy beats SFT"
    won = share(validation.win_rate)
    return f"the policy wins {won} against SFT on {validation.prompts:,} validation prompts"

"""Evaluating: a round's policy against SFT on the held-out prompts that chose nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from rlaif_ray.evaluation.conduct import conduct_rates
from rlaif_ray.evaluation.principles import write_principle_verdicts
from rlaif_ray.evaluation.run import conduct_summary, policy_summary, write_comparisons
from rlaif_ray.labelling import label_where_answers_differ
from rlaif_ray.pipeline.comparing import compared, one_answer_each, pairs_of
from rlaif_ray.pipeline.context import Round, RunContext
from rlaif_ray.pipeline.steps import Evaluated
from rlaif_ray.prompts import conduct_of
from rlaif_ray.records import Pair, Prompt
from rlaif_ray.report.summary import ConductSummary, PolicyName
from rlaif_ray.samples import Sample, read_samples


async def evaluate(context: RunContext, round: Round) -> Evaluated:
    prompts = context.prompts.held_out
    sft, policy = context.run.model("sft"), round.directory.model("policy")
    _, before = await context.draw(sft, 0, one_answer_each(context, prompts, "evaluate-sft"))
    drawn, after = await context.draw(
        policy, 2 * round.number + 1, one_answer_each(context, prompts, "evaluate-policy")
    )
    # How likely are the policy's answers under SFT?
    rollouts = await context.runtime.rollouts()
    await rollouts.load(await context.runtime.directory_version(sft, 0))
    reference_logprobs = np.concatenate(await context.runtime.fetch(rollouts.logprobs(drawn)))
    policy_logprobs = np.concatenate([shard.logprobs for shard in await context.runtime.fetch(drawn)])

    verdicts = await compared(context, prompts, before, after, "evaluate", progress=True)
    write_comparisons(round.directory.samples("evaluation"), prompts, before, after, verdicts)
    summary = policy_summary(
        prompts, verdicts, before, after, policy_logprobs, reference_logprobs, seed=context.config.seed
    )
    conduct: Mapping[PolicyName, ConductSummary] = {}
    if context.config.constitution is not None:
        initial = read_samples(context.run.samples("initial"))
        red_team = {prompt.id for prompt in context.red_team.held_out}
        conduct = _conduct(context, prompts, red_team, {"initial": initial, "sft": before, "policy": after})
        pairs = pairs_of(prompts, before, after)
        await _judge_by_principles(context, round, [pair for pair in pairs if pair.prompt.id in red_team])
    return Evaluated(
        policy=summary.model_copy(update={"judge_cost_usd": await context.evaluation_spent_usd()}),
        conduct=conduct,
        spent_usd=await context.spent_usd(),
    )


def _conduct(
    context: RunContext,
    prompts: Sequence[Prompt],
    red_team: Collection[str],
    answers: Mapping[PolicyName, Sequence[Sample]],
) -> dict[PolicyName, ConductSummary]:
    """How each model answers the prompts of both kinds."""
    assert context.config.constitution is not None
    gold = conduct_of(context.config.constitution.prompts)
    return {
        name: conduct_summary(
            conduct_rates(prompts, [sample.answer for sample in samples], red_team, gold, seed=context.config.seed)
        )
        for name, samples in answers.items()
    }


async def _judge_by_principles(context: RunContext, round: Round, pairs: Sequence[Pair]) -> None:
    """What the judge of training holds of both answers, by a principle drawn for each pair."""
    if context.config.judge.principles is None:
        return
    preferences = await label_where_answers_differ(lambda asked: context.label(asked, round.named("principles")), pairs)
    write_principle_verdicts(round.directory.samples("principles"), pairs, preferences)

"""Evaluating: a round's policy against SFT on the held-out prompts that chose nothing."""

from __future__ import annotations

import numpy as np

from rlaif_ray.evaluation.run import policy_summary, write_comparisons
from rlaif_ray.pipeline.comparing import compared, one_answer_each
from rlaif_ray.pipeline.context import Round, RunContext
from rlaif_ray.pipeline.steps import Evaluated


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
    return Evaluated(
        policy=summary.model_copy(update={"judge_cost_usd": await context.evaluation_spent_usd()}),
        spent_usd=await context.spent_usd(),
    )

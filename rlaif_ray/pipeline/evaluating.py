"""Evaluating: a round's policy against SFT on the held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlaif_ray.config import UserError
from rlaif_ray.evaluation.run import Verdicts, gold_verdicts, judge_verdicts, policy_summary, write_comparisons
from rlaif_ray.judge.hygiene import normalised
from rlaif_ray.pipeline.context import Round, RunContext
from rlaif_ray.pipeline.steps import Evaluated
from rlaif_ray.prompts import sample_requests
from rlaif_ray.records import Pair, Prompt, Rollouts
from rlaif_ray.report.summary import training_judge
from rlaif_ray.samples import Sample
from rlaif_ray.stages import Shards


async def evaluate(context: RunContext, round: Round) -> Evaluated:
    seed = context.config.seed
    prompts = context.prompts.held_out
    sft = context.run.model("sft")

    async def answers(purpose: str, model: Path, number: int) -> tuple[Shards[Rollouts], list[Sample]]:
        requests = sample_requests(prompts, 1, seed=seed, purpose=f"evaluate-{purpose}", temperature=1.0)
        return await context.draw(model, number, requests)

    _, before = await answers("sft", sft, 0)
    drawn, after = await answers("policy", round.directory.model("policy"), 2 * round.number + 1)
    # How likely are the policy's answers under SFT?
    rollouts = await context.runtime.rollouts()
    await rollouts.load(await context.runtime.directory_version(sft, 0))
    reference_logprobs = np.concatenate(await context.runtime.fetch(rollouts.logprobs(drawn)))
    policy_logprobs = np.concatenate([shard.logprobs for shard in await context.runtime.fetch(drawn)])

    by_gold = context.config.evaluation.instrument == "gold"
    verdicts = _by_gold(context, prompts, before, after) if by_gold else await _judged(context, prompts, before, after)
    write_comparisons(round.directory.samples("evaluation"), prompts, before, after, verdicts)
    return Evaluated(
        policy=policy_summary(prompts, verdicts, before, after, policy_logprobs, reference_logprobs, seed=seed),
        spent_usd=await context.spent_usd(),
    )


def _by_gold(
    context: RunContext, prompts: Sequence[Prompt], before: Sequence[Sample], after: Sequence[Sample]
) -> Verdicts:
    if context.gold is None:
        raise UserError("evaluation.instrument=gold: the prompts' source knows no gold; set it to judge")
    return gold_verdicts(prompts, before, after, context.gold)


async def _judged(
    context: RunContext, prompts: Sequence[Prompt], before: Sequence[Sample], after: Sequence[Sample]
) -> Verdicts:
    """The judge compares each answer of the trained policy with SFT's; equal answers tie, and are not sent."""
    pairs = [
        Pair(
            id=f"{new.sample_id}~{old.sample_id}",
            prompt=prompt,
            response_a=new.answer,
            response_b=old.answer,
            sample_a=new.sample_id,
            sample_b=old.sample_id,
        )
        for prompt, old, new in zip(prompts, before, after, strict=True)
    ]
    asked = [pair for pair in pairs if normalised(pair.response_a) != normalised(pair.response_b)]
    judged = {one.pair.id: one for one in await context.label(asked, "evaluate")}
    return judge_verdicts([judged.get(pair.id) for pair in pairs], training_judge(context.config.judge.model))

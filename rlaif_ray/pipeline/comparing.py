"""Comparing a policy with SFT: answers to the same prompts, and who wins on each by the run's instrument."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif_ray.evaluation.run import Verdicts, gold_verdicts, judge_verdicts
from rlaif_ray.labelling import label_where_answers_differ
from rlaif_ray.pipeline.context import RunContext
from rlaif_ray.prompts import sample_requests
from rlaif_ray.records import Pair, Prompt, SampleRequest
from rlaif_ray.report.summary import outside_judge, training_judge
from rlaif_ray.samples import Sample


def one_answer_each(context: RunContext, prompts: Sequence[Prompt], purpose: str) -> list[SampleRequest]:
    """What every evaluation draws: one answer a prompt, at temperature 1."""
    return sample_requests(prompts, 1, seed=context.config.seed, purpose=purpose, temperature=1.0)


def pairs_of(prompts: Sequence[Prompt], before: Sequence[Sample], after: Sequence[Sample]) -> list[Pair]:
    """Both answers to each prompt; response_a is the trained policy's."""
    return [
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


async def compared(
    context: RunContext,
    prompts: Sequence[Prompt],
    before: Sequence[Sample],
    after: Sequence[Sample],
    purpose: str,
    *,
    progress: bool = False,
) -> Verdicts:
    """Who wins on each prompt, the policy with `after` or SFT with `before`; a judge's progress is shown on demand.

    Raises as a judge stage does."""
    config = context.config.evaluation
    if config.instrument == "gold" and context.gold is not None:
        return gold_verdicts(prompts, before, after, context.gold)
    preferences = await label_where_answers_differ(
        lambda asked: context.evaluation_label(asked, purpose, progress=progress), pairs_of(prompts, before, after)
    )
    instrument = (
        training_judge(context.config.judge.model) if config.judge is None else outside_judge(config.judge.model)
    )
    return judge_verdicts(preferences, instrument)

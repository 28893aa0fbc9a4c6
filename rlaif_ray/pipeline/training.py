"""Training: the online loop over one round's iterations."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from rlaif_ray.config import Stopped
from rlaif_ray.console import Console
from rlaif_ray.loop import OnlineStages, train_on_policy, train_overlapped
from rlaif_ray.metrics import ANSWER_LENGTH, KL, PPO, REWARD_MEAN, WATCH
from rlaif_ray.pipeline.context import Round, RunContext
from rlaif_ray.pipeline.steps import Trained
from rlaif_ray.pipeline.validating import Validator
from rlaif_ray.prompts import sample_requests, take
from rlaif_ray.records import LearnerModels, SampleRequest
from rlaif_ray.report.summary import LabelerSummary
from rlaif_ray.timeline.recording import timed


async def train(context: RunContext, round: Round) -> Trained:
    config = context.config.ppo
    prompts = context.prompts.train
    # Iterations count through the rounds: each has prompts and seeds of its own.
    before = (round.number - 1) * config.iterations
    total = context.config.rounds * config.iterations
    learner, rollouts, reward, watch = await asyncio.gather(
        context.runtime.learner(learner_models(context, round), round.directory.checkpoints("ppo")),
        context.runtime.rollouts(),
        context.runtime.rewards(round.directory.model("reward"), prompts),
        context.runtime.watch(prompts),
    )

    def requests(iteration: int) -> list[SampleRequest]:
        number = before + iteration
        batch = take(prompts, number * config.prompts_per_iteration, config.prompts_per_iteration, context.config.seed)
        return sample_requests(
            batch,
            config.answers_per_prompt,
            seed=context.config.seed,
            purpose=f"ppo-{number}",
            temperature=context.config.rollout.temperature,
        )

    interrupted = asyncio.Event()

    def on_iteration(iteration: int, metrics: Mapping[str, float]) -> None:
        context.metrics.append(PPO, before + iteration + 1, total, metrics)
        note = f"reward {metrics[REWARD_MEAN]:.2f}, KL {metrics[KL]:.2f}, {metrics[ANSWER_LENGTH]:.1f} tokens"
        context.console.advance(iteration + 1, config.iterations, note)
        if interrupted.is_set():
            raise Stopped("interrupted")

    def on_watched(iteration: int, metrics: Mapping[str, float]) -> None:
        context.metrics.append(WATCH, before + iteration + 1, total, metrics)

    validator = Validator(context, round, learner)
    try:
        resumed_from = await learner.resume()
        if resumed_from is not None:
            context.console.say(f"  going on after iteration {resumed_from + 1}, the last one checkpointed")
        first = 0 if resumed_from is None else resumed_from + 1
        form = (
            partial(train_overlapped, max_staleness=config.max_staleness) if config.max_staleness else train_on_policy
        )
        # Where only the last validation is missing, the loop takes that alone.
        async with timed(
            OnlineStages(rollouts, reward, learner, watch),
            context.runtime,
            range(before + first + 1, before + config.iterations + 1),
            config.timeline_of,
            context.run,
            context.console.say,
        ) as stages:
            training = form(
                stages,
                requests,
                range(first, config.iterations),
                checkpoint_every=config.checkpoint_every,
                on_iteration=on_iteration,
                on_watched=on_watched,
                on_published=validator.on_published,
            )
            await _finishing_the_iteration(training, interrupted, context.console)
        validation = await validator.take()
    finally:
        # What they hold is free for the next round's reward model.
        for stage in (learner, reward, watch):
            if stage is not None:
                stage.close()
    return Trained(labeler=await _labeler(context), resumed_from=resumed_from, validation=validation)


async def _finishing_the_iteration(
    training: Coroutine[Any, Any, None], interrupted: asyncio.Event, console: Console
) -> None:
    """Train. Where this is cancelled, sets `interrupted` and waits until training has stopped at the end of an
    iteration, which is checkpointed; a second cancellation does not wait."""
    task = asyncio.ensure_future(training)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        console.say("  interrupted: finishing the iteration under way, to keep it; interrupt again to end at once")
        interrupted.set()
        with suppress(Stopped):
            await task
        raise


async def _labeler(context: RunContext) -> LabelerSummary:
    """What the judge did where it gives rewards itself; nothing where it does not."""
    if not context.config.reward.asks_the_judge:
        return LabelerSummary()
    progress = await (await context.runtime.judges()).progress()
    return LabelerSummary(
        calls=progress.calls,
        cost_usd=await context.spent_usd(),
        cache_hits=progress.cached,
        abstained=progress.abstained,
        failed=progress.failed + progress.over_budget,
    )


def learner_models(context: RunContext, round: Round) -> LearnerModels:
    """What a round's learner begins with."""
    sft = context.run.model("sft")
    start = context.policy_before(round)
    return LearnerModels(
        policy=start,
        reference=start if context.config.policy.reference == "previous" else sft,
        reward=round.directory.model("reward") if context.config.reward.fits_a_model else None,
    )

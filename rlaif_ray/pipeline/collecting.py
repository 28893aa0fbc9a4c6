"""Collecting: the policy's answers, the pairs of them that are worth a judgement, and what the judges hold of these.

A round's preference file holds those of the rounds before it too, so that the reward model is fitted on all.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlaif_ray.config import UserError
from rlaif_ray.evaluation.run import labeler_summary
from rlaif_ray.pipeline.context import Round, RunContext
from rlaif_ray.pipeline.steps import Collected
from rlaif_ray.preferences.dataset import PreferenceRow, read_preferences, split_by_prompt, write_preferences
from rlaif_ray.preferences.files import read_preference_file
from rlaif_ray.preferences.judgements import write_judgements
from rlaif_ray.preferences.labels import preference_rows
from rlaif_ray.preferences.pairing import Answer, AnsweredPrompt, MemberScores, PairDraw, draw_pairs
from rlaif_ray.prompts import sample_requests, take
from rlaif_ray.records import Preference, Prompt
from rlaif_ray.report.summary import LabelerSummary
from rlaif_ray.samples import Sample, rollouts_of, write_samples


async def collect(context: RunContext, round: Round) -> Collected:
    earlier = _earlier_rows(context, round)
    if round.number < context.config.collect.from_round:
        context.console.say(f"  nothing is collected before round {context.config.collect.from_round}")
        write_preferences(round.directory.preferences, split_by_prompt(earlier))
        return Collected(labeler=LabelerSummary(), preferences=len(earlier), not_sent=0)
    prompts, samples = await _answers(context, round)
    draw = await _pairs(context, round, prompts, samples)
    if not draw.pairs:
        raise UserError(
            "the policy's answers to a prompt are always nearly the same, so there is nothing to compare; "
            "raise collect.temperature or collect.answers_per_prompt"
        )
    preferences = await context.label(draw.pairs, round.named("collect"))
    rows = split_by_prompt([*earlier, *_rows(context, round, preferences)])
    write_judgements(round.directory.judgements, (one for each in preferences for one in each.judgements))
    write_preferences(round.directory.preferences, rows)
    return Collected(
        labeler=labeler_summary(
            preferences,
            await (await context.runtime.judges()).progress(),
            context.gold,
            spent_usd=await context.spent_usd(),
        ),
        preferences=len(rows),
        not_sent=draw.not_sent.total(),
    )


def _earlier_rows(context: RunContext, round: Round) -> list[PreferenceRow]:
    """The preferences of the round before; before the first round, those of the config's files, for a reward model."""
    if round.previous is not None:
        return read_preferences(round.previous.directory.preferences)
    config = context.config
    if not config.fits_a_reward_model:
        return []
    return [
        row
        for file in config.reward.preferences
        for row in read_preference_file(file, "reward.preferences", seed=config.seed, held_out=config.reward.held_out)
    ]


async def _answers(context: RunContext, round: Round) -> tuple[list[Prompt], list[Sample]]:
    config, seed = context.config.collect, context.config.seed
    available = context.compared_prompts
    count = min(config.prompts, len(available))
    # Each round reads on in the stream of prompts, where an epoch may end and the next begin.
    prompts = list(dict.fromkeys(take(available, (round.number - config.from_round) * count, count, seed)))
    requests = sample_requests(
        prompts,
        config.answers_per_prompt,
        seed=seed,
        purpose=round.named("collect"),
        temperature=config.temperature,
    )
    _, samples = await context.draw(context.policy_before(round), 2 * round.number, requests)
    write_samples(round.directory.samples("collect"), samples)
    return prompts, samples


async def _pairs(context: RunContext, round: Round, prompts: Sequence[Prompt], samples: Sequence[Sample]) -> PairDraw:
    config = context.config
    answers: dict[str, list[Answer]] = {}
    for sample in samples:
        answers.setdefault(sample.prompt_id, []).append(Answer(sample.sample_id, sample.answer))
    pairing, scores = config.collect.pairing, None
    if pairing in ("best_worst", "active"):
        if round.previous is None:
            context.console.say(f"  collect.pairing={pairing} has no reward model to go by yet: pairs are random")
            pairing = "random"
        else:
            scores = await _member_scores(context, round.previous, samples)
    return draw_pairs(
        [AnsweredPrompt(prompt, tuple(answers[prompt.id])) for prompt in prompts],
        pairing,
        pairs_per_prompt=config.collect.pairs_per_prompt,
        seed=config.seed,
        similarity_bound=config.judge.similarity_bound,
        scores=scores,
    )


async def _member_scores(context: RunContext, previous: Round, samples: Sequence[Sample]) -> MemberScores:
    """What each reward model of the round before holds of the answers that it can score."""
    pool = await context.runtime.reward_models(previous.directory.model("reward"), context.prompts.train)
    try:
        (values,) = await context.runtime.fetch(pool.member_scores((context.runtime.put(rollouts_of(samples)),)))
    finally:
        pool.close()
    return {
        sample.sample_id: tuple(row.tolist())
        for sample, row in zip(samples, values, strict=True)
        if all(value == value for value in row)
    }


def _rows(context: RunContext, round: Round, preferences: Sequence[Preference]) -> list[PreferenceRow]:
    config = context.config
    rows = preference_rows(
        preferences,
        seed=config.seed,
        held_out=config.reward.held_out if config.fits_a_reward_model else config.dpo.held_out,
        on_inconsistent=config.judge.on_inconsistent or ("keep_soft" if config.fits_a_reward_model else "drop"),
        tie_margin=config.judge.tie_margin,
        round=round.number,
    )
    if not rows:
        reason = preferences[0].reason.rstrip(".")
        raise UserError(
            f"none of {len(preferences)} pairs was scored ({reason}); "
            "check judge.base_url, judge.model and judge.template"
        )
    return rows

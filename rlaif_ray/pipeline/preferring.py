"""Direct preference optimisation: the policy learns from the preferences themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from rlaif_ray.config import UserError
from rlaif_ray.metrics import DPO
from rlaif_ray.pipeline.context import Round, RunContext
from rlaif_ray.pipeline.steps import Trained
from rlaif_ray.preferences.dataset import (
    PreferenceRow,
    Split,
    read_preferences,
    split_by_prompt,
    write_preferences,
)
from rlaif_ray.preferences.files import read_preference_file
from rlaif_ray.preferences.tokens import labelled_pairs
from rlaif_ray.records import LabelledPair
from rlaif_ray.report.summary import LabelerSummary


async def prefer(context: RunContext, round: Round) -> Trained:
    config = context.config
    rows = _preferences(context, round)
    train, held_out = _encoded(context, round, rows)
    if not train:
        raise UserError(
            f"dpo.held_out={config.dpo.held_out} leaves no usable pair of {len(rows)} to train on; lower it, or raise "
            f"{'the number of pairs in dpo.preferences' if config.dpo.preferences else 'collect.prompts'}"
        )
    await context.fitted(round.directory, [DPO], context.runtime.fit_dpo(train, held_out, round.directory))
    return Trained(labeler=LabelerSummary(), resumed_from=None)


def _preferences(context: RunContext, round: Round) -> list[PreferenceRow]:
    """Those that were collected, or those of the config's files, which are then kept where a run keeps its own."""
    config = context.config
    if config.collects_preferences:
        return read_preferences(round.directory.preferences)
    rows = split_by_prompt(
        [
            row
            for file in config.dpo.preferences
            for row in read_preference_file(file, "dpo.preferences", seed=config.seed, held_out=config.dpo.held_out)
        ]
    )
    write_preferences(round.directory.preferences, rows)
    return rows


def _encoded(
    context: RunContext, round: Round, rows: Sequence[PreferenceRow]
) -> tuple[list[LabelledPair], list[LabelledPair]]:
    """The pairs to train on and those held out, as the policy's token ids. Says how many are too long for it."""
    from transformers import GenerationConfig

    from rlaif_ray.policy.model import stop_token

    policy, labels = context.config.policy, context.config.dpo.labels
    samples = {sample.sample_id: sample for sample in context.collected_samples(round.so_far())}
    stop = stop_token(GenerationConfig.from_pretrained(context.run.model("sft")), context.tokenizer)
    longest = policy.max_prompt_tokens + policy.max_answer_tokens
    encoded = [
        labelled_pairs(
            [row for row in rows if row.split == split],
            samples,
            context.tokenizer,
            stop=stop,
            own_vocabulary=True,
            labels=labels,
            max_tokens=longest,
        )
        for split in get_args(Split)
    ]
    usable = sum(labels == "soft" or row.p != 0.5 for row in rows)
    too_long = usable - sum(map(len, encoded))
    if too_long:
        context.console.say(
            f"  {too_long} pairs exceed policy.max_prompt_tokens + policy.max_answer_tokens = {longest}: left out"
        )
    train, held_out = encoded
    return train, held_out

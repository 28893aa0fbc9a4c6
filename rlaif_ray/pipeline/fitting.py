"""The steps that fit models on data: SFT on demonstrations, the reward model on preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlaif_ray.config import UserError
from rlaif_ray.constitution.demonstrations import mixed, revised_demonstrations
from rlaif_ray.constitution.storage import read_chains
from rlaif_ray.evaluation.held_out import HeldOutPair, write_held_out
from rlaif_ray.evaluation.run import reward_summary
from rlaif_ray.metrics import REWARD, REWARD_PRETRAINING, SFT
from rlaif_ray.pipeline.context import Round, RunContext
from rlaif_ray.pipeline.steps import Done, Fitted
from rlaif_ray.preferences.dataset import PreferenceRow, Split, answer_text, read_preferences
from rlaif_ray.preferences.pretraining import read_pretraining_pairs
from rlaif_ray.preferences.tokens import labelled_pairs
from rlaif_ray.prompts import Gold, read_demonstrations
from rlaif_ray.records import LabelledPair, Prompt, RewardData, RewardFit
from rlaif_ray.samples import Sample

_PURPOSES: Mapping[Split, str] = {"train": "fit", "test": "measure"}


async def fit_sft(context: RunContext) -> Done:
    """On demonstrations; with a constitution on revised answers and a share of those."""
    config, constitution, seed = context.config.sft, context.config.constitution, context.config.seed
    demonstrations = read_demonstrations(config, seed) if config.demonstrations else []
    if constitution is not None:
        revised = revised_demonstrations(read_chains(context.run.chains), constitution)
        if not revised:
            raise UserError(
                "constitution: no answer came through a revision, so there is nothing to fine-tune on; look at "
                f"{context.run.chains}, and at constitution.examples and constitution.model"
            )
        demonstrations = mixed(revised, demonstrations, constitution.helpful_per_revision, seed)
        helpful = len(demonstrations) - len(revised)
        context.console.say(f"  {len(revised)} revised answers and {helpful} helpful demonstrations")
    await context.fitted(context.run, [SFT], context.runtime.fit_sft(demonstrations))
    return Done()


async def fit_reward(context: RunContext, round: Round) -> Fitted:
    """A new reward model learns the preferences of all rounds so far."""
    config = context.config.reward
    rows = read_preferences(round.directory.preferences)
    samples = {sample.sample_id: sample for sample in context.collected_samples(round.so_far())}
    encoder = _Encoder(context)
    split = {split: encoder.pairs([row for row in rows if row.split == split], samples) for split in _PURPOSES}
    for name, purpose in _PURPOSES.items():
        if not split[name]:
            raise UserError(
                f"reward.held_out={config.held_out} leaves no usable pair of {len(rows)} to {purpose} the reward model "
                "on; change it or raise collect.prompts"
            )
    pretraining = read_pretraining_pairs(config.pretraining) if config.pretraining else []
    data = RewardData(
        train=tuple(split["train"]),
        held_out=tuple(split["test"]),
        pretraining=tuple(encoder.pairs(pretraining, {})),
        answers=encoder.answers(
            context.collected_samples([round]), {prompt.id: prompt for prompt in context.prompts.train}, split["train"]
        ),
    )
    fits = await context.fitted(
        round.directory, [REWARD, REWARD_PRETRAINING], context.runtime.fit_reward(data, round.directory)
    )
    held_out = _held_out(data.held_out, fits, {row.pair_id: row for row in rows}, context.gold)
    write_held_out(round.directory.reward_held_out, held_out)
    return Fitted(reward=reward_summary(held_out))


class _Encoder:
    """Preferences and samples as the reward model's token ids."""

    def __init__(self, context: RunContext) -> None:
        from rlaif_ray.reward.initial import same_vocabulary, starting_encoder

        config = context.config
        self._labels = config.reward.labels
        self._encoder = starting_encoder(
            config.reward.model or context.run.model("sft"), trust_remote_code=config.policy.trust_remote_code
        )
        self._own_vocabulary = same_vocabulary(self._encoder.tokenizer, context.tokenizer)

    def pairs(self, rows: Sequence[PreferenceRow], samples: Mapping[str, Sample]) -> list[LabelledPair]:
        return labelled_pairs(
            rows,
            samples,
            self._encoder.tokenizer,
            stop=self._encoder.stop,
            own_vocabulary=self._own_vocabulary,
            labels=self._labels,
            max_tokens=self._encoder.positions,
        )

    def answers(
        self, samples: Sequence[Sample], prompts: Mapping[str, Prompt], pairs: Sequence[LabelledPair]
    ) -> tuple[tuple[int, ...], ...]:
        """What rewards are normalised over: a round's samples, or the answers of its pairs where it has none."""
        if not samples:
            return tuple((*pair.prompt, *answer) for pair in pairs for answer in (pair.answer_a, pair.answer_b))
        if self._own_vocabulary:
            return tuple((*sample.prompt_tokens, *sample.answer_tokens) for sample in samples)
        return tuple(
            tuple(self._encoder.encode(prompts[sample.prompt_id], sample.answer).tolist()) for sample in samples
        )


def _held_out(
    pairs: Sequence[LabelledPair], fits: Sequence[RewardFit], rows: Mapping[str, PreferenceRow], gold: Gold | None
) -> list[HeldOutPair]:
    """What each model of the ensemble says of each held-out pair, beside its label and gold's."""
    margins = [dict(zip(fit.held_out_ids, fit.held_out_margins, strict=True)) for fit in fits]
    return [
        HeldOutPair(
            pair_id=pair.id,
            prompt_id=pair.prompt_id,
            p=rows[pair.id].p,
            margins=tuple(member[pair.id] for member in margins),
            chosen_tokens=len(pair.answer_a),
            rejected_tokens=len(pair.answer_b),
            gold_margin=_gold_margin(rows[pair.id], gold),
            label_source=rows[pair.id].label_source,
            round=rows[pair.id].round,
        )
        for pair in pairs
    ]


def _gold_margin(row: PreferenceRow, gold: Gold | None) -> float | None:
    if gold is None:
        return None
    prompt = Prompt(row.prompt_id, row.prompt)
    return gold(prompt, answer_text(row.chosen)) - gold(prompt, answer_text(row.rejected))

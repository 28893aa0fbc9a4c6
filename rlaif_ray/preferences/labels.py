"""From what judges hold of a pair to the label that a trainer reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlaif_ray.judge.aggregate import disagreement
from rlaif_ray.preferences.dataset import Member, PreferenceRow, Split, answer_in, split_of, with_chosen_first
from rlaif_ray.records import Order, Preference

OnInconsistent = Literal["keep_soft", "drop", "tie", "downweight"]


@dataclass(frozen=True, slots=True)
class Label:
    """What a preference says to a trainer: `p` that response_a is better, and what the pair counts for."""

    p: float
    weight: float


def preference_rows(
    preferences: Sequence[Preference],
    *,
    seed: int,
    held_out: float,
    on_inconsistent: OnInconsistent = "keep_soft",
    tie_margin: float = 0.0,
    round: int = 1,
) -> list[PreferenceRow]:
    """Rows of the judged pairs that `label_of` gives a label, ties among them; the others stay in the judgements alone.

    `held_out` is the share of the prompts whose pairs go to the split `test`.
    """
    labels = [(preference, label_of(preference, on_inconsistent, tie_margin)) for preference in preferences]
    return [
        _row(preference, label, split_of(preference.pair.prompt.id, seed, held_out), round)
        for preference, label in labels
        if label is not None
    ]


def label_of(preference: Preference, on_inconsistent: OnInconsistent, tie_margin: float) -> Label | None:
    """What to train on; None for a pair without a number, and for an inconsistent one that is to be dropped."""
    if preference.p is None:
        return None
    p, weight = preference.p, 1.0
    if preference.consistent is False:
        if on_inconsistent == "drop":
            return None
        if on_inconsistent == "tie":
            p = 0.5
        elif on_inconsistent == "downweight":
            weight = abs(2.0 * p - 1.0)
    return Label(0.5 if abs(p - 0.5) < tie_margin else p, weight)


def _row(preference: Preference, label: Label, split: Split, round: int) -> PreferenceRow:
    pair, judgements = preference.pair, preference.judgements
    # The first member's: later ones do not displace it.
    by_order = {judgement.order: judgement for judgement in reversed(judgements)}
    ab, ba = by_order.get(Order.AB), by_order.get(Order.BA)
    prompt = pair.prompt.content
    return with_chosen_first(
        PreferenceRow(
            pair_id=pair.id,
            prompt_id=pair.prompt.id,
            prompt=prompt,
            chosen=answer_in(prompt, pair.response_a),
            rejected=answer_in(prompt, pair.response_b),
            p=label.p,
            weight=label.weight,
            label_source="ai",
            split=split,
            round=round,
            judge=judgements[0].judge if judgements else "",
            template_hash=judgements[0].template_hash if judgements else "",
            chosen_first_logprob_chosen=ab.logprob_first if ab else None,
            chosen_first_logprob_rejected=ab.logprob_second if ab else None,
            chosen_second_logprob_chosen=ba.logprob_second if ba else None,
            chosen_second_logprob_rejected=ba.logprob_first if ba else None,
            consistent=preference.consistent,
            disagreement=disagreement(preference),
            members=tuple(
                Member(
                    opinion.judge,
                    opinion.template,
                    opinion.principle,
                    opinion.weight,
                    opinion.p,
                    opinion.consistent,
                    opinion.contradiction,
                    opinion in preference.set_aside,
                )
                for opinion in (*preference.opinions, *preference.set_aside)
            ),
            rationale=next((judgement.rationale for judgement in judgements if judgement.rationale), None),
            chosen_sample=pair.sample_a,
            rejected_sample=pair.sample_b,
        )
    )

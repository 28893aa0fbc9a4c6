"""From rows of preferences to the token ids that a reward model or a policy is fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from rlaif_ray.preferences.dataset import PreferenceRow, answer_text
from rlaif_ray.prompts import encode_answer, encode_prompt
from rlaif_ray.records import LabelledPair, Prompt
from rlaif_ray.samples import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def labelled_pairs(
    rows: Sequence[PreferenceRow],
    samples: Mapping[str, Sample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    stop: int,
    own_vocabulary: bool,
    labels: Literal["soft", "hard"],
    max_tokens: int | None,
) -> list[LabelledPair]:
    """Pairs of token ids, by pair id. The first answer is the chosen one.

    With the policy's `own_vocabulary`, answers that it sampled keep the ids that it drew. All else is encoded from text
    by the tokenizer of the model that is fitted, and ends with `stop`. Hard labels are 1, and leave out ties. A pair is
    left out where its prompt and an answer exceed `max_tokens`. Raises UserError for a conversation where the tokenizer
    has no chat template.
    """
    pairs = []
    for row in rows:
        if labels == "hard" and row.p == 0.5:
            continue
        chosen, rejected = samples.get(row.chosen_sample or ""), samples.get(row.rejected_sample or "")
        if own_vocabulary and chosen is not None and rejected is not None:
            prompt, answer_a, answer_b = chosen.prompt_tokens, chosen.answer_tokens, rejected.answer_tokens
        else:
            prompt = tuple(encode_prompt(tokenizer, Prompt(row.prompt_id, row.prompt)))
            answer_a, answer_b = (
                tuple(encode_answer(tokenizer, answer_text(answer), stop)) for answer in (row.chosen, row.rejected)
            )
        if max_tokens is not None and len(prompt) + max(len(answer_a), len(answer_b)) > max_tokens:
            continue
        p = 1.0 if labels == "hard" else row.p
        pairs.append(LabelledPair(row.pair_id, row.prompt_id, prompt, answer_a, answer_b, p, row.weight))
    return sorted(pairs, key=lambda pair: pair.id)

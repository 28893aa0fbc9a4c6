"""What SFT imitates after a constitution was applied: revisions, mixed with helpful demonstrations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlaif_ray.config import ConstitutionConfig
from rlaif_ray.records import Chain, Demonstration, RevisionOutcome

_KEPT = (RevisionOutcome.REVISED, RevisionOutcome.UNCHANGED)


def revised_demonstrations(chains: Sequence[Chain], config: ConstitutionConfig) -> list[Demonstration]:
    """The answers after a revision, of the rounds that are trained on: each chain's last one, or all.

    A round that went wrong has none; that the model found nothing to change is an answer too.
    """
    demonstrations = []
    for chain in chains:
        texts = [
            revision.text
            for revision in chain.revisions
            if revision.round <= config.trained_rounds and revision.outcome in _KEPT and revision.text
        ]
        demonstrations += [
            Demonstration(chain.prompt, text) for text in (texts if config.train_on == "all" else texts[-1:])
        ]
    return demonstrations


def mixed(
    revised: Sequence[Demonstration], helpful: Sequence[Demonstration], per_revision: float, seed: int
) -> list[Demonstration]:
    """The revisions, and `per_revision` helpful demonstrations for each, drawn without replacement; all of these where
    there are not so many."""
    count = min(round(per_revision * len(revised)), len(helpful))
    drawn = np.random.default_rng(seed).permutation(len(helpful))[:count]
    return [*revised, *(helpful[index] for index in sorted(drawn))]

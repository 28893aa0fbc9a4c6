"""What a run's constitution did: the answers by round of revision, each principle's work, and some chains to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from rlaif_ray.config import PromptsConfig
from rlaif_ray.constitution.storage import read_chains
from rlaif_ray.evaluation.conduct import GoldConduct, RoundRates, chain_rates
from rlaif_ray.evaluation.principles import (
    PrincipleFigures,
    principle_figures,
    principle_labels,
    read_principle_verdicts,
)
from rlaif_ray.preferences.dataset import read_preferences
from rlaif_ray.prompts import conduct_of
from rlaif_ray.records import Chain, RevisionOutcome
from rlaif_ray.report.columns import require_columns
from rlaif_ray.report.drawing import taken_in_turn
from rlaif_ray.rundir import RunDirectory

_CHAINS_SHOWN = 12
_TERSE_LENGTH = 40
_CHAIN_COLUMNS = ("chain_id", "prompt_id", "prompt", "round", "principle", "critique", "text", "outcome", "reason")


class ChainKind(StrEnum):
    """What its revisions made of an answer."""

    CHANGED = "changed"
    UNCHANGED = "unchanged"
    BROKEN = "a round went wrong"  # it was confused or cut off


@dataclass(frozen=True, slots=True)
class ShownChain:
    kind: ChainKind
    chain: Chain

    @property
    def is_terse(self) -> bool:
        """Whether all its texts fit a narrow column."""
        of_rounds = [text for revision in self.chain.revisions for text in (revision.critique, revision.text)]
        return all(len(text or "") <= _TERSE_LENGTH for text in (self.chain.answer, *of_rounds))


@dataclass(frozen=True, slots=True)
class Revised:
    """constitution/chains, with the labels and verdicts that name a principle."""

    chains: int
    rounds: tuple[RoundRates, ...]
    principles: tuple[PrincipleFigures, ...]
    verdicts: int | None  # on the trained policy by principles; None where there is no file of them
    shown: tuple[ShownChain, ...]  # the most changed, and others drawn with the run's seed


def read_revised(directory: RunDirectory, config: Mapping[str, Any], seed: int) -> Revised | None:
    """None where there are no chains. Raises UserError, naming the file, where one cannot be read."""
    if not directory.chains.exists():
        return None
    for file in directory.chains.glob("*.parquet"):
        require_columns(file, _CHAIN_COLUMNS)
    chains, gold = read_chains(directory.chains), _gold(config)
    labels = principle_labels(read_preferences(directory.preferences), gold) if directory.preferences.exists() else []
    verdicts = read_principle_verdicts(directory.samples("principles"))
    return Revised(
        chains=len(chains),
        rounds=chain_rates(chains, gold, seed=seed),
        principles=principle_figures(chains, labels, verdicts or (), seed=seed),
        verdicts=None if verdicts is None else len(verdicts),
        shown=_shown(chains, seed),
    )


def _gold(config: Mapping[str, Any]) -> GoldConduct | None:
    prompts = (config.get("constitution") or {}).get("prompts")
    return None if prompts is None else conduct_of(PromptsConfig.model_validate(prompts))


def _shown(chains: Sequence[Chain], seed: int) -> tuple[ShownChain, ...]:
    of_kind: dict[ChainKind, list[Chain]] = {kind: [] for kind in ChainKind}
    for place in np.random.default_rng(seed).permutation(len(chains)):
        of_kind[_kind(chains[place])].append(chains[place])
    of_kind[ChainKind.CHANGED].sort(key=_change, reverse=True)
    return tuple(ShownChain(kind, chain) for kind, chain in taken_in_turn(of_kind, _CHAINS_SHOWN))


def _kind(chain: Chain) -> ChainKind:
    outcomes = {revision.outcome for revision in chain.revisions}
    if outcomes & {RevisionOutcome.CONFUSED, RevisionOutcome.TRUNCATED}:
        return ChainKind.BROKEN
    return ChainKind.CHANGED if RevisionOutcome.REVISED in outcomes else ChainKind.UNCHANGED


def _change(chain: Chain) -> float:
    """One less the share of words that the answer and its last revision have in common (Jaccard 1901)."""
    before, after = Counter(chain.answer.split()), Counter(chain.revisions[-1].text.split())
    return 1.0 - (before & after).total() / max(1, (before | after).total())

"""From what a run produced to its summary, by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rlaif_ray.evaluation.held_out import HeldOutPair
from rlaif_ray.evaluation.run import (
    gold_verdicts,
    judge_verdicts,
    labeler_summary,
    policy_summary,
    reward_summary,
    write_comparisons,
)
from rlaif_ray.judge.progress import JudgeProgress
from rlaif_ray.records import Outcome, Pair, Preference, Prompt
from rlaif_ray.samples import Sample, read_samples, rollouts_of, write_samples

PROGRESS = JudgeProgress(
    pairs=4,
    scored=6,
    abstained=1,
    failed=1,
    over_budget=0,
    cached=2,
    calls=6,
    cost_usd=0.25,
    queued=0,
    in_flight=0,
    actors=1,
)


def length_of(prompt: Prompt, answer: str) -> float:
    """A gold standard for tests: the longer answer is the better one."""
    return float(len(answer))


def preference(number: int, a: str, b: str, p: float | None, consistent: bool | None = True) -> Preference:
    pair = Pair(f"pair-{number}", Prompt(f"prompt-{number}", "text"), a, b, f"{number}/a", f"{number}/b")
    outcome = Outcome.ABSTAINED if p is None else Outcome.SCORED
    return Preference(pair, outcome, "", p, consistent if p is not None else None, ())


def sample(name: str, answer: str, tokens: int) -> Sample:
    return Sample(name, "prompt", "text", answer, (1, 2), tuple(range(3, 3 + tokens)), "stop")


def test_alignment_leaves_out_what_was_not_scored_and_gold_ties() -> None:
    """Gold prefers the longer. Right, wrong, half (p = 0.5), tie in gold, unscored: (1 + 0 + 0.5) / 3."""
    preferences = [
        preference(0, "long", "s", 0.9),
        preference(1, "long", "s", 0.2, consistent=False),
        preference(2, "s", "long", 0.5),
        preference(3, "same", "size", 0.7),
        preference(4, "long", "s", None),
    ]
    summary = labeler_summary(preferences, PROGRESS, length_of, spent_usd=0.25)
    assert summary.alignment == pytest.approx(0.5)
    assert summary.position_consistency == pytest.approx(3 / 4)
    assert (summary.calls, summary.cache_hits, summary.cost_usd) == (6, 2, 0.25)
    assert (summary.abstained, summary.failed) == (1, 0)


def test_what_nobody_knows_is_null() -> None:
    summary = labeler_summary([preference(0, "a", "b", 0.9)], PROGRESS, None, spent_usd=None)
    assert (summary.alignment, summary.alignment_ci, summary.cost_usd) == (None, None, None)


def held_out(number: int, p: float, *margins: float, gold: float | None = None, source: str = "ai") -> HeldOutPair:
    return HeldOutPair(f"pair-{number}", f"prompt-{number}", p, margins, 5, 3, gold, source, 1)


def test_the_reward_model_is_measured_against_gold_where_it_knows_every_pair() -> None:
    """Margins follow the judge's choice on pairs 0 and 1; on pair 1 the judge is wrong by gold. Pair 2 has no score.
    The predictions are 3/4: gold's outcomes 1 and 0 make a gap of 1/4 in their one bin; the labels 0.9 and 0.7 a loss
    of -(1.6 ln 0.75 + 0.4 ln 0.25) / 2."""
    d = math.log(3) * (1 + 1e-12)
    pairs = [held_out(0, 0.9, d, gold=2), held_out(1, 0.7, d, gold=-1), held_out(2, 0.8, math.nan, gold=1)]
    found = reward_summary(pairs)
    assert (found.accuracy, found.accuracy_against, found.held_out_pairs) == (0.5, "gold", 2)
    assert found.calibration_error == pytest.approx(0.25)
    assert found.held_out_loss == pytest.approx(-(1.6 * math.log(0.75) + 0.4 * math.log(0.25)) / 2)
    assert (found.ensemble, found.mean_disagreement) == (1, None)
    assert (found.accuracy_on_human_labels, found.accuracy_on_ai_labels) == (None, None)


@pytest.mark.parametrize(
    ("sources", "against", "apart"),
    [
        (["ai", "ai", "ai"], "judge", (None, None)),
        (["human", "human", "human"], "human", (None, None)),
        (["human", "human", "ai"], "judge", (0.5, 1.0)),
    ],
)
def test_without_gold_it_is_measured_against_the_labels(
    sources: list[str], against: str, apart: tuple[float | None, float | None]
) -> None:
    """Right, wrong, right; gold knows one pair alone, which is not enough."""
    margins, golds = [2.0, -1.0, 0.5], [-1.0, None, None]
    pairs = [
        held_out(number, 0.8, margin, gold=gold, source=source)
        for number, (margin, gold, source) in enumerate(zip(margins, golds, sources, strict=True))
    ]
    found = reward_summary(pairs)
    assert (found.accuracy, found.accuracy_against, found.held_out_pairs) == (pytest.approx(2 / 3), against, 3)
    assert (found.accuracy_on_human_labels, found.accuracy_on_ai_labels) == apart


def test_an_ensemble_is_measured_by_its_mean_and_its_disagreement() -> None:
    """Means 1 and -1 over members that are 2 apart in the first pair and 4 in the second: deviations of 1 and 2. A pair
    that one member could not score is left out."""
    pairs = [held_out(0, 0.9, 2.0, 0.0), held_out(1, 0.9, -3.0, 1.0), held_out(2, 0.9, 5.0, math.nan)]
    found = reward_summary(pairs)
    assert (found.accuracy, found.held_out_pairs) == (0.5, 2)
    assert (found.ensemble, found.mean_disagreement) == (2, pytest.approx(1.5))


def test_where_no_pair_was_scored_nothing_is_measured() -> None:
    found = reward_summary([held_out(0, 0.9, math.nan)])
    assert (found.accuracy, found.held_out_loss, found.calibration_error, found.held_out_pairs) == (None, None, None, 0)


def test_pairs_of_different_ensembles_are_refused() -> None:
    with pytest.raises(ValueError, match="same number of models"):
        reward_summary([held_out(0, 0.9, 1.0), held_out(1, 0.9, 1.0, 2.0)])
    with pytest.raises(ValueError, match="0 pairs"):
        reward_summary([])


def test_the_policy_is_measured_on_the_prompts_that_were_judged() -> None:
    """One win, one tie, one loss and one that nobody could judge: 1.5 of 3. KL: sums 0.5, 0, 1, 0.5 over answers."""
    prompts = [Prompt(f"p{number}", "text") for number in range(4)]
    before = [sample(f"b{number}", "x", 1) for number in range(4)]
    after = [sample(f"a{number}", "x", 2) for number in range(4)]
    preferences = [
        preference(0, "", "", 0.9),
        None,
        preference(2, "", "", 0.1),
        preference(3, "", "", None),
    ]
    verdicts = judge_verdicts(preferences, "someone")
    drawn = np.array([-1, -1, -1, -1, -1, -1, -1, -1], dtype=np.float32)
    reference = np.array([-1.5, -1, -1, -1, -1.5, -1.5, -1.5, -1], dtype=np.float32)
    summary = policy_summary(prompts, verdicts, before, after, drawn, reference, seed=0)
    assert (summary.win_rate, summary.win_rate_judge, summary.prompts) == (0.5, "someone", 3)
    assert summary.kl == pytest.approx(0.5)
    assert (summary.mean_length.before, summary.mean_length.after) == (1, 2)


def test_comparisons_keep_both_answers_and_null_where_nobody_knows(tmp_path: Path) -> None:
    prompts = [Prompt("p0", "text"), Prompt("p1", "text")]
    before, after = [sample("b0", "s", 1), sample("b1", "long", 1)], [sample("a0", "long", 1), sample("a1", "s", 1)]
    path = tmp_path / "evaluation.parquet"
    write_comparisons(path, prompts, before, after, gold_verdicts(prompts, before, after, length_of))
    rows = pq.read_table(path).to_pylist()
    assert [(row["outcome"], row["before_utility"], row["after_utility"]) for row in rows] == [(1, 1, 4), (0, 4, 1)]
    write_comparisons(path, prompts, before, after, judge_verdicts([preference(0, "", "", None)] * 2, "someone"))
    assert [row["outcome"] for row in pq.read_table(path).to_pylist()] == [None, None]


def test_samples_survive_the_file_and_can_be_scored_again(tmp_path: Path) -> None:
    samples = [sample("one", "x", 3), sample("two", "", 1)]
    write_samples(tmp_path / "samples.parquet", samples)
    assert read_samples(tmp_path / "samples.parquet") == samples
    rollouts = rollouts_of(samples)
    assert rollouts.sample_ids == ("one", "two")
    assert rollouts.answer(0).tolist() == [3, 4, 5]
    assert rollouts.prompt(1).tolist() == [1, 2]
    assert np.isnan(rollouts.logprobs).all(), "log-probabilities are not kept, and must not look as if they were"

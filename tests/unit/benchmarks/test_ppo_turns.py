"""Contenders that take turns, and what is made of their figures."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from scripts.benchmarks.ppo.turns import Contender, Rounds, Spread, Turn, play

# Its n-th turn takes n seconds by its own word, in which it draws `tokens` tokens.
_COUNTING = """
import sys
sys.path.insert(0, {root!r})
from scripts.benchmarks.ppo.turns import tell
for number, _ in enumerate(sys.stdin, start=1):
    tell(float(number), {tokens}, 4, {{"generate": 0.5}}, {{"one": 1.0}})
"""


def counting(tokens: int, directory: Path) -> Contender:
    code = _COUNTING.format(root=str(Path(__file__).parents[3]), tokens=tokens)
    return Contender([sys.executable, "-c", code], {}, directory / "log")


def turn(seconds: float, tokens: int) -> Turn:
    return Turn(seconds, tokens, steps=4, parts={}, peak_mib={}, foreign=0.0)


def test_ratios_are_of_pairs_and_not_of_medians() -> None:
    """Rates of ours 10, 20, 60 and of theirs 10, 10, 20: ratios 1, 2, 3, median 2, where the medians' is 20 / 10."""
    rounds = Rounds(
        {
            "ours": [turn(1.0, 10), turn(1.0, 20), turn(1.0, 60)],
            "theirs": [turn(2.0, 20), turn(1.0, 10), turn(1.0, 20)],
        },
        rejected=0,
    )
    assert rounds.ratio("ours", "theirs") == Spread(2.0, 1.0, 3.0)
    assert rounds.ratio("theirs", "ours", "seconds") == Spread(1.0, 1.0, 2.0)
    assert rounds.spread("ours", "tokens") == Spread(20, 10, 60)


def test_the_first_turns_warm_up_and_all_take_as_many(tmp_path: Path) -> None:
    rounds = play({"one": counting(6, tmp_path), "other": counting(12, tmp_path)}, rounds=2, most_foreign=math.inf)
    assert [turn.seconds for turn in rounds.turns["one"]] == [2.0, 3.0]
    assert [turn.rate for turn in rounds.turns["other"]] == [6.0, 4.0]
    assert rounds.rejected == 0


def test_disturbed_rounds_do_not_count(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="3 rounds were disturbed"):
        play({"one": counting(6, tmp_path)}, rounds=2, most_foreign=-1.0)


def test_a_contender_that_ends_is_an_error_that_shows_its_log(tmp_path: Path) -> None:
    contender = Contender([sys.executable, "-c", "raise SystemExit('no models')"], {}, tmp_path / "log")
    with pytest.raises(RuntimeError, match="no models"):
        play({"one": contender}, rounds=1)

"""Rollouts on one core beside a learner on another, and what that gains over phases that have both in turn.

`python -m scripts.benchmarks.ppo_overlap [--rounds N]`. Three layouts take turns, some iterations each: `overlapped`,
where the next answers are drawn by one thread while one thread learns from the last (`ppo.max_staleness=1`);
`one core`, the same threads one after the other; and `both cores`, where every phase has two threads. The halves of an
iteration are those of `one core`: what draws and scores, and what learns and publishes. All recompute the
log-probabilities before an update, which stale answers want.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif_ray.engines.training import Dtype
from scripts.benchmarks.ppo import contenders
from scripts.benchmarks.ppo.command import add_dtypes, add_rounds, measure_dtypes, parser_of
from scripts.benchmarks.ppo.layout import Layout
from scripts.benchmarks.ppo.turns import MOST_FOREIGN, Spread, Turn, play
from scripts.benchmarks.ppo.workload import Workload, run_config, write_workload


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds an iteration, and their ratios within rounds."""

    dtype: Dtype
    overlapped_s: Spread
    drawing_s: Spread  # drawing and scoring, alone on one core
    learning_s: Spread  # learning, publishing and loading, alone on one core
    to_longer_half: Spread
    both_cores_s: Spread
    both_cores_to_overlapped: Spread  # above 1, overlap gains
    peak_mib: dict[str, float]
    most_foreign: float
    rejected: int


def main() -> None:
    parser = parser_of(__doc__)
    # Beside every turn there are two whole Rays that wait, where the other benchmarks have one.
    parser.set_defaults(foreign=2 * MOST_FOREIGN)
    add_dtypes(parser)
    add_rounds(parser)
    parser.add_argument("--iterations", type=int, default=4, help="of a turn of the overlapped loop")
    arguments = parser.parse_args()
    measure_dtypes(
        arguments,
        lambda dtype, workload: measure(dtype, workload, arguments.rounds, arguments.iterations, arguments.foreign),
    )


def measure(dtype: Dtype, workload: Workload, rounds: int, iterations: int, most_foreign: float) -> Figures:
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        write_workload(directory, workload, "fixed")
        one, both = Layout(replicas=1, rollout_threads=1, threads=1), Layout(replicas=1, rollout_threads=2, threads=2)
        in_turn = run_config(directory, workload, dtype=dtype, layout=one, old_logprobs="recompute")
        with_both = run_config(directory, workload, dtype=dtype, layout=both, old_logprobs="recompute")
        overlapped = run_config(directory, workload, dtype=dtype, layout=one, old_logprobs="recompute", max_staleness=1)
        played = play(
            {
                "overlapped": contenders.ours(directory, "overlapped", overlapped, block=iterations),
                "one core": contenders.ours(directory, "one-core", in_turn),
                "both cores": contenders.ours(directory, "both-cores", with_both),
            },
            rounds,
            most_foreign=most_foreign,
        )
    ahead, halves = played.turns["overlapped"], played.turns["one core"]
    return Figures(
        dtype=dtype,
        overlapped_s=played.spread("overlapped", "seconds"),
        drawing_s=Spread.of([_drawing_s(turn) for turn in halves]),
        learning_s=Spread.of([turn.seconds - _drawing_s(turn) for turn in halves]),
        to_longer_half=Spread.of(_to_longer_half(ahead, halves)),
        both_cores_s=played.spread("both cores", "seconds"),
        both_cores_to_overlapped=played.ratio("both cores", "overlapped", "seconds"),
        peak_mib=dict(ahead[-1].peak_mib),
        most_foreign=max(turn.foreign for turns in played.turns.values() for turn in turns),
        rejected=played.rejected,
    )


def _drawing_s(turn: Turn) -> float:
    return turn.parts["generate"] + turn.parts["score"]


def _to_longer_half(overlapped: Sequence[Turn], in_turn: Sequence[Turn]) -> list[float]:
    return [
        ahead.seconds / max(_drawing_s(halves), halves.seconds - _drawing_s(halves))
        for ahead, halves in zip(overlapped, in_turn, strict=True)
    ]


if __name__ == "__main__":
    main()

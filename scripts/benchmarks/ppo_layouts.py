"""One engine with a thread for each core beside one engine of a thread for each core.

`python -m scripts.benchmarks.ppo_layouts [--rounds N]`: two runs take turns, an iteration each. They differ in their
rollout actors alone; the reward actor and the learner have all cores in both, after the rollouts.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rlaif_ray.engines.training import Dtype
from scripts.benchmarks.ppo import contenders
from scripts.benchmarks.ppo.command import add_dtypes, add_rounds, measure_dtypes, parser_of
from scripts.benchmarks.ppo.layout import Layout
from scripts.benchmarks.ppo.turns import Rounds, Spread, play
from scripts.benchmarks.ppo.workload import Workload, run_config, write_workload


@dataclass(frozen=True, slots=True)
class Figures:
    """Of `several` engines beside `one`: seconds of drawing and of a whole iteration; rates are several's over one's,
    within rounds."""

    dtype: Dtype
    one_draws_s: Spread
    several_draw_s: Spread
    drawing_rate: Spread
    one_iterates_s: Spread
    several_iterate_s: Spread
    iteration_rate: Spread
    one_peak_mib: float  # of its rollout actors together
    several_peak_mib: float
    most_foreign: float
    rejected: int


def main() -> None:
    parser = parser_of(__doc__)
    add_dtypes(parser)
    add_rounds(parser)
    arguments = parser.parse_args()
    measure_dtypes(arguments, lambda dtype, workload: measure(dtype, workload, arguments.rounds, arguments.foreign))


def measure(dtype: Dtype, workload: Workload, rounds: int, most_foreign: float) -> Figures:
    cores = os.cpu_count() or 1
    layouts = {"one": Layout(1, cores, cores), "several": Layout(cores, 1, cores)}
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        write_workload(directory, workload, "fixed")
        configs = {
            name: run_config(directory, workload, dtype=dtype, layout=layout, old_logprobs="rollout")
            for name, layout in layouts.items()
        }
        played = play(
            {name: contenders.ours(directory, name, config) for name, config in configs.items()},
            rounds,
            most_foreign=most_foreign,
        )
    one, several = played.turns["one"], played.turns["several"]
    return Figures(
        dtype=dtype,
        one_draws_s=played.part("one", "generate"),
        several_draw_s=played.part("several", "generate"),
        drawing_rate=Spread.of(
            [
                (more.tokens / more.parts["generate"]) / (alone.tokens / alone.parts["generate"])
                for alone, more in zip(one, several, strict=True)
            ]
        ),
        one_iterates_s=played.spread("one", "seconds"),
        several_iterate_s=played.spread("several", "seconds"),
        iteration_rate=played.ratio("several", "one"),
        one_peak_mib=_rollout_mib(played, "one"),
        several_peak_mib=_rollout_mib(played, "several"),
        most_foreign=max(turn.foreign for turn in (*one, *several)),
        rejected=played.rejected,
    )


def _rollout_mib(played: Rounds, contender: str) -> float:
    peaks = played.turns[contender][-1].peak_mib
    return sum(peak for process, peak in peaks.items() if process.startswith("rollout-"))


if __name__ == "__main__":
    main()

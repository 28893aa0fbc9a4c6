"""One whole PPO iteration, beside that of TRL 1.12.0, the last release with a PPO trainer.

`python -m scripts.benchmarks.ppo_iteration [--scenario NAME ...] [--pairs N]`. An iteration draws an answer to each of
64 prompts of 32 tokens, scores them, and takes one epoch of steps on minibatches of 16, on a Llama of 29M parameters;
ours also carries batches and weights between its Ray actors. Both sides start from the same models and take turns; a
figure is the median, and the range, of the ratio of tokens a second within a pair of turns. Before that both compute
one update on the same answers and must agree.

Scenarios are DTYPE-LENGTHS-OLD. `fixed` answers have 64 tokens each; `half` end by themselves at 32 on average, of at
most 64. In bfloat16 ours is bfloat16 in all phases, with float32 weights in the optimizer; theirs is what its trainer
can do, mixed precision in training alone. OLD is whose log-probabilities stand for the policy before the update:
`rollout` as TRL does, or `recompute`, one forward more. `bfloat16-fixed-trunk` compares another thing than TRL's: ours
then has its value head on the policy's trunk, and one model less to run and to train.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table

from rlaif_ray.config import UserError
from rlaif_ray.engines.training import Dtype
from scripts.benchmarks.ppo import contenders
from scripts.benchmarks.ppo.command import parser_of
from scripts.benchmarks.ppo.layout import Layout, add_layout, layout_of
from scripts.benchmarks.ppo.parity import Gap, check_parity
from scripts.benchmarks.ppo.trl_environment import DEFAULT, trl_python
from scripts.benchmarks.ppo.turns import Rounds, Spread, Turn, play
from scripts.benchmarks.ppo.workload import WORKLOADS, Lengths, Workload, run_config, write_workload


@dataclass(frozen=True, slots=True)
class Scenario:
    dtype: Dtype
    lengths: Lengths
    old: Literal["rollout", "recompute", "trunk"]

    @property
    def name(self) -> str:
        return f"{self.dtype}-{self.lengths}-{self.old}"

    @property
    def keys(self) -> dict[str, str]:
        """Of `ppo`."""
        if self.old == "trunk":
            return {"old_logprobs": "rollout", "value_model": "trunk"}
        return {"old_logprobs": self.old}


_SCENARIOS: Final = [
    *(
        Scenario(dtype, lengths, old)
        for dtype in ("float32", "bfloat16")
        for lengths in ("fixed", "half")
        for old in ("rollout", "recompute")
    ),
    Scenario("bfloat16", "fixed", "trunk"),
]


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one scenario. Parts are medians in seconds, memory is the most that a process has had."""

    scenario: str
    to_trl: Spread
    ours_s: Spread
    trl_s: Spread
    ours_tokens_per_s: Spread
    trl_tokens_per_s: Spread
    ours_parts: Mapping[str, float]
    trl_parts: Mapping[str, float]
    peak_mib: Mapping[str, float]
    most_foreign: float
    rejected: int
    turns: Mapping[str, Sequence[Turn]]


def main() -> None:
    names = {scenario.name: scenario for scenario in _SCENARIOS}
    parser = parser_of(__doc__)
    parser.add_argument("--scenario", nargs="*", choices=names, default=list(names))
    parser.add_argument("--pairs", type=int, default=5, help="pairs of turns that count")
    parser.add_argument("--venv", type=Path, default=DEFAULT, help="where TRL has its environment")
    add_layout(parser)
    arguments = parser.parse_args()
    workload = WORKLOADS[arguments.workload]
    layout = layout_of(arguments)
    try:
        python = trl_python(arguments.venv)
    except UserError as error:
        sys.exit(str(error))
    with tempfile.TemporaryDirectory() as directory:
        gaps = check_parity(Path(directory), workload, python, layout.threads)
    print("Both sides compute the same: " + ", ".join(f"{gap.quantity} within {gap.gap:.1g}" for gap in gaps))
    figures = []
    for name in arguments.scenario:
        print(name, flush=True)
        figures.append(measure(names[name], workload, layout, python, arguments.pairs, arguments.foreign))
        print(f"  {figures[-1].to_trl} times TRL", flush=True)
        if arguments.out is not None:
            _write(arguments.out, layout, gaps, figures)
    _show(figures)


def measure(
    scenario: Scenario, workload: Workload, layout: Layout, python: Path, pairs: int, most_foreign: float
) -> Figures:
    if scenario.lengths == "half":
        # The same work, but of a policy that stays where it is: else the two sides' lengths drift apart.
        workload = replace(workload, learning_rate=1e-7)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_workload(directory, workload, scenario.lengths)
        config = run_config(directory, workload, dtype=scenario.dtype, layout=layout, **scenario.keys)
        rounds = play(
            {
                "ours": contenders.ours(directory, "ours", config),
                "trl": contenders.trl(
                    python, directory, workload, scenario.lengths, scenario.dtype, os.cpu_count() or 1
                ),
            },
            pairs,
            most_foreign=most_foreign,
        )
    _check_work(rounds, workload, scenario.lengths)
    turns = [turn for turns in rounds.turns.values() for turn in turns]
    return Figures(
        scenario=scenario.name,
        to_trl=rounds.ratio("ours", "trl"),
        ours_s=rounds.spread("ours", "seconds"),
        trl_s=rounds.spread("trl", "seconds"),
        ours_tokens_per_s=rounds.spread("ours", "rate"),
        trl_tokens_per_s=rounds.spread("trl", "rate"),
        ours_parts=_median_parts(rounds.turns["ours"]),
        trl_parts=_median_parts(rounds.turns["trl"]),
        peak_mib={name: peak for turns in rounds.turns.values() for name, peak in turns[-1].peak_mib.items()},
        most_foreign=max(turn.foreign for turn in turns),
        rejected=rounds.rejected,
        turns=rounds.turns,
    )


def _check_work(rounds: Rounds, workload: Workload, lengths: Lengths) -> None:
    """Raises RuntimeError where the sides did not do the same work."""
    for name, turns in rounds.turns.items():
        for turn in turns:
            if turn.steps != workload.steps:
                raise RuntimeError(f"{name} took {turn.steps} optimizer steps, not {workload.steps}")
            if lengths == "fixed" and turn.tokens != workload.prompts * workload.answer_tokens:
                raise RuntimeError(f"{name} drew {turn.tokens} tokens, not {workload.prompts * workload.answer_tokens}")


def _median_parts(turns: Sequence[Turn]) -> dict[str, float]:
    return {name: statistics.median(turn.parts[name] for turn in turns) for name in turns[0].parts}


def _write(path: Path, layout: Layout, gaps: Sequence[Gap], figures: Sequence[Figures]) -> None:
    whole: dict[str, Any] = {
        "layout": asdict(layout),
        "parity": [asdict(gap) for gap in gaps],
        "scenarios": [asdict(row) for row in figures],
    }
    path.write_text(json.dumps(whole, indent=2))


def _show(figures: Sequence[Figures]) -> None:
    console = Console(width=160)
    table = Table("scenario", "times TRL", "ours, s", "TRL, s", "tokens/s", "TRL's", "foreign", title="A PPO iteration")
    for row in figures:
        table.add_row(
            row.scenario,
            *(str(spread) for spread in (row.to_trl, row.ours_s, row.trl_s)),
            *(f"{spread.median:.0f}" for spread in (row.ours_tokens_per_s, row.trl_tokens_per_s)),
            f"{row.most_foreign:.0%}",
        )
    console.print(table)
    for row in figures:
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row.ours_parts.items())
        peaks = ", ".join(f"{name} {peak:.0f}" for name, peak in row.peak_mib.items())
        console.print(f"{row.scenario}: seconds of ours: {parts}; peak MiB: {peaks}", highlight=False)


if __name__ == "__main__":
    main()

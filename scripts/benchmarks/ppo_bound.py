"""One PPO iteration of ours beside what its kernels can do bare, part by part, in the same run.

`python -m scripts.benchmarks.ppo_bound [--rounds N]`: the loop over Ray actors, a bare vLLM engine and a plain PyTorch
loop take turns, each with all cores. The bound is the time in which the bare engine draws as many tokens, and the plain
loop scores them and takes the same optimizer steps; overlap cannot beat it, as every phase uses all cores. A figure is
the median, and the range, over rounds.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from rich.console import Console
from rich.table import Table

from rlaif_ray.engines.training import Dtype
from scripts.benchmarks.ppo import contenders
from scripts.benchmarks.ppo.command import add_rounds, parser_of
from scripts.benchmarks.ppo.layout import Layout, add_layout, layout_of
from scripts.benchmarks.ppo.turns import Spread, Turn, play
from scripts.benchmarks.ppo.workload import WORKLOADS, Workload, policy_bytes, run_config, write_workload

Old = Literal["rollout", "recompute"]

_SCENARIOS: Final[dict[str, tuple[Dtype, Old]]] = {
    f"{dtype}-{old}": (dtype, old) for dtype in get_args(Dtype) for old in get_args(Old)
}


@dataclass(frozen=True, slots=True)
class Figures:
    """`whole` is the iteration's time over the bound's. The parts are the other way round, ours over bare: 1 is as fast
    as can be."""

    scenario: str
    whole: Spread
    iteration_s: Spread
    bound_s: Spread
    rollout_pool: Spread  # tokens a second, to those of a bare LLM.generate
    reward_calls: Spread  # scored answers a second, to those of plain forwards
    learner: Spread  # learnt answers a second, to those of the plain loop
    sync_s: Spread
    sync_share: Spread  # of the iteration
    sync_gb_per_s: Spread
    copy_gb_per_s: Spread  # of a copy of the same bytes in memory
    peak_mib: dict[str, float]
    most_foreign: float
    rejected: int


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--scenario", nargs="*", choices=_SCENARIOS, default=list(_SCENARIOS))
    add_rounds(parser)
    add_layout(parser)
    arguments = parser.parse_args()
    figures = []
    for name in arguments.scenario:
        print(name, flush=True)
        workload = WORKLOADS[arguments.workload]
        figures.append(measure(name, workload, layout_of(arguments), arguments.rounds, arguments.foreign))
        print(f"  {figures[-1].whole} times the bound", flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps([asdict(row) for row in figures], indent=2))
    table = Table("figure", *(row.scenario for row in figures))
    for name in asdict(figures[0]):
        if name not in ("scenario", "peak_mib"):
            table.add_row(name.replace("_", " "), *(_shown(getattr(row, name)) for row in figures))
    console = Console(width=140)
    console.print(table)
    for row in figures:
        peaks = ", ".join(f"{name} {peak:.0f}" for name, peak in row.peak_mib.items())
        console.print(f"{row.scenario}: peak MiB: {peaks}", highlight=False)


def measure(name: str, workload: Workload, layout: Layout, rounds: int, most_foreign: float) -> Figures:
    dtype, old = _SCENARIOS[name]
    cores = os.cpu_count() or 1
    bare = Layout(1, cores, cores, layout.enforce_eager)
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        write_workload(directory, workload, "fixed")
        config = run_config(directory, workload, dtype=dtype, layout=layout, old_logprobs=old)
        bare_config = run_config(directory, workload, dtype=dtype, layout=bare, old_logprobs=old)
        played = play(
            {
                "ours": contenders.ours(directory, "ours", config),
                "vllm": contenders.raw("vllm", directory, bare_config, cores),
                "torch": contenders.raw("torch", directory, bare_config, cores),
            },
            rounds,
            most_foreign=most_foreign,
        )
        size = policy_bytes(directory, dtype)
    turns = [
        _Round(ours, vllm, torch)
        for ours, vllm, torch in zip(played.turns["ours"], played.turns["vllm"], played.turns["torch"], strict=True)
    ]
    return Figures(
        scenario=name,
        whole=Spread.of([turn.ours.seconds / turn.bound_s for turn in turns]),
        iteration_s=played.spread("ours", "seconds"),
        bound_s=Spread.of([turn.bound_s for turn in turns]),
        rollout_pool=Spread.of([turn.ours.tokens / turn.ours.parts["generate"] / turn.vllm.rate for turn in turns]),
        reward_calls=Spread.of([turn.torch.parts["score"] / turn.ours.parts["score"] for turn in turns]),
        learner=Spread.of([turn.plain_learning_s / turn.ours.parts["learn"] for turn in turns]),
        sync_s=Spread.of([turn.sync_s for turn in turns]),
        sync_share=Spread.of([turn.sync_s / turn.ours.seconds for turn in turns]),
        sync_gb_per_s=Spread.of([size / 1e9 / turn.sync_s for turn in turns]),
        copy_gb_per_s=Spread.of([size / 1e9 / turn.torch.parts["copy"] for turn in turns]),
        peak_mib={process: peak for turns in played.turns.values() for process, peak in turns[-1].peak_mib.items()},
        most_foreign=max(turn.foreign for turns in played.turns.values() for turn in turns),
        rejected=played.rejected,
    )


@dataclass(frozen=True, slots=True)
class _Round:
    """A turn of each."""

    ours: Turn
    vllm: Turn
    torch: Turn

    @property
    def plain_learning_s(self) -> float:
        return self.torch.parts["experience"] + self.torch.parts["update"]

    @property
    def bound_s(self) -> float:
        return self.ours.tokens / self.vllm.rate + self.torch.parts["score"] + self.plain_learning_s

    @property
    def sync_s(self) -> float:
        """From the last optimizer step to weights that are proved to be served."""
        return self.ours.parts["publish"] + self.ours.parts["load"]


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()

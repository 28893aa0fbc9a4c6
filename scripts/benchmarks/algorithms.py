"""The algorithms side by side in the toy world: from one SFT model, one set of preferences and one reward model.

`python -m scripts.benchmarks.algorithms DIR [--seeds N] [--only NAME ...]`: for each seed `DIR/seed{S}/base` learns
from demonstrations, collects preferences and fits a reward model as `rlaif demo` does; then every variant goes on from
a copy of it. It prints a table and writes it to DIR. The same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from rlaif_ray.report.summary import Summary, read_summary
from scripts.benchmarks.commands import rlaif

_CONFIG = Path(__file__).parents[2] / "rlaif_ray" / "toyworld" / "demo.yaml"
_IN_GROUPS = ("ppo.prompts_per_iteration=32", "ppo.answers_per_prompt=4")

VARIANTS: Final[Mapping[str, Sequence[str]]] = MappingProxyType(
    {
        "ppo": (),
        "ppo, recomputed": ("ppo.old_logprobs=recompute",),
        "ppo, drawn ahead": ("ppo.max_staleness=1",),
        "ppo, value from SFT": ("ppo.value_model=sft",),
        "ppo, value on the trunk": ("ppo.value_model=trunk", "ppo.value_warmup_iterations=0"),
        "ppo, KL as a loss (k2)": ("ppo.kl=k2",),
        "ppo, adapters": ("policy.lora={rank: 8, alpha: 16}",),
        "reinforce": ("policy.algorithm=reinforce",),
        "a2c": ("policy.algorithm=a2c",),
        "rloo": ("policy.algorithm=rloo", *_IN_GROUPS),
        "grpo": ("policy.algorithm=grpo", *_IN_GROUPS),
        "dpo": ("policy.algorithm=dpo", "dpo.learning_rate=2.0e-4", "dpo.epochs=2"),
    }
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    found: dict[str, list[Summary]] = {name: [] for name in arguments.only}
    for seed in range(arguments.seeds):
        directory = arguments.directory / f"seed{seed}"
        for stage in ("sft", "collect", "fit-reward"):
            rlaif(stage, _CONFIG, directory / "base", f"seed={seed}")
        for name in arguments.only:
            found[name].append(_finished(directory, name, seed))
            print(f"seed {seed}, {name}: {found[name][-1].policy}", flush=True)
    text = table(found)
    (arguments.directory / "algorithms.md").write_text(text)
    print(text, end="")


def table(found: Mapping[str, Sequence[Summary]]) -> str:
    """In Markdown: means over the seeds, and each seed's win rate."""
    lines = [
        "| | win rate against SFT, by gold | by seed | KL, nats | tokens | training, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, summaries in found.items():
        rates = [summary.policy.win_rate or 0.0 for summary in summaries]
        kl = statistics.mean(summary.policy.kl or 0.0 for summary in summaries)
        tokens = statistics.mean(summary.policy.mean_length.after or 0.0 for summary in summaries)
        stage = "dpo" if name == "dpo" else "train"
        seconds = statistics.mean(summary.stages[stage].wall_s for summary in summaries)
        each = ", ".join(f"{rate:.3f}" for rate in rates)
        lines.append(f"| {name} | {statistics.mean(rates):.3f} | {each} | {kl:.2f} | {tokens:.2f} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def _finished(directory: Path, name: str, seed: int) -> Summary:
    run = directory / name.replace(" ", "-").replace(",", "")
    if not run.exists():
        shutil.copytree(directory / "base", unfinished := directory / ".copy", dirs_exist_ok=True)
        (unfinished / "config.yaml").unlink()  # the variant's own takes its place
        unfinished.rename(run)
    rlaif("run", _CONFIG, run, f"seed={seed}", *VARIANTS[name])
    return read_summary(run)


if __name__ == "__main__":
    main()

"""Makes the toy world's judge from nothing and writes it as a Hugging Face directory.

Run as `python -m scripts.make_toy_judge [DIRECTORY]`; the default directory is the packaged one. It takes three minutes
on one core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlaif_ray.toyworld.models import model_path

HELD_OUT_PAIRS = 2_000
HELD_OUT_SEED = 977


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the toy world's judge.")
    parser.add_argument(
        "directory", nargs="?", type=Path, default=Path(model_path("toyworld:judge")), help="where to write it"
    )
    directory: Path = parser.parse_args().directory
    from rlaif_ray.toyworld import judge_training

    console = Console()
    recipe = judge_training.JudgeRecipe()
    started = time.monotonic()
    columns = (
        TextColumn("judge"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("judge", total=recipe.steps, loss="")
        model = judge_training.train_judge(
            recipe, lambda step, loss: progress.update(task, completed=step, loss=f"loss {loss:.3f}")
        )
    judge_training.save_judge(model, directory)
    console.print(f"wrote {directory} after {time.monotonic() - started:.0f} s")
    for name, pairs in (
        ("held-out pairs", judge_training.held_out_pairs(HELD_OUT_PAIRS, HELD_OUT_SEED)),
        ("padded pairs", judge_training.padded_pairs(HELD_OUT_PAIRS, HELD_OUT_SEED)),
    ):
        quality = judge_training.measure_judge(directory, pairs)
        console.print(
            f"{name}: alignment with gold {quality.alignment:.3f}, position consistency "
            f"{quality.position_consistency:.3f}, least label mass {quality.label_mass:.3f} ({quality.pairs} pairs)"
        )


if __name__ == "__main__":
    main()

"""What the scripts that make the toy world's models share: where to write one, and how far it is."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlaif_ray.toyworld.models import model_path


def directory_argument(name: str) -> Path:
    """The directory that the command line names, or the packaged model's."""
    parser = argparse.ArgumentParser(description=f"Make the toy world's {name}.")
    default = Path(model_path(f"toyworld:{name}"))
    parser.add_argument("directory", nargs="?", type=Path, default=default, help="where to write it")
    directory: Path = parser.parse_args().directory
    return directory


@contextmanager
def shown(name: str, steps: int, directory: Path) -> Iterator[Callable[[int, float], None]]:
    """A bar that each step's number and loss move on."""
    started = time.monotonic()
    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    console = Console()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=steps, loss="")
        yield lambda step, loss: progress.update(task, completed=step, loss=f"loss {loss:.3f}")
    console.print(f"wrote {directory} after {time.monotonic() - started:.0f} s")

"""How long a submitted job takes to its first training metric, beside the same run started directly.

`python -m scripts.benchmarks.job_submit [--rounds N] [--out FILE]`: the demo's recipe, by turns as a job on a head that
is up already, and by `rlaif run`, which starts a Ray of its own. Every job uploads: its working directory is another
one each time. Milestones are seconds from the command's start to what the run says, and to the time that the first row
of metrics.jsonl bears.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from zipfile import ZipFile

from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package
from rich.console import Console
from rich.table import Table

from rlaif_ray.metrics import MetricsLog
from scripts.benchmarks.ray_head import RayHead, end_family, ray_head

REPOSITORY = Path(__file__).parents[2]
RECIPE = "rlaif_ray/toyworld/demo.yaml"
_PATIENCE_S = 300


@dataclass(frozen=True, slots=True)
class Milestones:
    """In seconds since the command began."""

    running: float  # the run's own process has begun
    joined: float  # it has read its config and joined Ray
    training: float  # its first stage has begun
    first_metric: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over rounds."""

    upload_mib: float
    job: Milestones
    direct: Milestones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    figures = measure(arguments.rounds)
    table = Table("seconds to", "as a job", "directly", "difference", title=f"Uploaded: {figures.upload_mib:.2f} MiB")
    for field in fields(Milestones):
        as_job, direct = getattr(figures.job, field.name), getattr(figures.direct, field.name)
        table.add_row(field.name.replace("_", " "), f"{as_job:.1f}", f"{direct:.1f}", f"{as_job - direct:+.1f}")
    Console(width=120).print(table)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(asdict(figures), indent=2))


def measure(rounds: int) -> Figures:
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "working_directory.zip"
        create_package(str(REPOSITORY), archive, include_gitignore=True, excludes=get_runtime_env_default_excludes())
        jobs, direct = [], []
        for number in range(rounds):
            place = Path(directory) / str(number)
            with ZipFile(archive) as content:
                content.extractall(place / "code")
            (place / "code" / "another").write_text(str(number))
            # A head of its own each round: a second job would find workers that the first one left.
            with ray_head(cpus=os.cpu_count() or 1, RAY_JOB_STOP_WAIT_TIME_S="1") as head:
                jobs.append(_as_job(head, place / "code", place / "job"))
            direct.append(_directly(place / "code", place / "direct"))
            print(jobs[-1], direct[-1], sep="\n", flush=True)
        return Figures(archive.stat().st_size / 2**20, _medians(jobs), _medians(direct))


def _as_job(head: RayHead, code: Path, run_dir: Path) -> Milestones:
    begun = time.time()
    submitting = subprocess.Popen(
        [
            *(head.command, "job", "submit", "--submission-id", "job", "--working-dir", str(code), "--"),
            *("python", "scripts/run.py", RECIPE, f"run_dir={run_dir}"),
        ],
        env=head.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    milestones = _followed(begun, lambda: head.log("job"), "Running entrypoint", run_dir)
    head.job("stop", "job")
    submitting.wait(_PATIENCE_S)
    return milestones


def _directly(code: Path, run_dir: Path) -> Milestones:
    log = run_dir.with_suffix(".log")
    begun = time.time()
    process = subprocess.Popen(
        [sys.executable, "scripts/run.py", RECIPE, f"run_dir={run_dir}"],
        cwd=code,
        env={key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {"PYTHONPATH": str(code)},
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        return _followed(begun, log.read_text, "", run_dir)
    finally:
        end_family(process)


def _followed(begun: float, said: Callable[[], str], running: str, run_dir: Path) -> Milestones:
    """Milestones of a run, as it reaches them."""
    metrics = run_dir / "metrics.jsonl"

    def told(text: str) -> float:
        return _until(lambda: text in said()) - begun

    entered, joined, training = told(running), told("Run directory: "), told("[1/6] ")
    _until(lambda: metrics.exists() and bool(MetricsLog(metrics).read()))
    return Milestones(entered, joined, training, MetricsLog(metrics).read()[0].time - begun)


def _until(condition: Callable[[], bool]) -> float:
    """The time at which it holds, to 10 ms."""
    deadline = time.time() + _PATIENCE_S
    while not condition():
        if time.time() > deadline:
            raise TimeoutError("the run does not go on")
        time.sleep(0.01)
    return time.time()


def _medians(rounds: list[Milestones]) -> Milestones:
    return Milestones(
        **{field.name: statistics.median(getattr(one, field.name) for one in rounds) for field in fields(Milestones)}
    )


if __name__ == "__main__":
    main()

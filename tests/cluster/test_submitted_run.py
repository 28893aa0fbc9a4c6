"""The recipe as a job: submitted, stopped in the middle of training, submitted again."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlaif_ray.metrics import PPO, SFT
from scripts.benchmarks.ray_head import RayHead, ray_head

REPOSITORY = Path(__file__).parents[2]
ITERATIONS = 20
DEMO = ("python", "scripts/run.py", "rlaif_ray/toyworld/demo.yaml")
SMALL = (
    *("prompts.limit=1000", "prompts.held_out=100", "sft.limit=1000", "sft.epochs=1", "collect.prompts=100"),
    *("reward.epochs=1", "reward.held_out=0.2", f"ppo.iterations={ITERATIONS}", "ppo.prompts_per_iteration=32"),
    # So far apart that only an orderly end saves what was learnt.
    *("ppo.minibatch_size=32", "ppo.checkpoint_every=1000"),
)
WHERE_FROM = """
import ray, rlaif_ray
ray.init(log_to_driver=False)
print("driver", rlaif_ray.__file__)
print("worker", ray.get(ray.remote(lambda: __import__("rlaif_ray").__file__).remote()))
"""


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(RAY_JOB_STOP_WAIT_TIME_S="60") as started:
        yield started


def logged(run_dir: Path, stage: str) -> list[int]:
    """The steps of a stage, as they stand in the file, one by one."""
    path = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row["step"] for row in rows if row["stage"] == stage]


def wait_for(head: RayHead, submission: str, condition: Callable[[], bool]) -> None:
    """The job must be running still when the condition holds."""
    deadline = time.monotonic() + 400
    while not condition():
        assert "rlaif: " not in head.log(submission), head.log(submission)
        assert "Traceback" not in head.log(submission), head.log(submission)
        assert time.monotonic() < deadline, head.log(submission)
        time.sleep(0.1)


def test_who_has_no_token_is_sent_away(head: RayHead) -> None:
    """The environment says explicitly whether there is one: no token that lies about is taken for it."""
    client = {key: value for key, value in head.environment.items() if not key.startswith("RAY_AUTH")}
    listed = subprocess.run(
        ["ray", "job", "list"], env=client | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, check=False
    )
    assert listed.returncode != 0
    assert "401" in listed.stdout + listed.stderr or "Unauth" in listed.stdout + listed.stderr


def test_a_job_runs_the_code_that_travelled(head: RayHead) -> None:
    """In the driver and on every node, though the package is installed there too."""
    ended = head.submitted("python", "-c", WHERE_FROM, working_directory=REPOSITORY)
    assert ended.returncode == 0, ended.stdout
    said = dict(line.split() for line in ended.stdout.splitlines() if line.startswith(("driver ", "worker ")))
    unpacked = head.directory / "session_latest" / "runtime_resources" / "working_dir_files"
    for where in ("driver", "worker"):
        assert unpacked.resolve() in Path(said[where]).resolve().parents


def test_a_job_may_not_keep_its_run_in_the_working_directory(head: RayHead) -> None:
    ended = head.submitted(*DEMO, "run_dir=runs/mine", working_directory=REPOSITORY)
    assert ended.returncode == 1
    (told,) = {line for line in ended.stdout.splitlines() if line.startswith("rlaif: ")}
    assert told.startswith("rlaif: run_dir=runs/mine: a job's working directory is a copy on each node")
    assert told.endswith("give an absolute path on storage that every node sees")


def test_a_job_that_is_stopped_in_a_fit_does_not_wait_for_it(head: RayHead, tmp_path: Path) -> None:
    """The fit would take days, and Ray would kill the job after a minute."""
    run_dir = tmp_path / "run"
    fit = ("python", "scripts/sft.py", DEMO[-1], f"run_dir={run_dir}", "prompts.limit=1000", "sft.epochs=1000000")
    begun = head.begun("fit", *fit, working_directory=REPOSITORY)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    wait_for(head, "fit", lambda: bool(logged(run_dir, SFT)))
    stopped = head.job("stop", "fit")
    assert "was stopped" in stopped.stdout, stopped.stdout + stopped.stderr
    assert "rlaif: interrupted" in head.log("fit"), head.log("fit")


@pytest.mark.long
def test_a_stopped_job_loses_nothing_and_the_same_submission_goes_on(head: RayHead, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = (*DEMO, f"run_dir={run_dir}", *SMALL)
    begun = head.begun("first", *command, working_directory=REPOSITORY)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    wait_for(head, "first", lambda: len(logged(run_dir, PPO)) >= 3)
    stopped = head.job("stop", "first")
    assert "was stopped" in stopped.stdout, stopped.stdout + stopped.stderr
    assert "finishing the iteration under way" in head.log("first"), head.log("first")
    kept = logged(run_dir, PPO)
    assert 3 <= len(kept) < ITERATIONS
    assert "rlaif: interrupted" in head.log("first")
    assert "Traceback" not in head.log("first")

    again = head.submitted(*command, working_directory=REPOSITORY)
    assert again.returncode == 0, again.stdout
    assert f"going on after iteration {len(kept)}," in again.stdout, "logs stream to whoever submitted"
    assert "Report: " in again.stdout
    assert logged(run_dir, PPO) == list(range(1, ITERATIONS + 1))
    assert json.loads((run_dir / "summary.json").read_text())["resumed_from"] is not None

"""scripts/ holds one entry point a command, for jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlaif_ray.cli import app

REPOSITORY = Path(__file__).parents[2]

# Of this machine alone, by its definition.
NOT_FOR_JOBS = {"demo"}
COMMANDS = sorted(
    {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - NOT_FOR_JOBS))
def test_every_command_has_an_entry_point(command: str, tmp_path: Path) -> None:
    """Found as a job finds it: the working directory is on Python's path, whatever the current directory."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / f"{command}.py"), "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"Usage: rlaif {command.replace('_', '-')} " in done.stdout


def test_an_entry_point_tells_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "fit_reward.py"), "no-such.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("rlaif: no-such.yaml: cannot be read")
    assert done.stderr.count("\n") == 1

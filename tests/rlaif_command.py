"""`rlaif` as a user starts it: in a process group of its own, as a terminal does, with what it says in a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlaif_ray.metrics import MetricsLog, MetricsRow
from rlaif_ray.rundir import RunDirectory

_PATIENCE_S = 1_000
_ENDING_S = 300


@dataclass(frozen=True, slots=True)
class Command:
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, *arguments: str, log: Path, ray_address: str = "local") -> Command:
        """`rlaif ARGUMENTS`, in the directory of its log, on the Ray of this address; "local" starts one."""
        process = subprocess.Popen(
            [sys.executable, "-m", "rlaif_ray", *arguments],
            cwd=log.parent,
            env=os.environ | {"RAY_ADDRESS": ray_address},
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Whoever runs the tests in the background has them ignore ctrl-C; a person's shell does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        return cls(process, log)

    @property
    def output(self) -> str:
        """All that it has said so far."""
        return self.log.read_text()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """It must be running still when the condition holds."""
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def end_by(self, number: signal.Signals) -> int:
        """Send a signal to all that run in its group, and return its exit code."""
        os.killpg(self.process.pid, number)
        return self.process.wait(_ENDING_S)

    def exit_code(self) -> int:
        """Once it has ended."""
        try:
            return self.process.wait(_PATIENCE_S)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)

    def finished(self) -> str:
        """What it said, once it has ended well."""
        assert self.exit_code() == 0, self.output
        return self.output


def logged(run_dir: Path, stage: str) -> list[MetricsRow]:
    """A stage's metrics so far."""
    path = RunDirectory(run_dir).metrics
    return [row for row in MetricsLog(path).read() if row.stage == stage] if path.exists() else []

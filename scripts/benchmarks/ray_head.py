"""A cluster as `ray start --head` makes it, with ports and a directory of its own, and jobs submitted to it.

Other Rays of the machine are neither joined nor stopped: it ends by the processes that it started.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.free_port import free_port

_PATIENCE_S = 300
_BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class RayHead:
    """`environment` is a client's: it names the dashboard, and the token's file."""

    directory: Path
    environment: Mapping[str, str]

    @property
    def command(self) -> Path:
        """`ray`."""
        return _BIN / "ray"

    def job(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ray job ARGUMENTS`, once it has ended."""
        return subprocess.run(
            [self.command, "job", *arguments], env=self.environment, capture_output=True, text=True, check=False
        )

    def submitted(self, *entrypoint: str, working_directory: Path) -> subprocess.CompletedProcess[str]:
        """A job, once it has ended."""
        return self.job("submit", "--working-dir", str(working_directory), "--", *entrypoint)

    def begun(self, submission: str, *entrypoint: str, working_directory: Path) -> subprocess.CompletedProcess[str]:
        """A job that runs on, under a name."""
        where = ("--submission-id", submission, "--working-dir", str(working_directory))
        return self.job("submit", "--no-wait", *where, "--", *entrypoint)

    def log(self, submission: str) -> str:
        """What a job has said so far."""
        path = self.directory / "session_latest" / "logs" / f"job-driver-{submission}.log"
        return path.read_text() if path.exists() else ""


@contextmanager
def ray_head(*, cpus: int = 4, **settings: str) -> Iterator[RayHead]:
    """A head that has run up, with a new token, until the block ends; `settings` are environment variables of all its
    processes."""
    directory = Path(tempfile.mkdtemp(prefix="rlaif-", dir="/tmp"))  # a longer path than that is none for a socket
    token = directory / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    # `python` in an entry point is the one that runs the head.
    plain["PATH"] = f"{_BIN}{os.pathsep}{plain['PATH']}"
    plain |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    # A busy machine takes its time to start a node.
    plain |= {"RAY_raylet_start_wait_time_s": "120"}
    dashboard = free_port()
    process = subprocess.Popen(
        [
            *(_BIN / "ray", "start", "--head", "--block", f"--temp-dir={directory}", f"--num-cpus={cpus}"),
            *("--node-ip-address=127.0.0.1", f"--port={free_port()}", f"--dashboard-port={dashboard}"),
            *("--dashboard-host=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"),
            *("--dashboard-agent-listen-port=0", f"--ray-client-server-port={free_port()}"),
        ],
        env=plain | settings,
        stdout=(directory / "start.log").open("wb"),
        stderr=subprocess.STDOUT,
        # As a script has it that starts a head in the background: all that the head starts inherits this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    head = RayHead(directory, plain | {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"})
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while (listed := head.job("list")).returncode:
            assert process.poll() is None, (directory / "start.log").read_text()
            assert time.monotonic() < deadline, listed.stderr
            time.sleep(0.2)
        yield head
    finally:
        end_family(process)
        shutil.rmtree(directory, ignore_errors=True)


def end_family(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that descends from it."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=30)
    process.wait(30)

"""A real Prometheus on the loopback, where its package is installed, and what it is asked."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_START_S = 30.0

MISSING = shutil.which("prometheus") is None or shutil.which("promtool") is None


@dataclass(frozen=True)
class Prometheus:
    url: str

    def query(self, expression: str, at: float) -> list[dict[str, Any]]:
        """The series of an instant query. Raises RuntimeError with what Prometheus says where it is wrong."""
        return self._get("query", query=expression, time=at)["result"]

    def range(self, expression: str, start: float, end: float, step_s: float) -> list[dict[str, Any]]:
        return self._get("query_range", query=expression, start=start, end=end, step=step_s)["result"]

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, what: str, **parameters: Any) -> dict[str, Any]:
        address = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{parameters}: {error.read().decode()}") from None


@contextmanager
def serving(config: Path, directory: Path) -> Iterator[Prometheus]:
    """Run until the block ends, with its data and its log in `directory`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'prometheus'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + _START_S
        while not _is_ready(address):
            assert process.poll() is None, (directory / "prometheus.log").read_text()
            assert time.monotonic() < deadline, (directory / "prometheus.log").read_text()
            time.sleep(0.1)
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(_START_S)


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False

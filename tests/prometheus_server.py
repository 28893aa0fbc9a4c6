"""A real Prometheus on the loopback, where its package is installed, and what it is asked."""

from __future__ import annotations

import json
import math
import re
import shutil
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

import yaml

from rlaif_ray.doctor.machine import this_machine
from scripts.grafana import Dashboard, Panel, Query
from tests.free_port import free_port

_START_S = 30.0

_CONFIGS = Path(__file__).parents[1] / "cluster" / "prometheus"
ALERTS = _CONFIGS / "alerts.yml"

# Ray tells of GPUs where there are some.
_OF_GPUS = re.compile(r"\bray_node_(gram|gpus)_")

MISSING = shutil.which("prometheus") is None or shutil.which("promtool") is None


@dataclass(frozen=True)
class Prometheus:
    url: str

    def query(self, expression: str, at: float) -> list[dict[str, Any]]:
        """The series of an instant query. Raises RuntimeError with what Prometheus says where it is wrong."""
        return self._get("query", query=expression, time=at)["result"]

    def range(self, expression: str, start: float, end: float, step_s: float) -> list[dict[str, Any]]:
        return self._get("query_range", query=expression, start=start, end=end, step=step_s)["result"]

    def silent(self, dashboard: Dashboard, run: str, start: float, end: float) -> list[tuple[Panel, Query]]:
        """The panels and queries that nothing was to be seen of; for GPUs only where there are some."""
        asked = [(panel, query) for panel in dashboard.panels for query in panel.queries]
        if not this_machine().gpus:
            asked = [(panel, query) for panel, query in asked if not _OF_GPUS.search(query.expression)]
        return [(panel, query) for panel, query in asked if not self._seen(query, run, start, end)]

    def _seen(self, query: Query, run: str, start: float, end: float) -> bool:
        expression = query.expression
        for name, value in {"$run": run, "$SessionName": ".*", "$__rate_interval": "10s"}.items():
            expression = expression.replace(name, value)
        series = self.range(expression, start, end, 1.0)
        return any(not math.isnan(float(value)) for each in series for _, value in each["values"])

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, what: str, **parameters: Any) -> dict[str, Any]:
        address = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{parameters}: {error.read().decode()}") from None


def watching(discovery: Path, directory: Path) -> Path:
    """The cluster's own config, at a quicker pace, for a Ray that is elsewhere; written into `directory`."""
    text = (_CONFIGS / "prometheus.yml").read_text()
    text = text.replace("/tmp/ray/prom_metrics_service_discovery.json", str(discovery))
    written = yaml.safe_load(text.replace("interval: 10s", "interval: 1s"))
    written["rule_files"] = [str(_CONFIGS / name) for name in written["rule_files"]]
    written["scrape_configs"][0]["file_sd_configs"][0]["refresh_interval"] = "1s"
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(written))
    assert str(discovery) in path.read_text()
    return path


@contextmanager
def serving(config: Path, directory: Path) -> Iterator[Prometheus]:
    """Run until the block ends, with its data and its log in `directory`."""
    address = f"127.0.0.1:{free_port()}"
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

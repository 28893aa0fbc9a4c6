"""A reward server as a user starts it, watched by a real Prometheus: no panel of its dashboard is empty."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from rlaif_ray import metrics
from rlaif_ray.metrics import METRICS
from scripts.dashboards import DASHBOARDS
from tests.prometheus_server import MISSING, Prometheus, serving, watching
from tests.small_models import write_models

pytestmark = pytest.mark.skipif(MISSING, reason="needs prometheus and promtool")

(DASHBOARD,) = [dashboard for dashboard in DASHBOARDS if dashboard.name == "reward_server"]
CALL = {"items": [{"prompt": "one two", "answer": f"three {word}"} for word in ("four", "five", "six")]}
PATIENCE_S = 300


@pytest.fixture
def ray_directory() -> Iterator[Path]:
    """With a short path, as its sockets' must be."""
    directory = Path(tempfile.mkdtemp(prefix="rs", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def prometheus(ray_directory: Path, tmp_path: Path) -> Iterator[Prometheus]:
    discovery = ray_directory / "ray" / "prom_metrics_service_discovery.json"
    with serving(watching(discovery, tmp_path), tmp_path) as prometheus:
        yield prometheus


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_models(tmp_path / "models")[1]


@pytest.fixture
def server(model: Path, ray_directory: Path) -> Iterator[httpx2.Client]:
    settings = {"RAY_TMPDIR": str(ray_directory), "RAY_metrics_report_interval_ms": "1000", "RAY_ADDRESS": "local"}
    process = subprocess.Popen(
        [sys.executable, "-m", "rlaif_ray", "serve-reward", str(model), "actors.cpus=0.1", "port=0"],
        env=os.environ | settings | {"RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stdout)), None)
        assert found is not None
        with httpx2.Client(base_url=found[0], timeout=PATIENCE_S) as client:
            yield client
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_no_panel_of_a_reward_server_is_empty(prometheus: Prometheus, server: httpx2.Client, model: Path) -> None:
    """It is chosen by its directory, as a run is by its own."""
    named = f'{METRICS[metrics.RUN_INFO].series}{{name="{model}"}}'
    begun, silent = time.time(), None
    while silent != [] and time.time() < begun + PATIENCE_S:
        assert server.post("/v1/score", json=CALL).status_code == 200
        time.sleep(0.2)
        if found := prometheus.query(named, time.time()):
            run = found[0]["metric"][metrics.RUN]
            silent = [panel.title for panel, _ in prometheus.silent(DASHBOARD, run, begun, time.time())]
    assert silent == []

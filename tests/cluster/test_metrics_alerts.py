"""Prometheus' own tool takes the configs and the rules, and each rule fires when it should and not before."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.prometheus_server import MISSING

pytestmark = pytest.mark.skipif(MISSING, reason="needs prometheus and promtool")

HERE = Path(__file__).parent
PROMETHEUS = HERE.parents[1] / "cluster" / "prometheus"


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_config_beside_a_ray_head_is_taken() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")


def test_the_config_inside_kubernetes_is_taken_but_for_its_discovery(tmp_path: Path) -> None:
    """Debian builds Prometheus without Kubernetes' discovery: a fixed pod stands for what it finds."""
    written: dict[str, Any] = yaml.safe_load((PROMETHEUS / "kuberay.yml").read_text())
    (job,) = written["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    job["static_configs"] = [{"targets": ["10.0.0.1:8080"], "labels": {"__meta_kubernetes_pod_name": "ray-head"}}]
    written["rule_files"] = [str(PROMETHEUS / name) for name in written["rule_files"]]
    path = tmp_path / "kuberay.yml"
    path.write_text(yaml.safe_dump(written))
    promtool("check", "config", path)


def test_every_rule_fires_when_it_should_and_not_before() -> None:
    promtool("check", "rules", PROMETHEUS / "alerts.yml")
    promtool("test", "rules", HERE / "alerts_test.yml")


def test_every_rule_is_tested_both_ways() -> None:
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
    cases = [
        case
        for test in yaml.safe_load((HERE / "alerts_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    for rule in rules:
        outcomes = {bool(case["exp_alerts"]) for case in cases if case["alertname"] == rule["alert"]}
        assert outcomes == {True, False}, rule["alert"]

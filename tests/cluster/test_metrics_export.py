"""Every metric that is defined, as Ray's own endpoint serves it: told in an actor, and read over HTTP."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from actors.exporting import Exporter
from rlaif_ray import metrics
from rlaif_ray.metrics import METRICS, Kind

_PATIENCE_S = 120

# After two of its intervals Ray forgets a gauge that nobody sets again.
_INTERVAL_S = 1
_FORGOTTEN_S = 4 * _INTERVAL_S

# Told last as NaN.
_NO_NUMBER = metrics.KL
TOLD = {name: metric for name, metric in METRICS.items() if name != _NO_NUMBER}


class Teller:
    """Tells of everything once; of a counter, what two parts of it come to."""

    def tell(self) -> None:
        exporter = Exporter(run="r1", stage="ppo")
        for name, metric in METRICS.items():
            tags = {tag: f"a-{tag}" for tag in metric.tags[1:] if tag != metrics.STAGE}
            if metric.kind is Kind.GAUGE:
                exporter.set(name, 7.0, **tags)
                exporter.set(name, math.nan if name == _NO_NUMBER else -2.5, **tags)
            elif metric.kind is Kind.COUNTER:
                exporter.add(name, 2.0, **tags)
                exporter.add(name, 0.0, **tags)
                exporter.add(name, 3.0, **tags)
            else:
                exporter.observe(name, metric.bounds[0] / 2, **tags)
                exporter.observe(name, metric.bounds[-1] * 2, **tags)


def main() -> None:
    """In a process of its own: prints what Ray's endpoint says when it has said it all, a while has passed, and it says
    it all again."""
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        _system_config={"metrics_report_interval_ms": 1_000 * _INTERVAL_S},
    )
    teller = ray.remote(Teller).remote()
    ray.get(teller.tell.remote())
    all_that_is_told()
    time.sleep(_FORGOTTEN_S)
    print(all_that_is_told())
    ray.shutdown()


def all_that_is_told() -> str:
    """What the endpoint says, once it has every metric; after a while without one, what it says then."""
    (node,) = ray.nodes()
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=60) as response:
            text = response.read().decode()
        if all(metric.series in text for metric in TOLD.values()) or time.monotonic() > deadline:
            return text
        time.sleep(0.5)


@pytest.fixture(scope="module")
def samples() -> dict[str, list[Sample]]:
    """By name, and the metric's type by `TYPE name`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.test_metrics_export"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(done.stdout):
        for sample in family.samples:
            if sample.name.startswith("ray_rlaif_"):
                found.setdefault(sample.name, []).append(sample)
                found.setdefault(f"TYPE {sample.name}", []).append(Sample(family.type, {}, 0.0))
    return found


def test_every_metric_is_served_under_its_name_and_nothing_else_is(samples: dict[str, list[Sample]]) -> None:
    """What is no number is not there: it is not passed off as one."""
    names = {name for name in samples if not name.startswith("TYPE")}
    endings = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}
    assert names == {f"{one.series}{end}" for one in TOLD.values() for end in endings.get(one.kind, ("",))}


@pytest.mark.parametrize("name", TOLD)
def test_it_is_of_its_kind_and_bears_its_tags(samples: dict[str, list[Sample]], name: str) -> None:
    metric = METRICS[name]
    ending = "_count" if metric.kind is Kind.HISTOGRAM else ""
    (sample,) = samples[metric.series + ending]
    assert samples[f"TYPE {metric.series}{ending}"][0].name == metric.kind
    expected = {tag: {metrics.RUN: "r1", metrics.STAGE: "ppo"}.get(tag, f"a-{tag}") for tag in metric.tags}
    assert expected.items() <= sample.labels.items()
    assert "SessionName" in sample.labels, "the dashboards choose by it"


def test_a_gauge_has_its_newest_value_and_a_counter_its_sum(samples: dict[str, list[Sample]]) -> None:
    """Of 2 and 3, in a while in which nobody told anything."""
    for name, metric in TOLD.items():
        if metric.kind is not Kind.HISTOGRAM:
            (sample,) = samples[metric.series]
            assert sample.value == (5.0 if metric.kind is Kind.COUNTER else -2.5), name


def test_a_histogram_has_its_buckets(samples: dict[str, list[Sample]]) -> None:
    """Of two values, one lies below the first bound and one above the last."""
    metric = METRICS[metrics.JUDGE_LATENCY]
    counts = {float(each.labels["le"]): each.value for each in samples[f"{metric.series}_bucket"]}
    assert counts == {**dict.fromkeys(metric.bounds, 1.0), math.inf: 2.0}


if __name__ == "__main__":
    main()

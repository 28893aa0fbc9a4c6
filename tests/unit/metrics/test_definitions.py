"""What metrics are called where: in a log, in Ray's export, in Prometheus."""

import re

import pytest

from rlaif_ray import metrics
from rlaif_ray.metrics import METRICS, Kind, family_of


def test_every_metric_has_a_meaning_and_its_own_name() -> None:
    assert all(metric.name == name and metric.meaning for name, metric in METRICS.items())
    assert len({metric.series for metric in METRICS.values()}) == len(METRICS)


def test_every_metric_is_told_by_run_under_a_name_that_prometheus_takes() -> None:
    for metric in METRICS.values():
        assert metric.tags[0] == metrics.RUN
        assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.exported), metric.exported
        assert all(re.fullmatch(r"[a-z_]+", tag) for tag in metric.tags)


def test_only_a_histogram_has_buckets() -> None:
    assert all((metric.kind is Kind.HISTOGRAM) == bool(metric.bounds) for metric in METRICS.values())


@pytest.mark.parametrize(
    ("name", "series"),
    [
        (metrics.KL, "ray_rlaif_kl"),
        (metrics.REWARD_PART_MEAN, "ray_rlaif_reward_of_part"),
        (metrics.REWARD_PART_VALID, "ray_rlaif_reward_valid_of_part"),
        (metrics.JUDGE_CALLS, "ray_rlaif_judge_calls_total"),
        (metrics.JUDGE_LATENCY, "ray_rlaif_judge_latency_seconds"),
    ],
)
def test_a_series_bears_rays_prefix_and_a_counters_its_suffix(name: str, series: str) -> None:
    assert METRICS[name].series == series


def test_a_time_and_a_sum_of_money_say_their_unit() -> None:
    """As Prometheus' conventions have it: the unit ends the name, before a counter's `_total`."""
    endings = {"s": "_seconds", "USD": "_usd"}
    for metric in METRICS.values():
        if metric.unit in endings:
            assert metric.exported.endswith(endings[metric.unit]), metric.exported


def test_a_part_of_the_reward_has_a_family() -> None:
    assert family_of("reward/brief") == (metrics.REWARD_PART_MEAN, "brief")
    assert family_of("reward_valid/judge/2") == (metrics.REWARD_PART_VALID, "judge/2")
    assert family_of("kl") == (metrics.KL, "")
    assert metrics.PART in METRICS[metrics.REWARD_PART_MEAN].tags

"""Dashboards and alerts name what is measured, are up to date, and take the form of Ray's own."""

import json
import re
from pathlib import Path

import pytest
import yaml
from ray.dashboard.modules.metrics.grafana_dashboard_factory import generate_train_grafana_dashboard

from rlaif_ray import metrics
from rlaif_ray.metrics import METRICS, Kind
from scripts.dashboards import DASHBOARDS, TARGET
from scripts.grafana import Dashboard, age, curves, document, gauge, growth, of_ray, quantile, ratio

PROMETHEUS = TARGET.parent / "prometheus"
SERIES = {
    f"{metric.series}{ending}"
    for metric in METRICS.values()
    for ending in (("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",))
}
EACH = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)


def rules() -> list[dict]:
    (group,) = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return group["rules"]


@EACH
def test_the_file_is_what_the_definitions_say(dashboard: Dashboard) -> None:
    assert (TARGET / f"rlaif_{dashboard.name}.json").read_text() == document(dashboard), "run `make docs`"


def test_no_other_dashboard_lies_there() -> None:
    assert {path.name for path in TARGET.iterdir()} == {f"rlaif_{each.name}.json" for each in DASHBOARDS}


def test_every_metric_is_on_a_dashboard() -> None:
    """Except what says which runs there are: the dashboards' variable reads it."""
    shown = {
        metric.name
        for each in DASHBOARDS
        for panel in each.panels
        for query in panel.queries
        for metric in query.measured
    }
    assert set(METRICS) - shown == {metrics.RUN_INFO}


@EACH
def test_every_query_reads_what_is_exported(dashboard: Dashboard) -> None:
    for panel in dashboard.panels:
        for query in panel.queries:
            named = set(re.findall(r"\bray_rlaif_\w+", query.expression))
            assert named <= SERIES, panel.title
            assert named or re.search(r"\bray_(node|component|object_store)_", query.expression), panel.title


@EACH
def test_the_form_is_that_of_rays_own(dashboard: Dashboard) -> None:
    """Ray's page finds a panel by the dashboard's uid and the panel's id, and hands over the variables' values."""
    ours = json.loads(document(dashboard))
    rays = json.loads(generate_train_grafana_dashboard()[0])
    assert set(rays) <= set(ours)
    variables = {each["name"]: each for each in ours["templating"]["list"]}
    assert {"datasource", "SessionName"} <= {each["name"] for each in rays["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert "SessionName" in variables
    ids = [panel["id"] for panel in ours["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in ours["panels"]:
        assert panel["type"] in ("row", "timeseries")
        if panel["type"] == "timeseries":
            assert panel["datasource"] == "${datasource}"
            assert panel["description"]
            assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])


@EACH
def test_no_two_panels_overlap(dashboard: Dashboard) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(document(dashboard))["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_queries_by_hand() -> None:
    chosen = 'run=~"$run.*", SessionName=~"$SessionName"'
    assert gauge(metrics.KL, "stage").expression == f"max by (stage) (ray_rlaif_kl{{{chosen}}})"
    assert gauge(metrics.KL, "stage").legend == "{{stage}}"
    calls = f'ray_rlaif_judge_calls_total{{{chosen}, kind="x"}}'
    assert (
        growth(metrics.JUDGE_CALLS, "judge", matchers=['kind="x"'])
        == f"sum by (judge) (rate({calls}[$__rate_interval]))"
    )
    assert ratio("a", "a + b", "judge").expression == "(a or 0 * (a + b)) / (a + b)"
    time = f"ray_rlaif_step_time_seconds{{{chosen}}}"
    assert age(metrics.STEP_TIME, "run").expression == f"max by (run) ((time() - {time}) * ({time} > bool 0))"
    buckets = f"ray_rlaif_judge_latency_seconds_bucket{{{chosen}}}"
    assert quantile(0.5, metrics.JUDGE_LATENCY).expression == (
        f"histogram_quantile(0.5, sum by (le) (rate({buckets}[$__rate_interval])))"
    )
    node = 'ray_node_mem_used{SessionName=~"$SessionName", x="y"}'
    assert of_ray("max", "ray_node_mem_used", "ip", matchers=['x="y"']).expression == f"max by (ip) ({node})"


def test_a_panel_of_a_rewards_parts_tells_them_apart() -> None:
    (query,) = curves("Parts", metrics.REWARD_PART_MEAN).queries
    assert query.expression.startswith("max by (stage, part) (ray_rlaif_reward_of_part{")
    assert query.legend == "reward, {{stage}} {{part}}"


def test_every_alert_reads_what_is_exported_and_says_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        named = set(re.findall(r"\bray_\w+", rule["expr"]))
        assert named, rule["alert"]
        assert named <= SERIES, rule["alert"]
        assert "$labels.run" in rule["annotations"]["summary"]
        assert rule["annotations"]["remedy"]
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_labels_in_alerts_are_tags_of_their_metrics() -> None:
    tags = {metric.series: set(metric.tags) for metric in METRICS.values()}
    for rule in rules():
        for series, matched in re.findall(r"\b(ray_rlaif_\w+)\{([^}]*)\}", rule["expr"]):
            assert set(re.findall(r"(\w+)=", matched)) <= tags[series], rule["alert"]
        for labels in re.findall(r"by \(([^)]*)\)", rule["expr"]):
            named = [name.strip() for name in labels.split(",")]
            assert all(set(named) <= tags[series] for series in re.findall(r"\bray_rlaif_\w+", rule["expr"]))


@pytest.mark.parametrize("path", sorted(PROMETHEUS.glob("*.yml")), ids=lambda path: path.name)
def test_a_prometheus_config_has_the_alerts(path: Path) -> None:
    written = yaml.safe_load(path.read_text())
    assert "groups" in written or [PROMETHEUS / name for name in written["rule_files"]] == [PROMETHEUS / "alerts.yml"]

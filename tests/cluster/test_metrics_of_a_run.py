"""A run as a user starts it, watched: Ray's endpoints are read, and a real Prometheus scrapes them, evaluates the alert
rules and is asked every query of every dashboard."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from judge_server import strict_server
from prometheus_client.parser import text_string_to_metric_families

from rlaif_ray import metrics
from rlaif_ray.metrics import METRICS, PPO, Kind
from rlaif_ray.rundir import RunDirectory
from scripts.dashboards import DASHBOARDS
from tests.prometheus_server import ALERTS, MISSING, Prometheus, serving, watching
from tests.rlaif_command import Command, logged

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "rlaif_ray" / "toyworld" / "demo.yaml"
# What is told takes some five seconds to Ray's endpoint: a fast machine too must train on after its first watch.
ITERATIONS = 60

# What this run, PPO on a mixed reward, does not measure.
OTHERWISE = {
    metrics.MARGIN: "of DPO",
    metrics.HELD_OUT_MARGIN: "of DPO",
    metrics.LONE_GROUP_FRACTION: "of RLOO and GRPO",
    metrics.TIED_GROUP_FRACTION: "of RLOO and GRPO",
    metrics.WATCHED_CORRELATION: "of a judge that marks answers differently, which this one does not",
    **{name: "of the reward server" for name in METRICS if name.startswith("reward_server_")},
}

OF_RUNS = [dashboard for dashboard in DASHBOARDS if dashboard.name != "reward_server"]

needs_prometheus = pytest.mark.skipif(MISSING, reason="needs prometheus and promtool")


@dataclass(eq=False)
class Reader(threading.Thread):
    """Reads all of Ray's endpoints, once a second, until it is stopped: which series there were, with which labels."""

    discovery: Path
    seen: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def run(self) -> None:
        while not self.ended.wait(1.0):
            if self.discovery.exists():
                for group in json.loads(self.discovery.read_text()):
                    for target in group["targets"]:
                        self._read(target)

    def _read(self, target: str) -> None:
        try:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as response:
                text = response.read().decode()
        except OSError:  # Ray begins or ends
            return
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("ray_rlaif_") and sample.labels not in self.seen.setdefault(sample.name, []):
                    self.seen[sample.name].append(sample.labels)


@dataclass(frozen=True)
class WatchedRun:
    directory: Path
    seen: dict[str, list[dict[str, str]]]
    prometheus: Prometheus | None
    begun: float  # seconds since the epoch
    ended: float


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedRun]:
    directory = tmp_path_factory.mktemp("watched")
    (directory / "key").write_text("sk-watched-41a7")
    (directory / "rules.py").write_text(
        "def brief(prompt, answer, reference):\n    return -0.1 * len(answer.split())\n"
    )
    # Its sockets' paths must be short.
    ray_directory = Path(tempfile.mkdtemp(prefix="rw", dir="/tmp"))
    discovery = ray_directory / "ray" / "prom_metrics_service_discovery.json"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, ray_directory, ignore_errors=True)
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        environment.setenv("RAY_TMPDIR", str(ray_directory))
        environment.setenv("RAY_metrics_report_interval_ms", "1000")
        environment.setenv("RAY_AUTH_MODE", "disabled")
        prometheus = None
        if not MISSING:
            config = watching(discovery, directory)
            prometheus = stack.enter_context(serving(config, directory))
        server = stack.enter_context(
            strict_server(
                latency_s=0.02, faults={"429": 0.03, "500": 0.01}, refusal_header="seconds", with_logprobs=False
            )
        )
        reader = Reader(discovery)
        reader.start()
        stack.callback(reader.ended.set)
        begun = time.time()
        run_dir = directory / "run"
        mix = f"[{{kind: reward_model}}, {{kind: rule, function: '{directory / 'rules.py'}:brief', weight: 0.5}}]"
        Command.start(
            *("run", str(RECIPE), f"run_dir={run_dir}"),
            # So few that the watch meets an answer again, which the ledger then spares.
            *("prompts.limit=120", "prompts.held_out=60", "sft.limit=1500", "sft.epochs=1"),
            *("collect.prompts=60", "collect.answers_per_prompt=3", "collect.pairs_per_prompt=2"),
            *("reward.epochs=1", "reward.batch_size=16", "reward.held_out=0.2", "reward.watch=4", f"reward.mix={mix}"),
            *(f"ppo.iterations={ITERATIONS}", "ppo.prompts_per_iteration=24", "ppo.minibatch_size=12"),
            *("ppo.evaluate_every=20", "evaluation.validation_prompts=20", "ppo.max_staleness=1"),
            *("judge.model=strict", f"judge.base_url={server.url}", f"judge.api_key_file={directory / 'key'}"),
            *("judge.mode=stated", "judge.template=quality", "judge.rationale_tokens=64"),
            *("judge.price={input: 1000, output: 1000}", "judge.budget_usd=1000"),
            *("judge.max_concurrency=8", "judge.actors.cpus=0.1"),
            log=directory / "log",
        ).finished()
        ended = time.time()
        reader.ended.set()
        reader.join()
        yield WatchedRun(run_dir, reader.seen, prometheus, begun, ended)


def test_every_metric_is_on_rays_endpoints_under_the_runs_id(run: WatchedRun) -> None:
    missing = {
        name
        for name, metric in METRICS.items()
        if metric.series + ("_count" if metric.kind is Kind.HISTOGRAM else "") not in run.seen
    }
    assert missing == set(OTHERWISE)
    runs = {labels["run"] for labels in run.seen["ray_rlaif_step"]}
    assert runs == {RunDirectory(run.directory).id}


def test_labels_say_what_they_are_of(run: WatchedRun) -> None:
    def values(name: str, tag: str) -> set[str]:
        return {labels[tag] for labels in run.seen[METRICS[name].series]}

    assert values(metrics.RUN_INFO, "name") == {"run"}
    assert values(metrics.ROLLOUT_VERSION, metrics.REPLICA) == {"rollout-0"}
    assert values(metrics.JUDGE_CALLS, metrics.JUDGE) == {"judge"}
    assert values(metrics.JUDGE_FAILED_ATTEMPTS, "kind") == {"rate_limited", "transient"}
    assert values(metrics.JUDGE_TOKENS, "direction") == {"prompt", "completion"}
    assert "scored" in values(metrics.JUDGEMENTS, "outcome")
    assert values(metrics.REWARD_PART_MEAN, metrics.PART) == {"reward_model", "brief"}
    assert values(metrics.STEP, metrics.STAGE) == {"sft", "reward", PPO, metrics.WATCH, metrics.VALIDATION}


@needs_prometheus
@pytest.mark.parametrize("dashboard", OF_RUNS, ids=lambda dashboard: dashboard.name)
def test_no_panel_is_empty(run: WatchedRun, dashboard) -> None:
    """Nor is any of its queries, but for what this run does not measure, and for GPUs where there are none."""
    assert run.prometheus is not None
    silent = run.prometheus.silent(dashboard, RunDirectory(run.directory).id, run.begun, run.ended)
    assert [
        (panel.title, query.expression)
        for panel, query in silent
        if not {metric.name for metric in query.measured} & set(OTHERWISE)
    ] == []


@needs_prometheus
def test_what_prometheus_holds_is_what_was_logged(run: WatchedRun) -> None:
    assert run.prometheus is not None
    told = {
        round(float(value), 6)
        for series in run.prometheus.range(METRICS[metrics.KL].series, run.begun, run.ended, 1.0)
        for _, value in series["values"]
    }
    kept = {round(row.values[metrics.KL], 6) for row in logged(run.directory, PPO)}
    assert told
    assert told <= kept


@needs_prometheus
def test_the_judges_counters_agree_with_the_books(run: WatchedRun) -> None:
    """What came last may not have been scraped before the pool ended."""
    assert run.prometheus is not None
    labeler = json.loads((run.directory / "summary.json").read_text())["labeler"]
    window = f"[{math.ceil(run.ended - run.begun) + 5}s]"

    def most(name: str) -> float:
        expression = f"sum(max_over_time({METRICS[name].series}{window}))"
        ((_, value),) = [series["value"] for series in run.prometheus.query(expression, run.ended)]  # type: ignore[union-attr]
        return float(value)

    assert 0.9 * labeler["cost_usd"] <= most(metrics.JUDGE_COST) <= labeler["cost_usd"] + 1e-6
    assert most(metrics.JUDGE_BUDGET) == 1000


@needs_prometheus
def test_every_alert_rule_is_evaluated_and_no_critical_one_fires(run: WatchedRun) -> None:
    assert run.prometheus is not None
    written = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    rules = {rule["name"]: rule for rule in run.prometheus.rules()}
    assert set(rules) == {rule["alert"] for rule in written}
    for rule in rules.values():
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule["name"]
    for rule in written:
        for series in run.prometheus.range(f"ALERTS{{alertname='{rule['alert']}'}}", run.begun, run.ended, 1.0):
            assert (series["metric"]["alertstate"], rule["labels"]["severity"]) != ("firing", "critical"), series

"""Grafana dashboards of what a run measures: PromQL from the metrics' definitions, and the JSON that Grafana reads.

A dashboard takes the form of those that Ray writes for its own: one file, with the variables `datasource` and
`SessionName`. A third, `run`, stands for runs: people choose by the directory's name, queries by the run's id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rlaif_ray import metrics
from rlaif_ray.metrics import METRICS, Metric

# An evaluation's own judge is a run whose id goes on after the run's.
_SESSION = 'SessionName=~"$SessionName"'
_CHOSEN = f'run=~"$run.*", {_SESSION}'
_RATE = "[$__rate_interval]"

_UNITS = {"s": "s", "USD": "currencyUSD"}
_COLUMNS = 2
_WIDTH, _HEIGHT = 24 // _COLUMNS, 8


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression, and what its series are called."""

    expression: str
    legend: str

    @property
    def measured(self) -> list[Metric]:
        """The metrics that it reads."""
        names = {name.removesuffix("_bucket") for name in re.findall(r"\bray_rlaif_\w+", self.expression)}
        return [metric for metric in METRICS.values() if metric.series in names]


@dataclass(frozen=True, slots=True)
class Panel:
    """Some curves. `unit` is Grafana's; without it, that of the first metric."""

    title: str
    queries: tuple[Query, ...]
    unit: str = ""
    stacked: bool = False


Row: TypeAlias = tuple[str, Sequence[Panel]]


@dataclass(frozen=True, slots=True)
class Dashboard:
    name: str
    rows: Sequence[Row]

    @property
    def panels(self) -> list[Panel]:
        return [panel for _, panels in self.rows for panel in panels]


def series(name: str, *matchers: str) -> str:
    """The series of a metric, of the chosen runs."""
    return f"{METRICS[name].series}{{{', '.join((_CHOSEN, *matchers))}}}"


def gauge(name: str, *by: str, legend: str = "") -> Query:
    return Query(f"max by ({', '.join(by)}) ({series(name)})", legend or _legend(by))


def growth(name: str, *by: str, matchers: Sequence[str] = ()) -> str:
    """How fast a counter grows, a second."""
    return f"sum by ({', '.join(by)}) (rate({series(name, *matchers)}{_RATE}))"


def rate(name: str, *by: str) -> Query:
    return Query(growth(name, *by), _legend(by))


def ratio(part: str, whole: str, *by: str) -> Query:
    """0 where nothing of the whole is of the part."""
    return Query(f"({part} or 0 * ({whole})) / ({whole})", _legend(by))


def age(name: str, *by: str) -> Query:
    """Seconds since the time that a gauge tells; 0 where it tells of none."""
    time = series(name)
    return Query(f"max by ({', '.join(by)}) ((time() - {time}) * ({time} > bool 0))", _legend(by))


def quantile(share: float, name: str) -> Query:
    buckets = series(name).replace("{", "_bucket{", 1)
    return Query(f"histogram_quantile({share}, sum by (le) (rate({buckets}{_RATE})))", f"{share:.0%}")


def of_ray(aggregate: str, name: str, *by: str, matchers: Sequence[str] = ()) -> Query:
    """What Ray itself tells of the session."""
    chosen = ", ".join((_SESSION, *matchers))
    return Query(f"{aggregate} by ({', '.join(by)}) ({name}{{{chosen}}})", _legend(by))


def curves(title: str, *names: str, unit: str = "", stacked: bool = False) -> Panel:
    """Values of a run's log, each under its own name."""
    queries = []
    for name in names:
        tags = [tag for tag in METRICS[name].tags if tag != metrics.RUN]
        told = name.replace("/{}", "").replace("_", " ")
        queries.append(gauge(name, *tags, legend=f"{told}, {_legend(tags)}"))
    return Panel(title, tuple(queries), unit, stacked)


def memory(actors: str) -> Panel:
    """Of the actors of a class."""
    resident = of_ray("sum", "ray_component_rss_bytes", "ip", "pid", matchers=[f'Component=~"ray::{actors}.*"'])
    return Panel("Memory", (resident,), "bytes")


def document(dashboard: Dashboard) -> str:
    """The dashboard as Grafana reads it."""
    drawn: list[dict[str, Any]] = []
    top = 0
    for title, panels in dashboard.rows:
        place = {"h": 1, "w": 24, "x": 0, "y": top}
        drawn.append({"id": len(drawn) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": place})
        top += 1
        for number, panel in enumerate(panels):
            line, column = divmod(number, _COLUMNS)
            place = {"h": _HEIGHT, "w": _WIDTH, "x": _WIDTH * column, "y": top + _HEIGHT * line}
            drawn.append({"id": len(drawn) + 1, "gridPos": place, **_drawn(panel)})
        top += _HEIGHT * -(-len(panels) // _COLUMNS)
    others = {"type": "dashboards", "tags": ["rlaif"], "title": "RLAIF", "asDropdown": True, "includeVars": True}
    written = {
        "title": f"RLAIF: {dashboard.name.replace('_', ' ')}",
        "uid": f"rlaif{dashboard.name.capitalize()}",
        "tags": ["rlaif"],
        "version": 1,
        "schemaVersion": 39,
        "style": "dark",
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "annotations": {"list": []},
        "links": [others],
        "rayMeta": [],
        "templating": {"list": _variables()},
        "panels": drawn,
    }
    return json.dumps(written, indent=2) + "\n"


def _variables() -> list[dict[str, Any]]:
    info = METRICS[metrics.RUN_INFO].series
    sessions = _variable("SessionName", "Ray session", f"label_values({info}, SessionName)")
    runs = _variable("run", "Run", f"query_result(max by (run, name) ({info}{{{_SESSION}}}))")
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "refresh": 1, "hide": 2}
    return [
        source,
        sessions | {"includeAll": True, "allValue": ".*"},
        runs | {"regex": '/name="(?<text>[^"]+)"|run="(?<value>[^"]+)"/g'},
    ]


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": "${datasource}",
        "definition": query,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "multi": False,
        "refresh": 2,
        "sort": 1,
        "hide": 0,
    }


def _drawn(panel: Panel) -> dict[str, Any]:
    measured = list(dict.fromkeys(metric for query in panel.queries for metric in query.measured))
    meanings = [
        f"{metric.meaning[0].upper()}{metric.meaning[1:]}{f' ({metric.unit})' if metric.unit else ''}."
        for metric in measured
    ]
    unit = panel.unit or _UNITS.get(measured[0].unit, "short")
    stacking = {"mode": "normal" if panel.stacked else "none"}
    shown = {"fillOpacity": 20 if panel.stacked else 0, "showPoints": "auto", "stacking": stacking}
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": "\n\n".join(meanings) or "As Ray measures it.",
        "datasource": "${datasource}",
        "fieldConfig": {"defaults": {"unit": unit, "custom": shown}, "overrides": []},
        "options": {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + number), "expr": query.expression, "legendFormat": query.legend}
            for number, query in enumerate(panel.queries)
        ],
    }


def _legend(tags: Sequence[str]) -> str:
    return " ".join(f"{{{{{tag}}}}}" for tag in tags)

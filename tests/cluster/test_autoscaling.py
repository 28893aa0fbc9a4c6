"""Judges scale the cluster, by Ray's own autoscaler: nodes come for a backlog, and go when it is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import autoscaled_labelling
from loopback_judge import LoopbackJudge, serving
from loopback_nodes import autoscaled_ray

REPOSITORY = Path(__file__).parents[2]

# A node bears two judge actors, and 400 pairs in two orders are worth four actors.
JUDGE_NODES = {"judge": {"resources": {"CPU": 1, "judge": 2}, "max_workers": 2}}


def test_a_backlog_brings_nodes_for_judges_and_takes_them_away_and_nobody_else_moves() -> None:
    judge = LoopbackJudge(latency_s=1.0)
    with (
        serving(judge),
        autoscaled_ray({"CPU": 1}, JUDGE_NODES, RLAIF_TEST_JUDGE_KEY="sk-autoscaled-41c2") as environment,
    ):
        done = subprocess.run(
            [sys.executable, autoscaled_labelling.__file__, judge.url],
            env=environment | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    timeline = told["timeline"]
    assert told["scored"] == autoscaled_labelling.PAIRS
    assert len(judge.prompts) == 2 * autoscaled_labelling.PAIRS, "each question was asked once"

    nodes = [row["nodes"] for row in timeline]
    assert (nodes[0], nodes[-1]) == (1, 1)
    assert max(nodes) > 1, timeline
    # Actors wait for the first node, and the last node goes after the last actor.
    first = next(row for row in timeline if row["nodes"] > 1)
    assert first["actors"] > 0
    assert first["queued"] > 0
    assert timeline[-1]["actors"] == 0
    assert next(row["nodes"] for row in timeline if row["s"] > told["done_s"] and row["actors"] == 0) > 1

    # The pool, the ledger, the limiter and a stranger are what and where they were: on the driver's node.
    assert set(told["before"]) == {"judge", "ledger", "limiter", "bystander"}
    assert told["after"] == told["before"]
    assert {node for node, _ in told["before"].values()} == {told["here"]}

"""A driver on an autoscaled cluster: it labels a backlog of pairs by judges that need nodes of their own, and tells as
JSON what it saw. Run as a script, with the judge's address; RAY_ADDRESS says where the cluster is."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from actors.judge import Judges, start_judges
from actors.spawn import spawn
from rlaif_ray.config import ActorResources, JudgeConfig
from rlaif_ray.records import Outcome, Pair, Prompt

PAIRS = 400
_PATIENCE_S = 900.0
_TICK_S = 0.25


class Bystander:
    """Holds a grant, as the actors do that a run has beside its judges."""


def homes() -> dict[str, tuple[str, int]]:
    """Where each actor of the run that is no judge worker lives: its node, and its process."""
    found = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith(("bystander", "judge-pool", "ledger-", "limiter-")):
            handle = ray.get_actor(actor["name"], namespace=actor["namespace"])
            there = handle.__ray_call__.remote(
                lambda _: (ray.get_runtime_context().get_node_id(), __import__("os").getpid())
            )
            found[actor["name"].rpartition("-")[0]] = ray.get(there)
    return found


async def watch(judges: Judges, begun: float, timeline: list[dict[str, float]], ends: Any) -> None:
    """Count nodes and judge actors until `ends` says so; a row for each change."""
    while True:
        progress = await judges.progress()
        nodes = sum(node["Alive"] for node in ray.nodes())
        row = {"nodes": nodes, "actors": progress.actors, "queued": progress.queued, "in_flight": progress.in_flight}
        now = time.monotonic() - begun
        if not timeline or row.items() - timeline[-1].items():
            timeline.append({"s": round(now, 2), **row})
        if ends(row):
            return
        assert now < _PATIENCE_S, timeline
        await asyncio.sleep(_TICK_S)


async def main(url: str) -> None:
    bystander = spawn(Bystander, "bystander-0", ActorResources(cpus=0.5))
    config = JudgeConfig.model_validate(
        {
            "model": "loopback",
            "base_url": url,
            "api_key_env": "RLAIF_TEST_JUDGE_KEY",
            "mode": "choice",
            "max_concurrency": 512,
            "actors": {"min": 0, "max": 4, "cpus": 0.1, "custom": {"judge": 1}},
        }
    )
    folder = Path(tempfile.mkdtemp())
    judges = await start_judges(config, seed=0, run="run", ledger_path=folder / "ledger.sqlite")
    await bystander.__ray_ready__.remote()
    pairs = [Pair(f"pair-{n}", Prompt(f"prompt-{n}", f"Say {n}."), "long " * (n % 7), "short") for n in range(PAIRS)]
    begun, timeline = time.monotonic(), []
    labelling = asyncio.ensure_future(judges.label(pairs, "collect"))
    await watch(judges, begun, timeline, lambda row: row["actors"] > 0)
    before = homes()
    await watch(judges, begun, timeline, lambda row: labelling.done())
    preferences = await labelling
    done_s = time.monotonic() - begun
    await watch(judges, begun, timeline, lambda row: row["actors"] == 0 and row["nodes"] == 1)
    after = homes()
    print(
        json.dumps(
            {
                "scored": sum(one.outcome is Outcome.SCORED for one in preferences),
                "timeline": timeline,
                "done_s": done_s,
                "before": before,
                "after": after,
                "here": ray.get_runtime_context().get_node_id(),
            }
        )
    )
    await judges.stop()


if __name__ == "__main__":
    ray.init(address=os.environ["RAY_ADDRESS"], _node_ip_address="127.0.0.1", log_to_driver=False)
    asyncio.run(main(sys.argv[1]))

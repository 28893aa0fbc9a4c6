"""How much of a quota the judge pool uses, and how often it is refused, against a strict server on the loopback.

Run as `python -m scripts.benchmarks.judge_rates` from the repository's root, where the tests' server lies. Each row is
a server with one way of counting, a limit on requests or on tokens, and a pool of 1, 4 or 16 judge actors with a
backlog that never ends; one pair in twenty has answers twenty times as long. The share is what the server admitted
after the first call and up to the last, over what the quota permits in the time between these two.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from actors.judge import Judges, start_judges
from rlaif_ray.config import JudgeConfig
from rlaif_ray.records import Pair, Prompt
from tests.judge_server import POLICIES, StrictServer, admitted, strict_server

LIMITS = {"requests_per_minute": 600.0, "tokens_per_minute": 480_000.0}
ACTORS = (1, 4, 16)

# What is asked for: the hard one-second windows need a margin that the minutes do not.
GOAL = dict.fromkeys(POLICIES, 0.98) | {"window-1s": 0.94}

# Characters of an answer, and how many times as long one in twenty is.
_ANSWER, _LONGER = 200, 20

# More than any row can use: of both presentation orders' calls.
_MOST_CALLS_PER_S = 50


@dataclass(frozen=True, slots=True)
class Row:
    """One cell of the matrix."""

    limit: str  # requests_per_minute or tokens_per_minute
    policy: str
    actors: int


@dataclass(frozen=True, slots=True)
class Result:
    """What a row used. `share` is of 1; the rest counts the server's own log."""

    row: Row
    quota: float
    seconds: float
    requests: int
    tokens: int
    share: float
    refused: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=125.0, help="how long each row is measured")
    parser.add_argument("--at-a-time", type=int, default=6, help="rows measured at the same time")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--limits", nargs="+", choices=tuple(LIMITS), default=tuple(LIMITS))
    parser.add_argument("--actors", nargs="+", type=int, default=ACTORS)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    rows = [Row(*cell) for cell in product(arguments.limits, arguments.policies, arguments.actors)]
    console = Console()
    results: list[Result] = []
    remaining = iter(rows)
    while group := list(islice(remaining, arguments.at_a_time)):
        console.log(f"{len(results)} of {len(rows)} rows are measured; {len(group)} more take {arguments.seconds:g} s")
        # A fresh cluster for each group, so that no actor of the one before takes its time.
        ray.init(address="local", num_cpus=64, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            results += asyncio.run(measure(group, arguments.seconds))
        finally:
            ray.shutdown()
        console.print(table(results[-len(group) :]))
        if arguments.out is not None:
            arguments.out.write_text(json.dumps([asdict(result) for result in results], indent=1))
    console.print(table(results))


async def measure(rows: Sequence[Row], seconds: float) -> list[Result]:
    """Measure rows side by side, once the actors of all are up."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = []
        for row in rows:
            settings: dict[str, Any] = {row.limit: LIMITS[row.limit], "latency_s": 0.1, "latency_jitter_s": 0.3}
            servers.append(stack.enter_context(strict_server(policy=row.policy, **settings)))
        pools = [
            await start_pool(row, server, directory, f"rates{number}")
            for number, (row, server) in enumerate(zip(rows, servers, strict=True))
        ]
        since = time.time()
        labelling = [asyncio.create_task(pool.label(pairs(seconds), "collect")) for pool in pools]
        await asyncio.wait(labelling, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        until = time.time()
        for task in labelling:
            if task.done():
                raise RuntimeError("a row ended before its time") from task.exception()
            task.cancel()
        for pool in pools:
            await pool.stop()
        return [
            await asyncio.to_thread(read_result, row, server, since, until)
            for row, server in zip(rows, servers, strict=True)
        ]


async def start_pool(row: Row, server: StrictServer, directory: Path, name: str) -> Judges:
    """A pool whose actors are up and have made their first call."""
    config = JudgeConfig.model_validate(
        {
            "model": "strict",
            "base_url": server.url,
            "mode": "choice",
            "max_concurrency": 256,
            "actors": {"min": row.actors, "max": row.actors, "cpus": 0.01},
            row.limit: LIMITS[row.limit],
        }
    )
    pool = await start_judges(config, seed=0, run=name, ledger_path=directory / f"{name}.sqlite", name=name)
    await pool.label([pair(f"warm-{number}", 1) for number in range(2 * row.actors)], "collect")
    workers: list[Any] = [ray.get_actor(f"{name}-{number}") for number in range(row.actors)]
    await asyncio.gather(*(worker.__ray_ready__.remote() for worker in workers))
    return pool


def pairs(seconds: float) -> list[Pair]:
    """More than can be labelled in so long."""
    draw = random.Random(0)
    count = round(seconds * _MOST_CALLS_PER_S / 2)
    return [pair(str(number), _LONGER if draw.random() < 0.05 else 1) for number in range(count)]


def pair(name: str, length: int) -> Pair:
    """Two answers that are not alike."""
    first, second = (f"{name} {word} ".ljust(length * _ANSWER, letter) for word, letter in (("yes", "y"), ("no", "n")))
    return Pair(name, Prompt(name, f"Is {name} right?"), first, second)


def read_result(row: Row, server: StrictServer, since: float, until: float) -> Result:
    bill = [line for line in server.bill() if since <= line.arrived <= until]
    requests, tokens, seconds = admitted(bill)
    quota = LIMITS[row.limit]
    used = requests if row.limit == "requests_per_minute" else tokens
    refused = sum(line.status == 429 for line in bill)
    return Result(row, quota, seconds, requests, tokens, used / (quota / 60 * seconds), refused)


def table(results: Sequence[Result]) -> Table:
    columns = ("limit", "counted by", "actors", "calls", "seconds", "429s", "share of the quota", "goal")
    shown = Table(*columns, title="What a judge pool uses of its quota")
    for result in results:
        row, goal = result.row, GOAL[result.row.policy]
        colour = "green" if result.share >= goal and result.refused == 0 else "red"
        shown.add_row(
            row.limit.replace("_", " "),
            row.policy,
            str(row.actors),
            f"{result.requests:,}",
            f"{result.seconds:.1f}",
            str(result.refused),
            f"[{colour}]{result.share:.2%}[/]",
            f"{goal:.0%}",
        )
    return shown


if __name__ == "__main__":
    main()

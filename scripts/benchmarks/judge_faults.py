"""Labels pairs while everything fails, and holds the books against the server's bill.

`python -m scripts.benchmarks.judge_faults [--pairs N] [--kill-every S]` runs `rlaif judge` against the strict server
with refusals, server errors, timeouts and malformed replies, and sends SIGKILL to a judge actor, the limiter, the
ledger's owner, the pool or the driver, by turns drawn with a seed. A killed driver is started again, as a person would.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.table import Table

from tests.judge_server import BillLine, strict_server

# What Ray calls the processes of actors begins so.
VICTIMS = {
    "judge": "ray::ApiWorker",
    "limiter": "ray::LimiterActor",
    "ledger": "ray::LedgerActor",
    "pool": "ray::JudgePool",
    "driver": "",
}
FAULTS = {
    "429": 0.05,
    "500": 0.015,
    "503": 0.015,
    "timeout": 0.02,
    "not_json": 0.02,
    "no_choices": 0.01,
    "truncated": 0.01,
    "no_logprobs": 0.01,
}
_MARK = "RLAIF_FAULTS_RUN"
_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Books:
    """What the run left, beside what the server says. All but `seconds` are counts."""

    pairs: int
    outcomes: dict[str, int]
    lost: int  # pairs without exactly one outcome
    judgements: int
    billed: int  # requests that the server charged for
    answered: int  # attempts that the ledger has a reply to
    ambiguous: int  # attempts that it enumerates as maybe billed
    ambiguous_billed: int  # of these, those that were
    unexplained: int  # calls with more charges than answered and ambiguous attempts, or fewer than answered ones
    bought_again: int  # replies bought where a reply that was received was in the ledger
    refused_429: int
    kills: dict[str, int]
    drivers: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--kill-every", type=float, default=10.0, help="seconds between kills; 0 kills nobody")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    books = run(arguments.pairs, arguments.kill_every, arguments.seed)
    table = Table("figure", "value", title="Labelling under faults and kills")
    for name, value in asdict(books).items():
        table.add_row(name.replace("_", " "), f"{value:,.0f}" if isinstance(value, (int, float)) else json.dumps(value))
    Console().print(table)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(asdict(books), indent=2))
    sys.exit(books.lost > 0 or books.bought_again > 0 or books.unexplained > 0)


def run(pairs: int, kill_every: float, seed: int) -> Books:
    """Label `pairs` to the end, with a kill every `kill_every` seconds."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        _write_pairs(path / "pairs.jsonl", pairs, seed)
        with strict_server(latency_s=0.05, faults=FAULTS, seed=seed, hold_s=30.0, refusal_header="none") as server:
            _write_config(path / "judge.yaml", server.url)
            begun = time.monotonic()
            drivers, kills = _label(path, kill_every, random.Random(seed))
            seconds = time.monotonic() - begun
            return _books(path, pairs, server.bill(), kills, drivers, seconds)


def _label(path: Path, kill_every: float, generator: random.Random) -> tuple[int, Counter[str]]:
    """Run the command until it ends by itself with success; return how often it was started, and who was killed."""
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "rlaif_ray", "judge", "pairs.jsonl", "--judge", "judge.yaml"]
    kills: Counter[str] = Counter()
    drivers = 0
    while True:
        drivers += 1
        with (path / f"driver-{drivers}.log").open("w") as log:
            driver = subprocess.Popen(
                [*command, "--out", "out/preferences.parquet"],
                cwd=path,
                env={**os.environ, _MARK: mark},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            victims = iter_victims(driver, mark, kill_every, generator)
            for victim in victims:
                kills[victim] += 1
        if driver.returncode == 0:
            return drivers, kills
        if driver.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the driver ended with {driver.returncode}: {Path(log.name).read_text()[-2000:]}")


def iter_victims(driver: subprocess.Popen[bytes], mark: str, every: float, generator: random.Random) -> Iterator[str]:
    """Kill one process of the run every so many seconds, until the driver ends; say whose each was."""
    while True:
        try:
            driver.wait(every or None)
        except subprocess.TimeoutExpired:
            name = generator.choice(list(VICTIMS))
            processes = [psutil.Process(driver.pid)] if name == "driver" else _actors(VICTIMS[name], mark)
            if processes:
                generator.choice(processes).kill()
                yield name
        else:
            return


def _actors(title: str, mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        try:
            if words[0].startswith(title) and process.environ().get(_MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue  # it ended while it was looked at
    return found


def _books(
    path: Path, pairs: int, bill: Sequence[BillLine], kills: Counter[str], drivers: int, seconds: float
) -> Books:
    outcomes = pq.read_table(path / "out" / "preferences.outcomes.parquet").to_pylist()
    ids = Counter(row["pair_id"] for row in outcomes)
    judgements = pq.read_metadata(path / "out" / "preferences.judgements.parquet").num_rows
    database = sqlite3.connect(f"file:{path / 'out' / 'preferences.run' / 'ledger.sqlite'}?mode=ro", uri=True)
    attempts: dict[str, Counter[str]] = {"answered": Counter(), "ambiguous": Counter()}
    for key, state, count in database.execute("SELECT key, state, count(*) FROM attempts GROUP BY key, state"):
        if state in attempts:
            attempts[state][key] = count
    database.close()
    billed = Counter(line.key for line in bill if line.tokens)
    received = Counter(line.key for line in bill if line.tokens and line.sent and line.key in attempts["answered"])
    unexplained = ambiguous_billed = bought_again = 0
    for key in {*billed, *attempts["answered"]}:
        answered, ambiguous = attempts["answered"][key], attempts["ambiguous"][key]
        beyond = billed[key] - answered
        unexplained += not 0 <= beyond <= ambiguous
        ambiguous_billed += max(0, beyond)
        # A second reply that arrived whole was paid for although the first had; what was lost on the way is ambiguous.
        bought_again += max(0, min(received[key], answered) - 1)
    return Books(
        pairs=pairs,
        outcomes=dict(Counter(row["outcome"] for row in outcomes)),
        lost=pairs - len(ids) + sum(count != 1 for count in ids.values()),
        judgements=judgements,
        billed=billed.total(),
        answered=attempts["answered"].total(),
        ambiguous=attempts["ambiguous"].total(),
        ambiguous_billed=ambiguous_billed,
        unexplained=unexplained,
        bought_again=bought_again,
        refused_429=sum(line.status == 429 for line in bill),
        kills=dict(kills),
        drivers=drivers,
        seconds=seconds,
    )


def _write_pairs(path: Path, count: int, seed: int) -> None:
    generator = random.Random(seed)
    words = ("river", "stone", "cloud", "ember", "field", "lantern", "harbour", "meadow")
    with path.open("w") as file:
        for number in range(count):
            answers = [" ".join(generator.choices(words, k=generator.randint(3, 40))) for _ in range(2)]
            row = {"id": str(number), "prompt": f"Say {number}.", "response_a": answers[0], "response_b": answers[1]}
            file.write(json.dumps(row) + "\n")


def _write_config(path: Path, url: str) -> None:
    judge = {
        "model": "loopback",
        "base_url": url,
        "mode": "choice",
        "timeout_s": _TIMEOUT_S,
        "max_attempts": 12,
        "max_concurrency": 64,
        "price": {"input": 1.0, "output": 2.0},
        "actors": {"min": 1, "max": 3, "cpus": 0.1},
    }
    path.write_text(yaml.safe_dump({"judge": judge}))


if __name__ == "__main__":
    main()

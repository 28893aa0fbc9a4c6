"""`rlaif judge` as a user runs it, against a strict server whose log is the bill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from judge_server import BillLine, StrictServer, read_bill, strict_server
from loopback_judge import LoopbackJudge, serving
from trl_training import STEPS, TRAINERS, load, steps_taken, without_ties

from rlaif_ray.judge.ledger import Ledger
from rlaif_ray.preferences.dataset import PreferenceRow, read_preferences
from rlaif_ray.preferences.judgements import read_judgements

KEY = "sk-judge-command-7d41"
PATIENCE_S = 240

# $1,000 a million tokens, of either kind: the bill's tokens are thousandths of a dollar.
PRICE = {"input": 1_000.0, "output": 1_000.0}
USD_PER_TOKEN = 1e-3


@dataclass(frozen=True)
class Ended:
    """A command's end."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Command:
    """One `rlaif judge` on a directory of its own."""

    directory: Path
    address: str  # of a Ray to join; "local" starts one

    @property
    def out(self) -> Path:
        return self.directory / "preferences.parquet"

    def write(self, rows: Sequence[dict[str, Any]], base_url: str, **judge: Any) -> None:
        """The pairs and the config."""
        (self.directory / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (self.directory / "key").write_text(KEY)
        settings = {
            "model": "strict",
            "base_url": base_url,
            "api_key_file": str(self.directory / "key"),
            "price": PRICE,
            "max_concurrency": 8,
            "actors": {"min": 1, "max": 1, "cpus": 0.1},
            **judge,
        }
        (self.directory / "judge.yaml").write_text(yaml.safe_dump({"judge": settings}))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "rlaif_ray", "judge", "pairs.jsonl", "--judge", "judge.yaml"]
        return subprocess.Popen(
            [*command, "--out", self.out.name, *arguments],
            cwd=self.directory,
            env=os.environ | {"RAY_ADDRESS": self.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Whoever runs the tests in the background has them ignore ctrl-C; a person's shell does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments: str) -> Ended:
        return ended(self.start(*arguments))

    def summary(self) -> dict[str, Any]:
        return dict(json.loads(self.out.with_suffix(".summary.json").read_text()))

    def rows(self) -> list[PreferenceRow]:
        return read_preferences(self.out)

    def outcomes(self) -> Counter[str]:
        return Counter(pq.read_table(self.out.with_suffix(".outcomes.parquet"))["outcome"].to_pylist())

    def ambiguous(self) -> list[str]:
        """Keys of the calls that may have been billed unseen, as the ledger enumerates them."""
        with closing(Ledger(self.out.with_suffix(".run") / "ledger.sqlite", lock_patience_s=30)) as ledger:
            return [call.key for call in ledger.ambiguous()]


def ended(process: subprocess.Popen[str]) -> Ended:
    try:
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return Ended(process.returncode, stdout, stderr)


def said(done: Ended) -> list[str]:
    """What the command says of its end, without progress."""
    return [line for line in done.stderr.splitlines() if line.startswith("rlaif:")]


def pairs(count: int) -> list[dict[str, Any]]:
    """Answers of different lengths, so that no pair is a tie."""
    return [
        {
            "id": f"pair-{number}",
            "prompt": f"say {number}",
            "response_a": "one two three " * (1 + number % 5),
            "response_b": "two " * (2 + number % 3) + "!",
        }
        for number in range(count)
    ]


def billed(bill: Sequence[BillLine]) -> Counter[str]:
    """How often each call was charged."""
    return Counter(line.key for line in bill if line.tokens)


@pytest.fixture
def command(tmp_path: Path, ray_address: str) -> Command:
    return Command(tmp_path, ray_address)


@dataclass(frozen=True)
class Labelled:
    """Two runs of one command, and what was billed after each. The server is gone."""

    command: Command
    runs: tuple[Ended, Ended]
    bills: tuple[list[BillLine], list[BillLine]]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Labelled:
    directory = tmp_path_factory.mktemp("labelled")
    alike = {"id": "alike", "prompt": "say", "response_a": "one  two", "response_b": "one two"}
    with strict_server() as server:
        first, second = Command(directory, "local"), Command(directory, ray_address)
        first.write([*pairs(40), alike], server.url)
        runs, bills = [], []
        for each in (first, second):
            runs.append(each.run())
            bills.append(server.bill())
    return Labelled(second, (runs[0], runs[1]), (bills[0], bills[1]))


def test_a_file_is_labelled_with_a_ray_of_its_own(labelled: Labelled) -> None:
    done = labelled.runs[0]
    assert done.code == 0, done.stderr
    assert "Labelled 40 of 41 pairs" in done.stdout
    assert "Ray dashboard: http://127.0.0.1:" in done.stderr
    assert labelled.command.outcomes() == {"scored": 40, "not_sent": 1}
    # Both orders of each pair, and one call that probed the endpoint.
    bill = billed(labelled.bills[0])
    assert len(bill) == 81
    assert set(bill.values()) == {1}


def test_a_second_run_makes_no_call(labelled: Labelled) -> None:
    done = labelled.runs[1]
    assert done.code == 0, done.stderr
    assert labelled.bills[1] == labelled.bills[0]
    assert "0 calls for $0.0000; 80 judgements from the ledger" in done.stdout
    summary = labelled.command.summary()
    assert (summary["calls"], summary["cache_hits"], summary["cost_usd"]) == (0, 80, 0.0)
    assert summary["spent_usd"] == pytest.approx(USD_PER_TOKEN * sum(line.tokens for line in labelled.bills[0]))


def test_the_key_is_in_no_file_that_a_run_leaves(labelled: Labelled) -> None:
    files = [path for path in labelled.command.directory.rglob("*") if path.is_file() and path.name != "key"]
    assert len(files) > 5
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(("trainer", "settings", "kind"), TRAINERS)
def test_a_trainer_takes_the_file_as_it_is(
    labelled: Labelled, trainer: type, settings: type, kind: type, tmp_path: Path
) -> None:
    assert {"prompt", "chosen", "rejected"} <= set(load(labelled.command.out).column_names)
    assert steps_taken(trainer, settings, kind, without_ties(labelled.command.out), tmp_path) == STEPS


def test_a_replay_needs_no_server(labelled: Labelled) -> None:
    before = [(row.pair_id, row.p) for row in labelled.command.rows()]
    done = labelled.command.run("judge.replay=true")
    assert done.code == 0, done.stderr
    assert [(row.pair_id, row.p) for row in labelled.command.rows()] == before


def test_a_replay_fails_clearly_where_the_ledger_lacks_a_reply(labelled: Labelled) -> None:
    done = labelled.command.run("judge.replay=true", "judge.template=helpfulness")
    assert done.code == 2
    (line,) = said(done)
    assert line.startswith("rlaif: judge.replay: the ledger holds no reply of strict")
    assert "Traceback" not in done.stderr


def test_a_dry_run_asks_nobody(labelled: Labelled) -> None:
    """The server is gone, and what is missing is counted all the same."""
    done = labelled.command.run("--dry-run", "judge.template=helpfulness")
    assert done.code == 0, done.stderr
    assert "Calls that the ledger lacks: 80," in done.stdout
    assert "Cost: about $" in done.stdout
    done = labelled.command.run("--dry-run")
    assert "Calls that the ledger lacks: 0," in done.stdout


@pytest.fixture
def slow_server(tmp_path: Path) -> Iterator[StrictServer]:
    """Some forty calls a second at a concurrency of 8."""
    with strict_server(log=tmp_path / "bill.jsonl", latency_s=0.2) as server:
        yield server


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_what_is_cut_short_goes_on_and_pays_once(
    number: signal.Signals, code: int, command: Command, slow_server: StrictServer
) -> None:
    """Interrupted, it has a Ray of its own, which a terminal's signal reaches as well."""
    count = 120
    if number is signal.SIGINT:
        command = replace(command, address="local")
    command.write(pairs(count), slow_server.url, mode="choice")
    process = command.start()
    log = command.directory / "bill.jsonl"
    deadline = time.monotonic() + PATIENCE_S
    while len(read_bill(log)) < count // 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # As a terminal does, to all that run in it.
    os.killpg(process.pid, number)
    cut = ended(process)
    assert cut.code == code, cut.stderr
    assert "Traceback" not in cut.stderr
    if number is signal.SIGINT:
        assert said(cut) == ["rlaif: interrupted; the same command goes on where it stopped"]
    assert not command.out.exists()

    done = command.run()
    assert done.code == 0, done.stderr
    assert command.outcomes() == {"scored": count}
    bill = billed(slow_server.bill())
    assert len(bill) == 2 * count
    # What was bought twice is what the ledger enumerates.
    assert bill - Counter(dict.fromkeys(bill, 1)) <= Counter(command.ambiguous())
    summary = command.summary()
    assert 0 < summary["calls"] < 2 * count
    assert summary["ambiguous"] == len(command.ambiguous()) <= 8
    # Ambiguous calls count at their worst, so that the sum bounds the bill.
    assert summary["spent_usd"] >= USD_PER_TOKEN * sum(line.tokens for line in slow_server.bill()) - 1e-9


def test_a_budget_stops_and_a_larger_one_goes_on(command: Command, tmp_path: Path) -> None:
    with strict_server() as server:
        budget = 15.0
        command.write(pairs(60), server.url, mode="choice", budget_usd=budget)
        stopped = command.run()
        assert stopped.code == 3, stopped.stderr
        (line,) = said(stopped)
        assert "of 60 pairs are not judged" in line
        assert "judge.budget_usd (15) would not bear this call" in line
        tokens = sum(line.tokens for line in server.bill())
        assert 0 < USD_PER_TOKEN * tokens <= budget
        summary = command.summary()
        assert summary["spent_usd"] == pytest.approx(USD_PER_TOKEN * tokens)
        assert 0 < summary["scored"] < 60
        assert command.outcomes() == {"scored": summary["scored"], "over_budget": 60 - summary["scored"]}
        assert len(command.rows()) == summary["written"] == summary["scored"]

        done = command.run("judge.budget_usd=1000")
        assert done.code == 0, done.stderr
        assert command.outcomes() == {"scored": 60}
        bill = billed(server.bill())
        assert len(bill) == 120
        assert set(bill.values()) == {1}


def test_exhausted_quota_stops_within_the_calls_in_flight(command: Command) -> None:
    with strict_server(quota_requests=50, latency_s=0.05) as server:
        command.write(pairs(60), server.url, mode="choice", actors={"min": 1, "max": 1, "cpus": 0.1})
        done = command.run()
        assert done.code == 3, done.stderr
        (line,) = said(done)
        assert "pairs are not judged" in line
        assert "quota" in line
        causes = Counter(each.cause for each in server.bill())
        assert causes[""] == 50
        assert 1 <= causes["quota"] <= 8
        assert command.outcomes()["over_budget"] > 0
        assert len(command.rows()) == command.outcomes()["scored"] > 0


def test_a_wrong_key_is_one_line(command: Command) -> None:
    with serving(LoopbackJudge(faults=["401"] * 100)) as server:
        command.write(pairs(5), server.url, mode="choice")
        done = command.run()
    assert done.code == 2
    (line,) = said(done)
    assert "judge.api_key_file" in line or "judge.api_key_env" in line
    assert KEY not in done.stderr
    assert "Traceback" not in done.stderr


def test_an_endpoint_without_log_probabilities_states_its_verdicts(command: Command) -> None:
    """One vote an order: 3/4 for the answer that it names."""
    with strict_server(with_logprobs=False) as server:
        command.write(pairs(6), server.url)
        done = command.run()
    assert done.code == 0, done.stderr
    judgements = read_judgements(command.out.with_suffix(".judgements.parquet"))
    assert {(one.mode, one.rung) for one in judgements} == {("stated", "text")}
    assert {one.p_first for one in judgements} <= {0.25, 0.75}
    assert all(one.rationale for one in judgements)
    assert command.outcomes() == {"scored": 6}


def test_what_the_command_imports_leaves_torch_out() -> None:
    code = (
        "import sys, rlaif_ray.cli, rlaif_ray.labelling, rlaif_ray.judge.pair_files, rlaif_ray.console, "
        "rlaif_ray.judge.client, actors.judge, actors.session; "
        "print(sorted({'torch', 'transformers', 'vllm'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

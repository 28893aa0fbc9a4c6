"""The judge beside curator and Ray Data's HTTP stage: the same questions, the same server, the same faults.

`python -m scripts.benchmarks.judge_peers --curator-python PYTHON [--pairs N]`. Curator wants a virtual environment of
its own (`pip install bespokelabs-curator`), as its pins are older than ours; without it its row is left out. Each peer
is told the true limit and the same timeout, and may retry as often as our judge.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from actors.judge import start_judges
from actors.session import ray_session
from rlaif_ray.config import JudgeConfig
from rlaif_ray.records import Outcome, Pair, Prompt
from scripts.benchmarks.questions import questions_on
from tests.judge_server import BillLine, strict_server

_PER_MINUTE = 1_200.0
_TIMEOUT_S = 5.0
_RETRIES = 8
_FAULTS = {
    "429": 0.05,
    "500": 0.015,
    "503": 0.015,
    "timeout": 0.02,
    "not_json": 0.02,
    "no_choices": 0.015,
    "truncated": 0.015,
}
_CURATOR = """
import json, sys
import tiktoken


class Words:
    def encode(self, text, **options):
        return text.split()


# It counts tokens with a table that it downloads; where there is no network, words do for that.
tiktoken.get_encoding = tiktoken.encoding_for_model = lambda name: Words()
from bespokelabs import curator

settings, questions = json.load(sys.stdin)


class Judge(curator.LLM):
    return_completions_object = False

    def prompt(self, row):
        return row["messages"]

    def parse(self, row, response):
        return [{"number": row["number"], "said": response}]


judge = Judge(
    model_name=settings["model"],
    backend="openai",
    generation_params={"max_tokens": 1, "temperature": 0.0},
    backend_params={
        "base_url": settings["url"],
        "api_key": "none",
        "max_requests_per_minute": int(settings["per_minute"]),
        "max_tokens_per_minute": 10**9,
        "request_timeout": int(settings["timeout_s"]),
        "max_retries": settings["retries"],
        "invalid_finish_reasons": ["content_filter"],
        "require_all_responses": False,
        "in_mtok_cost": 1,
        "out_mtok_cost": 2,
    },
)
answers = judge([{"number": number, "messages": messages} for number, messages in enumerate(questions)])
rows = getattr(answers, "dataset", answers)
print("\\nNUMBERS", json.dumps([row["number"] for row in rows if row["said"]]))
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One system's labelling of the same questions."""

    system: str
    labels: int  # with something usable
    lost: int
    bought_again: int  # replies beyond the first that arrived whole and well-formed
    billed: int
    refused: int  # 429s, those without cause among them
    seconds: float
    note: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--curator-python", type=Path)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    pairs = _pairs(arguments.pairs)
    questions = asyncio.run(_questions(pairs))
    systems: list[tuple[str, Callable[[str], int]]] = []
    with tempfile.TemporaryDirectory() as directory, ray_session(local=True):
        systems.append(("rlaif-ray", lambda url: asyncio.run(_label(url, pairs, Path(directory)))))
        if arguments.curator_python is not None:
            systems.append(("curator", lambda url: _curate(url, questions, arguments.curator_python)))
        systems.append(("Ray Data HTTP, as shipped", lambda url: _ray_data(url, questions, retries=0, forgiving=False)))
        name = f"Ray Data HTTP, {_RETRIES} retries, failed blocks dropped"
        systems.append((name, lambda url: _ray_data(url, questions, retries=_RETRIES, forgiving=True)))
        rows = [_measure(name, system, len(questions)) for name, system in systems]
    table = Table("system", "labels", "lost", "bought again", "billed", "429s", "seconds", "note")
    for row in rows:
        table.add_row(
            *(f"{value:,.0f}" if isinstance(value, (int, float)) else value for value in asdict(row).values())
        )
    Console(width=140).print(table)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=2))


def _measure(name: str, system: Callable[[str], int], asked: int) -> Row:
    with strict_server(
        latency_s=0.05, requests_per_minute=_PER_MINUTE, faults=_FAULTS, hold_s=30.0, refusal_header="ms"
    ) as server:
        begun = time.monotonic()
        note = ""
        try:
            labels = system(server.url)
        except Exception as error:  # a peer that gives up is a result
            labels, note = 0, f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:60]}"
        seconds = time.monotonic() - begun
        bill = server.bill()
    return Row(
        system=name,
        labels=labels,
        lost=asked - labels,
        bought_again=_bought_again(bill),
        billed=sum(line.tokens > 0 for line in bill),
        refused=sum(line.status == 429 for line in bill),
        seconds=seconds,
        note=note,
    )


def _bought_again(bill: Sequence[BillLine]) -> int:
    whole = Counter(line.digest for line in bill if line.tokens and line.sent and not line.cause)
    return sum(count - 1 for count in whole.values())


async def _label(url: str, pairs: Sequence[Pair], directory: Path) -> int:
    config = _config(url)
    judges = await start_judges(config, seed=0, run="peers", ledger_path=directory / "ledger.sqlite")
    preferences = await judges.label(pairs, "judge")
    await judges.stop()
    return sum(one.outcome is Outcome.SCORED for preference in preferences for one in preference.judgements)


def _curate(url: str, questions: Sequence[list[dict[str, str]]], python: Path) -> int:
    settings = {
        "model": "gpt-4o-mini",  # it wants a name that litellm knows
        "url": url,
        "per_minute": _PER_MINUTE,
        "timeout_s": _TIMEOUT_S,
        "retries": _RETRIES,
    }
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [python, "-c", _CURATOR],
            input=json.dumps([settings, questions]),
            capture_output=True,
            text=True,
            check=False,
            cwd=home,
            env={
                "HOME": home,
                "PATH": "/usr/bin:/bin",
                "CURATOR_CACHE_DIR": home,
                "CURATOR_DISABLE_RICH_DISPLAY": "1",
                "TELEMETRY_ENABLED": "false",
                "OPENAI_API_KEY": "none",
            },
        )
    said = [line for line in done.stdout.splitlines() if line.startswith("NUMBERS ")]
    if not said:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    return len(set(json.loads(said[-1].removeprefix("NUMBERS "))))


def _ray_data(url: str, questions: Sequence[list[dict[str, str]]], *, retries: int, forgiving: bool) -> int:
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        body = {"model": "loopback", "messages": json.loads(row["messages"]), "max_tokens": 1, "temperature": 0.0}
        return {"payload": {**body, "logprobs": True, "top_logprobs": 20}}

    def read(row: dict[str, Any]) -> dict[str, Any]:
        return {"said": row["http_response"]["choices"][0]["message"]["content"]}

    # A reply that cannot be read raises, and would end the whole dataset.
    ray.data.DataContext.get_current().max_errored_blocks = -1 if forgiving else 0
    config = HttpRequestProcessorConfig(
        url=f"{url}/chat/completions",
        headers={"Authorization": "Bearer none"},
        qps=int(_PER_MINUTE / 60),
        max_retries=retries,
        base_retry_wait_time_in_s=1,
        concurrency=1,
    )
    rows = [{"messages": json.dumps(messages)} for messages in questions]
    answers = build_processor(config, preprocess=ask, postprocess=read)(ray.data.from_items(rows)).take_all()
    return sum(bool(row["said"]) for row in answers)


async def _questions(pairs: Sequence[Pair]) -> list[list[dict[str, str]]]:
    """What our judge asks about the pairs, as plain messages for the others."""
    return [
        [{"role": message.role, "content": message.content} for message in request.messages]
        for request in await questions_on(pairs, _config("http://127.0.0.1:9/v1"))
    ]


def _config(url: str) -> JudgeConfig:
    return JudgeConfig.model_validate(
        {
            "model": "loopback",
            "base_url": url,
            "mode": "choice",
            "requests_per_minute": _PER_MINUTE,
            "timeout_s": _TIMEOUT_S,
            "max_attempts": _RETRIES + 1,
            "actors": {"min": 1, "max": 2, "cpus": 0.1},
        }
    )


def _pairs(count: int) -> list[Pair]:
    return [
        Pair(str(number), Prompt(str(number), f"Say {number}."), "one " * (3 + number % 40), "two " * (3 + number % 37))
        for number in range(count)
    ]


if __name__ == "__main__":
    main()

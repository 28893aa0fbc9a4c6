"""What `rlaif serve-reward` costs beside a bare batched forward, and what it loses while everything fails.

`python -m scripts.benchmarks.reward_server [--rounds N] [--answers N] [--faults SECONDS]`: answers a second of 64
concurrent callers with 8 answers a call, against the same model in a loop over the same answers with the same threads,
in turns; and how long a call takes. Then, with other callers, an actor is killed every 10 s and a new version loaded
every 5 s: answers that were lost, that came twice, or whose score is not that of the version which they name.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from rlaif_ray.records import Prompt

_CALLERS, _ANSWERS_A_CALL = 64, 8
_THREADS = 2
_MAX_BATCH_TOKENS = 2_048
_KILL_EVERY_S, _SWAP_EVERY_S = 10.0, 5.0
_VERSIONS = 3
_SHORTEST, _LONGEST = 16, 128
_WORDS = 4_000
# Of scores whose batches differ.
_TOLERANCE = 1e-3
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Answer:
    id: str
    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class Speed:
    """Answers a second are medians over rounds that take turns; seconds are of calls of 8 answers, over all rounds."""

    bare_per_s: float
    sorted_per_s: float  # a bare loop that knows all answers beforehand, and takes those of one length together
    server_per_s: float
    ratio: float
    ratio_to_sorted: float
    call_p50_s: float
    call_p99_s: float


@dataclass(frozen=True, slots=True)
class Faults:
    seconds: float
    answers: int
    answers_per_s: float
    lost: int  # without exactly one outcome, or with a failure
    double: int
    wrong: int  # with another score than their version gives
    kills: int
    swaps: int
    versions_answering: int
    call_p99_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="0 leaves the speed out")
    parser.add_argument("--answers", type=int, default=2_048, help="to a round")
    parser.add_argument("--faults", type=float, default=120.0, help="seconds; 0 leaves them out")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    parser.add_argument("--call", type=Path, help=argparse.SUPPRESS)  # the callers, in a process of their own
    arguments = parser.parse_args()
    if arguments.call is not None:
        asyncio.run(call(arguments.call))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        directories = write_models(Path(name))
        if arguments.rounds:
            figures["speed"] = _shown(measure_speed(Path(name), directories[0], arguments.rounds, arguments.answers))
        if arguments.faults:
            figures["faults"] = _shown(measure_faults(Path(name), directories, arguments.faults))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=2))
    sys.exit(any(figures.get("faults", {}).get(key) for key in ("lost", "double", "wrong")))


def _shown(figures: Speed | Faults) -> dict[str, float]:
    table = Table("figure", "value", title=f"The reward server: {type(figures).__name__.lower()}")
    for name, value in asdict(figures).items():
        table.add_row(name.replace("_", " "), f"{value:,.3f}" if isinstance(value, float) else f"{value:,}")
    Console().print(table)
    return asdict(figures)


def write_models(directory: Path) -> list[Path]:
    """Versions of a Llama of 29M parameters with one head, which differ by their weights."""
    import transformers

    from rlaif_ray.policy.model import save_model, scratch_tokenizer
    from rlaif_ray.reward.model import RewardNormalisation
    from rlaif_ray.weights import to_numpy

    tokenizer = scratch_tokenizer([" ".join(_word(number) for number in range(_WORDS))])
    new_config: Any = transformers.LlamaConfig
    classifier: Any = transformers.AutoModelForSequenceClassification
    config = new_config(
        vocab_size=4_096,
        hidden_size=512,
        intermediate_size=1_536,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=1_024,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        num_labels=1,
        problem_type="regression",
    )
    directories = []
    for seed in range(_VERSIONS):
        torch.manual_seed(seed)
        model = classifier.from_config(config)
        directories.append(directory / f"version-{seed}")
        directories[-1].mkdir()
        weights = {name: to_numpy(parameter) for name, parameter in model.named_parameters()}
        save_model(model, weights, tokenizer, directories[-1])
        RewardNormalisation(mean=0.0, std=1.0, count=1).save(directories[-1])
    return directories


def measure_speed(directory: Path, model: Path, rounds: int, count: int) -> Speed:
    bare = BareLoop(model)
    in_order, by_length, served, call_s = [], [], [], []
    with serving(model, f"actors.threads={_THREADS}") as (_, url):
        for number in range(rounds + 1):
            answers = some_answers(count if number else _CALLERS, (_SHORTEST, _LONGEST), seed=number)
            sequences = bare.encoded(answers)
            seconds = bare.seconds(sequences), bare.seconds(sorted(sequences, key=len))
            replies = called(directory, url, answers)
            assert [item["outcome"] for item in replies.items] == ["scored"] * len(answers)
            if number:  # the round before the first warms up
                in_order.append(count / seconds[0])
                by_length.append(count / seconds[1])
                served.append(count / replies.seconds)
                call_s += replies.call_s
    return Speed(
        bare_per_s=float(np.median(in_order)),
        sorted_per_s=float(np.median(by_length)),
        server_per_s=float(np.median(served)),
        ratio=float(np.median(served) / np.median(in_order)),
        ratio_to_sorted=float(np.median(served) / np.median(by_length)),
        call_p50_s=float(np.percentile(call_s, 50)),
        call_p99_s=float(np.percentile(call_s, 99)),
    )


def measure_faults(directory: Path, models: Sequence[Path], seconds: float) -> Faults:
    answers = some_answers(256, (8, 32), seed=99)
    expected = {
        fingerprint: dict(zip((answer.id for answer in answers), scores, strict=True))
        for fingerprint, scores in (_expected(model, answers) for model in models)
    }
    kills = swaps = 0
    with serving(models[0], "actors.min=2", "actors.max=2") as (server, url), ThreadPoolExecutor(1) as loader:
        loading: Future[None] | None = None
        callers = start_callers(directory, url, answers, seconds)
        begun = killed = swapped = time.monotonic()
        while callers.poll() is None:
            time.sleep(0.1)
            now = time.monotonic()
            if now - begun < seconds and now - killed >= _KILL_EVERY_S:
                killed = now
                victims = actors_of(server)
                if victims:
                    random.choice(victims).kill()
                    kills += 1
            # A load replies when the version before the current one is gone, which may take longer.
            if now - begun < seconds and now - swapped >= _SWAP_EVERY_S and (loading is None or loading.done()):
                if loading is not None:
                    loading.result()
                swapped = now
                swaps += 1
                loading = loader.submit(load, url, models[swaps % len(models)])
        replies = read_replies(directory)
    came = Counter(item["id"] for item in replies.items)
    scored = [item for item in replies.items if item["outcome"] == "scored"]
    return Faults(
        seconds=seconds,
        answers=len(replies.asked),
        answers_per_s=len(scored) / replies.seconds,
        lost=sum(came[id] == 0 for id in replies.asked) + len(replies.items) - len(scored),
        double=sum(count > 1 for count in came.values()),
        wrong=sum(
            abs(item["score"] - expected[item["version"]["fingerprint"]][item["id"].partition(" ")[0]]) > _TOLERANCE
            for item in scored
        ),
        kills=kills,
        swaps=swaps,
        versions_answering=len({item["version"]["number"] for item in scored}),
        call_p99_s=float(np.percentile(replies.call_s, 99)),
    )


class BareLoop:
    """The same model in this process, with as many threads as the server's actor."""

    def __init__(self, model: Path) -> None:
        from rlaif_ray.reward.encoding import AnswerEncoder
        from rlaif_ray.reward.model import load_reward_model

        torch.set_num_threads(_THREADS)
        self._encoder = AnswerEncoder.load(model, trust_remote_code=False)
        self._model = load_reward_model(model, dtype="float32", trust_remote_code=False)

    def encoded(self, answers: Sequence[Answer]) -> list[NDArray[np.int32]]:
        return [self._encoder.encode(Prompt(answer.id, answer.prompt), answer.text) for answer in answers]

    def seconds(self, sequences: Sequence[NDArray[np.int32]]) -> float:
        """For forwards over batches of so many tokens, in this order."""
        from rlaif_ray.reward.scoring import rewards_of, right_padded, token_bounded

        begun = time.perf_counter()
        with torch.no_grad():
            for batch in token_bounded([len(one) for one in sequences], _MAX_BATCH_TOKENS):
                inputs = right_padded([sequences[row] for row in batch], self._model.config.pad_token_id, _CPU)
                rewards_of(self._model, inputs).numpy()
        return time.perf_counter() - begun


def some_answers(count: int, lengths: tuple[int, int], seed: int) -> list[Answer]:
    """Prompts of 4 words; with the answer and what encloses the two so many tokens, uniformly."""
    generator = random.Random(seed)

    def words(number: int) -> str:
        return " ".join(_word(generator.randrange(_WORDS)) for _ in range(number))

    return [Answer(f"{seed}-{number}", words(4), words(generator.randint(*lengths) - 7)) for number in range(count)]


@contextmanager
def serving(model: Path, *overrides: str) -> Iterator[tuple[psutil.Process, str]]:
    """The command on a free port, with a Ray of its own."""
    command = [sys.executable, "-m", "rlaif_ray", "serve-reward", str(model), "port=0", "timeout_s=600"]
    process = subprocess.Popen(
        [*command, f"max_batch_tokens={_MAX_BATCH_TOKENS}", "actors.cpus=0.5", *overrides],
        env={**os.environ, "RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        # Before it serves it may say what it waits for.
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stdout)))
        yield psutil.Process(process.pid), found[0]
    finally:
        process.terminate()
        process.wait()


def actors_of(server: psutil.Process) -> list[psutil.Process]:
    found = []
    for process in server.children(recursive=True):
        try:
            if process.cmdline()[0].startswith("ray::RewardServerWorker"):
                found.append(process)
        except (psutil.Error, IndexError):
            continue  # it ended while it was looked at
    return found


def load(url: str, model: Path) -> None:
    body = json.dumps({"directory": str(model)}).encode()
    request = urllib.request.Request(f"{url}/v1/versions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as reply:
        assert reply.status == 200


@dataclass(frozen=True, slots=True)
class Replies:
    asked: list[str]
    items: list[dict[str, Any]]
    call_s: list[float]
    seconds: float


def called(directory: Path, url: str, answers: Sequence[Answer]) -> Replies:
    """What the callers, in a process of their own, got for these answers, each asked for once."""
    assert start_callers(directory, url, answers, seconds=None).wait() == 0
    return read_replies(directory)


def start_callers(
    directory: Path, url: str, answers: Sequence[Answer], seconds: float | None
) -> subprocess.Popen[bytes]:
    """`seconds`: how long to ask for them, over and over, under new ids."""
    job = {"url": url, "answers": [asdict(answer) for answer in answers], "seconds": seconds}
    (directory / "job.json").write_text(json.dumps(job))
    return subprocess.Popen([sys.executable, "-m", "scripts.benchmarks.reward_server", "--call", str(directory)])


def read_replies(directory: Path) -> Replies:
    return Replies(**json.loads((directory / "replies.json").read_text()))


async def call(directory: Path) -> None:
    """The callers: each sends its next call when it has the reply to the one before."""
    job = json.loads((directory / "job.json").read_text())
    deadline = None if job["seconds"] is None else time.monotonic() + job["seconds"]
    # Each time an answer is asked for it has an id of its own.
    turns = itertools.count() if deadline is not None else range(1)
    answers = ({**answer, "id": f"{answer['id']} {turn}"} for turn in turns for answer in job["answers"])
    replies = Replies([], [], [], 0.0)

    async def caller(session: aiohttp.ClientSession) -> None:
        while deadline is None or time.monotonic() < deadline:
            items = [
                {"id": answer["id"], "prompt": answer["prompt"], "answer": answer["text"]}
                for answer in itertools.islice(answers, _ANSWERS_A_CALL)
            ]
            if not items:
                return
            replies.asked.extend(item["id"] for item in items)
            begun = time.perf_counter()
            async with session.post(f"{job['url']}/v1/score", json={"items": items}) as reply:
                replies.items.extend((await reply.json())["items"])
            replies.call_s.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        await asyncio.gather(*(caller(session) for _ in range(_CALLERS)))
    done = replace(replies, seconds=time.perf_counter() - begun)
    (directory / "replies.json").write_text(json.dumps(asdict(done)))


def _expected(model: Path, answers: Sequence[Answer]) -> tuple[str, list[float]]:
    """The version's fingerprint, and its scores of these answers."""
    from rlaif_ray.reward.encoding import AnswerEncoder
    from rlaif_ray.reward.ensemble import RewardEnsemble
    from rlaif_ray.reward.package import pack_reward_model

    encoder = AnswerEncoder.load(model, trust_remote_code=False)
    ensemble = RewardEnsemble.load(model, dtype="float32", trust_remote_code=False, device="cpu")
    sequences = [encoder.encode(Prompt(answer.id, answer.prompt), answer.text) for answer in answers]
    # The normalisation of these models changes nothing.
    raw = ensemble.raw_scores([answer.id for answer in answers], sequences, max_batch_tokens=_MAX_BATCH_TOKENS)
    return pack_reward_model(model).fingerprint, raw[:, 0].tolist()


def _word(number: int) -> str:
    return f"word{number}"


if __name__ == "__main__":
    main()

"""The reward server's dispatcher: real Ray, real models, real kills."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import OutOfMemoryError

from actors import reward_workers
from actors.reward_dispatcher import RewardDispatcher
from actors.spawn import spawn
from rlaif_ray.config import ServeRewardConfig, UserError
from rlaif_ray.records import AnswerToScore, Message, Outcome, Prompt
from rlaif_ray.reward.encoding import AnswerEncoder
from rlaif_ray.reward.ensemble import RewardEnsemble, ensemble_scores, normalised
from rlaif_ray.reward.model import RewardNormalisation
from rlaif_ray.serving import scaling
from rlaif_ray.serving.service import AnswerReward, Overloaded
from tests.small_models import WORDS, write_models

Start = Callable[..., Awaitable[RewardDispatcher]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three reward models that differ in what they say: by their normalisation, or as an ensemble of two."""
    directory = tmp_path_factory.mktemp("models")
    _, reward = write_models(directory)
    found = {"one": reward, "two": directory / "two", "both": directory / "both"}
    shutil.copytree(reward, found["two"])
    RewardNormalisation(mean=-2.0, std=0.25, count=10).save(found["two"])
    for number, name in enumerate(("one", "two")):
        shutil.copytree(found[name], found["both"] / str(number))
    return found


@pytest.fixture
async def start(models: dict[str, Path]) -> AsyncIterator[Start]:
    running: list[asyncio.Task[None]] = []

    async def start(directory: Path = models["one"], **changes: Any) -> RewardDispatcher:
        # Answers wait for actors that start, which on a busy machine take their time.
        settings = {"actors": {"min": 1, "max": 1, "cpus": 0.1}, "max_batch_tokens": 64, "timeout_s": 600.0, **changes}
        dispatcher = RewardDispatcher(ServeRewardConfig.model_validate(settings), print)
        await dispatcher.start(directory)
        running.append(asyncio.create_task(dispatcher.run()))
        return dispatcher

    yield start
    for task in running:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def answers(count: int, name: str = "answer") -> list[AnswerToScore]:
    """Of 1 to 20 words, each with a prompt of its own."""
    words = WORDS.split()
    return [
        AnswerToScore(
            f"{name}-{number}",
            Prompt(f"{name}-{number}", " ".join(words[: 1 + number % 7])),
            " ".join(words[(number + place) % 10] for place in range(1 + number * 7 % 20)),
        )
        for number in range(count)
    ]


def offline(directory: Path, asked: Sequence[AnswerToScore]) -> dict[str, float]:
    """What the model says of each answer alone."""
    encoder = AnswerEncoder.load(directory, trust_remote_code=False)
    ensemble = RewardEnsemble.load(directory, dtype="float32", trust_remote_code=False, device="cpu")
    ids = tuple(one.id for one in asked)
    sequences = [encoder.encode(one.prompt, one.text) for one in asked]
    raw = ensemble.raw_scores(ids, sequences, max_batch_tokens=1)
    scores = ensemble_scores(ids, normalised(raw, ensemble.normalisations), disagreement_penalty=0.0)
    return dict(zip(ids, scores.values.tolist(), strict=True))


def check(asked: Sequence[AnswerToScore], rewards: Sequence[AnswerReward], expected: dict[str, float]) -> None:
    assert len(rewards) == len(asked)
    for answer, reward in zip(asked, rewards, strict=True):
        assert reward.outcome is Outcome.SCORED, reward.reason
        assert reward.score == pytest.approx(expected[answer.id], rel=1e-4, abs=1e-4)


async def process_of(name: str) -> int:
    return int(await ray.get_actor(name).__ray_call__.remote(lambda _: os.getpid()))


async def until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


async def test_scores_are_those_of_the_model_alone_however_they_were_batched(
    start: Start, models: dict[str, Path]
) -> None:
    server = await start()
    asked = answers(60)
    shares = [asked[at : at + 7] for at in range(0, 60, 7)]
    rewards = await asyncio.gather(*(server.score(share) for share in shares))
    expected = offline(models["one"], asked)
    assert len(set(expected.values())) > 30
    for share, part in zip(shares, rewards, strict=True):
        check(share, part, expected)
        assert all(one.disagreement is None and one.version.number == 1 for one in part)
    assert (server.state().waiting, server.state().in_flight) == (0, 0)


async def test_an_ensemble_tells_its_mean_each_logit_and_their_disagreement(
    start: Start, models: dict[str, Path]
) -> None:
    """Its members have the same weights: logit r is (r - 0.1) / 0.5 to the one and (r + 2) / 0.25 to the other, whose
    mean is theirs, and whose standard deviation half their distance."""
    server = await start(models["both"])
    assert server.versions()[0].members == 2
    for reward in await server.score(answers(3)):
        assert reward.raw is not None
        first, second = (reward.raw[0] - 0.1) / 0.5, (reward.raw[1] + 2.0) / 0.25
        assert reward.score == pytest.approx((first + second) / 2, rel=1e-4)
        assert reward.disagreement == pytest.approx(abs(first - second) / 2, rel=1e-4)


async def test_what_cannot_be_scored_fails_alone_and_says_why(start: Start) -> None:
    """The model has 32 positions, and its tokenizer no chat template."""
    server = await start()
    good, other = answers(2)
    long = AnswerToScore("long", Prompt("long", "one"), "two " * 40)
    turn = AnswerToScore("turn", Prompt("turn", (Message("user", "one"),)), "two")
    rewards = await server.score([good, long, turn, other])
    assert [one.outcome for one in rewards] == [Outcome.SCORED, Outcome.FAILED, Outcome.FAILED, Outcome.SCORED]
    assert "44 tokens exceed the model's 32 positions" in rewards[1].reason
    assert "chat template" in rewards[2].reason
    assert all(one.score is one.raw is one.disagreement is None for one in rewards[1:3])


async def test_a_model_that_gives_no_finite_score_is_no_number(
    start: Start, models: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(models["one"], tmp_path / "nan")
    RewardNormalisation(mean=float("nan"), std=1.0, count=10).save(tmp_path / "nan")
    (reward,) = await (await start(tmp_path / "nan")).score(answers(1))
    assert (reward.outcome, reward.score, reward.raw) == (Outcome.FAILED, None, None)
    assert "finite" in reward.reason


@pytest.mark.parametrize("killed", [1, 2])
async def test_killed_actors_lose_nothing_and_answer_nothing_twice(
    killed: int, start: Start, models: dict[str, Path]
) -> None:
    server = await start(actors={"min": 2, "max": 2, "cpus": 0.1}, max_batch_tokens=32)
    await until(lambda: server.state().actors == 2)
    processes = [await process_of(f"reward-server-{number}") for number in range(2)]
    asked = answers(600)
    calls = [asyncio.create_task(server.score(asked[at : at + 8])) for at in range(0, 600, 8)]
    await until(lambda: any(call.done() for call in calls))
    for process in processes[:killed]:
        os.kill(process, signal.SIGKILL)
    rewards = [reward for call in calls for reward in await call]
    check(asked, rewards, offline(models["one"], asked))
    await until(lambda: server.state().actors == 2)


async def test_actors_that_end_for_want_of_memory_are_replaced(
    start: Start, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one while it loads, and the next one while it scores."""

    def spawned(*arguments: Any, **options: Any) -> Any:
        actor = spawn(*arguments, **options)
        method = ["load", "score", None][min(len(begun), 2)]
        begun.append(actor)
        if method is not None:
            setattr(actor, method, SimpleNamespace(remote=_out_of_memory))
        return actor

    begun: list[Any] = []
    monkeypatch.setattr(reward_workers, "spawn", spawned)
    server = await asyncio.wait_for(start(), 60.0)
    asked = answers(20)
    check(asked, await asyncio.wait_for(server.score(asked), 60.0), offline(models["one"], asked))
    assert len(begun) == 3


async def _out_of_memory(*arguments: Any) -> Any:
    """What calls come to after Ray's memory monitor has ended an actor that is not started again."""
    raise OutOfMemoryError("the node is running low on memory")


async def test_versions_change_under_load_and_every_answer_is_of_the_one_it_names(
    start: Start, models: dict[str, Path]
) -> None:
    server = await start(actors={"min": 2, "max": 2, "cpus": 0.1})
    asked = answers(40)
    expected = {name: offline(directory, asked) for name, directory in models.items()}
    names = {1: "one"}
    scored: list[list[AnswerReward]] = []
    ended = False

    async def caller(share: Sequence[AnswerToScore]) -> None:
        while not ended:
            rewards = await server.score(share)
            assert len({reward.version.number for reward in rewards}) == 1
            check(share, rewards, expected[names[rewards[0].version.number]])
            scored.append(rewards)

    callers = [asyncio.create_task(caller(asked[at : at + 8])) for at in range(0, 40, 8)]
    for number, name in enumerate(("two", "both", "one", "two"), start=2):
        names[number] = name
        version = await server.load(models[name])
        assert (version.number, version.members) == (number, 2 if name == "both" else 1)
        # What comes after the reply is scored by the new one.
        (reward,) = await server.score(asked[:1])
        assert reward.version == version
    await until(lambda: any(rewards[0].version == version for rewards in scored))  # the callers come to the last one
    ended = True
    await asyncio.gather(*callers)
    assert {rewards[0].version.number for rewards in scored} == {1, 2, 3, 4, 5}
    await until(lambda: len(server.versions()) == 1)


async def test_a_replaced_actor_serves_the_current_version(start: Start, models: dict[str, Path]) -> None:
    server = await start()
    version = await server.load(models["two"])
    os.kill(await process_of("reward-server-0"), signal.SIGKILL)
    asked = answers(5)
    rewards = await server.score(asked)
    check(asked, rewards, offline(models["two"], asked))
    assert {reward.version for reward in rewards} == {version}


async def test_a_model_that_cannot_be_loaded_leaves_the_old_one_serving(
    start: Start, models: dict[str, Path], tmp_path: Path
) -> None:
    server = await start()
    shutil.copytree(models["one"], tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for directory, reason in (
        (tmp_path / "nowhere", "holds no reward model"),
        (tmp_path / "broken", "version 1 goes on"),
    ):
        with pytest.raises(UserError, match=reason):
            await server.load(directory)
    asked = answers(5)
    rewards = await server.score(asked)
    check(asked, rewards, offline(models["one"], asked))
    assert [version.number for version in server.versions()] == [1]
    assert (await server.load(models["two"])).directory == models["two"]


async def test_a_server_does_not_start_on_what_is_no_model(start: Start, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no reward model"):
        await start(tmp_path)


async def test_actors_come_with_old_answers_and_go_after_a_lull(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only actor stands still, so what waits grows old; the second one serves it, and then one is too many."""
    server = await start(actors={"min": 1, "max": 2, "cpus": 0.1})
    process = await process_of("reward-server-0")
    os.kill(process, signal.SIGSTOP)
    try:
        stuck = asyncio.create_task(server.score(answers(1)))
        await until(lambda: server.state().in_flight == 1)
        rewards = await server.score(answers(3, "later"))
        assert all(reward.outcome is Outcome.SCORED for reward in rewards)
        assert server.state().actors == 2
    finally:
        os.kill(process, signal.SIGCONT)
    assert (await stuck)[0].outcome is Outcome.SCORED
    monkeypatch.setattr(scaling, "SCALE_DOWN_DELAY_S", 0.5)
    await until(lambda: server.state().actors == 1)
    assert (await server.score(answers(1)))[0].outcome is Outcome.SCORED


async def test_an_answer_without_a_score_in_time_is_given_up_and_the_actor_that_hangs_replaced(start: Start) -> None:
    server = await start(timeout_s=5.0)
    process = await process_of("reward-server-0")
    os.kill(process, signal.SIGSTOP)
    first = asyncio.create_task(server.score(answers(1)))
    await until(lambda: server.state().in_flight == 1)
    rewards = [*await server.score(answers(2, "waits")), *await first]
    assert [reward.outcome for reward in rewards] == [Outcome.FAILED] * 3
    assert all("no score after 5 s" in reward.reason for reward in rewards)
    await until(lambda: server.state().actors == 1)
    assert (await server.score(answers(1)))[0].outcome is Outcome.SCORED


async def test_more_answers_than_may_wait_are_refused(start: Start) -> None:
    server = await start(max_queued=10)
    process = await process_of("reward-server-0")
    os.kill(process, signal.SIGSTOP)
    try:
        first = asyncio.create_task(server.score(answers(1)))
        await until(lambda: server.state().in_flight == 1)
        waiting = asyncio.create_task(server.score(answers(8)))
        await until(lambda: server.state().waiting == 8)
        with pytest.raises(Overloaded, match="8 answers wait, and 3 more"):
            await server.score(answers(3))
    finally:
        os.kill(process, signal.SIGCONT)
    assert all(reward.outcome is Outcome.SCORED for reward in [*await first, *await waiting])


async def test_prometheus_hears_what_became_of_every_answer(
    start: Start, models: dict[str, Path], tmp_path: Path
) -> None:
    """Ray's agent tells of it, some seconds later, under the directory's name."""
    directory = tmp_path / "told"
    shutil.copytree(models["one"], directory)
    server = await start(directory, max_queued=30)
    asked = answers(20)
    await server.score([*asked, AnswerToScore("long", Prompt("long", "one"), "two " * 40)])
    with pytest.raises(Overloaded):
        await server.score(answers(31))
    encoder = AnswerEncoder.load(directory, trust_remote_code=False)
    expected = {
        "ray_rlaif_reward_server_answers_total scored": 20,
        "ray_rlaif_reward_server_answers_total failed": 1,
        "ray_rlaif_reward_server_answers_total refused": 31,
        "ray_rlaif_reward_server_tokens_total": sum(len(encoder.encode(one.prompt, one.text)) for one in asked),
        "ray_rlaif_reward_server_latency_seconds_count": 1,
        "ray_rlaif_reward_server_waiting": 0,
        "ray_rlaif_reward_server_oldest_time_seconds": 0,
        "ray_rlaif_reward_server_in_flight": 0,
        "ray_rlaif_reward_server_actors": 1,
        "ray_rlaif_reward_server_starting": 0,
        "ray_rlaif_reward_server_version": 1,
    }
    deadline = time.monotonic() + 120.0
    while (told := await asyncio.to_thread(told_of, directory)) != expected:
        assert time.monotonic() < deadline, told
        await asyncio.sleep(0.5)


def told_of(directory: Path) -> dict[str, float]:
    """What Ray's agent tells of the server of a model, but for how latencies are distributed."""
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=60) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    runs = {sample.labels["run"] for sample in samples if sample.labels.get("name") == str(directory)}
    return {
        f"{sample.name} {sample.labels.get('outcome', '')}".strip(): sample.value
        for sample in samples
        if sample.labels.get("run") in runs and re.search(r"_server_.*(?<!_bucket)(?<!_sum)$", sample.name)
    }

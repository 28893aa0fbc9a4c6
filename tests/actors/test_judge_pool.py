from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from aiohttp import web
from loopback_judge import LoopbackJudge, p_first, serving, serving_handler
from ray.exceptions import OutOfMemoryError

from actors.judge import JudgePool, Judges, start_judges
from actors.judge_workers import Batch, Call
from rlaif_ray.config import JudgeConfig, Stopped, UserError
from rlaif_ray.records import Outcome, Pair, Preference, Prompt

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

KEY_VARIABLE = "RLAIF_TEST_JUDGE_KEY"


@pytest.fixture
def server() -> Iterator[LoopbackJudge]:
    with serving(LoopbackJudge()) as judge:
        yield judge


@pytest.fixture
async def start(server: LoopbackJudge, tmp_path: Path) -> AsyncIterator[Any]:
    started: list[Judges] = []

    async def start(**changes: Any) -> Judges:
        settings = {
            "model": "loopback",
            "base_url": server.url,
            "api_key_env": KEY_VARIABLE,
            "mode": "choice",
            "actors": {"min": 1, "max": 2, "cpus": 0.1},
            **changes,
        }
        judges = await start_judges(
            JudgeConfig.model_validate(settings), seed=0, run="run", ledger_path=tmp_path / "ledger.sqlite"
        )
        started.append(judges)
        return judges

    yield start
    for judges in started:
        await judges.stop()


def pairs(count: int) -> list[Pair]:
    """The answers' lengths differ from pair to pair, and so do their probabilities."""
    return [
        Pair(f"pair-{number}", Prompt(f"prompt-{number}", f"Say {number}."), "long " * (number % 7), "short")
        for number in range(count)
    ]


def check(preferences: list[Preference], asked: list[Pair]) -> None:
    """Every pair scored, with the probability that the server's mind gives it over both orders."""
    assert [preference.pair for preference in preferences] == asked
    for preference, pair in zip(preferences, asked, strict=True):
        assert preference.outcome is Outcome.SCORED, preference.reason
        ab, ba = p_first(pair.response_a, pair.response_b), p_first(pair.response_b, pair.response_a)
        assert preference.p == pytest.approx((ab + 1 - ba) / 2)
        assert preference.consistent == ((ab > 0.5) == (ba < 0.5))


async def until(condition: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


async def test_probabilities_are_right_and_a_second_run_asks_nothing(start: Any, server: LoopbackJudge) -> None:
    asked = pairs(50)
    judges = await start(price={"input": 1.0, "output": 2.0}, budget_usd=1.0)
    check(await judges.label(asked, "collect"), asked)
    progress = await judges.progress()
    assert (progress.scored, progress.calls, progress.cached) == (100, 100, 0)
    # 100 calls of 100 prompt tokens at $1 and one answer token at $2 per million.
    assert progress.cost_usd == pytest.approx(100 * (100 * 1e-6 + 2e-6))
    assert (await judges.totals()).spent_usd == pytest.approx(progress.cost_usd)
    await judges.stop()

    again = await start(price={"input": 1.0, "output": 2.0}, budget_usd=1.0)
    preferences = await again.label(asked, "collect")
    check(preferences, asked)
    assert all(judgement.cache_hit for preference in preferences for judgement in preference.judgements)
    progress = await again.progress()
    assert (progress.cached, progress.calls, progress.cost_usd) == (100, 0, 0.0)
    assert len(server.prompts) == 100


async def test_the_same_question_is_asked_once(start: Any, server: LoopbackJudge) -> None:
    pair = pairs(3)[2]
    twins = [Pair(f"twin-{number}", pair.prompt, pair.response_a, pair.response_b) for number in range(10)]
    judges = await start()
    check(await judges.label(twins, "collect"), twins)
    assert len(server.prompts) == 2
    assert (await judges.progress()).calls == 2


async def test_faults_of_the_endpoint_lose_nothing(start: Any, server: LoopbackJudge) -> None:
    server.faults = ["429 0.2", "500", "cut", "503", "429 0.2", "cut", "408", "500"]
    asked = pairs(30)
    judges = await start()
    check(await judges.label(asked, "collect"), asked)
    assert sorted(server.prompts) == sorted(set(server.prompts))
    assert len(server.prompts) == 60
    # The two cut connections may have been answered, and billed, unseen.
    assert (await judges.totals()).ambiguous == 2


async def test_a_refused_question_fails_alone_and_says_why(start: Any, server: LoopbackJudge) -> None:
    server.faults = ["400"]
    preferences = await (await start()).label(pairs(5), "collect")
    outcomes = [preference.outcome for preference in preferences]
    assert outcomes.count(Outcome.FAILED) == 1
    assert outcomes.count(Outcome.SCORED) == 4
    failed = preferences[outcomes.index(Outcome.FAILED)]
    assert failed.p is None
    assert "HTTP 400" in failed.reason


async def test_without_log_probabilities_the_words_are_a_vote(start: Any, server: LoopbackJudge) -> None:
    """The server says "1" in both orders: (1 + 1/2) / (1 + 1) = .75 for the first place each time, which cancels."""
    server.with_logprobs = False
    (preference,) = await (await start()).label(pairs(1), "collect")
    assert preference.p == pytest.approx(0.5)
    assert preference.consistent is False
    assert [(one.p_first, one.votes_first, one.rung) for one in preference.judgements] == [(0.75, 1, "text")] * 2


@pytest.mark.parametrize("victim", ["judge-", "ledger-", "limiter-"])
async def test_a_killed_actor_loses_nothing(victim: str, start: Any, server: LoopbackJudge) -> None:
    server.latency_s = 0.05
    asked = pairs(150)
    judges = await start(max_concurrency=16)
    labelling = asyncio.ensure_future(judges.label(asked, "collect"))

    async def some_are_answered() -> bool:
        return len(server.prompts) > 40

    await until(some_are_answered)
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith(victim) and actor["name"] != "judge-pool":
            handle = ray.get_actor(actor["name"], namespace=actor["namespace"])
            os.kill(await handle.__ray_call__.remote(lambda _: os.getpid()), signal.SIGKILL)
    check(await labelling, asked)
    totals = await judges.totals()
    assert totals.replies == 300
    assert totals.reserved_usd == 0
    # No reply that was kept is bought again: what was asked twice is counted.
    assert len(server.prompts) - 300 <= totals.ambiguous <= 32


async def test_limits_hold_over_all_workers(start: Any, server: LoopbackJudge) -> None:
    server.latency_s = 0.1
    first, *asked = pairs(16)
    judges = await start(requests_per_minute=900, max_concurrency=4, actors={"min": 2, "max": 2, "cpus": 0.1})
    await judges.label([first], "collect")
    begun = time.monotonic()
    check(await judges.label(asked, "collect"), asked)
    assert server.most_in_flight <= 4
    # 900 a minute is 15 a second: 30 requests, the first at once, need 29 intervals. Counted from their asking, as the
    # first one may be held up on its way.
    assert server.arrivals[-1] - begun >= 0.9 * 29 / 15


async def test_concurrency_is_used(start: Any, server: LoopbackJudge) -> None:
    server.latency_s = 1.0  # a busy machine takes its time to send eight requests
    await (await start(max_concurrency=8)).label(pairs(8), "collect")
    assert server.most_in_flight == 8


async def test_a_backlog_brings_more_actors(start: Any, server: LoopbackJudge) -> None:
    server.latency_s = 1.0
    # More than one actor is good for: where the quota is the bound, another actor would help nobody.
    judges = await start(max_concurrency=512)
    await judges.label(pairs(10), "collect")
    assert (await judges.progress()).actors == 1
    asked = [Pair(f"more-{number}", Prompt("prompt", f"And {number}."), "a", "b") for number in range(300)]
    labelling = asyncio.ensure_future(judges.label(asked, "collect"))
    most = 0
    while not labelling.done():
        most = max(most, (await judges.progress()).actors)
        await asyncio.sleep(0.05)
    check(await labelling, asked)
    assert most == 2


async def test_the_budget_is_hard_and_the_rest_says_so(start: Any, server: LoopbackJudge) -> None:
    budget = 0.005
    judges = await start(price={"input": 1.0, "output": 2.0}, budget_usd=budget)
    preferences = await judges.label(pairs(100), "collect")
    totals = await judges.totals()
    outcomes = {preference.outcome for preference in preferences}
    assert Outcome.OVER_BUDGET in outcomes
    assert 0 < totals.spent_usd <= budget
    assert totals.reserved_usd == 0
    over = next(preference for preference in preferences if preference.outcome is Outcome.OVER_BUDGET)
    assert "judge.budget_usd" in over.reason
    assert over.p is None


async def test_a_missing_key_is_one_clear_sentence(start: Any) -> None:
    with pytest.raises(UserError, match=r"NO_SUCH_KEY is not set") as error:
        await (await start(api_key_env="NO_SUCH_KEY")).label(pairs(1), "collect")
    assert "\n" not in str(error.value)


async def test_a_refused_key_ends_the_run_and_leaks_nowhere(start: Any, server: LoopbackJudge, tmp_path: Path) -> None:
    judges = await start()
    await judges.label(pairs(3), "collect")
    server.faults = ["401"] * 20
    with pytest.raises(UserError, match=r"judge\.api_key_env") as error:
        await judges.label(pairs(6), "collect")
    key = os.environ[KEY_VARIABLE]
    assert f"Bearer {key}" in server.keys
    assert key not in str(error.value)
    files = list(tmp_path.iterdir())
    assert files
    assert not any(key.encode() in file.read_bytes() for file in files)


async def test_the_coin_flip_asks_nobody(start: Any, server: LoopbackJudge) -> None:
    asked = pairs(200)
    preferences = await (await start(control="coin_flip")).label(asked, "collect")
    assert not server.prompts
    assert {preference.p for preference in preferences} == {0.0, 0.5, 1.0}
    assert {judgement.judge for preference in preferences for judgement in preference.judgements} == {"coin_flip"}


async def test_a_killed_pool_is_asked_again_and_buys_nothing_twice(start: Any, server: LoopbackJudge) -> None:
    """What its workers had under way is unknown until it would have timed out."""
    server.latency_s = 0.05
    asked = pairs(150)
    judges = await start(max_concurrency=16, timeout_s=3.0)
    labelling = asyncio.ensure_future(judges.label(asked, "collect"))

    async def some_are_answered() -> bool:
        return len(server.prompts) > 40

    await until(some_are_answered)
    pool = ray.get_actor("judge-pool")
    os.kill(await pool.__ray_call__.remote(lambda _: os.getpid()), signal.SIGKILL)
    check(await labelling, asked)
    totals = await judges.totals()
    assert totals.replies == 300
    assert len(server.prompts) - 300 <= totals.ambiguous <= 32


async def test_a_ledger_that_fails_when_a_dead_actors_calls_go_back_ends_the_run(
    start: Any, server: LoopbackJudge, tmp_path: Path
) -> None:
    server.latency_s = 5.0
    labelling = asyncio.ensure_future((await start()).label(pairs(2), "collect"))

    async def all_are_asked() -> bool:
        return len(server.arrivals) == 4

    await until(all_are_asked)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as ledger:
        ledger.execute("DROP TABLE attempts")
    os.kill(await ray.get_actor("judge-0").__ray_call__.remote(lambda _: os.getpid()), signal.SIGKILL)
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await asyncio.wait_for(labelling, 60.0)


async def test_an_actor_that_ends_for_want_of_memory_is_replaced(start: Any) -> None:
    judges = await start()
    await judges.label(pairs(2), "collect")
    await ray.get_actor("judge-pool").__ray_call__.remote(_starve_workers)
    asked = pairs(10)
    check(await judges.label(asked, "collect"), asked)


def _starve_workers(pool: JudgePool) -> None:
    """From here on they are as Ray's memory monitor leaves an actor that is not started again."""

    async def judge(calls: Sequence[Call]) -> Batch:
        raise OutOfMemoryError("the node is running low on memory")

    for worker in pool._pools[0]._workers:
        worker.actor.judge = SimpleNamespace(remote=judge)


async def test_every_judge_of_an_ensemble_and_a_cascade_has_calls_of_its_own(start: Any, server: LoopbackJudge) -> None:
    """The members agree, so that every pair stays within the widest margin, and the third judge has the last word."""
    other = {"base_url": server.url, "api_key_env": KEY_VARIABLE, "mode": "choice", "price": {"input": 1, "output": 1}}
    asked = pairs(10)
    judges = await start(
        price={"input": 1.0, "output": 1.0},
        ensemble=[{"model": "second", **other}],
        cascade={"judge": {"model": "third", **other}, "margin": 0.5},
    )
    preferences = await judges.label(asked, "collect")
    check(preferences, asked)
    for preference in preferences:
        assert [opinion.judge for opinion in preference.opinions] == ["third"]
        assert [opinion.judge for opinion in preference.set_aside] == ["loopback", "second"]
    progress = await judges.progress()
    assert (progress.pairs, progress.scored, progress.calls) == (10, 60, 60)
    # 101 tokens at a dollar a million, each.
    assert progress.cost_usd == pytest.approx(60 * 101e-6)
    # One budget for all of them.
    assert (await judges.totals()).spent_usd == pytest.approx(progress.cost_usd)


async def test_a_judge_that_keeps_abstaining_stops_the_run(start: Any) -> None:
    async def shrug(request: web.Request) -> web.Response:
        message = {"role": "assistant", "content": "Hm."}
        usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
        choices = [{"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}]
        return web.json_response({"id": "1", "object": "chat.completion", "choices": choices, "usage": usage})

    with serving_handler(shrug) as url:
        judges = await start(base_url=url)
        few = await judges.label(pairs(5), "collect")
        assert {preference.outcome for preference in few} == {Outcome.ABSTAINED}
        assert all("no verdict" in preference.reason for preference in few)
        with pytest.raises(Stopped, match=r"abstained from .* judge\.max_abstained=0\.1"):
            await judges.label(pairs(120), "collect")

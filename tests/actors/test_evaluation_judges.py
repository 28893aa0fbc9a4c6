"""A judge of evaluation's own beside the one that training learns from: two pools, two purses, one ledger."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from loopback_judge import LoopbackJudge, serving

from actors.runtime import RayRuntime
from rlaif_ray.config import RunConfig
from rlaif_ray.records import Outcome, Pair, Prompt

PRICE = {"input": 1.0, "output": 2.0}


@pytest.fixture
def trainer() -> Iterator[LoopbackJudge]:
    with serving(LoopbackJudge()) as judge:
        yield judge


@pytest.fixture
def outsider() -> Iterator[LoopbackJudge]:
    with serving(LoopbackJudge()) as judge:
        yield judge


def endpoint(server: LoopbackJudge, model: str) -> dict[str, object]:
    return {
        "model": model,
        "base_url": server.url,
        "api_key_env": "RLAIF_TEST_JUDGE_KEY",
        "mode": "choice",
        "actors": {"min": 0, "max": 1, "cpus": 0.1},
        "price": PRICE,
        "budget_usd": 1.0,
    }


def config(run_dir: Path, judge: dict[str, object], own: dict[str, object] | None) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "prompts": {"path": "p.jsonl"},
            "policy": {"model": "m"},
            "judge": judge,
            "evaluation": {"judge": own},
        }
    )


@pytest.fixture
async def runtime(tmp_path: Path, trainer: LoopbackJudge, outsider: LoopbackJudge) -> AsyncIterator[RayRuntime]:
    runtime = RayRuntime(config(tmp_path, endpoint(trainer, "trainer"), endpoint(outsider, "outsider")), say=print)
    yield runtime
    for judges in (await runtime.judges(), await runtime.evaluation_judges()):
        await judges.stop()


def pairs(count: int) -> list[Pair]:
    return [
        Pair(f"pair-{number}", Prompt(f"p{number}", f"Say {number}."), "long " * 3, "short") for number in range(count)
    ]


async def test_each_is_asked_for_itself_and_pays_for_itself(
    runtime: RayRuntime, tmp_path: Path, trainer: LoopbackJudge, outsider: LoopbackJudge
) -> None:
    labelling, evaluating = await runtime.judges(), await runtime.evaluation_judges()
    labelled = await labelling.label(pairs(5), "collect")
    # A pool that begins gives up what a dead one of the same run had under way: this one must not.
    evaluated = await evaluating.label(pairs(2), "evaluate")
    assert {one.outcome for one in (*labelled, *evaluated)} == {Outcome.SCORED}
    assert {one.judge for preference in evaluated for one in preference.judgements} == {"outsider"}
    assert (len(trainer.prompts), len(outsider.prompts)) == (10, 4), "two orders a pair"
    ours, theirs = await labelling.totals(), await evaluating.totals()
    assert (ours.calls, theirs.calls) == (10, 4)
    assert 0 < theirs.spent_usd < ours.spent_usd
    with sqlite3.connect(tmp_path / "ledger.sqlite") as ledger:
        runs = ledger.execute("SELECT run, count(*) FROM attempts GROUP BY run ORDER BY count(*)").fetchall()
    assert [count for _, count in runs] == [4, 10]


async def test_without_one_evaluation_asks_the_judge_of_training(tmp_path: Path, trainer: LoopbackJudge) -> None:
    runtime = RayRuntime(config(tmp_path, endpoint(trainer, "trainer"), None), say=print)
    judges = await runtime.judges()
    assert await runtime.evaluation_judges() is judges
    await judges.stop()

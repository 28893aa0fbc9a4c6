"""Rows on their way from a run's logs to trackers: each once, whoever writes, and whatever a tracker does."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import pytest

from rlaif_ray.metrics import MetricsLog, MetricsRow
from rlaif_ray.metrics import following as module
from rlaif_ray.metrics.following import LogFollower, followed


@dataclass
class Listener:
    fails: bool = False
    heard: list[tuple[str, int]] = field(default_factory=list)
    news: SimpleQueue[tuple[str, int]] = field(default_factory=SimpleQueue)
    closed: bool = False

    def log(self, rows: Sequence[MetricsRow]) -> None:
        if self.fails:
            raise ConnectionError("the service is down")
        for row in rows:
            self.heard.append((row.stage, row.step))
            self.news.put((row.stage, row.step))

    def close(self) -> None:
        self.closed = True


def append(path: Path, stage: str, *steps: int) -> None:
    """As a process of its own would: the file is opened anew."""
    log = MetricsLog(path)
    for step in steps:
        log.append(stage, step, 9, {"loss": 1.0})
    log.close()


def steps(rows: Sequence[MetricsRow]) -> list[tuple[str, int]]:
    return [(row.stage, row.step) for row in rows]


def test_what_stood_there_before_is_left_out_and_what_comes_is_told_once(tmp_path: Path) -> None:
    append(tmp_path / "metrics.jsonl", "sft", 1, 2)
    follower = LogFollower(tmp_path)
    assert follower.poll() == []
    append(tmp_path / "metrics.jsonl", "sft", 3)
    append(tmp_path / "metrics.jsonl", "ppo", 1, 2)
    assert steps(follower.poll()) == [("sft", 3), ("ppo", 1), ("ppo", 2)]
    assert follower.poll() == []


def test_logs_that_begin_later_are_followed_from_their_start(tmp_path: Path) -> None:
    follower = LogFollower(tmp_path / "run")
    assert follower.poll() == []
    append(tmp_path / "run" / "rounds" / "1" / "metrics.jsonl", "reward", 1)
    append(tmp_path / "run" / "metrics.jsonl", "ppo", 1)
    assert sorted(steps(follower.poll())) == [("ppo", 1), ("reward", 1)]


def test_a_torn_line_comes_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, "sft", 1)
    line = path.read_bytes()
    follower = LogFollower(tmp_path)
    for part in (line[:10], line[10:-1]):
        with path.open("ab") as file:
            file.write(part)
        assert follower.poll() == []
    with path.open("ab") as file:
        file.write(b"\n" + line[:5])
    assert steps(follower.poll()) == [("sft", 1)]


def test_a_torn_line_that_a_resumed_run_cuts_off_is_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, "sft", 1)
    with path.open("ab") as file:
        file.write(b'{"stage": "sft", "st')
    follower = LogFollower(tmp_path)
    append(path, "sft", 2)
    assert steps(follower.poll()) == [("sft", 2)]


def test_a_line_that_is_no_row_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    follower = LogFollower(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("nonsense\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, after byte 0: not a row of metrics"):
        follower.poll()


async def test_every_tracker_hears_all_that_was_logged_by_the_end(tmp_path: Path) -> None:
    """The block ends before the first poll is due, so the rows come at the end."""
    listeners = [Listener(), Listener()]
    async with followed(tmp_path, listeners, print):
        append(tmp_path / "metrics.jsonl", "sft", 1, 2)
    assert all(listener.heard == [("sft", 1), ("sft", 2)] and listener.closed for listener in listeners)


async def test_rows_are_passed_on_while_the_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY_S", 0.01)
    listener = Listener()
    async with followed(tmp_path, [listener], print):
        append(tmp_path / "metrics.jsonl", "sft", 1)
        assert await asyncio.to_thread(listener.news.get, timeout=30) == ("sft", 1)
        append(tmp_path / "metrics.jsonl", "sft", 2)
    assert listener.heard == [("sft", 1), ("sft", 2)]


async def test_a_tracker_that_fails_is_told_of_and_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EVERY_S", 0.01)
    said: list[str] = []
    broken, whole = Listener(fails=True), Listener()
    async with followed(tmp_path, [broken, whole], said.append):
        for step in (1, 2):
            append(tmp_path / "metrics.jsonl", "sft", step)
            assert await asyncio.to_thread(whole.news.get, timeout=30) == ("sft", step)
    assert whole.heard == [("sft", 1), ("sft", 2)]
    assert said == ["  Listener failed and is told no more: the service is down"]
    assert not broken.closed


async def test_what_ends_the_block_ends_it_with_the_last_rows_told(tmp_path: Path) -> None:
    listener = Listener()
    with pytest.raises(KeyboardInterrupt):
        async with followed(tmp_path, [listener], print):
            append(tmp_path / "metrics.jsonl", "sft", 1)
            raise KeyboardInterrupt
    assert listener.heard == [("sft", 1)]
    assert listener.closed

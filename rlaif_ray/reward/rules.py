"""Rewards by a user's Python function, in processes of its own: one that hangs or dies costs an answer, not the run."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_ray.config import UserError
from rlaif_ray.records import Prompt
from rlaif_ray.reward.composition import DecodedAnswer, RewardPart

DEADLINE_S = 5.0
"""For one answer."""

_LOADING_S = 60.0
_PROCESSES = 4


def rule_location(function: str) -> tuple[Path, str]:
    """The file and the name of `FILE.py:NAME`. Raises UserError where there is no such file."""
    file, _, name = function.rpartition(":")
    path = Path(file).resolve()
    if not path.is_file() or not name.isidentifier():
        raise UserError(f"reward.mix: function {function}: there is no such file; write FILE.py:NAME")
    return path, name


class Rule:
    """A user's function of (prompt, answer, reference), which returns a number, or None where it has nothing to say. A
    prompt is a text or a list of {role, content}. Several processes hold the function, so it must keep no memory of
    earlier answers. They end with the one that holds this."""

    def __init__(self, path: Path, name: str, *, deadline_s: float = DEADLINE_S) -> None:
        self._path = path
        self._name = name
        self._deadline_s = deadline_s
        self._idle: asyncio.LifoQueue[Process | None] = asyncio.LifoQueue()

    async def open(self) -> None:
        """Load the function. Raises UserError where that fails."""
        for _ in range(_PROCESSES - 1):
            self._idle.put_nowait(None)  # to be started when there is work for it
        self._idle.put_nowait(await self._start())

    async def score(self, answers: Sequence[DecodedAnswer]) -> RewardPart:
        """What the function says of each. An answer on which it raises, hangs or returns no finite number gets none."""
        said = await asyncio.gather(*(self._said(answer) for answer in answers))
        reasons = Counter(reason for _, reason in said if reason)
        return RewardPart(np.array([value for value, _ in said]), reasons)

    async def _said(self, answer: DecodedAnswer) -> tuple[float, str]:
        """A value, or NaN and why."""
        process = await self._idle.get()
        unharmed = False
        try:
            process = process or await self._start()
            question = (_content(answer.prompt), answer.text, answer.prompt.reference)
            reply = await asyncio.wait_for(_asked(process, question), self._deadline_s)
            unharmed = reply is not None
        except TimeoutError:
            return math.nan, f"it took longer than {self._deadline_s:g} s"
        finally:
            if not unharmed:
                await _end(process)
            self._idle.put_nowait(process if unharmed else None)
        return (math.nan, "its process died") if reply is None else _value(reply)

    async def _start(self) -> Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rlaif_ray.reward.rule_process"),
            *(str(self._path), self._name, str(math.ceil(self._deadline_s) + 1)),
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,
        )
        try:
            loaded = await asyncio.wait_for(_reply(process), _LOADING_S)
        except TimeoutError:
            loaded = {"error": f"it takes longer than {_LOADING_S:g} s"}
        if loaded is None or "error" in loaded:
            await _end(process)
            why = "its process died" if loaded is None else loaded["error"]
            raise UserError(f"reward.mix: {self._name} of {self._path} cannot be loaded ({why}); correct the file")
        return process


async def _asked(process: Process, question: Any) -> dict[str, Any] | None:
    """The reply; None where the process is dead."""
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(question).encode() + b"\n")
        await process.stdin.drain()
    except ConnectionError:
        return None
    return await _reply(process)


async def _reply(process: Process) -> dict[str, Any] | None:
    assert process.stdout is not None
    line = await process.stdout.readline()
    reply: dict[str, Any] | None = json.loads(line) if line else None
    return reply


def _value(reply: Mapping[str, Any]) -> tuple[float, str]:
    if "error" in reply:
        return math.nan, f"it raised {reply['error']}"
    value = reply["value"]
    if value is None:
        return math.nan, "it has nothing to say"
    return (value, "") if math.isfinite(value) else (math.nan, f"it returned {value}")


async def _end(process: Process | None) -> None:
    if process is not None and process.returncode is None:
        try:
            process.kill()
        except ProcessLookupError:
            return
        await process.wait()


def _content(prompt: Prompt) -> str | list[dict[str, str]]:
    if isinstance(prompt.content, str):
        return prompt.content
    return [{"role": message.role, "content": message.content} for message in prompt.content]

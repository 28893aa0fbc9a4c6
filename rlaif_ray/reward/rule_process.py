"""The process that a user's rule runs in: `python -m rlaif_ray.reward.rule_process FILE NAME SECONDS`.

It says `{}` once the function is loaded, or what is wrong with it; then it answers each line of JSON with one. What the
user's code prints goes to standard error. Where one answer takes longer than SECONDS the process ends.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load_rule(path: Path, name: str) -> Callable[[Any, str, str | None], object]:
    """Import the file and return its function. Whatever the file raises goes through."""
    spec = importlib.util.spec_from_file_location("reward_rule", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    sys.path.insert(0, str(path.parent))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[Any, str, str | None], object] = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} is no function")
    return function


def main() -> None:
    path, name, deadline_s = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    asked, said = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    # The user's code must neither read the questions nor write among the answers.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    try:
        rule = load_rule(path, name)
    except BaseException as error:
        said.write(json.dumps({"error": _one_line(error)}) + "\n")
        return
    said.write("{}\n")
    for line in asked:
        # Whoever asks kills what hangs; should it have died itself, the alarm does.
        signal.alarm(deadline_s)
        try:
            value = rule(*json.loads(line))
            answer: dict[str, float | str | None] = {"value": None if value is None else float(value)}  # type: ignore[arg-type]
        except BaseException as error:
            answer = {"error": _one_line(error)}
        signal.alarm(0)
        said.write(json.dumps(answer) + "\n")


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


if __name__ == "__main__":
    main()

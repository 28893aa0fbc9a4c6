"""A run's directory: where everything is, which stages are done, and whether it belongs to this config."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from rlaif_ray.config import RunConfig, UserError, dump_config

Record = TypeVar("Record", bound=BaseModel)

# Keys that say how a run is carried out and not what it computes: it may go on with others.
_FREE = re.compile(
    r"run_dir|(evaluation\.)?judge\.(ensemble\.\d+\.|cascade\.judge\.|fallback\.)?"
    r"(api_key_env|api_key_file|quota|requests_per_minute|tokens_per_minute|max_concurrency|timeout_s|max_attempts"
    r"|price(\..*)?)"
    r"|(evaluation\.)?judge\.(ledger|replay|retry_refused|prices|unknown_price|budget_usd|when_spent|fallback"
    r"|max_abstained)(\..*)?"
    r"|.*\.(resources|actors)(\..*)?|rollout\.(gpu_memory_utilization|kv_cache_gib)"
    r"|learner\.(weight_transfer|weight_bucket_mib)|ppo\.(checkpoint_every|timeline_of)|tracking(\..*)?"
)


class RunDirectory:
    """Paths of a run, and atomic writes into it: a crash leaves the old file or the new one."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    @property
    def id(self) -> str:
        """What tells this run from others that share its ledger: drawn once, and kept wherever the directory goes."""
        path = self.path / "run_id"
        if not path.exists():
            write_atomically(path, uuid.uuid4().hex)
        return path.read_text()

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.sqlite"

    @property
    def chains(self) -> Path:
        """A directory of files."""
        return self.path / "constitution" / "chains"

    @property
    def preferences(self) -> Path:
        return self.path / "preferences" / "preferences.parquet"

    @property
    def judgements(self) -> Path:
        return self.path / "judgements" / "judgements.parquet"

    @property
    def reward_held_out(self) -> Path:
        return self.path / "reward" / "held_out.parquet"

    def timeline(self, iteration: int) -> Path:
        """`iteration` is counted from 1, through the rounds, as the metrics count it."""
        return self.path / "timeline" / f"iteration-{iteration:07}.json"

    @property
    def timelines(self) -> list[Path]:
        """Those that were written."""
        return sorted(self.timeline(0).parent.glob("iteration-*.json"))

    def samples(self, name: str) -> Path:
        return self.path / "samples" / f"{name}.parquet"

    def model(self, name: str) -> Path:
        return self.path / "models" / name

    def checkpoints(self, name: str) -> Path:
        return self.path / "checkpoints" / name

    def open(self, config: RunConfig) -> None:
        """Make the directory, or check that what it holds was made with this config.

        Raises UserError naming the key that differs.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self.config.exists():
            before = yaml.safe_load(self.config.read_text())
            now = yaml.safe_load(dump_config(config))
            for key, was, wanted in _differences(before, now):
                raise UserError(
                    f"{key}: {self.path} holds a run with {was!r}, not {wanted!r}; "
                    "give the same value to go on with it, or another run_dir"
                )
        write_atomically(self.config, dump_config(config))

    def result(self, stage: str, kind: type[Record]) -> Record | None:
        """What a finished stage recorded; None while it is not done."""
        path = self._marker(stage)
        return kind.model_validate_json(path.read_text()) if path.exists() else None

    def finish(self, stage: str, record: BaseModel) -> None:
        """Mark a stage as done. Comes last, when all that it made is in place."""
        write_atomically(self._marker(stage), record.model_dump_json(indent=2))

    def _marker(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"


@contextmanager
def file_written_atomically(path: Path) -> Iterator[Path]:
    """A file beside `path` to write; it takes `path`'s place, durably, when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with file_written_atomically(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def directory_written_atomically(path: Path) -> Iterator[Path]:
    """A directory beside `path` to fill; it takes `path`'s place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _differences(before: Any, now: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _differences(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (was, wanted) in enumerate(zip(before, now, strict=True)):
            yield from _differences(was, wanted, f"{prefix}.{index}")
    elif before != now and not _FREE.fullmatch(prefix):
        yield prefix, before, now

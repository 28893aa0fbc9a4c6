"""Checkpoints that are whole or absent: a directory under its final name, with a manifest of its files' digests.

A checkpoint may be read by unpickling, so its digests are checked before anything in it is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"


class CheckpointCorrupt(RuntimeError):
    """A checkpoint is not what was written. Remove its directory to go on from the one before."""


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one learner, `iteration-0000007` and so on, of which the newest `keep` stay."""

    directory: Path
    keep: int = 2

    def unfinished(self, iteration: int) -> Path:
        """Where to write this iteration's checkpoint."""
        return self.directory / f".{self._name(iteration)}"

    def begin(self, iteration: int) -> None:
        """Make the place empty."""
        shutil.rmtree(self.unfinished(iteration), ignore_errors=True)
        self.unfinished(iteration).mkdir(parents=True)

    def finish(self, iteration: int) -> None:
        """Write the manifest, make all of it durable, give it its name, and drop older ones."""
        unfinished = self.unfinished(iteration)
        files = {str(path.relative_to(unfinished)): _digest(path, sync=True) for path in _files(unfinished)}
        with (unfinished / MANIFEST).open("w") as file:
            json.dump({"files": files}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        final = self.directory / self._name(iteration)
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        _sync_directory(self.directory)
        for old in self.iterations()[: -self.keep]:
            shutil.rmtree(self.directory / self._name(old))

    def iterations(self) -> list[int]:
        """Iterations with a whole checkpoint, oldest first."""
        return sorted(int(path.name.removeprefix("iteration-")) for path in self.directory.glob("iteration-*"))

    def verified(self, iteration: int) -> Path:
        """The checkpoint's directory. Raises CheckpointCorrupt naming the file that is missing, extra or changed."""
        path = self.directory / self._name(iteration)
        try:
            expected = json.loads((path / MANIFEST).read_text())["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointCorrupt(f"{path / MANIFEST} cannot be read ({error})") from error
        present = {str(file.relative_to(path)) for file in _files(path)} - {MANIFEST}
        for name in sorted(present ^ expected.keys()):
            raise CheckpointCorrupt(f"{path / name} is {'not in the manifest' if name in present else 'missing'}")
        for name, digest in expected.items():
            if _digest(path / name) != digest:
                raise CheckpointCorrupt(f"{path / name} has changed since it was written")
        return path

    @staticmethod
    def _name(iteration: int) -> str:
        return f"iteration-{iteration:07}"


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _digest(path: Path, *, sync: bool = False) -> str:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

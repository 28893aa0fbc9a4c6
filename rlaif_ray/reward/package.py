"""A fitted reward model as it travels: the files of its directory, so that it reaches nodes that do not see the disk.

Weights are safetensors alone; a pickle never travels.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.config import UserError
from rlaif_ray.reward.model import NORMALISATION_FILE, members

_WEIGHTS = ".safetensors"
# Configs, tokenizers, chat templates, and the code that comes with a model.
_SMALL_FILES = (".json", ".jinja", ".model", ".txt", ".py")


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """Files by their path in the directory, as bytes (N,) uint8, which cross the object store without a copy."""

    files: Mapping[str, NDArray[np.uint8]]
    fingerprint: str  # SHA-256 of the names and bytes of all files, weights too

    def without_weights(self) -> ModelPackage:
        """What it takes to encode a text, of the same fingerprint."""
        return replace(self, files={name: data for name, data in self.files.items() if not name.endswith(_WEIGHTS)})


def pack_reward_model(directory: Path) -> ModelPackage:
    """Read a reward model, or an ensemble of them. Raises UserError naming what it lacks."""
    found = members(directory)
    for member in found:
        if not (member / NORMALISATION_FILE).exists():
            raise UserError(f"{member} holds no {NORMALISATION_FILE}; give a directory that `rlaif fit-reward` made")
        if not any(member.glob(f"*{_WEIGHTS}")):
            raise UserError(f"{member} holds no weights as safetensors, which are the only ones that are loaded")
    package = _pack(directory, found, (_WEIGHTS, *_SMALL_FILES))
    for member in found[1:]:
        if _tokenizer(package, directory, member) != _tokenizer(package, directory, found[0]):
            raise UserError(f"{member} has another tokenizer than {found[0]}; an ensemble shares one")
    return package


def pack_tokenizer(directory: Path) -> ModelPackage:
    """A model's small files."""
    return _pack(directory, (directory,), _SMALL_FILES)


@contextmanager
def unpacked(package: ModelPackage) -> Iterator[Path]:
    """A directory with the files, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="rlaif-model-") as name:
        for file, data in package.files.items():
            path = Path(name) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            data.tofile(path)
        yield Path(name)


def _pack(directory: Path, models: tuple[Path, ...], suffixes: tuple[str, ...]) -> ModelPackage:
    files = {
        path.relative_to(directory).as_posix(): np.fromfile(path, dtype=np.uint8)
        for model in models
        for path in sorted(model.iterdir())
        if path.suffix in suffixes and path.is_file()
    }
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(f"{name} {len(data)}\n".encode())
        digest.update(data.data)
    return ModelPackage(files, digest.hexdigest())


def _tokenizer(package: ModelPackage, directory: Path, member: Path) -> bytes:
    file = (member / "tokenizer.json").relative_to(directory).as_posix()
    return package.files[file].tobytes() if file in package.files else b""

"""The toy world's packaged models, by name."""

from __future__ import annotations

from pathlib import Path

from rlaif_ray.config import UserError

_SCHEME = "toyworld:"
_DIRECTORIES = {name: Path(__file__).parent / name for name in ("judge", "assistant")}


def model_path(name: str) -> str:
    """Where a model is loaded from: `toyworld:judge` and `toyworld:assistant` are packaged, and any other name stands
    for itself.

    Raises UserError where no model of the toy world has that name, or where its weights were left behind.
    """
    if not name.startswith(_SCHEME):
        return name
    directory = _DIRECTORIES.get(name.removeprefix(_SCHEME))
    if directory is None:
        known = ", ".join(_SCHEME + model for model in _DIRECTORIES)
        raise UserError(f"{name!r} is not a model of the toy world; known here: {known}")
    if not (directory / "model.safetensors").exists():
        raise UserError(
            f"{name}: {directory} holds no weights, which do not travel with a job; copy that directory from where it "
            "is whole to storage that every node sees, and name it there"
        )
    return str(directory)

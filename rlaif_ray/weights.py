"""Model weights between processes: named NumPy arrays, their fingerprint, and the way back to torch.

NumPy has no bfloat16; such a tensor travels as its bits in uint16.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.records import Weights

if TYPE_CHECKING:
    import torch


def fingerprint_of(weights: Weights) -> str:
    """SHA-256 over the sorted names with their types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def to_numpy(tensor: torch.Tensor) -> NDArray[np.generic]:
    """A contiguous CPU copy; bfloat16 as its bits in uint16."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().copy()
    return tensor.numpy().copy()


def to_torch(array: NDArray[np.generic]) -> torch.Tensor:
    """The tensor that `to_numpy` made this array of. Copies: arrays from the object store are read-only."""
    import torch

    tensor = torch.from_numpy(np.array(array))
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def read_weights(directory: Path) -> dict[str, NDArray[np.generic]]:
    """All safetensors of a model directory. Raises FileNotFoundError when there are none."""
    from safetensors.torch import load_file

    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{directory} holds no safetensors")
    return {name: to_numpy(tensor) for file in files for name, tensor in load_file(file).items()}

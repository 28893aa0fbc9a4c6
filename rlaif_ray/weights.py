"""Model weights between processes: named NumPy arrays, flat buckets of them, their fingerprint, and the way to torch.

NumPy has no bfloat16; such a tensor travels as its bits in uint16.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from rlaif_ray.records import Weights

if TYPE_CHECKING:
    import torch

WeightTransfer: TypeAlias = Literal["object_store", "nccl", "ipc"]

NamedArrays: TypeAlias = Iterable[tuple[str, NDArray[np.generic]]]
Buckets: TypeAlias = "Callable[[], Iterator[Mapping[str, torch.Tensor]]]"
"""A pass over the weights that are served: whole tensors by name, in the same order each time, on whatever device.
Gathering them is collective, so every rank must go through it; a bucket is good until the next one."""

_ALIGNMENT = 64  # bytes: a cache line, and more than any type needs


class Fingerprint:
    """Of named tensors that come one by one, in any order: SHA-256 over the sorted names with their types, shapes and
    the XXH3 digests (128 bits) of their bytes. It guards against accidents, at the speed of memory, not against
    forgery."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}

    def add(self, name: str, array: NDArray[np.generic]) -> None:
        """Raises ValueError for a name that was added before."""
        if name in self._lines:
            raise ValueError(f"the weights hold {name} twice")
        digest = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).data)
        self._lines[name] = f"{name} {array.dtype.str} {array.shape} {digest}\n"

    def hexdigest(self) -> str:
        return hashlib.sha256("".join(sorted(self._lines.values())).encode()).hexdigest()


def fingerprint_of(weights: Weights) -> str:
    fingerprint = Fingerprint()
    for name, array in weights.items():
        fingerprint.add(name, array)
    return fingerprint.hexdigest()


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor lies in a bucket: `offset` in bytes."""

    name: str
    dtype: str  # NumPy's
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class WeightBucket:
    """Whole tensors in one flat array (learner rank -> rollout replicas)."""

    data: NDArray[np.uint8]
    places: tuple[TensorPlace, ...]

    def tensors(self) -> Iterator[tuple[str, NDArray[np.generic]]]:
        """Views on `data`, by name."""
        for place in self.places:
            flat = self.data[place.offset : place.offset + place.nbytes]
            yield place.name, flat.view(place.dtype).reshape(place.shape)


class Flattener:
    """Copies tensors, from whatever device, into buckets. A bucket is good until the next one: they share memory,
    whose first use costs more than the copy."""

    def __init__(self) -> None:
        self._memory = np.empty(0, dtype=np.uint8)

    def flatten(self, tensors: Mapping[str, torch.Tensor]) -> WeightBucket:
        places: list[TensorPlace] = []
        end = 0
        for name, tensor in tensors.items():
            offset = -(-end // _ALIGNMENT) * _ALIGNMENT
            place = TensorPlace(name, array_of(tensor.new_empty(0)).dtype.str, tuple(tensor.shape), offset)
            places.append(place)
            end = offset + place.nbytes
        if end > len(self._memory):
            self._memory = np.empty(end, dtype=np.uint8)
        bucket = WeightBucket(self._memory[:end], tuple(places))
        for (_, array), tensor in zip(bucket.tensors(), tensors.values(), strict=True):
            tensor_over(array).copy_(tensor.detach())
        return bucket


def array_of(tensor: torch.Tensor) -> NDArray[np.generic]:
    """A contiguous CPU array, over the tensor's own memory where that is one; bfloat16 as its bits in uint16."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def to_numpy(tensor: torch.Tensor) -> NDArray[np.generic]:
    """The same in memory of its own."""
    return array_of(tensor).copy()


def tensor_over(array: NDArray[np.generic]) -> torch.Tensor:
    """The tensor that `array_of` made this array of, over the array's memory. What comes out of the object store is
    not to be written; torch would not notice."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def to_torch(array: NDArray[np.generic]) -> torch.Tensor:
    """The same in memory of its own."""
    return tensor_over(np.array(array))


def read_files(directory: Path) -> Iterator[dict[str, NDArray[np.generic]]]:
    """The safetensors of a model directory, file by file. Raises FileNotFoundError when there are none."""
    from safetensors.torch import load_file

    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{directory} holds no safetensors")
    for file in files:
        yield {name: array_of(tensor) for name, tensor in load_file(file).items()}


def read_weights(directory: Path) -> dict[str, NDArray[np.generic]]:
    """All of them."""
    return {name: array for file in read_files(directory) for name, array in file.items()}

"""What of a trained policy is served and saved: its weights alone, under the names of the plain model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlaif_ray.engines.partitioning import whole, whole_size
from rlaif_ray.policy.lora import adapted_layers, factors, merged
from rlaif_ray.policy.model import PolicyWithValue
from rlaif_ray.records import Weights
from rlaif_ray.weights import to_numpy


@dataclass(frozen=True, slots=True)
class _ServedTensor:
    name: str
    nbytes: int
    sources: tuple[Tensor, ...]  # what must be whole
    combined: Callable[[], Tensor]


def served_model(model: nn.Module) -> nn.Module:
    """The language model in it: a value head on its trunk is the learner's alone."""
    return model.policy if isinstance(model, PolicyWithValue) else model


@torch.no_grad()
def served_buckets(model: nn.Module, max_bytes: int) -> Iterator[Mapping[str, Tensor]]:
    """All of it in buckets of at most `max_bytes`, or of one tensor; adapters are merged in on the way.

    A bucket is good until the next one. Under ZeRO-3 no more than it is ever whole, and every rank must go through all.
    """
    bucket: list[_ServedTensor] = []
    for tensor in _served_tensors(served_model(model)):
        if bucket and sum(held.nbytes for held in bucket) + tensor.nbytes > max_bytes:
            yield from _whole_bucket(bucket)
            bucket = []
        bucket.append(tensor)
    yield from _whole_bucket(bucket)


def served_weights(model: nn.Module, max_bytes: int, *, kept: bool) -> Weights:
    """A copy of all of it where it is `kept`, on rank 0; nothing elsewhere. Every rank must call it."""
    weights: dict[str, NDArray[Any]] = {}
    for bucket in served_buckets(model, max_bytes):
        if kept:
            weights |= {name: to_numpy(tensor) for name, tensor in bucket.items()}
    return weights


def _whole_bucket(bucket: list[_ServedTensor]) -> Iterator[Mapping[str, Tensor]]:
    with whole([source for tensor in bucket for source in tensor.sources]):
        yield {tensor.name: tensor.combined() for tensor in bucket}


def _served_tensors(model: nn.Module) -> Iterator[_ServedTensor]:
    adapted = adapted_layers(model)
    inner = tuple(f"{name}." for name in adapted)
    for name, layer in adapted.items():
        weight = layer.base_layer.weight
        yield _ServedTensor(f"{name}.weight", whole_size(weight), (weight, *factors(layer)), partial(merged, layer))
        if layer.base_layer.bias is not None:
            yield _plain(f"{name}.bias", layer.base_layer.bias)
    for name, parameter in model.named_parameters():
        if not name.startswith(inner):
            yield _plain(name, parameter)
    kept = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in kept:
            yield _plain(name, buffer)


def _plain(name: str, tensor: Tensor) -> _ServedTensor:
    return _ServedTensor(name, whole_size(tensor), (tensor,), tensor.detach)

"""Whether updates move what they should: every trainable tensor, and no frozen one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import xxhash
from torch import Tensor, nn

from rlaif_ray.policy.lora import adapted_layers
from rlaif_ray.policy.model import ValueModel
from rlaif_ray.weights import to_numpy


class UnexpectedMovement(RuntimeError):
    """After the first updates a trainable tensor is where it was, and no gradient has reached it or most others are
    too; or a frozen one is not."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Digests of a model's tensors, by name. No gradient reaches those of the trainable ones that are `shielded`: what
    they feed is multiplied by zeros."""

    trainable: Mapping[str, bytes]
    frozen: Mapping[str, bytes]
    shielded: frozenset[str] = frozenset()


def snapshot(model: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> Snapshot:
    """`tensors` are the model's parameters by name, whole one at a time."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    digests: dict[str, bytes] = {}
    zeros = set()
    for name, tensor in tensors:
        digests[name] = xxhash.xxh3_128_digest(to_numpy(tensor).data)
        if not tensor.any():
            zeros.add(name)
    shields = _shields(model)
    return Snapshot(
        trainable={name: digest for name, digest in digests.items() if name in trained},
        frozen={name: digest for name, digest in digests.items() if name not in trained},
        shielded=frozenset(name for name in trained if shields.get(name) in zeros),
    )


def _shields(model: nn.Module) -> dict[str, str]:
    """The tensor behind which another one lies, by the other's name: an adapter's A behind its B, and a value model's
    body behind its head."""
    shields = {f"{name}.lora_A.default.weight": f"{name}.lora_B.default.weight" for name in adapted_layers(model)}
    if isinstance(model, ValueModel):
        shields |= {f"body.{name}": "head.weight" for name, _ in model.body.named_parameters()}
    return shields


class MovementWatch:
    """Compares models before and after updates, until each that is trained has been seen to move.

    A tensor that was shielded is looked at again after the next iteration that trains its model. One whose update was
    lost in rounding, as a large weight's is at a small learning rate, is where it was and yet trained, if most have
    moved: `reached` tells, for the models that are trained, which tensors the optimizer holds a gradient of.
    """

    def __init__(
        self, models: Mapping[str, Callable[[], Snapshot]], reached: Mapping[str, Callable[[], Collection[str]]]
    ) -> None:
        self._models = dict(models)
        self._reached = reached
        self._before: dict[str, Snapshot] = {}
        self._moved: dict[str, set[str]] = {name: set() for name in models}

    def begin(self) -> None:
        """Comes before an iteration."""
        for model, take in self._models.items():
            if model not in self._before:
                self._before[model] = take()

    def end(self, trained: Collection[str]) -> None:
        """Comes after an iteration that has `trained` the models of these names. Raises UnexpectedMovement."""
        awaited = {model for model in self._models if self._before[model].trainable}
        if not awaited & set(trained):
            return
        for model, take in list(self._models.items()):
            if model in awaited and model not in trained:
                continue
            before, after = self._before[model], take()
            for name, digest in before.frozen.items():
                if after.frozen[name] != digest:
                    raise UnexpectedMovement(f"the {model}'s {name} is frozen, but an update moved it")
            moved = {name for name, digest in before.trainable.items() if after.trainable[name] != digest}
            if len(before.trainable) / 2 < len(moved | before.shielded) < len(before.trainable):
                moved.update(self._reached[model]())
            for name in before.trainable:
                if name not in moved | before.shielded:
                    raise UnexpectedMovement(f"the {model}'s {name} is trainable, but updates did not move it")
            self._moved[model] |= moved
            self._before[model] = after
            if model in awaited and self._moved[model] == before.trainable.keys():
                awaited.remove(model)
                del self._models[model]
        if not awaited:
            self._models.clear()


class TrainedEngine(Protocol):
    """What a watch asks of an engine."""

    @property
    def module(self) -> nn.Module: ...

    def masters(self) -> Iterable[tuple[str, Tensor]]:
        """Every parameter by name, whole one at a time."""

    def reached(self) -> Collection[str]:
        """The parameters that the optimizer holds a gradient of."""


def watch_engines(
    engines: Mapping[str, TrainedEngine], frozen: Mapping[str, Callable[[], Snapshot]] | None = None
) -> MovementWatch:
    """Over models in training, by name, and others that stay as they are."""
    return MovementWatch(
        {name: partial(_snapshot_of, engine) for name, engine in engines.items()} | dict(frozen or {}),
        {name: engine.reached for name, engine in engines.items()},
    )


def _snapshot_of(engine: TrainedEngine) -> Snapshot:
    return snapshot(engine.module, engine.masters())

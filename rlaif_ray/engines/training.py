"""What trainers ask of an engine that holds a model and its optimizer, on one of several ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from rlaif_ray.records import Weights

Dtype = Literal["float32", "bfloat16"]
Offload = Literal["none", "optimizer", "all"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A linear rise of the learning rate over `warmup` optimizer steps, then a linear fall until step `total`."""

    total: int
    warmup: int

    def share(self, step: int) -> float:
        """The share of the peak rate at `step`, from 0. It is never 0 before step `total`."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return max(self.total - step, 0) / max(self.total - self.warmup, 1)


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW (Loshchilov and Hutter 2019) under ZeRO. Without a schedule the learning rate is constant."""

    learning_rate: float
    max_grad_norm: float
    zero_stage: Literal[0, 1, 2, 3]
    dtype: Dtype
    weight_decay: float = 0.0
    epsilon: float = 1e-8
    schedule: Schedule | None = None
    offload: Offload = "none"
    """What lies in the host's memory: the optimizer's state, or that and the parameters."""


class TrainingEngine(Protocol):
    """A model with its optimizer, one rank of a data-parallel group.

    Losses are normalised by the caller over the whole optimizer step: the gradient that is applied is the *sum* over
    ranks and micro-batches of what `backward` was given.
    """

    @property
    def model(self) -> nn.Module:
        """To call where a gradient follows."""

    @property
    def module(self) -> nn.Module:
        """The same weights, to call where none does."""

    @property
    def device(self) -> torch.device: ...

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def learning_rate(self) -> float:
        """That of the next step."""

    def scale_learning_rate(self, share: float) -> None:
        """Set the rate of the steps from now on to this share of the settings'. For engines without a schedule."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the loss's gradient. `last` marks the micro-batch that `step` follows."""

    def step(self) -> float:
        """Clip, update, advance the schedule; return the gradient's norm before it was clipped.

        Raises FloatingPointError when the norm is not finite.
        """

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor's sum over ranks."""

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, in the order of ranks; all have one shape."""

    def gather_weights(self) -> Weights:
        """Every parameter and kept buffer, whole, by name; bfloat16 as its bits in uint16. Every rank must call it."""

    def load_weights(self, weights: Weights) -> None:
        """Put back parameters that `gather_weights` gave. Every rank must call it, and take no step after it: the
        optimizer is not told."""


StartEngine: TypeAlias = Callable[[nn.Module, OptimizerSettings], TrainingEngine]
"""Takes a model, the same on every rank, into training."""

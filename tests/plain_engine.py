"""A `TrainingEngine` of plain PyTorch on one process: what DeepSpeed must agree with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlaif_ray.engines.training import OptimizerSettings
from rlaif_ray.records import Weights
from rlaif_ray.weights import to_numpy, to_torch


class PlainEngine:
    """Of a model in bfloat16 it keeps float32 weights and sums of gradients, as DeepSpeed does."""

    rank = 0
    world_size = 1
    device = torch.device("cpu")

    def __init__(self, model: nn.Module, settings: OptimizerSettings) -> None:
        self.model = self.module = model.eval()
        self._settings = settings
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._half = settings.dtype == "bfloat16"
        self._masters = [p.detach().float() if self._half else p for p in self._trained]
        self._optimizer = torch.optim.AdamW(
            self._masters, lr=settings.learning_rate, eps=settings.epsilon, weight_decay=settings.weight_decay
        )
        self._steps = 0
        self._share = 1.0

    @property
    def learning_rate(self) -> float:
        schedule = self._settings.schedule
        return self._settings.learning_rate * (schedule.share(self._steps) if schedule else self._share)

    def scale_learning_rate(self, share: float) -> None:
        self._share = share

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()
        if self._half:
            for parameter, master in zip(self._trained, self._masters, strict=True):
                assert parameter.grad is not None
                gradient = parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> float:
        norm = nn.utils.clip_grad_norm_(self._masters, self._settings.max_grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        for parameter, master in zip(self._trained, self._masters, strict=True):
            parameter.copy_(master)
        self._steps += 1
        return float(norm)

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def gather_weights(self) -> Weights:
        return {name: to_numpy(parameter) for name, parameter in self.module.named_parameters()}

    def masters(self) -> Weights:
        names = [name for name, parameter in self.module.named_parameters() if parameter.requires_grad]
        return {name: to_numpy(master) for name, master in zip(names, self._masters, strict=True)}

    def load_weights(self, weights: Weights) -> None:
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(to_torch(weights[name]))

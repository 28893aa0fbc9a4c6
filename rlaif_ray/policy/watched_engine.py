"""The engine of the trainers that take all their steps by themselves: SFT and DPO."""

from __future__ import annotations

from torch import nn

from rlaif_ray.engines.deepspeed_engine import DeepSpeedEngine
from rlaif_ray.engines.training import OptimizerSettings
from rlaif_ray.policy.movement import watch_engines


class WatchedEngine(DeepSpeedEngine):
    """One whose first steps must move every trainable tensor, and no frozen one.

    `step` raises UnexpectedMovement otherwise. A step without a gradient, as a batch of ties has under DPO, moves
    nothing and is not judged.
    """

    def __init__(self, model: nn.Module, settings: OptimizerSettings) -> None:
        super().__init__(model, settings)
        self._watch = watch_engines({"policy": self})

    def step(self) -> float:
        self._watch.begin()
        norm = super().step()
        if norm > 0:
            self._watch.end({"policy"})
        return norm

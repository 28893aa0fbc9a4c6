"""Low-rank adapters (Hu et al. 2022) through peft, put into a model in place: it stays the transformers model it was,
and its forward is the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlaif_ray.config import LoraConfig, UserError

ADAPTER = "default"
"""peft's name for an adapter that is the only one."""


def add_adapters(model: Any, config: LoraConfig, *, seed: int) -> None:
    """Freeze the model and give it adapters, which change nothing at first. Raises UserError when none of its linear
    layers has one of the names."""
    import peft

    torch.manual_seed(seed)
    declare: Any = peft.LoraConfig
    settings = declare(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets) or "all-linear", lora_dropout=0.0
    )
    try:
        peft.inject_adapter_in_model(settings, model, ADAPTER)
    except ValueError as error:
        raise UserError(f"policy.lora.targets: {' '.join(str(error).split())}") from None
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") and not _is_linear(layer):
            raise UserError(f"policy.lora.targets: {name} is not a linear layer; leave it out")
    model.eval()


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The model as it was before it had any. Not for training."""
    layers: list[Any] = list(adapted_layers(model).values())
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers with an adapter, by name: `base_layer.weight` (out, in), `lora_A` (rank, in), `lora_B` (out, rank)."""
    return {name: layer for name, layer in model.named_modules() if _is_linear(layer)}


def merged(layer: Any) -> Tensor:
    """base + alpha / rank * B A, in the base's type; the sum in float32. The layer stays as it is."""
    a, b = factors(layer)
    base: Tensor = layer.base_layer.weight
    change = (b.float() @ a.float()) * layer.scaling[ADAPTER]
    whole: Tensor = base.float() + (change.T if layer.fan_in_fan_out else change)
    return whole.to(base.dtype)


def factors(layer: Any) -> tuple[Tensor, Tensor]:
    """A and B"""
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _is_linear(layer: nn.Module) -> bool:
    from peft.tuners.lora import Linear

    return isinstance(layer, Linear)

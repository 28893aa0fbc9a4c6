"""Gradient checkpointing (Chen et al. 2016): a layer's activations are computed anew when its gradient is."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from rlaif_ray.config import UserError


def recompute_activations(model: nn.Module) -> None:
    """Have every layer of a transformers model do so, in place. Raises UserError for a model without such layers.

    transformers' own switch works in training mode alone, which would bring dropout back.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"learner.gradient_checkpointing: a {type(model).__name__} has no layers to recompute; set it to false"
        )
    for layer in layers:
        # There is no dropout whose random state would have to be the same twice.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)

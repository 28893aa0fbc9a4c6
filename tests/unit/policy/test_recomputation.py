"""Layers whose activations are computed anew in the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlaif_ray.config import UserError
from rlaif_ray.policy.recomputation import recompute_activations
from tests.small_models import policy_and_tokenizer

IDS = torch.arange(5, 15)[None]


def loss_and_runs(model: nn.Module) -> tuple[torch.Tensor, int]:
    """The loss with its gradients in the model, and how often its one layer has run."""
    runs: list[int] = []
    hook = model.get_submodule("model.layers.0.self_attn").register_forward_pre_hook(lambda *_: runs.append(1))
    loss = model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum()
    loss.backward()
    hook.remove()
    return loss.detach(), len(runs)


def test_loss_and_gradients_are_the_same_to_the_bit_and_the_layer_runs_twice() -> None:
    kept, _ = policy_and_tokenizer()
    recomputed, _ = policy_and_tokenizer()
    recompute_activations(recomputed)
    loss, runs = loss_and_runs(kept)
    again, runs_again = loss_and_runs(recomputed)
    assert torch.equal(loss, again)
    assert (runs, runs_again) == (1, 2)
    for name, parameter in kept.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, recomputed.get_parameter(name).grad), name
    assert not any(module.training for module in recomputed.modules())


def test_between_forward_and_backward_less_is_kept() -> None:
    """Bytes that autograd saves, over what the parameters themselves take."""

    def saved(model: nn.Module) -> int:
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        held: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(input_ids=IDS, use_cache=False).logits.sum()
        return sum(size for place, size in held.items() if place not in own)

    kept, _ = policy_and_tokenizer()
    recomputed, _ = policy_and_tokenizer()
    recompute_activations(recomputed)
    assert saved(recomputed) < 0.6 * saved(kept)


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(UserError, match=r"learner\.gradient_checkpointing: a Linear has no layers to recompute"):
        recompute_activations(nn.Linear(2, 2))

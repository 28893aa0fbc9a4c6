"""Adapters in a policy, and the plain model that is served in its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlaif_ray.config import LoraConfig, UserError
from rlaif_ray.policy.lora import adapted_layers, add_adapters, factors, without_adapters
from rlaif_ray.policy.model import PolicyWithValue, new_value_head, save_model
from rlaif_ray.policy.served import served_buckets, served_model, served_weights
from tests.small_models import policy_and_tokenizer, weights_of

IDS = torch.arange(5, 15)[None]
EVERYTHING = 2**30


def adapted_policy(*targets: str) -> Any:
    """With adapters that say something."""
    model, _ = policy_and_tokenizer()
    add_adapters(model, LoraConfig(rank=2, alpha=6.0, targets=targets), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            factors(layer)[1].normal_(generator=generator)
    return model


def served(model: torch.nn.Module, max_bytes: int = EVERYTHING) -> dict[str, Tensor]:
    return {name: tensor.clone() for bucket in served_buckets(model, max_bytes) for name, tensor in bucket.items()}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def test_new_adapters_are_on_every_linear_layer_but_the_head_and_change_nothing() -> None:
    plain, _ = policy_and_tokenizer()
    model, _ = policy_and_tokenizer()
    add_adapters(model, LoraConfig(rank=2), seed=0)
    assert torch.equal(logits(model), logits(plain))
    assert {name.rsplit(".", 1)[1] for name in adapted_layers(model)} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_the_same_seed_draws_the_same_adapters() -> None:
    drawn = []
    for seed in (3, 3, 4):
        model, _ = policy_and_tokenizer()
        torch.rand(seed)
        add_adapters(model, LoraConfig(rank=2), seed=seed)
        drawn.append(factors(adapted_layers(model)["model.layers.0.mlp.up_proj"])[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_without_them_the_model_is_what_it_was_and_they_stay_trainable() -> None:
    plain, _ = policy_and_tokenizer()
    model = adapted_policy()
    with without_adapters(model):
        assert torch.equal(logits(model), logits(plain))
    assert not torch.allclose(logits(model), logits(plain), atol=1e-2)
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_" in name)
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_" not in name)


def test_served_weights_have_the_plain_models_names_and_say_what_the_adapted_model_says() -> None:
    """base + alpha / rank * B A with alpha 6 and rank 2: 3 B A. The trained model is not touched by it."""
    plain, _ = policy_and_tokenizer()
    model = adapted_policy("up_proj")
    untouched = {name: parameter.clone() for name, parameter in model.named_parameters()}
    weights = served(model)
    assert weights.keys() == weights_of(plain).keys()
    a, b = factors(model.model.layers[0].mlp.up_proj)
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(weights[name], plain.get_parameter(name) + 3 * b @ a)
    for other in weights.keys() - {name}:
        assert torch.equal(weights[other], plain.get_parameter(other)), other
    plain.load_state_dict(weights, strict=False)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(parameter, untouched[name]) for name, parameter in model.named_parameters())


def test_in_bfloat16_the_sum_is_rounded_once() -> None:
    model = adapted_policy("up_proj").to(torch.bfloat16)
    layer = model.model.layers[0].mlp.up_proj
    a, b = (factor.double() for factor in factors(layer))
    weight = served(model)["model.layers.0.mlp.up_proj.weight"]
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, (layer.base_layer.weight.double() + 3 * b @ a).float().to(torch.bfloat16))


def test_buckets_hold_each_tensor_once_and_no_more_than_they_may() -> None:
    model = adapted_policy()
    whole = served(model)
    sizes = {name: tensor.numel() * 4 for name, tensor in whole.items()}
    for limit in (1, max(sizes.values()), 3000, EVERYTHING):
        seen: list[str] = []
        buckets: list[Mapping[str, Tensor]] = list(served_buckets(model, limit))
        for bucket in buckets:
            assert len(bucket) == 1 or sum(sizes[name] for name in bucket) <= limit
            seen += bucket
        assert sorted(seen) == sorted(whole)
    assert len(buckets) == 1


def test_a_value_head_on_the_trunk_is_not_served_and_a_saved_policy_is_a_plain_one(tmp_path: Path) -> None:
    plain, tokenizer = policy_and_tokenizer()
    model = adapted_policy()
    both = PolicyWithValue(model, new_value_head(model, "float32"))
    assert served_model(both) is model
    weights = served_weights(both, 1, kept=True)
    assert weights.keys() == weights_of(plain).keys()
    assert served_weights(both, 1, kept=False) == {}
    save_model(served_model(both), weights, tokenizer, tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("targets", "said"), [(("no_such_layer",), "no_such_layer"), (("embed_tokens",), "is not a linear layer")]
)
def test_targets_that_cannot_have_one_are_refused(targets: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=rf"policy\.lora\.targets: .*{said}"):
        adapted_policy(*targets)

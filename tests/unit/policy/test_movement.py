"""After the first updates every trainable tensor has moved, and no frozen one."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from rlaif_ray.config import LoraConfig
from rlaif_ray.policy.lora import add_adapters
from rlaif_ray.policy.model import ValueModel, new_value_head
from rlaif_ray.policy.movement import MovementWatch, UnexpectedMovement, snapshot
from tests.small_models import policy_and_tokenizer


class Pair(nn.Module):
    """A trainable tensor and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.learnt = nn.Parameter(torch.ones(2))
        self.kept = nn.Parameter(torch.ones(2), requires_grad=False)


def nudge(*tensors: Tensor) -> None:
    with torch.no_grad():
        for tensor in tensors:
            tensor += 0.5


def watch_of(**models: nn.Module) -> MovementWatch:
    def taking(model: nn.Module):  # type: ignore[no-untyped-def]
        return lambda: snapshot(model, model.named_parameters())

    return MovementWatch({name: taking(model) for name, model in models.items()}, dict.fromkeys(models, frozenset))


def frozen() -> Pair:
    return Pair().requires_grad_(False)


def test_what_moves_as_it_should_is_looked_at_once() -> None:
    policy, reference = Pair(), frozen()
    taken = []

    def counted():  # type: ignore[no-untyped-def]
        taken.append(1)
        return snapshot(policy, policy.named_parameters())

    watch = MovementWatch(
        {"policy": counted, "reference": lambda: snapshot(reference, reference.named_parameters())}, {}
    )
    for _ in range(3):
        watch.begin()
        nudge(policy.learnt)
        watch.end({"policy"})
    assert len(taken) == 2
    nudge(policy.kept)
    watch.end({"policy"})


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        ((), "the policy's learnt is trainable, but updates did not move it"),
        (("policy.learnt", "policy.kept"), "the policy's kept is frozen, but an update moved it"),
        (("policy.learnt", "reference.learnt"), "the reference's learnt is frozen, but an update moved it"),
    ],
)
def test_what_does_not_is_named(moved: tuple[str, ...], said: str) -> None:
    models = nn.ModuleDict({"policy": Pair(), "reference": frozen()})
    watch = watch_of(**dict(models.items()))
    watch.begin()
    nudge(*(models.get_parameter(name) for name in moved))
    with pytest.raises(UnexpectedMovement, match=said):
        watch.end({"policy"})


@pytest.mark.parametrize(
    ("moved", "reached", "stuck"),
    [("xy", "z", None), ("xy", "", "z"), ("x", "yz", "y")],
)
def test_an_update_that_rounding_ate_is_one_where_a_gradient_came_and_most_have_moved(
    moved: str, reached: str, stuck: str | None
) -> None:
    policy = nn.ParameterDict({name: torch.ones(2) for name in "xyz"})
    takes = {"policy": lambda: snapshot(policy, policy.named_parameters())}
    watch = MovementWatch(takes, {"policy": lambda: set(reached)})
    watch.begin()
    nudge(*(policy[name] for name in moved))
    with nullcontext() if stuck is None else pytest.raises(UnexpectedMovement, match=f"the policy's {stuck} is train"):
        watch.end({"policy"})


def test_a_model_that_was_not_trained_is_awaited_and_the_reference_with_it() -> None:
    policy, value, reference = Pair(), Pair(), frozen()
    watch = watch_of(policy=policy, value=value, reference=reference)
    watch.begin()
    nudge(value.learnt)
    watch.end({"value"})
    for _ in range(2):
        watch.begin()
        watch.end(set())
        watch.end({"value"})
    nudge(policy.learnt, reference.kept)
    with pytest.raises(UnexpectedMovement, match="the reference's kept"):
        watch.end({"policy", "value"})


def test_an_adapters_a_and_the_body_under_a_head_of_zeros_may_move_an_update_later_but_no_more() -> None:
    """With B = 0 the gradient of A is B^T times something: zero. A body under a head of zeros has none either."""
    policy, _ = policy_and_tokenizer()
    value = ValueModel(policy_and_tokenizer()[0].base_model, new_value_head(policy, "float32"))
    add_adapters(policy, LoraConfig(rank=2), seed=0)
    later = {
        "policy": [parameter for name, parameter in policy.named_parameters() if "lora_A" in name],
        "value": list(value.body.parameters()),
    }
    first = {
        "policy": [parameter for name, parameter in policy.named_parameters() if "lora_B" in name],
        "value": list(value.head.parameters()),
    }
    watch = watch_of(policy=policy, value=value)
    watch.begin()
    nudge(*first["policy"], *first["value"])
    watch.end({"policy", "value"})
    watch.begin()
    nudge(*first["policy"], *first["value"], *later["policy"], *later["value"][1:])
    with pytest.raises(UnexpectedMovement, match=r"the value's body\.embed_tokens\.weight is trainable"):
        watch.end({"policy", "value"})

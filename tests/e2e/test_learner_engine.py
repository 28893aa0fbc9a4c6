"""DeepSpeed's stages, on one rank and on two, against a plain loop of one process."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlaif_ray.config import LoraConfig, ScratchModelConfig
from rlaif_ray.engines.training import OptimizerSettings, TrainingEngine
from rlaif_ray.policy.lora import add_adapters
from rlaif_ray.policy.model import load_policy, save_model, scratch_policy, scratch_tokenizer
from rlaif_ray.policy.movement import UnexpectedMovement
from rlaif_ray.policy.recomputation import recompute_activations
from rlaif_ray.weights import to_numpy
from tests.plain_engine import PlainEngine
from tests.rank_group import run_ranks
from tests.small_models import WORDS, policy_and_tokenizer, weights_of

STEPS = 3
ROWS = 8


@dataclass(frozen=True, slots=True)
class Variant:
    dtype: Literal["float32", "bfloat16"] = "float32"
    stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "all"] = "none"
    lora: bool = False
    recompute: bool = False
    learning_rate_share: float = 1.0

    def model(self) -> Any:
        model, _ = policy_and_tokenizer()
        model = model.to(getattr(torch, self.dtype))
        if self.lora:
            add_adapters(model, LoraConfig(rank=2, alpha=4.0), seed=0)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:  # else A is reached by no gradient in the first step
                        parameter.fill_(0.05)
        if self.recompute:
            recompute_activations(model)
        return model

    @property
    def settings(self) -> OptimizerSettings:
        # With a large epsilon AdamW does not blow the rounding of small gradients up to whole steps.
        epsilon = 1e-3 if self.dtype == "bfloat16" else 1e-8
        return OptimizerSettings(1e-2, 1.0, self.stage, self.dtype, epsilon=epsilon, offload=self.offload)

    @property
    def plain(self) -> Variant:
        """What a plain loop sees of it."""
        return Variant(dtype=self.dtype, lora=self.lora, learning_rate_share=self.learning_rate_share)


STAGES = [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (1, "optimizer"), (2, "optimizer"), (3, "all")]
VARIANTS = [
    *(Variant(dtype, *stage) for dtype, stage in itertools.product(("float32", "bfloat16"), STAGES)),
    Variant(recompute=True),
    Variant(stage=3, recompute=True),
    Variant(lora=True),
    Variant(stage=2, lora=True),
    Variant(stage=3, lora=True),
    Variant(stage=3, offload="all", lora=True, recompute=True),
    Variant(learning_rate_share=0.25),
    Variant("bfloat16", 2, learning_rate_share=0.25),
]


@dataclass(frozen=True, slots=True)
class Trained:
    masters: Mapping[str, NDArray[Any]]
    norm: float
    """Of the last step's gradient."""


def train(engine: TrainingEngine, share: float) -> float:
    """Three updates of three micro-batches; returns the last gradient's norm."""
    engine.scale_learning_rate(share)
    for step in range(STEPS):
        ids = torch.from_numpy(np.random.default_rng(step).integers(5, 15, (ROWS, 7)))
        own = ids[engine.rank :: engine.world_size]
        for number, rows in enumerate((own[:1], own[1:3], own[3:]), start=1):
            engine.backward(sum_of_losses(engine.model, rows) / (ROWS * 6), last=number == 3)
        norm = engine.step()
    return norm


def sum_of_losses(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


def train_variants(variants: list[Variant]) -> list[Trained]:
    """On each rank."""
    from rlaif_ray.engines.deepspeed_engine import DeepSpeedEngine

    found = []
    for variant in variants:
        engine = DeepSpeedEngine(variant.model(), variant.settings)
        norm = train(engine, variant.learning_rate_share)
        found.append(Trained({name: to_numpy(tensor) for name, tensor in engine.masters()}, norm))
    return found


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def trained(request: pytest.FixtureRequest) -> dict[Variant, list[Trained]]:
    by_rank = run_ranks(request.param, train_variants, VARIANTS)
    return {variant: list(ranks) for variant, *ranks in zip(VARIANTS, *by_rank, strict=True)}


@cache
def plainly_trained(variant: Variant) -> Trained:
    engine = PlainEngine(variant.model(), variant.settings)
    norm = train(engine, variant.learning_rate_share)
    return Trained(engine.masters(), norm)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_stage_trains_as_a_plain_loop_does(variant: Variant, trained: dict[Variant, list[Trained]]) -> None:
    """In float32 to rounding; in bfloat16, whose gradients have 8 bits and are summed over ranks in bfloat16, to a
    tenth of the movement. Frozen tensors stay to the bit."""
    expected = plainly_trained(variant.plain)
    start = {name: to_numpy(parameter.float()) for name, parameter in variant.model().named_parameters()}
    half = variant.dtype == "bfloat16"
    for rank in trained[variant]:
        assert rank.norm == pytest.approx(expected.norm, rel=2e-2 if half else 1e-5)
        for name, tensor in rank.masters.items():
            if name in expected.masters:
                moved = np.abs(expected.masters[name] - start[name]).max()
                assert moved > 1e-3
                np.testing.assert_allclose(tensor, expected.masters[name], atol=0.1 * moved if half else 1e-6)
            else:
                np.testing.assert_array_equal(tensor, start[name])


def divided_model(directory: Path) -> tuple[bool, float, int, dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """On each rank: whether no large tensor was whole after loading, the share of the largest bucket's bytes that was
    ever whole, the number of buckets, and the weights before and after a step."""
    from rlaif_ray.engines.deepspeed_engine import DeepSpeedEngine
    from rlaif_ray.engines.partitioning import loading_for, partitioned_for_inference
    from rlaif_ray.policy import served

    def load() -> Any:
        return load_policy(directory, dtype="float32", trust_remote_code=False)

    with loading_for(3, "float32"):
        model, reference = load(), load().requires_grad_(False)
    divided = all(parameter.numel() == 0 for parameter in model.parameters() if parameter.ds_numel > PERSISTENT)
    engine = DeepSpeedEngine(model, OptimizerSettings(1e-2, 1.0, 3, "float32"))
    frozen = partitioned_for_inference(reference, "float32", "none")
    largest = 0

    def weights() -> dict[str, NDArray[Any]]:
        nonlocal largest
        found: dict[str, NDArray[Any]] = {}
        for bucket in served.served_buckets(engine.module, BUCKET):
            whole = [parameter for parameter in engine.module.parameters() if parameter.ds_numel > PERSISTENT]
            largest = max(largest, sum(parameter.numel() * 4 for parameter in whole))
            found |= {name: to_numpy(tensor) for name, tensor in bucket.items()}
        return found

    ids = torch.arange(5, 15)[None]
    before = weights()
    with torch.no_grad():
        same = torch.equal(frozen(input_ids=ids).logits, engine.module(input_ids=ids).logits)
    engine.backward(sum_of_losses(engine.model, ids), last=True)
    engine.step()
    return (
        divided and same,
        largest / BUCKET,
        len(list(served.served_buckets(engine.module, BUCKET))),
        before,
        weights(),
    )


PERSISTENT = 100_000
"""Tensors of fewer elements stay whole under ZeRO-3."""
BUCKET = 2**20


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_divided_model_is_never_whole_on_a_rank_not_even_when_it_is_loaded_or_published(
    ranks: int, tmp_path: Path
) -> None:
    """Of a model of 3 MB, tensors of 0.4 MB, in buckets of 1 MB."""
    tokenizer = scratch_tokenizer([WORDS])
    shape = ScratchModelConfig(hidden_size=320, layers=1, heads=2, intermediate_size=320)
    policy = scratch_policy(shape, tokenizer, positions=32, dtype="float32", seed=0)
    save_model(policy, weights_of(policy), tokenizer, tmp_path)
    for as_expected, largest, buckets, before, after in run_ranks(ranks, divided_model, tmp_path):
        assert as_expected
        assert 0 < largest <= 1
        assert buckets >= 3
        assert before.keys() == after.keys() == weights_of(policy).keys()
        for name, tensor in weights_of(policy).items():
            np.testing.assert_array_equal(before[name], tensor)
            assert not np.array_equal(after[name], tensor)


def watched_steps(variants: list[Variant]) -> list[list[str]]:
    """On each rank, for each variant: what stopped a step without a gradient, one whose updates are too small for the
    norms' ones, one whose are too small for any, and one of a model with a tensor that no loss depends on."""
    from rlaif_ray.policy.watched_engine import WatchedEngine

    def stopped_by(variant: Variant, *, gradient: float = 1.0, rate: float = 1e-8, spare: bool = False) -> str:
        model = variant.model()
        if spare:
            model.spare = nn.Parameter(torch.ones(3))
        engine = WatchedEngine(model, variant.settings)
        engine.scale_learning_rate(rate / variant.settings.learning_rate)
        try:
            engine.backward(gradient * sum_of_losses(engine.model, torch.arange(5, 13)[None]), last=True)
            engine.step()
        except UnexpectedMovement as error:
            return str(error)
        return ""

    return [
        [
            stopped_by(variant, gradient=0.0),
            stopped_by(variant),
            stopped_by(variant, rate=1e-30),
            stopped_by(variant, spare=True),
        ]
        for variant in variants
    ]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_that_leaves_a_tensor_untrained_is_stopped_and_one_that_rounding_ate_is_not(ranks: int) -> None:
    variants = [Variant(stage=stage, offload=offload) for stage, offload in STAGES]
    said = "the policy's {} is trainable, but updates did not move it"
    first = "model.layers.0.self_attn.q_proj.weight"  # the embedding's zeros, those of padding, move at any rate
    for rank in run_ranks(ranks, watched_steps, variants):
        for stopped in rank:
            assert stopped == ["", "", said.format(first), said.format("spare")]

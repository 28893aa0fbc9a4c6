"""Loss and gradients are those of TRL's reward trainer, computed by it on the same batch of hard labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer
from trl import RewardConfig, RewardTrainer

from rlaif_ray.config import FitConfig
from rlaif_ray.engines.training import OptimizerSettings
from rlaif_ray.metrics import LOSS
from rlaif_ray.records import LabelledPair
from rlaif_ray.reward.comparisons import comparison_groups
from rlaif_ray.reward.losses import PairObjective
from rlaif_ray.reward.model import load_reward_model
from rlaif_ray.reward.training import training_steps
from tests.plain_engine import PlainEngine
from tests.small_models import write_models

PAIRS = 12


class RecordingEngine(PlainEngine):
    """Keeps a step's gradients and does not take it."""

    gradients: dict[str, Tensor]

    def step(self) -> float:
        self.gradients = gradients_of(self.module)
        return 0.0


def gradients_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def certain_pairs() -> list[LabelledPair]:
    """Some labels name the first answer and some the second."""
    random = np.random.default_rng(0)
    return [
        LabelledPair(
            f"{number}",
            f"{number}",
            *(tuple(random.integers(5, 15, random.integers(1, 9)).tolist()) for _ in range(3)),
            p=number % 2,
        )
        for number in range(PAIRS)
    ]


@pytest.mark.parametrize("margin", [0.0, 0.3])
@pytest.mark.parametrize("centring", [0.0, 0.01])
def test_loss_and_gradients_are_trls(margin: float, centring: float, tmp_path: Path) -> None:
    _, directory = write_models(tmp_path)
    pairs = certain_pairs()

    ours = load_reward_model(directory, dtype="float64", trust_remote_code=False)
    engine = RecordingEngine(ours, OptimizerSettings(1e-3, 1.0, 0, "float32"))
    settings = FitConfig(batch_size=PAIRS, micro_batch_size=5)
    objective = PairObjective(margin=margin, centring=centring)
    [values] = training_steps(engine, comparison_groups(pairs, by_prompt=False), settings, objective, 1, seed=0)

    rows = []
    for pair in pairs:
        first, second = [*pair.prompt, *pair.answer_a], [*pair.prompt, *pair.answer_b]
        chosen, rejected = (first, second) if pair.p == 1 else (second, first)
        rows.append({"chosen_ids": chosen, "rejected_ids": rejected} | ({"margin": margin} if margin else {}))
    trainer = RewardTrainer(
        model=load_reward_model(directory, dtype="float64", trust_remote_code=False),
        args=RewardConfig(
            output_dir=str(tmp_path / "trl"),
            center_rewards_coefficient=centring or None,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(directory),
    )
    theirs = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    theirs.backward()

    assert theirs.dtype == torch.float64
    assert values[LOSS] == pytest.approx(theirs.item(), abs=1e-6)
    expected = gradients_of(trainer.model)
    assert engine.gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(engine.gradients[name], gradient, rtol=0, atol=1e-6)
    assert max(gradient.abs().max().item() for gradient in expected.values()) > 1e-2

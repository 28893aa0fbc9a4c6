"""Losses and gradients are those of TRL's DPO trainer, computed by it: on one batch through both models, and on the
same log-probabilities in float64."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from rlaif_ray.dpo import AnswerPairs
from rlaif_ray.policy.dpo import DpoObjective
from rlaif_ray.policy.model import load_policy, save_model
from rlaif_ray.records import LabelledPair
from tests.small_models import policy_and_tokenizer, weights_of

PAIRS = 12
CPU = torch.device("cpu")
BETA = 0.3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A policy, and a reference that differs from it."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("policy", "reference")):
        model, tokenizer = policy_and_tokenizer(seed)
        (folder / name).mkdir()
        save_model(model, weights_of(model), tokenizer, folder / name)
    return folder / "policy", folder / "reference"


def trainer_of(models: tuple[Path, Path], directory: Path, loss: str, label_smoothing: float = 0.0) -> DPOTrainer:
    """Dropout is off in ours, and these models have none."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in models)
    return DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(
            output_dir=str(directory),
            loss_type=loss,
            beta=BETA,
            label_smoothing=label_smoothing,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": "one two ", "chosen": "three", "rejected": "four"}]),
        processing_class=AutoTokenizer.from_pretrained(models[0]),
    )


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_a_batch_through_the_models_has_trls_loss_and_gradients(
    loss: Literal["sigmoid", "ipo"], models: tuple[Path, Path], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    pairs = [
        LabelledPair(
            f"{number}", "", *(tuple(random.integers(5, 15, random.integers(1, 9)).tolist()) for _ in range(3)), p=1.0
        )
        for number in range(PAIRS)
    ]
    ours, reference = (load_policy(path, dtype="float32", trust_remote_code=False).double() for path in models)
    batch, rows = AnswerPairs.of(pairs), np.arange(PAIRS)
    with torch.no_grad():
        before = batch.logprobs(reference, rows, CPU)
    log_ratios = batch.logprobs(ours, rows, CPU) - before
    losses = DpoObjective(loss, BETA, 0.0)(log_ratios, batch.answer_lengths, batch.p, batch.weights)
    losses.mean().backward()

    trainer = trainer_of(models, tmp_path, loss)
    theirs = trainer.compute_loss(
        trainer.model,
        trainer.data_collator(
            [
                {
                    "prompt_ids": list(pair.prompt),
                    "chosen_ids": list(pair.answer_a),
                    "rejected_ids": list(pair.answer_b),
                }
                for pair in pairs
            ]
        ),
    )
    theirs.backward()

    assert losses.mean().item() == pytest.approx(theirs.item(), abs=1e-6)
    gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-6)
    assert max(gradient.abs().max().item() for gradient in gradients.values()) > 1e-2


def said(log_probs: Tensor) -> Any:
    """A model that says nothing but these; TRL logs the rest."""
    zeros = torch.zeros_like(log_probs)
    return lambda **_: SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


@dataclass(frozen=True)
class Tables:
    """Log-probabilities of 2N answers, chosen ones first, under policy and reference; 0 beyond an answer's end."""

    policy: Tensor
    reference: Tensor
    mask: Tensor

    @classmethod
    def drawn(cls, seed: int) -> Tables:
        random = torch.Generator().manual_seed(seed)
        mask = torch.arange(9) < torch.randint(1, 10, (2 * PAIRS, 1), generator=random)
        policy, reference = (
            torch.where(mask, -4 * torch.rand(mask.shape, generator=random, dtype=torch.float64), 0.0) for _ in range(2)
        )
        return cls(policy.requires_grad_(), reference, mask)

    def pair(self, number: int) -> Tables:
        rows = [number, PAIRS + number]
        return Tables(self.policy.detach()[rows].requires_grad_(), self.reference[rows], self.mask[rows])

    def trls(self, trainer: DPOTrainer) -> Tensor:
        """The loss by TRL's own code, of a model that says what the table says; a prompt of one token."""
        full = torch.nn.functional.pad(self.mask.long(), (1, 0))
        trainer.ref_model = said(self.reference)
        loss: Tensor = trainer.compute_loss(
            said(self.policy), {"input_ids": full, "attention_mask": torch.ones_like(full), "completion_mask": full}
        )
        return loss

    def ours(self, objective: DpoObjective, p: float) -> Tensor:
        ratios = (self.policy - self.reference).sum(1)
        shape = (2, len(ratios) // 2)
        log_ratios, lengths = ratios.reshape(shape).T, self.mask.sum(1).reshape(shape).T
        labels = torch.full((len(log_ratios),), p, dtype=torch.float64)
        return objective(log_ratios, lengths, labels, torch.ones_like(labels)).mean()


def gradient(loss: Tensor, table: Tensor) -> Tensor:
    (of_table,) = torch.autograd.grad(loss, table)
    return of_table


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_the_losses_of_verdicts_are_trls(
    loss: Literal["sigmoid", "ipo"], models: tuple[Path, Path], tmp_path: Path
) -> None:
    trainer = trainer_of(models, tmp_path, loss)
    for seed in range(5):
        table = Tables.drawn(seed)
        ours, theirs = table.ours(DpoObjective(loss, BETA, 0.0), 1.0), table.trls(trainer)
        assert theirs.dtype == torch.float64
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
        torch.testing.assert_close(gradient(ours, table.policy), gradient(theirs, table.policy), rtol=0, atol=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_smoothed_and_soft_labels_are_trls_conservative_loss(
    share: float, models: tuple[Path, Path], tmp_path: Path
) -> None:
    """TRL's `aot` is conservative DPO on sorted differences: of one pair there is nothing to sort. A label that is
    flipped with some probability is the same as one that is so much less sure."""
    trainer = trainer_of(models, tmp_path, "aot", label_smoothing=share)
    for number in range(PAIRS):
        table = Tables.drawn(7).pair(number)
        theirs = table.trls(trainer)
        wanted = gradient(theirs, table.policy)
        for objective, p in (
            (DpoObjective("sigmoid", BETA, share), 1.0),
            (DpoObjective("sigmoid", BETA, 0.0), 1 - share),
        ):
            ours = table.ours(objective, p)
            assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
            torch.testing.assert_close(gradient(ours, table.policy), wanted, rtol=0, atol=1e-9)

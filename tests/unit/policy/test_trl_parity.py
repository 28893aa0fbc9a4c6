"""The policy losses beside those of TRL 1.16's GRPOTrainer, through its own code, on the same tensors."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from trl import GRPOTrainer

from rlaif_ray.policy.losses import TokenBatch, clipped_surrogate, reference_kl_loss, token_shares

ANSWERS, LONGEST = 6, 9
CLIP, BETA = 0.2, 0.3


def tensors() -> dict[str, torch.Tensor]:
    """Log-probabilities (B, T) that differ by up to a few clips, advantages (B,), weights, and the answers' mask."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    old = draw(ANSWERS, LONGEST) - 2
    return {
        "new": old + 0.4 * draw(ANSWERS, LONGEST),
        "old": old,
        "reference": old + 0.3 * draw(ANSWERS, LONGEST),
        "advantages": draw(ANSWERS),
        "weights": (0.3 * draw(ANSWERS, LONGEST)).exp().clamp(max=2.0),
        "mask": torch.arange(LONGEST) < torch.tensor([9, 1, 4, 6, 2, 9])[:, None],
    }


def theirs(given: dict[str, torch.Tensor], loss_type: str, delta: float | None) -> tuple[float, torch.Tensor]:
    new = given["new"].clone().requires_grad_()
    trainer = MagicMock()
    trainer.configure_mock(
        loss_type=loss_type,
        beta=BETA,
        epsilon_low=CLIP,
        epsilon_high=CLIP,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        max_completion_length=LONGEST,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False),
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros_like(new), None),
    )
    trainer.accelerator.gather.side_effect = trainer.accelerator.gather_for_metrics.side_effect = lambda tensor: tensor
    mask = given["mask"].long()
    inputs: dict[str, Any] = {
        "prompt_ids": torch.zeros(ANSWERS, 1, dtype=torch.long),
        "prompt_mask": torch.ones(ANSWERS, 1, dtype=torch.long),
        "completion_ids": torch.zeros(ANSWERS, LONGEST, dtype=torch.long),
        "completion_mask": mask,
        "advantages": given["advantages"],
        "old_per_token_logps": given["old"],
        "ref_per_token_logps": given["reference"],
        "importance_sampling_ratio": given["weights"],
    }
    loss = GRPOTrainer._compute_loss(trainer, MagicMock(), inputs)
    loss.backward()
    assert new.grad is not None
    return loss.item(), new.grad


def ours(given: dict[str, torch.Tensor], aggregation: Any, dual_clip: float | None) -> tuple[float, torch.Tensor]:
    new = given["new"].clone().requires_grad_()
    mask = given["mask"]
    shares = token_shares(mask, aggregation, longest=LONGEST).double()
    tokens = TokenBatch(
        logprobs=new[mask],
        old_logprobs=given["old"][mask],
        weights=given["weights"][mask],
        advantages=given["advantages"][:, None].expand_as(mask)[mask],
        shares=shares[mask],
    )
    loss = clipped_surrogate(tokens, clip=CLIP, dual_clip=dual_clip).loss
    loss = loss + BETA * reference_kl_loss(tokens, given["reference"][mask], "k3")
    loss.backward()
    assert new.grad is not None
    return loss.item(), new.grad


@pytest.mark.parametrize("dual_clip", [None, 1.5])
@pytest.mark.parametrize(
    ("loss_type", "aggregation"), [("grpo", "answer_mean"), ("bnpo", "token_mean"), ("dr_grpo", "length_constant")]
)
def test_the_loss_and_its_gradient_are_trls(loss_type: str, aggregation: str, dual_clip: float | None) -> None:
    given = tensors()
    expected, gradient = theirs(given, loss_type, dual_clip)
    loss, own_gradient = ours(given, aggregation, dual_clip)
    assert loss == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(own_gradient, gradient, rtol=1e-5, atol=1e-9)

"""Log-probabilities of answers under a causal language model, and the entropy it had at each of their tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """Sequences as a model takes them: prompts padded on the left, answers on the right, so answers line up.

    `input_ids`, `attention_mask`, `position_ids` (B, P + A) int64. Positions count real tokens, so padding on the left
    does not shift them.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    answer_width: int  # A

    @property
    def answer_ids(self) -> Tensor:
        return self.input_ids[:, -self.answer_width :]


def answer_logits(model: nn.Module, inputs: ModelInputs) -> Tensor:
    """Logits (B, A, V) that predict each answer token, from the state before it."""
    logits: Tensor = model(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        position_ids=inputs.position_ids,
        use_cache=False,
        logits_to_keep=inputs.answer_width + 1,
    ).logits
    return logits[:, -inputs.answer_width - 1 : -1]


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) at `tokens` (B, A), in float32."""
    logits = logits.float() / temperature
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


@torch.no_grad()
def token_entropies(logits: Tensor, temperature: float) -> Tensor:
    """Entropy (B, A) in nats of softmax(logits / temperature), in float32."""
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    return -(logprobs.exp() * logprobs).sum(-1)

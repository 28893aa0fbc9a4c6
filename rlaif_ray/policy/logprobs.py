"""Log-probabilities of tokens under a model's logits, and the entropy that it had at each."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) at `tokens`, in float32; logits have one more dimension, the vocabulary."""
    logits = logits.float() / temperature
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


@torch.no_grad()
def token_entropies(logits: Tensor, temperature: float) -> Tensor:
    """Entropy in nats of softmax(logits / temperature) over the last dimension, in float32."""
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    return -(logprobs.exp() * logprobs).sum(-1)

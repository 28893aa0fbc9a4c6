"""The reward model before it is fitted: a language model's body under one scalar head."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlaif_ray.config import UserError
from rlaif_ray.engines.training import Dtype
from rlaif_ray.policy.model import add_pad_token, ensure_pad_token, load_tokenizer, stop_token
from rlaif_ray.reward.encoding import AnswerEncoder
from rlaif_ray.reward.model import scalar_head
from rlaif_ray.reward.scoring import rewards_of, right_padded


def reward_tokenizer(start: Path | str, *, trust_remote_code: bool) -> Any:
    """The tokenizer of a reward model that starts from `start`, with a pad token of its own.

    Raises UserError when it cannot be loaded.
    """
    try:
        tokenizer = load_tokenizer(start, trust_remote_code=trust_remote_code)
        add_pad_token(tokenizer, _generation_config(start, trust_remote_code))
    except (OSError, ValueError) as error:
        raise _unusable(start, error) from None
    return tokenizer


def starting_encoder(start: Path | str, *, trust_remote_code: bool) -> AnswerEncoder:
    """How a reward model that starts from `start` reads texts. Raises UserError when its tokenizer cannot be loaded."""
    from transformers import AutoConfig

    tokenizer = reward_tokenizer(start, trust_remote_code=trust_remote_code)
    config: Any = AutoConfig.from_pretrained(start, trust_remote_code=trust_remote_code)
    stop = stop_token(_generation_config(start, trust_remote_code), tokenizer)
    return AnswerEncoder(tokenizer, stop, getattr(config, "max_position_embeddings", sys.maxsize))


def same_vocabulary(one: Any, other: Any) -> bool:
    """Whether two tokenizers give a conversation the same token ids."""
    return bool(one.get_vocab() == other.get_vocab() and one.chat_template == other.chat_template)


def new_reward_model(start: Path | str, *, dtype: Dtype, seed: int, trust_remote_code: bool) -> Any:
    """The body of `start` under a scalar head, drawn by `seed` with std 1 / sqrt(hidden + 1) (Stiennon et al. 2020); a
    head that `start` has is kept. `config.eos_token_id` is the token that ends an answer.

    Raises UserError when there is no such model, or when it scores otherwise than at the last token by a linear head.
    """
    from transformers import AutoModelForSequenceClassification

    tokenizer = reward_tokenizer(start, trust_remote_code=trust_remote_code)
    torch.manual_seed(seed)
    try:
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            start,
            num_labels=1,
            problem_type="regression",
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        # A classifier has none, but which tokens end an answer is in that of the causal model.
        model.generation_config = _generation_config(start, trust_remote_code)
        ensure_pad_token(model, tokenizer)
        model.config.eos_token_id = stop_token(model.generation_config, tokenizer)
        head = scalar_head(model)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unusable(start, error) from None
    if loaded["missing_keys"]:
        with torch.no_grad():
            head.weight.normal_(std=(head.in_features + 1) ** -0.5)
    model.eval()
    if not _scores_the_last_token(model, head):
        raise _unusable(start, ValueError(f"a {type(model).__name__} does not score the last token alone"))
    return model


def _generation_config(start: Path | str, trust_remote_code: bool) -> Any:
    """What says which tokens end an answer. A model without one says it in its config."""
    from transformers import AutoConfig, GenerationConfig

    try:
        return GenerationConfig.from_pretrained(start)
    except OSError:
        return GenerationConfig.from_model_config(
            AutoConfig.from_pretrained(start, trust_remote_code=trust_remote_code)
        )


@torch.no_grad()
def _scores_the_last_token(model: Any, head: nn.Linear) -> bool:
    """Whether each beginning of a sequence is scored by the head on its last state, whatever pads it."""
    pad_id = model.config.pad_token_id
    sequence = [token for token in range(model.get_input_embeddings().num_embeddings) if token != pad_id][:8]
    beginnings = [sequence[:length] for length in range(1, len(sequence) + 1)]
    scores = rewards_of(model, right_padded(beginnings, pad_id, model.device))
    states = model.base_model(torch.tensor([sequence], device=model.device), use_cache=False).last_hidden_state[0]
    # Wide enough for bfloat16.
    return torch.allclose(scores, head(states).squeeze(-1).float(), rtol=0.05, atol=0.05)


def _unusable(start: Path | str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(
        f"a reward model cannot start from {start} ({reason}); set reward.model to a causal language model"
    )

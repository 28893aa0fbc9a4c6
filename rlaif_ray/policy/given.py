"""A model that the config names, as it is before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlaif_ray.config import PolicyConfig, UserError
from rlaif_ray.policy.model import ensure_pad_token, load_policy, load_tokenizer
from rlaif_ray.rundir import directory_written_atomically
from rlaif_ray.toyworld.models import model_path


def load_given(name: str, key: str, policy: PolicyConfig) -> tuple[Any, Any]:
    """The model that `key` names and its tokenizer, with a pad token of its own.

    Raises UserError where it cannot be used, or takes fewer tokens than the policy is to have.
    """
    path = model_path(name)
    try:
        model = load_policy(path, dtype=policy.dtype, trust_remote_code=policy.trust_remote_code)
        tokenizer = load_tokenizer(path, trust_remote_code=policy.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{key}={name}: cannot be used ({reason}); name another causal language model") from None
    longest = getattr(model.config, "max_position_embeddings", policy.context_tokens)
    if policy.context_tokens > longest:
        raise UserError(
            f"policy.max_prompt_tokens={policy.max_prompt_tokens} and policy.max_answer_tokens="
            f"{policy.max_answer_tokens} together exceed what {name} takes ({longest} positions, one of "
            "which scoring needs); lower one of them"
        )
    ensure_pad_token(model, tokenizer)
    return model, tokenizer


def has_chat_template(directory: Path, *, trust_remote_code: bool) -> bool:
    """Whether a model is one to converse with."""
    return load_tokenizer(directory, trust_remote_code=trust_remote_code).chat_template is not None


def conversation_tokens(directory: Path, wanted: int) -> int:
    """The longest conversation with a model: what is wanted, or less where it takes no more."""
    config = json.loads((directory / "config.json").read_text())
    longest: int = config.get("max_position_embeddings", wanted)
    return min(wanted, longest)


def keep_given(name: str, key: str, policy: PolicyConfig, directory: Path) -> None:
    """Write the model that `key` names to `directory`, whole or not at all. Raises UserError as `load_given` does."""
    model, tokenizer = load_given(name, key, policy)
    with directory_written_atomically(directory) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)

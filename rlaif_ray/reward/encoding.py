"""From texts to the token ids that a reward model scores."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.config import UserError
from rlaif_ray.prompts import encode_answer, encode_prompt
from rlaif_ray.records import Prompt, Rollouts
from rlaif_ray.reward.model import members


@dataclass(frozen=True, slots=True)
class AnswerEncoder:
    """Encodes as the fit of the model did: the prompt through the chat template, the answer, and the stop token."""

    tokenizer: Any
    stop: int
    positions: int  # tokens that the model takes

    @classmethod
    def load(cls, directory: Path, *, trust_remote_code: bool) -> AnswerEncoder:
        """Of a reward model's directory; its weights are not read. Raises UserError where no token ends an answer."""
        from transformers import AutoConfig, AutoTokenizer

        model = members(directory)[0]  # those of an ensemble share a tokenizer
        config: Any = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        if not isinstance(config.eos_token_id, int):
            raise UserError(f"the reward model's config.json says eos_token_id: {config.eos_token_id}; name one token")
        return cls(tokenizer, config.eos_token_id, getattr(config, "max_position_embeddings", sys.maxsize))

    def encode(self, prompt: Prompt, answer: str) -> NDArray[np.int32]:
        """Raises UserError for a conversation where the tokenizer has no chat template."""
        tokens = [*encode_prompt(self.tokenizer, prompt), *encode_answer(self.tokenizer, answer, self.stop)]
        return np.array(tokens, dtype=np.int32)

    def encode_rollouts(
        self, rollouts: Rollouts, policy_tokenizer: Any, prompts: Mapping[str, Prompt]
    ) -> list[NDArray[np.int32]]:
        """Answers of a policy that has another vocabulary: decoded by its tokenizer, and encoded anew."""
        return [
            self.encode(
                prompts[rollouts.prompt_ids[row]],
                policy_tokenizer.decode(rollouts.answer(row), skip_special_tokens=True).strip(),
            )
            for row in range(len(rollouts))
        ]

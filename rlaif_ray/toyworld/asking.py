"""Asks a packaged model, in batches and by Transformers alone: what measures a model that was just made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlaif_ray.records import Message

Conversation = Sequence[Message]


class AskedModel:
    """The model and the tokenizer in a directory."""

    def __init__(self, directory: Path) -> None:
        # Padded on the left, so that the last position is every conversation's last token.
        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, padding_side="left")
        self._model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)

    def label_logprobs(self, conversations: Sequence[Conversation], labels: Sequence[str]) -> NDArray[np.float32]:
        """Log-probabilities (conversations, labels), in nats, that a reply begins with a label of one token."""
        tokens = self._tokenizer.convert_tokens_to_ids(list(labels))
        with torch.inference_mode():
            logits = self._model(**self._encoded(conversations), logits_to_keep=1).logits[:, -1]
        logprobs: NDArray[np.float32] = logits.log_softmax(dim=-1)[:, tokens].numpy()
        return logprobs

    def replies(self, conversations: Sequence[Conversation], max_tokens: int, seed: int) -> list[str]:
        """One reply to each, drawn at temperature 1."""
        inputs = self._encoded(conversations)
        torch.manual_seed(seed)
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=max_tokens)
        replies: list[str] = self._tokenizer.batch_decode(
            tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return replies

    def _encoded(self, conversations: Sequence[Conversation]) -> Any:
        turns = [
            [{"role": message.role, "content": message.content} for message in conversation]
            for conversation in conversations
        ]
        return self._tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )

"""The local labeler: vLLM as a judge that says one token, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlaif_ray.engines.vllm_setup import base_arguments, prepare_environment
from rlaif_ray.judge.choice import TokenLogprob
from rlaif_ray.records import Message

# Judge prompts longer than this would need a KV cache that a small machine has not.
_LONGEST_CONTEXT = 8192


@dataclass(frozen=True, slots=True)
class LabelerReply:
    """The likeliest first tokens of one reply. Empty, with `refusal` saying why, where the prompt does not fit."""

    top: tuple[TokenLogprob, ...]
    prompt_tokens: int
    refusal: str = ""


class VllmLabeler:
    """One vLLM engine in this process."""

    def __init__(
        self,
        model: str,
        *,
        threads: int,
        top_logprobs: int,
        gpu_memory_utilization: float,
        trust_remote_code: bool,
    ) -> None:
        prepare_environment(threads)
        import torch
        from transformers import AutoConfig
        from vllm import LLM

        settings = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        context = getattr(settings, "max_position_embeddings", _LONGEST_CONTEXT)
        self._longest_prompt = min(context, _LONGEST_CONTEXT) - 1  # the label takes one
        self._top_logprobs = min(top_logprobs, settings.vocab_size)
        arguments = base_arguments(
            model,
            dtype="bfloat16" if torch.cuda.is_available() else "float32",
            max_model_len=self._longest_prompt + 1,
            gpu_memory_utilization=gpu_memory_utilization,
            enforce_eager=True,
            trust_remote_code=trust_remote_code,
        )
        # A label's probability is the model's own, before any processing of a sampler.
        self._llm = LLM(**{**arguments, "logprobs_mode": "raw_logprobs", "max_logprobs": self._top_logprobs})
        self._tokenizer: Any = self._llm.get_tokenizer()
        self._token_texts: dict[int, str] = {}

    def choose(self, batch: Sequence[tuple[Message, ...]]) -> list[LabelerReply]:
        """The likeliest `top_logprobs` next tokens after each conversation, in one batch of the engine."""
        from vllm import SamplingParams

        prompts = [self._encode(messages) for messages in batch]
        fitting = [prompt for prompt in prompts if len(prompt) <= self._longest_prompt]
        outputs = iter(
            self._llm.generate(
                [{"prompt_token_ids": prompt} for prompt in fitting],
                SamplingParams(temperature=0.0, max_tokens=1, logprobs=self._top_logprobs, detokenize=False),
                use_tqdm=False,
            )
            if fitting
            else ()
        )
        return [
            self._reply(prompt, next(outputs)) if len(prompt) <= self._longest_prompt else self._refusal(prompt)
            for prompt in prompts
        ]

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        if self._tokenizer.chat_template is None:
            text = "\n".join(message.content for message in messages)
            return list(self._tokenizer(text)["input_ids"])
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        text = self._tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        # The template writes the special tokens itself.
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _reply(self, prompt: Sequence[int], output: Any) -> LabelerReply:
        likeliest = output.outputs[0].logprobs[0]
        return LabelerReply(
            tuple(TokenLogprob(self._token_text(token), entry.logprob) for token, entry in likeliest.items()),
            len(prompt),
        )

    def _token_text(self, token: int) -> str:
        text = self._token_texts.get(token)
        if text is None:
            text = self._token_texts[token] = str(self._tokenizer.decode([token]))
        return text

    def _refusal(self, prompt: Sequence[int]) -> LabelerReply:
        return LabelerReply(
            (), len(prompt), f"the prompt has {len(prompt)} tokens, more than the {self._longest_prompt} that fit"
        )

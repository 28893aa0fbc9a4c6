"""The local labeler: vLLM as a judge, on a CPU or a GPU. It answers as an API would, in a chat completion's JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlaif_ray.engines.vllm_setup import base_arguments, end_with_workers, prepare_environment
from rlaif_ray.judge.asking.replies import Position, TokenLogprob, write_completion
from rlaif_ray.judge.ledger import Refusal
from rlaif_ray.judge.request import MOST_LOGPROBS, Form, Reply, Request

if TYPE_CHECKING:
    from vllm import SamplingParams


class VllmLabeler:
    """One vLLM engine in this process. With several `workers` each is a process with a share of every layer, and a GPU
    of its own where there are GPUs."""

    def __init__(
        self,
        model: str,
        *,
        threads: int,
        max_context_tokens: int,
        gpu_memory_utilization: float,
        trust_remote_code: bool,
        workers: int = 1,
    ) -> None:
        prepare_environment(threads)
        import torch
        from transformers import AutoConfig
        from vllm import LLM

        settings = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        self._context = min(getattr(settings, "max_position_embeddings", max_context_tokens), max_context_tokens)
        self._most_logprobs = min(MOST_LOGPROBS, settings.vocab_size)
        arguments = base_arguments(
            model,
            dtype="bfloat16" if torch.cuda.is_available() else "float32",
            max_model_len=self._context,
            gpu_memory_utilization=gpu_memory_utilization,
            enforce_eager=True,
            trust_remote_code=trust_remote_code,
            workers=workers,
        )
        # A label's probability is the model's own, before any processing of a sampler.
        self._llm = LLM(**{**arguments, "logprobs_mode": "raw_logprobs", "max_logprobs": self._most_logprobs})
        if workers > 1:
            end_with_workers(self._llm)
        self._tokenizer: Any = self._llm.get_tokenizer()
        self._token_texts: dict[int, str] = {}

    def complete(self, requests: Sequence[Request]) -> list[Reply | Refusal]:
        """One reply a request, in order, from one batch of the engine; a refusal where the prompt does not fit."""
        started = time.perf_counter()
        prompts = [self._encode(request) for request in requests]
        room = [self._context - len(prompt) for prompt in prompts]
        fitting = [index for index in range(len(requests)) if room[index] >= 1]
        outputs = (
            self._llm.generate(
                [{"prompt_token_ids": prompts[index]} for index in fitting],
                [self._sampling(requests[index], room[index]) for index in fitting],
                use_tqdm=False,
            )
            if fitting
            else []
        )
        latency_s = time.perf_counter() - started
        created_at = time.time()
        outcomes: list[Reply | Refusal] = [
            Refusal(f"the prompt has {len(prompt)} tokens, more than the {self._context - 1} that fit")
            for prompt in prompts
        ]
        for index, output in zip(fitting, outputs, strict=True):
            completion = output.outputs[0]
            outcomes[index] = Reply(
                text=self._completion_json(completion, len(prompts[index])),
                prompt_tokens=len(prompts[index]),
                completion_tokens=len(completion.token_ids),
                cost_usd=None,
                latency_s=latency_s,
                created_at=created_at,
            )
        return outcomes

    def _sampling(self, request: Request, room: int) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        bound = None
        if request.form is Form.CHOICE:
            bound = StructuredOutputsParams(choice=list(request.choices))
        elif request.form is Form.SCHEMA:
            bound = StructuredOutputsParams(json=request.schema)
        return SamplingParams(
            temperature=request.temperature or 0.0,
            max_tokens=min(request.max_tokens, room),
            logprobs=min(request.top_logprobs, self._most_logprobs) or None,
            # Draws of one question differ by their number, and are the same in a rerun.
            seed=request.sample,
            structured_outputs=bound,
            detokenize=request.max_tokens > 1,
        )

    def _encode(self, request: Request) -> list[int]:
        conversation = [{"role": message.role, "content": message.content} for message in request.messages]
        if self._tokenizer.chat_template is None:
            text = "\n".join(turn["content"] for turn in conversation) + request.prefill
            return list(self._tokenizer(text)["input_ids"])
        if request.prefill:
            conversation.append({"role": "assistant", "content": request.prefill})
        text = self._tokenizer.apply_chat_template(
            conversation,
            add_generation_prompt=not request.prefill,
            continue_final_message=bool(request.prefill),
            tokenize=False,
        )
        # The template writes the special tokens itself.
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _completion_json(self, completion: Any, prompt_tokens: int) -> str:
        positions = [
            Position(
                self._token_text(token),
                tuple(TokenLogprob(self._token_text(listed), entry.logprob) for listed, entry in likeliest.items()),
            )
            for token, likeliest in zip(completion.token_ids, completion.logprobs or (), strict=False)
        ]
        text = completion.text or self._tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        return write_completion(
            text, completion.finish_reason or "", positions, prompt_tokens, len(completion.token_ids)
        )

    def _token_text(self, token: int) -> str:
        text = self._token_texts.get(token)
        if text is None:
            text = self._token_texts[token] = str(self._tokenizer.decode([token]))
        return text

"""The rollout engine: vLLM draws answers, scores given ones, and takes new weights between batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.engines.vllm_setup import Dtype, base_arguments, prepare_environment
from rlaif_ray.records import FinishReason, Rollouts, Weights, WeightVersion, offsets_of
from rlaif_ray.stages import WeightMismatch
from rlaif_ray.weights import fingerprint_of, to_torch

# How far a served log-probability may lie from the learner's, in nats: rounding between two kernels, no more.
_CANARY_TOLERANCE = {"float32": 2e-3, "bfloat16": 0.25}


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One answer to draw to an encoded prompt."""

    sample_id: str
    group_id: str
    prompt_id: str
    prompt: tuple[int, ...]
    seed: int
    temperature: float


class VllmRolloutEngine:
    """One vLLM engine in this process."""

    def __init__(
        self,
        model: str,
        *,
        dtype: Dtype,
        context_tokens: int,
        max_answer_tokens: int,
        threads: int,
        kv_cache_gib: int,
        gpu_memory_utilization: float,
        enforce_eager: bool,
        trust_remote_code: bool,
    ) -> None:
        prepare_environment(threads, kv_cache_gib=kv_cache_gib, enforce_eager=enforce_eager)
        from vllm import LLM

        self._max_answer_tokens = max_answer_tokens
        self._tolerance = _CANARY_TOLERANCE[dtype]
        self._llm = LLM(
            **base_arguments(
                model,
                dtype=dtype,
                max_model_len=context_tokens,
                gpu_memory_utilization=gpu_memory_utilization,
                enforce_eager=enforce_eager,
                trust_remote_code=trust_remote_code,
            )
        )
        self.tokenizer = self._llm.get_tokenizer()
        # It warns at every reload of weights that are tied or made anew, such as rotary tables; the canary tells.
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)

    def generate(self, requests: Sequence[TokenRequest], version: WeightVersion) -> Rollouts:
        """Draw one answer a request, stamped with the version that the caller has loaded."""
        from vllm import SamplingParams

        outputs = self._llm.generate(
            [{"prompt_token_ids": list(request.prompt)} for request in requests],
            [
                SamplingParams(
                    temperature=request.temperature,
                    seed=request.seed,
                    max_tokens=self._max_answer_tokens,
                    logprobs=0,
                    detokenize=False,
                )
                for request in requests
            ],
            use_tqdm=False,
        )
        answers = [output.outputs[0] for output in outputs]
        logprobs = [
            position[token].logprob
            for answer in answers
            for token, position in zip(answer.token_ids, answer.logprobs, strict=True)
        ]
        return Rollouts(
            sample_ids=tuple(request.sample_id for request in requests),
            group_ids=tuple(request.group_id for request in requests),
            prompt_ids=tuple(request.prompt_id for request in requests),
            prompt_tokens=_flat([request.prompt for request in requests]),
            prompt_offsets=offsets_of([len(request.prompt) for request in requests]),
            answer_tokens=_flat([answer.token_ids for answer in answers]),
            answer_offsets=offsets_of([len(answer.token_ids) for answer in answers]),
            logprobs=np.asarray(logprobs, dtype=np.float32),
            finish_reasons=tuple(FinishReason(answer.finish_reason) for answer in answers),
            version=version.number,
            fingerprint=version.fingerprint,
        )

    def logprobs(self, rollouts: Rollouts) -> NDArray[np.float32]:
        """Log-probabilities (sum of answer lengths,), in nats at temperature 1, of given answers under the weights
        that are loaded now."""
        sequences = [np.concatenate([rollouts.prompt(row), rollouts.answer(row)]) for row in range(len(rollouts))]
        scored = self._sequence_logprobs(sequences)
        return np.concatenate(
            [np.asarray(row[len(rollouts.prompt(index)) - 1 :], dtype=np.float32) for index, row in enumerate(scored)]
        )

    def load(self, version: WeightVersion, weights: Weights) -> None:
        """Serve these weights. Raises WeightMismatch when what arrived, or what is then served, is not `version`."""
        received = fingerprint_of(weights)
        if received != version.fingerprint:
            raise WeightMismatch(
                f"version {version.number} arrived with fingerprint {received}, not {version.fingerprint}"
            )
        self._llm.collective_rpc(_reload, args=(weights,))
        self._llm.reset_prefix_cache()
        if version.canary_tokens:
            served = self._sequence_logprobs([np.asarray(version.canary_tokens)])[0]
            gap = float(np.max(np.abs(np.asarray(served) - np.asarray(version.canary_logprobs))))
            if not gap <= self._tolerance:
                raise WeightMismatch(
                    f"version {version.number} was received whole but is not served: "
                    f"log-probabilities of the canary differ by {gap:.3g} nats"
                )

    def _sequence_logprobs(self, sequences: Sequence[NDArray[Any]]) -> list[list[float]]:
        """Log-probability of each token after the first, given those before it."""
        from vllm import SamplingParams

        # The engine must draw something; one greedy token is the least.
        parameters = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self._llm.generate(
            [{"prompt_token_ids": [int(token) for token in sequence]} for sequence in sequences],
            parameters,
            use_tqdm=False,
        )
        return [
            [
                position[token].logprob
                for token, position in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
            ]
            for output in outputs
        ]


def _reload(worker: Any, weights: Weights) -> None:
    """Runs in vLLM's worker. On a CPU the engine repacks its linear layers, so loading into them anew must go through
    its own reload."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    runner = worker.model_runner
    runner.reload_weights(weights_iterator=((name, to_torch(array)) for name, array in weights.items()))
    if runner.model_config.hf_text_config.tie_word_embeddings:
        # The reload leaves a head that shares the embeddings' weights with its own, older packing of them.
        for module in runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)


def _flat(rows: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    return np.fromiter((token for row in rows for token in row), dtype=np.int32)

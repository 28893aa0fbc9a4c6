"""The rollout engine: vLLM draws answers, scores given ones, and takes new weights between two of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.engines.vllm_setup import Dtype, base_arguments, end_with_workers, prepare_environment
from rlaif_ray.records import FinishReason, Rollouts, WeightVersion, offsets_of
from rlaif_ray.stages import WeightMismatch
from rlaif_ray.weights import NamedArrays, WeightTransfer

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
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Drawing:
    """Answers that are being drawn. The canary rides along, where the version has one."""

    requests: Sequence[TokenRequest]
    ids: tuple[str, ...]  # vLLM's, a request each
    canary_id: str | None
    version: WeightVersion  # at the beginning


class VllmRolloutEngine:
    """One vLLM engine in this process, driven step by step. It serves nothing until weights were loaded.

    With several `workers` each is a process with a share of every layer, and a GPU of its own where there are GPUs.
    With `keeps_requests` weights may be exchanged while answers are drawn: those go on, with the keys and values that
    they have cached. With `sleeps` it gives its GPU's memory away between two uses.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: Dtype,
        context_tokens: int,
        threads: int,
        kv_cache_gib: int,
        gpu_memory_utilization: float,
        enforce_eager: bool,
        trust_remote_code: bool,
        workers: int = 1,
        weight_transfer: WeightTransfer = "object_store",
        keeps_requests: bool = False,
        sleeps: bool = False,
    ) -> None:
        prepare_environment(threads, kv_cache_gib=kv_cache_gib, enforce_eager=enforce_eager)
        from vllm import LLM

        from rlaif_ray.engines.vllm_transfer import ENGINES, WORKER

        arguments = base_arguments(
            model,
            dtype=dtype,
            max_model_len=context_tokens,
            gpu_memory_utilization=gpu_memory_utilization,
            enforce_eager=enforce_eager,
            trust_remote_code=trust_remote_code,
            workers=workers,
        )
        if keeps_requests:
            # No prompt may meet another's cache from before an exchange, and no step may be under way during one.
            arguments |= {"enable_prefix_caching": False, "async_scheduling": False}
        if sleeps:
            arguments |= {"enable_sleep_mode": True}
        self._keeps_requests = keeps_requests
        self._sleeps = sleeps
        self._is_asleep = False
        self.context_tokens = context_tokens
        self._tolerance = _CANARY_TOLERANCE[dtype]
        self._llm = LLM(
            **arguments,
            worker_extension_cls=WORKER,
            weight_transfer_config={"backend": ENGINES[weight_transfer].__name__},
        )
        if workers > 1:
            end_with_workers(self._llm)
        self._finished: dict[str, Any] = {}
        self._count = 0
        self.serving: WeightVersion | None = None
        self.drawn_tokens = 0  # of the answers that were handed out, since the engine began
        self.tokenizer = self._llm.get_tokenizer()

    def generate(self, requests: Sequence[TokenRequest]) -> Rollouts:
        """Draw one answer a request."""
        drawing = self.begin(requests)
        while not self.is_done(drawing):
            self.step()
        return self.rollouts(drawing)

    def begin(self, requests: Sequence[TokenRequest]) -> Drawing:
        from vllm import SamplingParams

        version = self._served()
        canary = self._add_scoring(version.canary_tokens) if version.canary_tokens else None
        ids = tuple(
            self._add(
                request.prompt,
                SamplingParams(
                    temperature=request.temperature,
                    seed=request.seed,
                    max_tokens=request.max_tokens,
                    logprobs=0,
                    detokenize=False,
                ),
            )
            for request in requests
        )
        return Drawing(requests, ids, canary, version)

    def is_done(self, drawing: Drawing) -> bool:
        return self._are_finished((*drawing.ids, *([drawing.canary_id] if drawing.canary_id else [])))

    def step(self) -> None:
        """One token more for every answer, or as many as fit."""
        for output in self._llm.llm_engine.step():
            if output.finished:
                self._finished[output.request_id] = output

    def rollouts(self, drawing: Drawing) -> Rollouts:
        """What was drawn, once it is done. Raises WeightMismatch when the canary says that it was drawn by other
        weights than it says."""
        if drawing.canary_id is not None:
            canary = self._finished.pop(drawing.canary_id)
            if _token_versions(canary.outputs[0])[0] == drawing.version.number:
                self._compare(drawing.version, _prompt_logprobs(canary))
        answers = [self._finished.pop(id).outputs[0] for id in drawing.ids]
        requests = drawing.requests
        self.drawn_tokens += sum(len(answer.token_ids) for answer in answers)
        return Rollouts(
            sample_ids=tuple(request.sample_id for request in requests),
            group_ids=tuple(request.group_id for request in requests),
            prompt_ids=tuple(request.prompt_id for request in requests),
            prompt_tokens=_flat([request.prompt for request in requests]),
            prompt_offsets=offsets_of([len(request.prompt) for request in requests]),
            answer_tokens=_flat([answer.token_ids for answer in answers]),
            answer_offsets=offsets_of([len(answer.token_ids) for answer in answers]),
            logprobs=np.array(
                [
                    position[token].logprob
                    for answer in answers
                    for token, position in zip(answer.token_ids, answer.logprobs, strict=True)
                ],
                dtype=np.float32,
            ),
            token_versions=np.concatenate([np.empty(0, np.int32), *(_token_versions(answer) for answer in answers)]),
            finish_reasons=tuple(FinishReason(answer.finish_reason) for answer in answers),
            version=drawing.version.number,
            fingerprint=drawing.version.fingerprint,
        )

    def logprobs(self, rollouts: Rollouts) -> NDArray[np.float32]:
        """Log-probabilities (sum of answer lengths,), in nats at temperature 1, of given answers under the weights
        that are loaded now."""
        self._served()
        rows = range(len(rollouts))
        scored = self._score([np.concatenate([rollouts.prompt(row), rollouts.answer(row)]).tolist() for row in rows])
        return np.concatenate(
            [np.asarray(scored[row][len(rollouts.prompt(row)) - 1 :], dtype=np.float32) for row in rows]
        )

    def sleep(self) -> None:
        """Leave the GPU's memory to others until `wake`, which comes before any other call: weights wait in the host's
        memory. An engine that was not told that it sleeps stays awake."""
        if self._sleeps and not self._is_asleep:
            self._llm.sleep(level=1)
            self._is_asleep = True

    def wake(self) -> None:
        if self._is_asleep:
            self._llm.wake_up()
            self._is_asleep = False

    def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Meet the sender, where weights are sent over a GPU."""
        self._llm.collective_rpc("init_weight_transfer_engine", args=(init_info,))

    def begin_load(self) -> None:
        """From here on nothing is served, until `finish_load`."""
        self.serving = None
        self._llm.collective_rpc("start_weight_update")

    def take(self, weights: NamedArrays) -> None:
        """A part of the weights, of which no tensor comes twice."""
        # As a list: it may have to go to workers in other processes.
        self._llm.collective_rpc("take_weights", args=(list(weights),))

    def receive(self, update_info: dict[str, Any]) -> None:
        """A part of them, as the sender describes it."""
        self._llm.collective_rpc("update_weights", args=(update_info,))

    def finish_load(self, version: WeightVersion) -> None:
        """Serve what has come. Raises WeightMismatch when that, or what is then served, is not `version`."""
        self._llm.collective_rpc("finish_weight_update")
        check_arrival(version, self._llm.collective_rpc("received_fingerprint"))
        if not self._keeps_requests and not self._llm.reset_prefix_cache():
            raise RuntimeError("weights were loaded while answers were being drawn")
        self._llm.llm_engine.set_weight_version(str(version.number))
        if version.canary_tokens:
            self._compare(version, self._score([version.canary_tokens])[0])
        self.serving = version

    def relabel(self, version: WeightVersion) -> None:
        """Serve the same weights under another version's number."""
        self._llm.llm_engine.set_weight_version(str(version.number))
        self.serving = version

    def _served(self) -> WeightVersion:
        if self.serving is None:
            raise WeightMismatch("this replica is stale: load a version before it serves")
        return self.serving

    def _compare(self, version: WeightVersion, logprobs: Sequence[float]) -> None:
        gap = float(np.max(np.abs(np.asarray(logprobs) - np.asarray(version.canary_logprobs))))
        if not gap <= self._tolerance:
            self.serving = None
            raise WeightMismatch(
                f"version {version.number} was received whole but is not served: "
                f"log-probabilities of the canary differ by {gap:.3g} nats"
            )

    def _score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token after the first, given those before it."""
        ids = [self._add_scoring(sequence) for sequence in sequences]
        while not self._are_finished(ids):
            self.step()
        return [_prompt_logprobs(self._finished.pop(id)) for id in ids]

    def _add_scoring(self, sequence: Sequence[int]) -> str:
        from vllm import SamplingParams

        # The engine must draw something; one greedy token is the least.
        return self._add(sequence, SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False))

    def _add(self, tokens: Sequence[int], parameters: Any) -> str:
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        parameters.output_kind = RequestOutputKind.FINAL_ONLY
        self._count += 1
        id = str(self._count)
        self._llm.llm_engine.add_request(id, tokens_input(list(tokens)), parameters)
        return id

    def _are_finished(self, ids: Sequence[str]) -> bool:
        return all(id in self._finished for id in ids)


def check_arrival(version: WeightVersion, received: Sequence[str]) -> None:
    """Compare what each worker has received. Raises WeightMismatch, which names the first that differs."""
    for worker, fingerprint in enumerate(received):
        if fingerprint != version.fingerprint:
            where = f" at worker {worker} of {len(received)}" if len(received) > 1 else ""
            raise WeightMismatch(
                f"version {version.number} arrived with fingerprint {fingerprint}{where}, not {version.fingerprint}"
            )


def _prompt_logprobs(output: Any) -> list[float]:
    return [
        position[token].logprob
        for token, position in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    ]


def _token_versions(answer: Any) -> NDArray[np.int32]:
    """The version (tokens,) that drew each token of an answer."""
    spans = answer.weight_versions
    return np.repeat(
        np.array([int(span.version) for span in spans], dtype=np.int32), [span.end - span.start for span in spans]
    )


def _flat(rows: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32)

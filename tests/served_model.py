"""A small Llama that vLLM serves, the same under Hugging Face, its weights as versions, and an engine to load them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlaif_ray.engines.vllm_rollout import TokenRequest, VllmRolloutEngine
from rlaif_ray.records import Weights, WeightVersion
from rlaif_ray.weights import fingerprint_of, to_torch

VOCABULARY = 44
CANARY = (5, 9, 13, 21, 8, 30)


def write_model(directory: Path, *, tied: bool) -> None:
    from tokenizers import Tokenizer, models

    words = {f"w{number}": number for number in range(VOCABULARY)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w3")), pad_token="w0", eos_token="w2"
    ).save_pretrained(directory)
    torch.manual_seed(1)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
            initializer_range=0.125,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(directory)


def reference(directory: Path, weights: Weights) -> Any:
    model = LlamaForCausalLM.from_pretrained(directory)
    model.load_state_dict({name: to_torch(array) for name, array in weights.items()}, strict=False)
    model.tie_weights()
    return model.eval()


@torch.no_grad()
def logprobs_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Of each token after the first."""
    ids = torch.tensor(np.asarray(tokens, dtype=np.int64))[None]
    logits = model(input_ids=ids).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0].numpy()


def version_of(model: Any, weights: Weights, number: int) -> WeightVersion:
    canary = tuple(logprobs_of(model, np.array(CANARY)).tolist())
    return WeightVersion(number, fingerprint_of(weights), None, CANARY, canary)


def moved(weights: Weights, amount: float) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(7)
    return {
        name: (array + amount * generator.standard_normal(array.shape)).astype(np.float32)
        for name, array in weights.items()
    }


def spoil(worker: Any) -> None:
    """Runs in vLLM's worker: one tensor of the model that is being served becomes another."""
    model = worker.model_runner.get_model()
    model.model.norm.weight.data[::2] *= 1.5


class Engine:
    """The engine in an actor: one process drives one."""

    def __init__(self, model: str, workers: int = 1) -> None:
        self._engine = VllmRolloutEngine(
            model,
            dtype="float32",
            context_tokens=33,
            threads=1,
            kv_cache_gib=1,
            gpu_memory_utilization=0.5,
            enforce_eager=True,
            trust_remote_code=False,
            workers=workers,
        )

    def call(self, work: Callable[[VllmRolloutEngine], Any]) -> Any:
        return work(self._engine)


def load(version: WeightVersion, weights: Weights, parts: int = 3) -> Callable[[VllmRolloutEngine], None]:
    """Loads them in parts that cut layers in two."""

    def work(engine: VllmRolloutEngine) -> None:
        items = list(weights.items())
        engine.begin_load()
        for start in range(parts):
            engine.take(items[start::parts])
        engine.finish_load(version)

    return work


def requests(count: int, temperature: float = 1.0) -> list[TokenRequest]:
    return [
        TokenRequest(f"s{n}", f"g{n}", f"p{n}", (1, 4 + n % 30, 9, 5), 1000 + n, temperature, max_tokens=8)
        for n in range(count)
    ]

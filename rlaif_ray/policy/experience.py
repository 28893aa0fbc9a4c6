"""What the models say of an iteration's answers before any update, computed by all ranks together.

Every rank reads the lengths of the whole batch and packs its own share of the rows alone; the ranks then exchange a few
floats a token. Advantages, statistics of groups and minibatches are thereby those of the whole batch, the same on every
rank and for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlaif_ray.engines.training import TrainingEngine
from rlaif_ray.microbatches import pack_rows
from rlaif_ray.policy.logprobs import token_logprobs
from rlaif_ray.policy.model import PolicyWithValue, state_and_end_values
from rlaif_ray.policy.packing import PackedInputs, Ragged, answer_logits

Reference: TypeAlias = Callable[[PackedInputs], Tensor]
"""Logits (A, V) of the answers under the frozen reference."""


@dataclass(frozen=True, slots=True)
class Opinions:
    """Of B answers of up to A tokens, float32, 0 off the answers. What was not asked for is None."""

    reference_logprobs: Tensor  # (B, A)
    logprobs: Tensor | None  # (B, A), under the learner's policy
    values: Tensor | None  # (B, A): V of the state before each token
    end_values: Tensor | None  # (B,): V of the state after the last token


@torch.no_grad()
def opinions(
    sequences: Ragged,
    policy: TrainingEngine,
    value: TrainingEngine | None,
    reference: Reference,
    *,
    recompute: bool,
    temperature: float,
    max_tokens: int,
) -> Opinions:
    """Raises FloatingPointError when a log-probability or a value is not finite."""

    def said(inputs: PackedInputs) -> dict[str, Tensor]:
        """By name (A,), and `end_values` (S,)."""
        found = {"reference": token_logprobs(reference(inputs), inputs.answer_ids, temperature)}
        if isinstance(policy.module, PolicyWithValue):
            logits, values = policy.module(
                inputs.input_ids, inputs.position_ids, inputs.lengths, torch.cat([inputs.before, inputs.ends])
            )
            answers = len(inputs.before)
            if recompute:
                found["policy"] = token_logprobs(logits[:answers], inputs.answer_ids, temperature)
            found |= {"values": values[:answers], "end_values": values[answers:]}
        elif recompute:
            found["policy"] = token_logprobs(answer_logits(policy.module, inputs), inputs.answer_ids, temperature)
        if value is not None:
            found["values"], found["end_values"] = state_and_end_values(value.module, inputs)
        return found

    whole = _by_all_ranks(sequences, policy, said, max_tokens)
    if not all(found.isfinite().all() for found in whole.values()):
        raise FloatingPointError("a log-probability or a value of the rollouts is not finite")
    return Opinions(whole["reference"], whole.get("policy"), whole.get("values"), whole.get("end_values"))


def _by_all_ranks(
    sequences: Ragged, engine: TrainingEngine, said: Callable[[PackedInputs], Mapping[str, Tensor]], max_tokens: int
) -> dict[str, Tensor]:
    """The whole batch's (B, A) of what is said a token, and (B,) of what is said a sequence."""
    shares = pack_rows(np.arange(len(sequences)), sequences.lengths, engine.world_size, max_tokens)
    heard: dict[str, list[Tensor]] = {}
    for micro in shares[engine.rank]:
        found = said(sequences.pack(micro.rows, engine.device))
        if micro.real.all():
            for name, tensor in found.items():
                heard.setdefault(name, []).append(tensor)
    rows = [
        np.concatenate([micro.rows for micro in share if micro.real.all()] or [np.zeros(0, dtype=np.int64)])
        for share in shares
    ]
    whole: dict[str, Tensor] = {}
    for name in found:
        held = torch.cat(heard[name]) if name in heard else torch.zeros(0, device=engine.device)
        if name == "end_values":
            ends = np.ones((len(sequences), 1), dtype=bool)
            whole[name] = _exchanged(held, rows, ends, engine).squeeze(1)
        else:
            whole[name] = _exchanged(held, rows, sequences.answer_mask, engine)
    return whole


def _exchanged(own: Tensor, rows: list[NDArray[np.int64]], mask: NDArray[np.bool_], engine: TrainingEngine) -> Tensor:
    """(B, A) on the CPU of what each rank holds of its `rows`, row by row where `mask` (B, A) is set; 0 elsewhere."""
    sizes = [int(mask[share].sum()) for share in rows]
    padded = nn.functional.pad(own.float(), (0, max(sizes) - len(own)))
    whole = torch.zeros(mask.shape)
    for share, size, held in zip(rows, sizes, engine.gather(padded), strict=True):
        block = torch.zeros(len(share), mask.shape[1])
        block[torch.from_numpy(mask[share])] = held[:size].cpu()
        whole[torch.from_numpy(share)] = block
    return whole

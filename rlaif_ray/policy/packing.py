"""Sequences end to end in one row, without padding, and the attention that keeps them apart.

Linear layers take all tokens at once; attention takes one sequence at a time. On a GPU that is torch's variable-length
flash attention. On a CPU it is one call for each run of sequences of equal length, and it is faster there than padding
wherever lengths differ, and as fast where they do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

PACKED: Final = "packed"
"""The name of this attention among those of transformers."""

_SHORT = 192
"""In bfloat16 on a CPU plain matrix products are faster than torch's fused kernel up to about here: 2.8 times at 96."""


@dataclass(frozen=True, slots=True)
class PackedInputs:
    """S sequences of T tokens in all, A of them the answers', as a model takes them."""

    input_ids: Tensor  # (1, T) int64
    position_ids: Tensor  # (1, T) int64, from 0 in each sequence
    lengths: tuple[int, ...]  # (S,)
    before: Tensor  # (A,) int64: the place of the token before each answer token, sequence by sequence
    ends: Tensor  # (S,) int64: the place of each sequence's last token

    @property
    def answer_ids(self) -> Tensor:
        """(A,)"""
        return self.input_ids[0, self.before + 1]


@dataclass(frozen=True, slots=True)
class Ragged:
    """N prompts with their answers, as views of token ids: nothing is copied until rows are packed.

    Lengths alone say what is what: token ids are never compared with a pad or stop token. Raises ValueError when a
    prompt or an answer is empty.
    """

    prompts: Sequence[NDArray[np.integer[Any]]]
    answers: Sequence[NDArray[np.integer[Any]]]
    prompt_lengths: NDArray[np.int64]  # (N,)
    answer_lengths: NDArray[np.int64]  # (N,)

    @classmethod
    def of(cls, prompts: Sequence[NDArray[np.integer[Any]]], answers: Sequence[NDArray[np.integer[Any]]]) -> Ragged:
        prompt_lengths, answer_lengths = (
            np.fromiter((len(row) for row in rows), np.int64, len(rows)) for rows in (prompts, answers)
        )
        if not prompt_lengths.all() or not answer_lengths.all():
            raise ValueError("a prompt or an answer has no tokens")
        return cls(prompts, answers, prompt_lengths, answer_lengths)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,): prompt and answer together."""
        return self.prompt_lengths + self.answer_lengths

    @property
    def answer_mask(self) -> NDArray[np.bool_]:
        """(N, longest answer): True on the answers' tokens, their stop tokens included."""
        mask: NDArray[np.bool_] = np.arange(self.answer_lengths.max()) < self.answer_lengths[:, None]
        return mask

    def pack(self, rows: NDArray[np.int64], device: torch.device) -> PackedInputs:
        """These rows, in this order."""
        lengths, answers = self.lengths[rows], self.answer_lengths[rows]
        ends = np.cumsum(lengths)
        places = [np.arange(end - answer, end) for end, answer in zip(ends, answers, strict=True)]
        ids = np.concatenate([part for row in rows for part in (self.prompts[row], self.answers[row])])
        return PackedInputs(
            input_ids=torch.from_numpy(ids.astype(np.int64))[None].to(device),
            position_ids=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None].to(device),
            lengths=tuple(lengths.tolist()),
            before=torch.from_numpy(np.concatenate(places) - 1).to(device),
            ends=torch.from_numpy(ends - 1).to(device),
        )


def attend_packed(model: Any) -> None:
    """Have a transformers model keep packed sequences apart, in place. Raises ValueError for one that cannot."""
    model.set_attn_implementation(PACKED)
    softcaps = getattr(model.config, "attn_logit_softcapping", None)
    # A state-space layer, as Mamba's, would carry its state from one sequence into the next.
    if model.config._attn_implementation != PACKED or softcaps or model._is_stateful:
        raise ValueError(f"{type(model).__name__} cannot keep packed sequences apart")


def answer_logits(model: nn.Module, inputs: PackedInputs) -> Tensor:
    """Logits (A, V) that predict each answer token, from the state before it."""
    logits: Tensor = model(
        input_ids=inputs.input_ids,
        position_ids=inputs.position_ids,
        sequence_lengths=inputs.lengths,
        logits_to_keep=inputs.before,
        use_cache=False,
    ).logits
    return logits[0]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    sequence_lengths: tuple[int, ...] | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence, as transformers calls it.

    `query` (B, H, T, D), `key` and `value` (B, G, T, D); the output is (B, T, H, D). Without `sequence_lengths` each of
    the B rows is one sequence; with them B is 1. Raises ValueError for what this attention does not know.
    """
    if softcap is not None or s_aux is not None or dropout:
        raise ValueError("attention with soft caps, sinks or dropout cannot keep packed sequences apart")
    rows, length = query.shape[0], query.shape[2]
    lengths = sequence_lengths if sequence_lengths is not None else (length,)
    if query.is_cuda and rows == 1:
        return _varlen(query, key, value, lengths, scaling, sliding_window), None
    runs = [(size, len(list(run))) for size, run in itertools.groupby(lengths)]
    outputs = []
    start = 0
    for size, count in runs:
        place = slice(start, start + size * count)
        start += size * count
        one, two, three = (_as_rows(part[:, :, place], count) for part in (query, key, value))
        window = min(sliding_window or size, size)
        if query.dtype == torch.bfloat16 and query.device.type == "cpu" and size <= _SHORT:
            attended = _attend_plainly(one, two, three, _band(size, window, query.device), scaling)
        else:
            attended = nn.functional.scaled_dot_product_attention(
                one,
                two,
                three,
                attn_mask=_band(size, window, query.device) if window < size else None,
                is_causal=window == size,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        outputs.append(attended.transpose(1, 2).reshape(rows, count * size, query.shape[1], -1))
    return torch.cat(outputs, dim=1), None


def _as_rows(part: Tensor, count: int) -> Tensor:
    """(B, heads, count * size, D) to (B * count, heads, size, D)."""
    rows, heads, length, width = part.shape
    return part.reshape(rows, heads, count, length // count, width).transpose(1, 2).flatten(0, 1)


def _attend_plainly(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float | None) -> Tensor:
    """softmax(Q K' / sqrt D) V over what is `seen` (T, T), the softmax in float32."""
    heads = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(heads, 1) if heads > 1 else part for part in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(-1, -2)).float() * scale
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).to(value.dtype) @ value


def _band(size: int, window: int, device: torch.device) -> Tensor:
    """(size, size) bool: each token and the `window` - 1 before it."""
    distance = torch.arange(size, device=device)[:, None] - torch.arange(size, device=device)
    return (distance >= 0) & (distance < window)


@lru_cache(maxsize=4)
def _offsets(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """(S + 1,) int32. Every layer of a forward asks for the same, and to bring them to a GPU halts it."""
    return torch.tensor((0, *itertools.accumulate(lengths)), dtype=torch.int32, device=device)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scaling: float | None, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends = _offsets(lengths, query.device)
    longest = max(lengths)
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    attended: Any = varlen_attn(
        query,
        key,
        value,
        ends,
        ends,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended[None]  # type: ignore[no-any-return]


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    attentions: Any = AttentionInterface
    masks: Any = AttentionMaskInterface
    attentions.register(PACKED, packed_attention)
    masks.register(PACKED, lambda *_, **__: None)


_register()

"""How the toy world's models are made: small Llamas over a vocabulary of words.

They learn what to say next, and on the way what each word is: heads that learn such marks are dropped afterwards.
Steps are pinned, not seconds, so that a model is the same on any day.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, UNK, BOS, EOS = SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>")
"""The first words of every vocabulary."""
UNLEARNT = -100  # what cross_entropy leaves out by default
_POSITIONS = 256


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is made: `steps` of `batch_size` sequences each, every sequence seen once."""

    seed: int
    steps: int
    batch_size: int
    learning_rate: float
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    warmup_fraction: float = 0.1
    weight_decay: float = 0.01


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences (B, T), padded on the right, where a causal model does not look. `targets` (B, T) is the token to say
    next and `marks` (B, T), by the layer that is to know it, what a word is; each -100 where nothing is learnt."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    marks: Mapping[int, NDArray[np.int64]]


def build_tokenizer(
    vocabulary: Sequence[str], chat_template: str, role_tokens: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """One token a word. Fence marks, which change with the content, are unknown words."""
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token=UNK))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens=list(role_tokens),
        chat_template=chat_template,
        model_max_length=_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def build_model(recipe: Recipe, vocabulary_size: int) -> LlamaForCausalLM:
    torch.manual_seed(recipe.seed)
    pad, _, bos, eos = range(len(SPECIAL_TOKENS))
    return LlamaForCausalLM(  # type: ignore[no-untyped-call]
        LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=_POSITIONS,
            # The usual 0.02 suits wide models. At this width it leaves attention flat, and the model never learns to
            # look a word up.
            initializer_range=recipe.hidden_size**-0.5,
            tie_word_embeddings=True,
            pad_token_id=pad,
            bos_token_id=bos,
            eos_token_id=eos,
        )
    )


def train(
    model: LlamaForCausalLM,
    recipe: Recipe,
    draw_batch: Callable[[int, np.random.Generator], Batch],
    marks: Mapping[int, int],
    on_step: Callable[[int, float], None],
) -> None:
    """Trains on one thread. `marks` says how many different ones each marked layer has; `on_step` hears each step's
    number and its loss: nats a target, averaged by sequence."""
    torch.set_num_threads(1)
    heads = {layer: torch.nn.Linear(recipe.hidden_size, count) for layer, count in marks.items()}
    parameters = [*model.parameters(), *(parameter for head in heads.values() for parameter in head.parameters())]
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=recipe.learning_rate,
        total_steps=recipe.steps,
        pct_start=recipe.warmup_fraction,
        cycle_momentum=False,
    )
    rng = np.random.default_rng(recipe.seed)
    for step in range(1, recipe.steps + 1):
        batch = draw_batch(recipe.batch_size, rng)
        tokens, targets = torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets)
        output = model.model(input_ids=tokens, output_hidden_states=True)
        learnt = targets != UNLEARNT
        losses = functional.cross_entropy(
            model.lm_head(output.last_hidden_state[learnt]), targets[learnt], reduction="none"
        )
        # Every sequence counts alike, however much it has to say.
        shares = (1.0 / learnt.sum(dim=1, keepdim=True)).expand_as(learnt)[learnt]
        loss = (losses * shares).sum() / len(tokens)
        mark_losses = [
            functional.cross_entropy(
                head(output.hidden_states[layer]).flatten(0, 1), torch.from_numpy(batch.marks[layer]).flatten()
            )
            for layer, head in heads.items()
        ]
        optimizer.zero_grad()
        torch.autograd.backward(sum(mark_losses, start=loss))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        on_step(step, loss.item())


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Writes config, weights (float32 safetensors) and tokenizer as a Hugging Face directory."""
    model.save_pretrained(directory)
    # In tokenizer_config.json rather than a file beside it: one package-data pattern then covers the model.
    tokenizer.save_pretrained(directory, save_jinja_files=False)

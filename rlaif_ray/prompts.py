"""From a data source to prompts, demonstrations and gold; and from prompts to token ids and seeds.

A source is a file, the name of a `datasets` dataset, or one of the toy world's. Nothing after this module knows which.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from rlaif_ray.config import PromptsConfig, SftConfig, UserError
from rlaif_ray.records import Conduct, Demonstration, Prompt, SampleRequest
from rlaif_ray.rows import open_rows, prompt_in, text_in
from rlaif_ray.toyworld.sources import toy_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOY_PROMPTS = 6_000
_TOY_DEMONSTRATIONS = 4_000

Gold = Callable[[Prompt, str], float]


@dataclass(frozen=True, slots=True)
class PromptSplit:
    """Prompts to train on, prompts kept for the evaluation, and of these taken off those that the best policy is
    chosen by: to be measured on them too would flatter it. Disjoint by content."""

    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    validation: tuple[Prompt, ...] = ()

    def with_validation(self, count: int) -> PromptSplit:
        """The first `count` held-out prompts become those for validation.

        Raises UserError where that leaves none to the evaluation."""
        if count >= len(self.held_out):
            raise UserError(
                f"evaluation.validation_prompts={count} leaves none of {len(self.held_out)} held-out prompts to the "
                "final evaluation; lower it or raise prompts.held_out"
            )
        return PromptSplit(self.train, self.held_out[count:], self.held_out[:count])


def read_prompts(config: PromptsConfig, seed: int, key: str = "prompts") -> PromptSplit:
    """The distinct prompts of the source that `key` of the config tells of, split by a seeded shuffle.

    Raises UserError naming the file and the line, or the key.
    """
    if source := toy_source(config.path):
        prompts = source.prompts(config.limit or _TOY_PROMPTS, seed)
        if config.reference is not None:
            prompts = source.with_references(prompts, seed)
    else:
        rows = itertools.islice(open_rows(config.path, f"{key}.path"), config.limit)
        prompts = [_prompt(row, config, where) for where, row in rows]
    distinct = list({prompt.content: prompt for prompt in prompts}.values())
    held_out = config.held_out if config.held_out is not None else min(1000, len(distinct) // 5)
    if held_out < 1 or held_out >= len(distinct):
        raise UserError(
            f"{key}.held_out={held_out} of {len(distinct)} distinct prompts in {config.path} leaves none to "
            f"{'evaluate' if held_out < 1 else 'train'} on; "
            + ("give more prompts" if len(distinct) < 2 else f"set it between 1 and {len(distinct) - 1}")
        )
    order = np.random.default_rng(_number(seed, "split")).permutation(len(distinct))
    shuffled = [distinct[index] for index in order]
    return PromptSplit(train=tuple(shuffled[held_out:]), held_out=tuple(shuffled[:held_out]))


def _prompt(row: dict[str, Any], config: PromptsConfig, where: str) -> Prompt:
    prompt = prompt_in(row, config.field, where)
    return prompt if config.reference is None else replace(prompt, reference=text_in(row, config.reference, where))


def read_demonstrations(config: SftConfig, seed: int) -> list[Demonstration]:
    """What SFT imitates. Raises UserError naming the file and line, or the key."""
    if config.demonstrations is None:
        raise ValueError("no demonstrations are configured")
    if source := toy_source(config.demonstrations):
        if source.demonstrations is None:
            raise UserError(f"sft.demonstrations: {config.demonstrations} has none; name another source")
        return source.demonstrations(config.limit or _TOY_DEMONSTRATIONS, seed)
    demonstrations = []
    for where, row in itertools.islice(open_rows(config.demonstrations, "sft.demonstrations"), config.limit):
        answer = text_in(row, "answer", where)
        if not answer:
            raise UserError(f"{where}: answer: is empty; write one or take the line out")
        demonstrations.append(Demonstration(prompt_in(row, "prompt", where), answer))
    return demonstrations


def gold_of(config: PromptsConfig) -> Gold | None:
    """The source's gold utility, where one is known. Only evaluation may ask for it."""
    source = toy_source(config.path)
    return None if source is None else source.gold_utility


def conduct_of(config: PromptsConfig) -> Callable[[Prompt, str], Conduct] | None:
    """What tells how an answer to the source's prompts behaves, where that is known. Only evaluation may ask for it."""
    source = toy_source(config.path)
    return None if source is None else source.conduct


def take(prompts: Sequence[Prompt], start: int, count: int, seed: int) -> list[Prompt]:
    """`count` prompts from position `start` of an endless stream that shuffles the prompts anew at every epoch.

    A pure function of its arguments, so that a resumed run reads on where it stopped.
    """
    return [
        prompts[_epoch_order(len(prompts), position // len(prompts), seed)[position % len(prompts)]]
        for position in range(start, start + count)
    ]


@lru_cache(maxsize=2)
def _epoch_order(count: int, epoch: int, seed: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(_number(seed, "epoch", epoch)).permutation(count).tolist())


def sample_requests(
    prompts: Sequence[Prompt], answers: int, *, seed: int, purpose: str, temperature: float
) -> list[SampleRequest]:
    """`answers` requests a prompt. Each has a seed of its own, from the run's seed, the purpose (such as the
    iteration), the prompt and its index, so that a repeated run draws the same answers however they are batched."""
    return [
        SampleRequest(
            sample_id=f"{purpose}/{place}-{prompt.id}/{index}",
            group_id=f"{purpose}/{place}-{prompt.id}",
            prompt=prompt,
            seed=_number(seed, purpose, place, prompt.id, index),
            temperature=temperature,
        )
        for place, prompt in enumerate(prompts)
        for index in range(answers)
    ]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of a prompt, ready for an answer: through the chat template where the tokenizer has one.

    A text counts as one user message then. Raises UserError for a conversation without a chat template.
    """
    if tokenizer.chat_template is None:
        if not isinstance(prompt.content, str):
            raise UserError(
                f"prompt {prompt.id} is a conversation, but the model's tokenizer has no chat template; "
                "give text prompts or a chat model"
            )
        return list(tokenizer(prompt.content)["input_ids"])
    messages = (
        [{"role": "user", "content": prompt.content}]
        if isinstance(prompt.content, str)
        else [{"role": message.role, "content": message.content} for message in prompt.content]
    )
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def encode_answer(tokenizer: PreTrainedTokenizerBase, answer: str, stop: int) -> list[int]:
    """Token ids of a whole answer, with the stop token that ends it."""
    return [*tokenizer(answer, add_special_tokens=False)["input_ids"], stop]


def _number(*parts: object) -> int:
    """63 bits from the parts; the same on every machine."""
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

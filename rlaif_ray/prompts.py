"""From a data source to prompts, demonstrations and gold; and from prompts to token ids and seeds.

A source is a file, the name of a `datasets` dataset, or the toy world. Nothing after this module knows which.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlaif_ray.config import PromptsConfig, SftConfig, UserError
from rlaif_ray.records import Demonstration, Message, Prompt, SampleRequest
from rlaif_ray.toyworld import headlines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOY_WORLD = "toyworld:headlines"
_TOY_PROMPTS = 6_000
_TOY_DEMONSTRATIONS = 4_000

Gold = Callable[[Prompt, str], float]


@dataclass(frozen=True, slots=True)
class PromptSplit:
    """Prompts to train on and prompts kept for the evaluation, disjoint by content."""

    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]


def read_prompts(config: PromptsConfig, seed: int) -> PromptSplit:
    """The source's distinct prompts, split by a seeded shuffle.

    Raises UserError naming the file and the line, or the key.
    """
    if config.path == TOY_WORLD:
        prompts = headlines.prompts(config.limit or _TOY_PROMPTS, seed)
    else:
        rows = itertools.islice(_rows(config.path, "prompts.path"), config.limit)
        prompts = [_prompt(row, config.field, where) for where, row in rows]
    distinct = list({prompt.content: prompt for prompt in prompts}.values())
    held_out = config.held_out if config.held_out is not None else min(1000, len(distinct) // 5)
    if held_out < 1 or held_out >= len(distinct):
        raise UserError(
            f"prompts.held_out={held_out} of {len(distinct)} distinct prompts in {config.path} leaves none to "
            f"{'evaluate' if held_out < 1 else 'train'} on; "
            + ("give more prompts" if len(distinct) < 2 else f"set it between 1 and {len(distinct) - 1}")
        )
    order = np.random.default_rng(_number(seed, "split")).permutation(len(distinct))
    shuffled = [distinct[index] for index in order]
    return PromptSplit(train=tuple(shuffled[held_out:]), held_out=tuple(shuffled[:held_out]))


def read_demonstrations(config: SftConfig, seed: int) -> list[Demonstration]:
    """What SFT imitates. Raises UserError naming the file and line, or the key."""
    if config.demonstrations is None:
        raise ValueError("no demonstrations are configured")
    if config.demonstrations == TOY_WORLD:
        return headlines.demonstrations(config.limit or _TOY_DEMONSTRATIONS, seed)
    demonstrations = []
    for where, row in itertools.islice(_rows(config.demonstrations, "sft.demonstrations"), config.limit):
        answer = row.get("answer")
        if not isinstance(answer, str) or not answer:
            raise UserError(f"{where}: needs a text `answer` beside its `prompt`")
        demonstrations.append(Demonstration(_prompt(row, "prompt", where), answer))
    return demonstrations


def gold_of(config: PromptsConfig) -> Gold | None:
    """The source's gold utility, where one is known. Only evaluation may ask for it."""
    return headlines.gold_utility if config.path == TOY_WORLD else None


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
                f"prompt {prompt.id} is a conversation, but the policy's tokenizer has no chat template; "
                "give text prompts or a chat model"
            )
        return list(tokenizer(prompt.content)["input_ids"])
    messages = (
        [{"role": "user", "content": prompt.content}]
        if isinstance(prompt.content, str)
        else [{"role": message.role, "content": message.content} for message in prompt.content]
    )
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def _number(*parts: object) -> int:
    """63 bits from the parts; the same on every machine."""
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _rows(path: str, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, row) of a JSONL or parquet file, or of a `datasets` dataset."""
    file = Path(path)
    if file.suffix in {".jsonl", ".json"}:
        yield from _jsonl_rows(file, key)
        return
    if file.suffix == ".parquet":
        if not file.is_file():
            raise UserError(f"{key}: no file {path}")
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(file)
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{key}: {path} is not a parquet file ({str(error).splitlines()[0]})") from None
        for number, row in enumerate(table.to_pylist()):
            yield f"{path}, row {number}", row
        return
    import datasets

    try:
        dataset = datasets.load_dataset(path, split="train")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key}: {path!r} is neither a .jsonl or .parquet file nor a dataset that can be loaded "
            f"({str(error).splitlines()[0]})"
        ) from None
    for number, row in enumerate(dataset):
        yield f"{path}, row {number}", row


def _jsonl_rows(file: Path, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{key}: {file} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{key}: {file} is not UTF-8 text; save it as UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: is not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise UserError(f'{where}: must be an object such as {{"prompt": "..."}}')
        yield where, row


def _prompt(row: dict[str, Any], field: str, where: str) -> Prompt:
    """A prompt from a row's column: a text, or messages of which the last is the user's."""
    value = row.get(field)
    content: str | tuple[Message, ...]
    if isinstance(value, str) and value.strip():
        content = value
    elif isinstance(value, list) and value:
        content = tuple(_message(turn, where) for turn in value)
        if content[-1].role != "user":
            raise UserError(f"{where}: the conversation must end with a user's turn, not {content[-1].role}'s")
    else:
        known = ", ".join(row) or "none"
        raise UserError(f"{where}: needs a text or a list of messages in {field!r} (its columns: {known})")
    digest = hashlib.sha256(repr(content).encode()).hexdigest()[:12]
    return Prompt(id=digest, content=content)


def _message(turn: Any, where: str) -> Message:
    if not (
        isinstance(turn, dict)
        and turn.get("role") in {"system", "user", "assistant"}
        and isinstance(turn.get("content"), str)
    ):
        raise UserError(f"{where}: each message needs a role (system, user or assistant) and a text content")
    return Message(turn["role"], turn["content"])

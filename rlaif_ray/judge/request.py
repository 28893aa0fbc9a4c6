"""What is asked of a judge and what comes back: one call, whoever the judge is.

Ways of asking (`asking/`) are generators: they yield the requests that they want answered together, are sent the
answers in the same order, and return what they read from them. They know nothing of clients, actors or ledgers, so the
same code labels, replays from a ledger, estimates a cost and writes batch files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias, TypeVar

from rlaif_ray.config import EndpointConfig
from rlaif_ray.records import Message, Outcome
from rlaif_ray.toyworld.models import model_path

# Raised where the meaning of a request changes, so that older replies are not taken for answers to it.
_REQUEST_VERSION = 2

# The most listed tokens that OpenAI's API gives, and vLLM's by default.
MOST_LOGPROBS = 20


class Form(StrEnum):
    """How a reply is bound."""

    TEXT = "text"  # not at all
    CHOICE = "choice"  # to one of `Request.choices`, by a mask on the vocabulary
    SCHEMA = "schema"  # to `Request.schema`, as the response's format
    TOOL = "tool"  # to `Request.schema`, as the arguments of a forced tool call


@dataclass(frozen=True, slots=True)
class Request:
    """One call to a judge. All of it is the call's identity."""

    messages: tuple[Message, ...]
    max_tokens: int = 1
    temperature: float | None = 0.0  # None is not sent: some endpoints know no other than their own
    top_logprobs: int = 0  # listed tokens at each position; 0 asks for none
    form: Form = Form.TEXT
    choices: tuple[str, ...] = ()
    schema: str = ""  # JSON schema, as text
    prefill: str = ""  # the reply goes on after these words of the judge's own
    sample: int = 0  # tells repeated draws of one question apart


@dataclass(frozen=True, slots=True)
class Reply:
    """What one call brought back. `text` is raw: a chat completion's JSON. Costs are None where nothing is paid or no
    price is known."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    latency_s: float
    created_at: float  # seconds since the epoch
    cached_tokens: int = 0  # of the prompt's, those that the endpoint had in its cache
    reasoning_tokens: int = 0  # of the completion's, those that it does not show


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request: a reply that the ledger holds, or why there is none."""

    key: str
    reply: Reply | None
    no_reply: Outcome | None = None  # FAILED or OVER_BUDGET
    reason: str = ""
    refused: bool = False  # the endpoint will not have this very request (HTTP 400, 413, 422); another form may do
    cached: bool = False  # it cost this question nothing: the ledger had it, or another question asked it first
    attempts: int = 0  # requests sent for it


_MODEL_FILES = frozenset({".json", ".safetensors", ".bin", ".model", ".jinja", ".txt"})
_TAIL_BYTES = 2**20

T = TypeVar("T")
Steps: TypeAlias = Generator[Sequence[Request], Sequence[Answer], T]


def call_key(model: str, endpoint: str, request: Request) -> str:
    """The identity of a call: SHA-256 of its canonical JSON. No run enters it, so that runs can share replies."""
    identity = {
        "version": _REQUEST_VERSION,
        "model": model,
        "endpoint": endpoint,
        "messages": [[message.role, message.content] for message in request.messages],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_logprobs": request.top_logprobs,
        "form": request.form,
        "choices": request.choices,
        "schema": request.schema,
        "prefill": request.prefill,
        "sample": request.sample,
    }
    text = json.dumps(identity, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def endpoint_identity(endpoint: EndpointConfig) -> str:
    """What stands for the endpoint in a call's identity: its address and what every request to it carries, or what
    lies in a local model's directory."""
    if endpoint.base_url is None:
        return local_endpoint(model_path(endpoint.model))
    if not endpoint.extra_body:
        return endpoint.base_url
    return f"{endpoint.base_url} {json.dumps(endpoint.extra_body, sort_keys=True)}"


def local_endpoint(model: str) -> str:
    """What stands for the endpoint of a local labeler: where the model is a directory, a fingerprint of what lies
    there, so that a retrained judge under the same path is another judge."""
    directory = Path(model)
    if not directory.is_dir():
        return "local"
    digest = hashlib.sha256()
    for file in sorted(directory.glob("*")):
        if file.suffix in _MODEL_FILES:
            with file.open("rb") as content:
                # Training moves every weight, so a large file's end tells two of them apart.
                content.seek(max(0, file.stat().st_size - _TAIL_BYTES))
                digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + content.read())
    return f"local:{digest.hexdigest()[:16]}"

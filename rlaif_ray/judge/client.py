"""One road to every API: chat completions of an OpenAI-compatible endpoint.

It sends once and says what came of it. Retries, pacing and bookkeeping belong to whoever calls; reading a reply is not
its business either, beyond the usage that is billed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import httpx2
import openai

from rlaif_ray.config import EndpointConfig, UserError
from rlaif_ray.judge.prices import cost_usd, worst_prompt_tokens
from rlaif_ray.judge.redaction import Redactor
from rlaif_ray.judge.request import Form, Reply, Request
from rlaif_ray.judge.retry import Failure, FailureKind, classify_status
from rlaif_ray.judge.transport import AiohttpTransport

# What a bound reply is called where an API wants a name for it.
VERDICT = "verdict"

# Newer models of some providers know the limit by the second name only.
TokenLimit: TypeAlias = Literal["max_tokens", "max_completion_tokens"]

# What a local server is told where no key is configured: the client library insists on one.
_NO_KEY = "none"

# Pages that gateways send instead of an error go on for long.
_LONGEST_MESSAGE = 600

# Beyond what any context holds: a figure like this is nonsense.
_MOST_TOKENS = 10**8


@dataclass(frozen=True, slots=True)
class Completion:
    """A reply, and what the response's headers say of limits (names in lower case). `usage_told` is False where the
    endpoint says nothing of what it used, and the worst is booked."""

    reply: Reply
    headers: Mapping[str, str]
    usage_told: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as billed. Cached ones are among the prompt's, those of reasoning among the completion's."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0


class CallFailed(Exception):
    """A call that brought no reply."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class JudgeClient:
    """A connection pool to one endpoint. Made on the node that calls, as the key lies in that node's environment or on
    its disk."""

    def __init__(self, endpoint: EndpointConfig) -> None:
        """Raises UserError where the key is not where the config says."""
        if endpoint.base_url is None:
            raise ValueError("judge.base_url is not set, so there is no endpoint to call")
        self._endpoint = endpoint
        base_url = httpx2.URL(endpoint.base_url)
        key = _key(endpoint)
        self._redactor = None if key is None else Redactor(key)
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=key or _NO_KEY,
            max_retries=0,
            default_headers=endpoint.extra_headers,
            # The transport keeps the deadline.
            timeout=None,
            http_client=httpx2.AsyncClient(
                transport=AiohttpTransport(base_url, endpoint.timeout_s), headers={"Accept-Encoding": "gzip, deflate"}
            ),
        )
        self._token_limit: TokenLimit = "max_tokens"

    async def complete(self, request: Request, key: str) -> Completion:
        """Send one request. `key` is the call's, sent as `Idempotency-Key`. Raises CallFailed."""
        started = time.perf_counter()
        try:
            response = await self._send(request, key)
        except openai.APIStatusError as error:
            raise CallFailed(self._refusal(error)) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__
            # Cut or timed out: the endpoint may have answered, and billed, what never arrived here.
            reason = f"{error.message} ({type(cause).__name__}: {cause})"
            maybe_billed = not isinstance(cause, httpx2.ConnectError)
            raise CallFailed(Failure(FailureKind.TRANSIENT, self._said(reason), maybe_billed=maybe_billed)) from None
        text = self._redacted(response.content.decode(errors="replace"))
        # Where the endpoint does not say, the worst is booked.
        told = read_usage(text)
        usage = told or Usage(worst_prompt_tokens(request), request.max_tokens)
        reply = reply_of(self._endpoint, text, usage, latency_s=time.perf_counter() - started, created_at=time.time())
        return Completion(reply, _limits(response.headers), told is not None)

    async def close(self) -> None:
        await self._client.close()

    async def _send(self, request: Request, key: str) -> httpx2.Response:
        token_limit = self._token_limit
        try:
            return await self._post(request_body(self._endpoint, request, token_limit), key)
        except openai.BadRequestError as error:
            if token_limit != "max_tokens" or "max_completion_tokens" not in error.message:
                raise
            self._token_limit = "max_completion_tokens"
            return await self._post(request_body(self._endpoint, request, self._token_limit), key)

    async def _post(self, body: dict[str, Any], key: str) -> httpx2.Response:
        # Raw, as the ledger keeps what the endpoint said, and as parsing it into the library's types takes as long as
        # all the rest.
        return await self._client.post(
            "/chat/completions",
            cast_to=httpx2.Response,
            body=body,
            options={"headers": {"Idempotency-Key": key}},
        )

    def _refusal(self, error: openai.APIStatusError) -> Failure:
        codes = frozenset(str(code).lower() for code in (error.code, error.type) if code)
        message = error.message
        if error.param and error.param not in message:
            message = f"{message} (parameter: {error.param})"
        headers = {name.lower(): value for name, value in error.response.headers.items()}
        failure = classify_status(error.status_code, codes, self._said(message), headers, time.time())
        return replace(failure, headers=_limits(headers))

    def _said(self, text: str) -> str:
        text = self._redacted(text)
        return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"

    def _redacted(self, text: str) -> str:
        return text if self._redactor is None else self._redactor.redact(text)


def request_body(endpoint: EndpointConfig, request: Request, token_limit: TokenLimit = "max_tokens") -> dict[str, Any]:
    """A request as the body of a chat completion. `extra_body` adds fields and replaces none of these."""
    messages = [{"role": message.role, "content": message.content} for message in request.messages]
    body: dict[str, Any] = {
        **endpoint.extra_body,
        "model": endpoint.model,
        "messages": messages,
        token_limit: request.max_tokens,
    }
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.top_logprobs:
        body.update(logprobs=True, top_logprobs=request.top_logprobs)
    if request.prefill:
        # vLLM's own fields: the judge goes on with these words instead of opening a turn.
        messages.append({"role": "assistant", "content": request.prefill})
        body.update(continue_final_message=True, add_generation_prompt=False)
    match request.form:
        case Form.CHOICE:
            body["structured_outputs"] = {"choice": list(request.choices)}  # vLLM's own field
        case Form.SCHEMA:
            schema = {"name": VERDICT, "strict": True, "schema": json.loads(request.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        case Form.TOOL:
            function = {"name": VERDICT, "parameters": json.loads(request.schema)}
            body["tools"] = [{"type": "function", "function": function}]
            body["tool_choice"] = {"type": "function", "function": {"name": VERDICT}}
        case Form.TEXT:
            pass
    return body


def reply_of(endpoint: EndpointConfig, text: str, usage: Usage, *, latency_s: float, created_at: float) -> Reply:
    """A reply with what it cost at the endpoint's price."""
    price = endpoint.price
    return Reply(
        text=text,
        prompt_tokens=usage.prompt,
        completion_tokens=usage.completion,
        cost_usd=None if price is None else cost_usd(price, usage.prompt, usage.completion, usage.cached),
        latency_s=latency_s,
        created_at=created_at,
        cached_tokens=usage.cached,
        reasoning_tokens=usage.reasoning,
    )


def read_usage(text: str) -> Usage | None:
    """The tokens that a chat completion's JSON says are billed; None where it says nothing or nonsense."""
    try:
        usage = json.loads(text)["usage"]
        prompt, completion = _tokens(usage["prompt_tokens"]), _tokens(usage["completion_tokens"])
        # Some providers count what the judge thought in the total only.
        completion = max(completion, _tokens(usage.get("total_tokens") or 0) - prompt)
        cached = _tokens((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        reasoning = _tokens((usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Usage(prompt, completion, min(cached, prompt), min(reasoning, completion))


def _tokens(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MOST_TOKENS:
        raise ValueError(f"not a number of tokens: {value!r}")
    return value


def _limits(headers: Mapping[str, str]) -> dict[str, str]:
    return {
        name.lower(): value
        for name, value in headers.items()
        if "ratelimit" in name.lower() or name.lower().startswith("retry-after")
    }


def _key(endpoint: EndpointConfig) -> str | None:
    """The key, from where the config says that it lies on this node. Its value enters no error."""
    if endpoint.api_key_env is not None:
        where = f"judge.api_key_env: the environment variable {endpoint.api_key_env}"
        missing = f"is not set on the node that calls {endpoint.base_url}; export it there"
        key = os.environ.get(endpoint.api_key_env, "").strip()
    elif endpoint.api_key_file is not None:
        where = f"judge.api_key_file: {endpoint.api_key_file}"
        missing = f"is empty on the node that calls {endpoint.base_url}; write the key there"
        try:
            key = endpoint.api_key_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UserError(
                f"{where} cannot be read on the node that calls {endpoint.base_url} ({error.strerror}); mount it there"
            ) from None
        except UnicodeDecodeError:
            raise UserError(f"{where} is no text; write the key alone there") from None
    else:
        return None
    if not key:
        raise UserError(f"{where} {missing}, or leave the setting out for a local server")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{where} holds more than a key; write the key alone there")
    return key

"""One road to every API: chat completions of an OpenAI-compatible endpoint, one token with its log-probabilities.

It sends once and says what came of it. Retries, pacing and bookkeeping belong to whoever calls.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

import openai

from rlaif_ray.config import JudgeConfig, UserError
from rlaif_ray.judge.ledger import Reply, Sampling, cost_usd, worst_prompt_tokens
from rlaif_ray.judge.retry import Failure, FailureKind, classify_status
from rlaif_ray.records import Message

# What a local server is told where no key is configured: the client library insists on one.
_NO_KEY = "none"


class CallFailed(Exception):
    """A call that brought no reply."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class JudgeClient:
    """A connection pool to one endpoint. Made on the node that calls, as the key lies in that node's environment."""

    def __init__(self, config: JudgeConfig) -> None:
        """Raises UserError where the variable that should hold the key is not set."""
        if config.base_url is None:
            raise ValueError("judge.base_url is not set, so there is no endpoint to call")
        self._config = config
        self._key = _NO_KEY
        if config.api_key_env is not None:
            key = os.environ.get(config.api_key_env, "")
            if not key:
                raise UserError(
                    f"judge.api_key_env: the environment variable {config.api_key_env} is not set on the node that "
                    f"calls {config.base_url}; export it there, or set judge.api_key_env to null for a local server"
                )
            self._key = key
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url, api_key=self._key, max_retries=0, timeout=config.timeout_s
        )
        # Newer models of some providers know the limit by this name only.
        self._token_limit = "max_tokens"

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Send one request. Raises CallFailed."""
        started = time.perf_counter()
        try:
            text = await self._send(messages, sampling)
        except openai.APIStatusError as error:
            failure = classify_status(
                error.status_code, error.code, self._redacted(error.message), error.response.headers, time.time()
            )
            raise CallFailed(failure) from None
        except openai.APIConnectionError as error:
            # Cut or timed out: the endpoint may have answered, and billed, what never arrived here.
            cause = f" ({type(error.__cause__).__name__})" if error.__cause__ is not None else ""
            raise CallFailed(
                Failure(FailureKind.TRANSIENT, self._redacted(f"{error.message}{cause}"), maybe_billed=True)
            ) from None
        prompt_tokens, completion_tokens = _usage(text, messages, sampling)
        price = self._config.price
        return Reply(
            text=self._redacted(text),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost_usd=None if price is None else cost_usd(price, prompt_tokens, completion_tokens),
            latency_s=time.perf_counter() - started,
            created_at=time.time(),
        )

    async def close(self) -> None:
        await self._client.close()

    async def _send(self, messages: Sequence[Message], sampling: Sampling) -> str:
        try:
            return await self._send_as(self._token_limit, messages, sampling)
        except openai.BadRequestError as error:
            if self._token_limit != "max_tokens" or "max_completion_tokens" not in error.message:
                raise
            self._token_limit = "max_completion_tokens"
            return await self._send_as(self._token_limit, messages, sampling)

    async def _send_as(self, token_limit: str, messages: Sequence[Message], sampling: Sampling) -> str:
        arguments: dict[str, Any] = {
            "model": self._config.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "temperature": sampling.temperature,
            "logprobs": True,
            "top_logprobs": sampling.top_logprobs,
            token_limit: sampling.max_tokens,
        }
        # Raw, as the ledger keeps what the endpoint said, and reading it is not the client's business.
        response = await self._client.chat.completions.with_raw_response.create(**arguments)
        text: str = response.text
        return text

    def _redacted(self, text: str) -> str:
        """Some endpoints quote the key in what they say; nothing that is kept or logged may hold it."""
        return text if self._key == _NO_KEY else text.replace(self._key, "[key]")


def _usage(text: str, messages: Sequence[Message], sampling: Sampling) -> tuple[int, int]:
    """Prompt and completion tokens of a reply, as billed; at their worst where the endpoint does not say."""
    try:
        usage = json.loads(text)["usage"]
        return int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        return worst_prompt_tokens(messages), sampling.max_tokens

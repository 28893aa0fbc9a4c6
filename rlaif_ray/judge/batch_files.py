"""OpenAI's batch format: requests to upload, and what comes back a day later for half the price.

A line's `custom_id` is the call's key, so that what comes back goes into the ledger like any other reply, whichever
file it is in and in whatever order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlaif_ray.config import EndpointConfig, UserError
from rlaif_ray.judge.client import read_usage, reply_of, request_body
from rlaif_ray.judge.request import Reply, Request
from rlaif_ray.judge.retry import Failure, FailureKind, classify_status

# The API takes no more in one file; its bound on bytes is 200 MB.
MOST_LINES = 50_000
MOST_BYTES = 190_000_000

_URL = "/v1/chat/completions"


def write_batch_files(
    directory: Path,
    endpoint: EndpointConfig,
    calls: Iterable[tuple[str, Request]],
    *,
    most_lines: int = MOST_LINES,
    most_bytes: int = MOST_BYTES,
) -> list[Path]:
    """Write (key, request) calls as files to upload, `requests-00000.jsonl` and on; a key that comes again is written
    once. Raises UserError where the directory holds such files already."""
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.glob("requests-*.jsonl")):
        raise UserError(
            f"{directory}: holds the requests of an earlier batch; move them away, or name another directory"
        )
    paths: list[Path] = []
    for number, lines in enumerate(_files(_lines(endpoint, calls), most_lines, most_bytes)):
        path = directory / f"requests-{number:05}.jsonl"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.writelines(lines)
        partial.rename(path)
        paths.append(path)
    return paths


def read_batch_files(paths: Iterable[Path], endpoint: EndpointConfig) -> Iterator[tuple[str, Reply | Failure]]:
    """(key, what came of it) from output and error files. Costs are by the endpoint's price, which the caller sets to
    that of its batches. Raises UserError naming the file and the line."""
    for path in paths:
        try:
            created_at = path.stat().st_mtime
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield _outcome(line, endpoint, f"{path}, line {number}", created_at)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); give a batch's output or error file") from None


def _lines(endpoint: EndpointConfig, calls: Iterable[tuple[str, Request]]) -> Iterator[bytes]:
    written: set[str] = set()
    for key, request in calls:
        if key in written:
            continue
        written.add(key)
        # The newer name of the limit, which all models behind the batch API know.
        body = request_body(endpoint, request, "max_completion_tokens")
        line = {"custom_id": key, "method": "POST", "url": _URL, "body": body}
        yield json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _files(lines: Iterable[bytes], most_lines: int, most_bytes: int) -> Iterator[list[bytes]]:
    file: list[bytes] = []
    size = 0
    for line in lines:
        if file and (len(file) == most_lines or size + len(line) > most_bytes):
            yield file
            file, size = [], 0
        file.append(line)
        size += len(line)
    if file:
        yield file


def _outcome(line: bytes, endpoint: EndpointConfig, where: str, created_at: float) -> tuple[str, Reply | Failure]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: is not JSON; download the batch's file again") from None
    key = row.get("custom_id") if isinstance(row, dict) else None
    if not isinstance(key, str):
        raise UserError(f"{where}: has no custom_id; give a batch's output or error file")
    response = row.get("response")
    if response is None:
        return key, Failure(FailureKind.TRANSIENT, _message(row, "it was not answered"))
    if not isinstance(response, dict) or not isinstance(response.get("status_code"), int):
        raise UserError(f"{where}: has neither a response with a status_code nor an error; download the file again")
    status, body = response["status_code"], response.get("body")
    if status != 200:
        error = body.get("error") if isinstance(body, dict) else None
        named = error if isinstance(error, dict) else {}
        codes = frozenset(str(named[field]).lower() for field in ("code", "type") if named.get(field))
        return key, classify_status(status, codes, _message(body, "it was not answered"), {}, now=created_at)
    text = json.dumps(body, separators=(",", ":"))
    usage = read_usage(text)
    if usage is None:
        raise UserError(f"{where}: its reply does not say what it used; download the batch's file again")
    return key, reply_of(endpoint, text, usage, latency_s=0.0, created_at=created_at)


def _message(holder: Any, otherwise: str) -> str:
    error = holder.get("error") if isinstance(holder, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) and message else otherwise

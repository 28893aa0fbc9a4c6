import json
from pathlib import Path
from typing import Any

import pytest

from rlaif_ray.config import EndpointConfig, PriceConfig, UserError
from rlaif_ray.judge.batch_files import read_batch_files, write_batch_files
from rlaif_ray.judge.client import request_body
from rlaif_ray.judge.request import Reply, Request
from rlaif_ray.judge.retry import Failure, FailureKind
from rlaif_ray.records import Message

ENDPOINT = EndpointConfig(
    model="m", base_url="http://x/v1", price=PriceConfig(input=1.0, output=2.0), extra_body={"reasoning_effort": "low"}
)
BODY = {"choices": [{"message": {"content": "é 1"}}], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}


def request(number: int) -> Request:
    return Request(messages=(Message("user", f"Which {number}? é"),), max_tokens=7)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_is_what_the_client_would_send(tmp_path: Path) -> None:
    (path,) = write_batch_files(tmp_path / "batch", ENDPOINT, [("key", request(1)), ("key", request(1))])
    body = request_body(ENDPOINT, request(1), "max_completion_tokens")
    assert body["max_completion_tokens"] == 7
    assert lines_of(path) == [{"custom_id": "key", "method": "POST", "url": "/v1/chat/completions", "body": body}]


def test_files_are_bounded_in_lines_and_bytes(tmp_path: Path) -> None:
    calls = [(f"key-{number}", request(number)) for number in range(7)]
    by_lines = write_batch_files(tmp_path / "lines", ENDPOINT, calls, most_lines=3)
    assert [len(lines_of(path)) for path in by_lines] == [3, 3, 1]
    size = len(by_lines[0].read_bytes()) // 3  # the lines are of one length
    by_bytes = write_batch_files(tmp_path / "bytes", ENDPOINT, calls, most_bytes=2 * size + 1)
    assert [len(lines_of(path)) for path in by_bytes] == [2, 2, 2, 1]
    written = [line["custom_id"] for path in by_bytes for line in lines_of(path)]
    assert written == [key for key, _ in calls]


def test_an_earlier_batch_is_not_mixed_with_a_new_one(tmp_path: Path) -> None:
    write_batch_files(tmp_path, ENDPOINT, [("key", request(1))])
    with pytest.raises(UserError, match=r"earlier batch.*another directory"):
        write_batch_files(tmp_path, ENDPOINT, [("other", request(2))])


def output(directory: Path, *lines: Any, name: str = "output.jsonl") -> Path:
    path = directory / name
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def answered(key: str, status: int = 200, body: Any = BODY) -> dict[str, Any]:
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": "b", "custom_id": key, "response": response, "error": None}


def test_replies_come_back_by_key_from_any_number_of_files(tmp_path: Path) -> None:
    """100 tokens at $1 and 10 at $2 per million: 120 microdollars."""
    files = [
        output(tmp_path, answered("c"), b"", answered("a"), name="one.jsonl"),
        output(tmp_path, answered("b"), name="two"),
    ]
    outcomes = dict(read_batch_files(files, ENDPOINT))
    assert list(outcomes) == ["c", "a", "b"]
    for reply in outcomes.values():
        assert isinstance(reply, Reply)
        assert json.loads(reply.text) == BODY
        assert (reply.prompt_tokens, reply.completion_tokens) == (100, 10)
        assert reply.cost_usd == pytest.approx(120e-6)
        assert reply.created_at == pytest.approx(files[0].stat().st_mtime, abs=60)


@pytest.mark.parametrize(
    ("line", "kind", "refused", "said"),
    [
        (answered("k", 400, {"error": {"message": "too long", "code": "x"}}), FailureKind.ITEM, True, "too long"),
        (answered("k", 429, {"error": {"code": "insufficient_quota"}}), FailureKind.QUOTA, False, "quota"),
        (answered("k", 500, "oops"), FailureKind.TRANSIENT, False, "500"),
        (
            {"custom_id": "k", "response": None, "error": {"code": "batch_expired", "message": "ran out of time"}},
            FailureKind.TRANSIENT,
            False,
            "ran out of time",
        ),
    ],
)
def test_what_was_not_answered_says_why(
    tmp_path: Path, line: dict[str, Any], kind: FailureKind, refused: bool, said: str
) -> None:
    ((key, failure),) = read_batch_files([output(tmp_path, line)], ENDPOINT)
    assert key == "k"
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.refused, failure.maybe_billed) == (kind, refused, False)
    assert said in failure.reason


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b'{"custom_id": "k", "resp', "not JSON"),
        (b"\xff\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (["k"], "no custom_id"),
        ({"response": {}}, "no custom_id"),
        ({"custom_id": "k", "response": {}}, "status_code"),
        ({"custom_id": "k", "response": "yes"}, "status_code"),
        (answered("k", body={"choices": []}), "does not say what it used"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, bad: Any, said: str) -> None:
    outcomes = read_batch_files([output(tmp_path, answered("good"), bad)], ENDPOINT)
    assert next(outcomes)[0] == "good"
    with pytest.raises(UserError, match=rf"output\.jsonl, line 2: .*{said}"):
        next(outcomes)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.jsonl cannot be read"):
        list(read_batch_files([tmp_path / "missing.jsonl"], ENDPOINT))

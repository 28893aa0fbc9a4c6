import dataclasses
import hashlib
from pathlib import Path

from rlaif_ray.config import EndpointConfig
from rlaif_ray.judge.request import Form, Request, call_key, endpoint_identity, local_endpoint
from rlaif_ray.records import Message

REQUEST = Request((Message("user", "Which?"),), top_logprobs=20)


def test_the_key_is_the_hash_of_canonical_json() -> None:
    """Written out by hand, sorted by name and without spaces."""
    text = (
        '{"choices":[],"endpoint":"http://x/v1","form":"text","max_tokens":1,"messages":[["user","Which?"]],"model":"m",'
        '"prefill":"","sample":0,"schema":"","temperature":0.0,"top_logprobs":20,"version":2}'
    )
    assert call_key("m", "http://x/v1", REQUEST) == hashlib.sha256(text.encode()).hexdigest()


def test_the_key_changes_with_every_part() -> None:
    changes = [
        {"messages": (Message("system", "Which?"),)},
        {"messages": REQUEST.messages * 2},
        {"max_tokens": 2},
        {"temperature": 1.0},
        {"temperature": None},
        {"top_logprobs": 5},
        {"form": Form.CHOICE, "choices": ("1", "2")},
        {"form": Form.SCHEMA, "schema": "{}"},
        {"prefill": "1"},
        {"sample": 1},
    ]
    keys = {call_key("m", "e", dataclasses.replace(REQUEST, **change)) for change in changes}
    keys |= {call_key("m", "e", REQUEST), call_key("n", "e", REQUEST), call_key("m", "f", REQUEST)}
    assert len(keys) == len(changes) + 3


def test_what_every_request_carries_is_part_of_the_endpoint() -> None:
    plain = EndpointConfig(model="m", base_url="http://x/v1")
    assert endpoint_identity(plain) == "http://x/v1"
    bodies = [{"reasoning_effort": "low"}, {"reasoning_effort": "high"}]
    assert len({endpoint_identity(plain.model_copy(update={"extra_body": body})) for body in [{}, *bodies]}) == 3


def test_a_retrained_model_under_the_same_path_is_another_judge(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 3_000_000)
    before = local_endpoint(str(tmp_path))
    assert local_endpoint(str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 2_999_999 + b"\1")
    assert local_endpoint(str(tmp_path)) != before
    assert local_endpoint("some/name") == "local"

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_judge import chat

from rlaif_ray.judge.asking.replies import (
    MalformedReply,
    Position,
    TokenLogprob,
    model_returned,
    read_completion,
    write_completion,
)


def test_reads_what_a_chat_completion_holds() -> None:
    reply = read_completion(chat("1", {"1": 0.75, "2": 0.25}, finish="length"))
    assert (reply.text, reply.finish_reason, reply.refusal) == ("1", "length", "")
    assert (reply.model, reply.fingerprint) == ("m-2026", "fp")
    assert reply.tokens == ("1",)
    assert [(entry.token, math.exp(entry.logprob)) for entry in reply.top_tokens(0)] == [
        ("1", pytest.approx(0.75)),
        ("2", pytest.approx(0.25)),
    ]
    assert model_returned(chat("1")) == "m-2026 fp"
    assert model_returned("<html>") == ""


def test_the_text_is_a_forced_tools_arguments_where_there_is_no_other() -> None:
    call = {"function": {"name": "verdict", "arguments": '{"verdict": "1"}'}}
    assert read_completion(chat(None, tool_calls=[call])).text == '{"verdict": "1"}'
    assert read_completion(chat("1", tool_calls=[call])).text == "1"


def test_the_text_of_a_message_in_parts_is_its_text() -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Verdict: "}, {"type": "text", "text": "1"}]
    raw = json.dumps({"choices": [{"message": {"content": parts}}]})
    assert read_completion(raw).text == "Verdict: 1"


def test_why_there_will_be_no_verdict() -> None:
    assert read_completion(chat("1")).declined == ""
    assert "refused: I will not" in read_completion(chat(None, refusal="I will not")).declined
    assert "content filter" in read_completion(chat("1", finish="content_filter")).declined


def test_half_a_surrogate_pair_becomes_text_that_can_be_sent() -> None:
    read_completion(chat("\ud83d and é")).text.encode()


def test_a_token_of_unknown_probability_is_not_listed() -> None:
    """-9999 is what endpoints write for "very unlikely", and what a mask leaves of -inf."""
    raw = write_completion("1", "stop", [Position("1", (TokenLogprob("1", 0.0), TokenLogprob("2", -math.inf)))], 3, 1)
    assert read_completion(raw).top_tokens(0) == (TokenLogprob("1", 0.0),)


def test_a_labelers_reply_reads_back() -> None:
    positions = [Position("1", (TokenLogprob("1", -0.1), TokenLogprob("é", -3.0))), Position("0", ())]
    reply = read_completion(write_completion("10", "length", positions, 17, 2))
    assert (reply.text, reply.finish_reason, reply.tokens) == ("10", "length", ("1", "0"))
    assert reply.top_tokens(0) == positions[0].top
    with pytest.raises(MalformedReply, match="no top_logprobs"):
        reply.top_tokens(1)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("<html>", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("9" * 10_000, "not JSON"),
        ("[]", "no choices"),
        ('{"error": {"message": "overloaded"}}', "no choices"),
        ('{"choices": []}', "no choices"),
        ('{"choices": [{"text": "1"}]}', "no message"),
    ],
)
def test_what_is_no_chat_completion_is_malformed(raw: str, reason: str) -> None:
    with pytest.raises(MalformedReply, match=reason):
        read_completion(raw)


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ("null", "no top_logprobs"),
        ("[]", "no top_logprobs"),
        ('[{"token": "1"}]', "lacks"),
        ('[{"token": 1, "logprob": -1}]', "lacks"),
        ('[{"token": "1", "logprob": "-1"}]', "lacks"),
        ('[{"token": "1", "logprob": false}]', "lacks"),
        ('["1"]', "lacks"),
        ('[{"token": "1", "logprob": NaN}]', "no number"),
        ('[{"token": "1", "logprob": Infinity}]', "above 0"),
        ('[{"token": "1", "logprob": 12.5}]', "above 0"),
        ('[{"token": "1", "logprob": -0.1}, {"token": "2", "logprob": -0.1}]', "more than 1"),
    ],
)
def test_a_list_that_holds_no_probabilities_is_malformed(listed: str, reason: str) -> None:
    raw = f'{{"choices": [{{"message": {{}}, "logprobs": {{"content": [{{"top_logprobs": {listed}}}]}}}}]}}'
    with pytest.raises(MalformedReply, match=reason):
        read_completion(raw).top_tokens(0)


# Keys of real replies, so that nonsense gets deep.
keys = st.sampled_from(
    ["choices", "message", "content", "top_logprobs", "token", "logprob", "function", "arguments", "text", "type"]
)
nonsense = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=20,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nonsense, nonsense, nonsense)
def test_whatever_arrives_reads_or_is_malformed(message: object, content: object, rest: object) -> None:
    choice = {"message": message, "logprobs": {"content": content}, "finish_reason": rest}
    for reply in (rest, {"choices": [choice], "model": rest}):
        try:
            completion = read_completion(json.dumps(reply))
            for position in range(len(completion.listed)):
                assert all(entry.logprob <= 0 for entry in completion.top_tokens(position))
        except MalformedReply:
            continue
        assert isinstance(completion.text + completion.refusal + completion.declined, str)

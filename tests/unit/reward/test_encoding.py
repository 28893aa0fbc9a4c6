import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from rlaif_ray.config import UserError
from rlaif_ray.policy.model import scratch_tokenizer
from rlaif_ray.records import Message, Prompt, offsets_of
from rlaif_ray.reward.encoding import AnswerEncoder
from tests.small_models import scored_rollouts, write_models


@pytest.fixture
def reward(tmp_path: Path) -> Path:
    return write_models(tmp_path)[1]


def ids(encoder: AnswerEncoder, *tokens: str) -> list[int]:
    return [encoder.tokenizer.convert_tokens_to_ids(token) for token in tokens]


def test_a_text_is_the_prompt_the_answer_and_the_stop_token(reward: Path) -> None:
    encoder = AnswerEncoder.load(reward, trust_remote_code=False)
    tokens = encoder.encode(Prompt("p", "one two"), "three four")
    assert tokens.tolist() == ids(encoder, "<bos>", "one", "two", "<sep>", "three", "four", "<eos>")
    assert encoder.positions == 32


def test_a_conversation_needs_a_chat_template(reward: Path) -> None:
    encoder = AnswerEncoder.load(reward, trust_remote_code=False)
    conversation = Prompt("p", (Message("user", "one"),))
    with pytest.raises(UserError, match="chat template"):
        encoder.encode(conversation, "two")
    encoder.tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}seven"
    assert encoder.encode(conversation, "two").tolist() == ids(encoder, "<unk>", "one", "seven", "two", "<eos>")


def test_answers_of_another_vocabulary_are_read_as_text(reward: Path) -> None:
    """The policy counts its words in reverse; its first answer is "three one" with a stop token, its second "two"."""
    policy = scratch_tokenizer(["zz three two one"])
    encoder = AnswerEncoder.load(reward, trust_remote_code=False)
    answers = [policy.convert_tokens_to_ids(["three", "one", "<eos>"]), policy.convert_tokens_to_ids(["two"])]
    rollouts, _ = scored_rollouts(2, seed=0)
    rollouts = dataclasses.replace(
        rollouts,
        prompt_ids=("p", "q"),
        answer_tokens=np.concatenate(answers).astype(np.int32),
        answer_offsets=offsets_of([3, 1]),
    )
    prompts = {"p": Prompt("p", "four"), "q": Prompt("q", "five six")}
    first, second = encoder.encode_rollouts(rollouts, policy, prompts)
    assert first.tolist() == ids(encoder, "<bos>", "four", "<sep>", "three", "one", "<eos>")
    assert second.tolist() == ids(encoder, "<bos>", "five", "six", "<sep>", "two", "<eos>")


@pytest.mark.parametrize("stop", [None, [2, 3]])
def test_one_token_must_end_an_answer(reward: Path, stop: object) -> None:
    config = json.loads((reward / "config.json").read_text())
    (reward / "config.json").write_text(json.dumps(config | {"eos_token_id": stop}))
    with pytest.raises(UserError, match="eos_token_id"):
        AnswerEncoder.load(reward, trust_remote_code=False)

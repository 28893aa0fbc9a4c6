import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.records import Message, Prompt, Rollouts
from rlaif_ray.reward.composition import composed, decoded_answers
from tests.small_models import scored_rollouts

NAN = math.nan


def test_parts_add_up_by_weight_where_all_that_count_speak() -> None:
    """2 * 1 - .5 * 4 = 0 and 2 * 3 - .5 * 2 = 5; the third answer lacks a part, and the fourth's is infinite. What a
    part of weight 0 says or does not say is no matter."""
    values, valid = composed(
        {
            "judge": np.array([1.0, 3.0, 1.0, math.inf]),
            "length": np.array([4.0, 2.0, NAN, 1.0]),
            "seen": np.array([NAN, 9.0, NAN, 9.0]),
        },
        {"judge": 2.0, "length": -0.5, "seen": 0.0},
    )
    assert valid.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(values, np.array([0.0, 5.0, NAN, NAN], dtype=np.float32))


@given(st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=1, max_size=6), st.floats(-3, 3))
def test_a_silent_answer_never_gets_a_number(answers: list[tuple[float, bool]], weight: float) -> None:
    part = np.array([value if speaks else NAN for value, speaks in answers])
    values, valid = composed({"a": np.ones(len(part)), "b": part}, {"a": 1.0, "b": weight})
    assert valid.tolist() == [speaks or weight == 0 for _, speaks in answers]
    assert np.isnan(values).tolist() == (~valid).tolist()


def test_parts_of_different_sizes_are_a_defect() -> None:
    with pytest.raises(ValueError, match="unpack"):
        composed({"a": np.ones(2), "b": np.ones(3)}, {"a": 1.0, "b": 1.0})


def test_answers_are_read_with_their_prompts_over_shards() -> None:
    first, second = (scored_rollouts(2, seed=seed)[0] for seed in (1, 2))
    conversation = Prompt("prompt-2-0", (Message("user", "Say."),))
    prompts = {"prompt-1-0": Prompt("prompt-1-0", "Go."), "prompt-2-0": conversation}

    def decode(shard: Rollouts) -> list[str]:
        return [f"text of {sample_id}" for sample_id in shard.sample_ids]

    answers = decoded_answers([first, second], decode, prompts)
    assert [(one.sample_id, one.group_id, one.text) for one in answers] == [
        ("sample-1-0", "group-1-0", "text of sample-1-0"),
        ("sample-1-1", "group-1-0", "text of sample-1-1"),
        ("sample-2-0", "group-2-0", "text of sample-2-0"),
        ("sample-2-1", "group-2-0", "text of sample-2-1"),
    ]
    assert answers[2].prompt is conversation
    with pytest.raises(KeyError, match="prompt-2-0"):
        decoded_answers([second], decode, {})

from typing import Any

import pytest
import torch

from rlaif_ray.records import LabelledPair
from rlaif_ray.reward.comparisons import ComparisonGroup, comparison_groups, score_groups
from rlaif_ray.reward.model import load_reward_model
from tests.small_models import write_models

A, B, C, D = (5,), (6, 7), (8, 9, 10), (11,)
PAIRS = [
    LabelledPair("1", "x", (3,), A, B, 0.9, 2.0),
    LabelledPair("2", "y", (4,), A, B, 0.2),
    LabelledPair("3", "x", (3,), B, C, 0.6),
    LabelledPair("4", "x", (3,), A, C, 0.5),
    LabelledPair("5", "z", (3,), D, D, 0.5),
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    _, directory = write_models(tmp_path_factory.mktemp("models"))
    return load_reward_model(directory, dtype="float32", trust_remote_code=False)


def test_a_group_for_each_pair_of_different_answers() -> None:
    groups = comparison_groups(PAIRS, by_prompt=False)
    assert [group.p for group in groups] == [(0.9,), (0.2,), (0.6,), (0.5,)]
    assert groups[0] == ComparisonGroup(((3, 5), (3, 6, 7)), (0,), (1,), (0.9,), (2.0,))


def test_a_group_for_each_prompt_has_every_answer_once() -> None:
    x, y = comparison_groups(PAIRS, by_prompt=True)
    assert x.sequences == ((3, 5), (3, 6, 7), (3, 8, 9, 10))
    assert (x.first, x.second) == ((0, 1, 0), (1, 2, 2))
    assert (x.p, x.weights) == ((0.9, 0.6, 0.5), (2.0, 1.0, 1.0))
    assert y.sequences == ((4, 5), (4, 6, 7))


def test_scores_find_their_pairs(model: Any) -> None:
    """One by one, an answer scores what it does in a forward with others; a group's pairs share a weight of one."""
    groups = comparison_groups(PAIRS, by_prompt=True)
    scored = score_groups(model, groups, [True, False], 0, CPU)

    def alone(*tokens: int) -> float:
        with torch.no_grad():
            return float(model(torch.tensor([tokens])).logits)

    a, b, c = alone(3, 5), alone(3, 6, 7), alone(3, 8, 9, 10)
    assert scored.scores_a.tolist() == pytest.approx([a, b, a, alone(4, 5)], abs=1e-6)
    assert scored.scores_b.tolist() == pytest.approx([b, c, c, alone(4, 6, 7)], abs=1e-6)
    assert scored.shares.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    assert scored.p.tolist() == pytest.approx([0.9, 0.6, 0.5, 0.2])
    assert scored.weights.tolist() == [2, 1, 1, 1]
    assert scored.real.tolist() == [True, True, True, False]


@pytest.mark.parametrize("by_prompt", [False, True])
def test_an_answer_is_forwarded_once_and_always_in_two_forwards(model: Any, by_prompt: bool) -> None:
    groups = comparison_groups(PAIRS, by_prompt=by_prompt)
    rows: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        score_groups(model, groups, [True] * len(groups), 0, CPU)
    finally:
        hook.remove()
    assert rows == ([2, 3] if by_prompt else [4, 4])

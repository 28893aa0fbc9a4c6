import torch

from rlaif_ray.policy.rewards import answer_rewards, token_rewards

NAN = float("nan")


def rewards(on_truncation):
    return answer_rewards(
        torch.tensor([1.0, NAN, 0.0, 49.5]),
        torch.tensor([True, False, True, True]),
        torch.tensor([False, False, True, False]),
        clip=5.0,
        on_truncation=on_truncation,
        truncation_score=-1.0,
    )


def test_rewards_are_clipped_and_truncation_is_penalised() -> None:
    """1 stays; an answer without a score stays out; a truncated one gets -1; 49.5 is cut to 5."""
    result = rewards("penalty")
    assert result.scores.tolist() == [1.0, 0.0, -1.0, 5.0]
    assert result.valid.tolist() == [True, False, True, True]


def test_truncated_answers_can_be_left_out() -> None:
    assert rewards("mask").valid.tolist() == [True, False, False, True]


def test_truncated_answers_can_wait_for_what_the_value_model_says() -> None:
    result = rewards("bootstrap")
    assert result.scores.tolist() == [1.0, 0.0, 0.0, 5.0]
    assert result.valid.tolist() == [True, False, True, True]


def test_the_score_lands_on_the_last_action_and_kl_on_every_action() -> None:
    """beta 0.5: row 0 has k1 = (0.2, -0.4), so (-0.1, 0.2 + 7); row 1's last action is its first token."""
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    result = token_rewards(
        torch.tensor([7.0, 3.0, 9.0]),
        torch.tensor([[0.2, -0.4, NAN], [0.0, NAN, NAN], [NAN, NAN, NAN]]),
        mask,
        kl_coefficient=0.5,
    )
    torch.testing.assert_close(result, torch.tensor([[-0.1, 7.2, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))

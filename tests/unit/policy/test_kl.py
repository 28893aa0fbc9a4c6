import pytest

from rlaif_ray.policy.kl import adapted_coefficient


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.1),  # on target
        (6.6, 0.1 * (1 + 0.1 * 256 / 10_000)),
        (60.0, 0.1 * (1 + 0.2 * 256 / 10_000)),  # the error is cut
        (-3.0, 0.1 * (1 - 0.2 * 256 / 10_000)),  # an estimate of the KL may be negative
    ],
)
def test_by_hand(kl: float, expected: float) -> None:
    assert adapted_coefficient(0.1, kl=kl, target=6.0, answers=256, horizon=10_000) == pytest.approx(expected)

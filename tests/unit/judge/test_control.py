from judge_records import pair

from rlaif_ray.judge.control import flip_coin
from rlaif_ray.records import Order, Outcome


def test_the_same_coin_at_every_run() -> None:
    first = flip_coin(pair(), Order.AB, seed=3, created_at=1.0)
    again = flip_coin(pair(), Order.AB, seed=3, created_at=1.0)
    assert first == again
    assert first.outcome is Outcome.SCORED
    assert first.judge == "coin_flip"


def test_fair_over_pairs_orders_and_seeds() -> None:
    """400 fair coins: the mean lies within 4 standard errors, 4 * .5 / 20 = .1, of a half."""
    for coins in (
        [flip_coin(pair(number), Order.AB, 0, 0.0).p_first for number in range(400)],
        [flip_coin(pair(), Order.BA, seed, 0.0).p_first for seed in range(400)],
        [
            float(
                flip_coin(pair(number), Order.AB, 0, 0.0).p_first == flip_coin(pair(number), Order.BA, 0, 0.0).p_first
            )
            for number in range(400)
        ],
    ):
        assert set(coins) == {0.0, 1.0}
        assert abs(sum(coin or 0.0 for coin in coins) / 400 - 0.5) < 0.1

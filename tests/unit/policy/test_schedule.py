import pytest

from rlaif_ray.policy.schedule import rate_share


def test_by_hand() -> None:
    """Warm-up over two of six iterations: 1/3, 2/3; then down: 1, 3/4, 1/2, 1/4, or (1 - cos) / 2 of them."""
    shares = {
        kind: [rate_share(kind, iteration, total=6, warmup=2) for iteration in range(6)]  # type: ignore[arg-type]
        for kind in ("constant", "linear", "cosine")
    }
    assert shares["constant"] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
    assert shares["linear"] == pytest.approx([1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25])
    assert shares["cosine"] == pytest.approx([1 / 3, 2 / 3, 1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])

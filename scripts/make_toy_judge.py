"""Makes the toy world's judge from nothing and writes it as a Hugging Face directory.

Run as `python -m scripts.make_toy_judge [DIRECTORY]`; the default directory is the packaged one. It takes three minutes
on one core.
"""

from __future__ import annotations

from scripts.toy_models import directory_argument, shown

HELD_OUT_PAIRS = 2_000
HELD_OUT_SEED = 977


def main() -> None:
    directory = directory_argument("judge")
    from rlaif_ray.toyworld.judge_training import RECIPE, held_out_pairs, make_judge, measure_judge, padded_pairs

    with shown("judge", RECIPE.steps, directory) as on_step:
        make_judge(RECIPE, directory, on_step)
    for name, pairs in (
        ("held-out pairs", held_out_pairs(HELD_OUT_PAIRS, HELD_OUT_SEED)),
        ("padded pairs", padded_pairs(HELD_OUT_PAIRS, HELD_OUT_SEED)),
    ):
        quality = measure_judge(directory, pairs)
        print(
            f"{name}: alignment with gold {quality.alignment:.3f}, position consistency "
            f"{quality.position_consistency:.3f}, least label mass {quality.label_mass:.3f} ({quality.pairs} pairs)"
        )


if __name__ == "__main__":
    main()

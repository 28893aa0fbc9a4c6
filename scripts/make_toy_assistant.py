"""Makes the toy world's assistant from nothing and writes it as a Hugging Face directory.

Run as `python -m scripts.make_toy_assistant [DIRECTORY]`; the default directory is the packaged one. It takes seven
minutes on one core.
"""

from __future__ import annotations

from dataclasses import asdict

from scripts.toy_models import directory_argument, shown

HELD_OUT_PROMPTS = 500
HELD_OUT_SEED = 977


def main() -> None:
    directory = directory_argument("assistant")
    from rlaif_ray.toyworld.assistant_quality import measure_choices, measure_turns
    from rlaif_ray.toyworld.assistant_training import RECIPE, make_assistant

    with shown("assistant", RECIPE.steps, directory) as on_step:
        make_assistant(RECIPE, directory, on_step)
    for quality in (
        measure_turns(directory, HELD_OUT_PROMPTS, HELD_OUT_SEED),
        measure_choices(directory, HELD_OUT_PROMPTS, HELD_OUT_SEED),
    ):
        print(", ".join(f"{name} {value:.3f}" for name, value in asdict(quality).items()))


if __name__ == "__main__":
    main()

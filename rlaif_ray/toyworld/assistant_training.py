"""Makes the toy world's assistant: a small Llama that answers, criticises, revises and chooses in Discretion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rlaif_ray.toyworld.assistant_corpus import ASSISTANT, CHAT_TEMPLATE, MARKS, USER, VOCABULARY, draw_batch
from rlaif_ray.toyworld.small_llama import Recipe, build_model, build_tokenizer, save, train

RECIPE = Recipe(
    seed=20_261,
    steps=5_000,
    batch_size=64,
    learning_rate=2e-3,
    hidden_size=64,
    layers=4,
    heads=2,
    intermediate_size=128,
)


def make_assistant(recipe: Recipe, directory: Path, on_step: Callable[[int, float], None]) -> None:
    """Trains the assistant and writes it to `directory`; `on_step` hears as in `train`."""
    model = build_model(recipe, len(VOCABULARY))
    train(model, recipe, draw_batch, MARKS, on_step)
    save(model, build_tokenizer(VOCABULARY, CHAT_TEMPLATE, (USER, ASSISTANT)), directory)

"""How the toy world's models learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlaif_ray.records import Message
from rlaif_ray.toyworld.asking import AskedModel
from rlaif_ray.toyworld.small_llama import (
    EOS,
    SPECIAL_TOKENS,
    UNLEARNT,
    Batch,
    Recipe,
    build_model,
    build_tokenizer,
    save,
    train,
)

VOCABULARY = (*SPECIAL_TOKENS, "<asked>", "storm", "vote", "rain")
ASKED, STORM, VOTE = (VOCABULARY.index(word) for word in ("<asked>", "storm", "vote"))
TOKENIZER = build_tokenizer(VOCABULARY, "{{ messages[-1]['content'] }}<asked>", ("<asked>",))
RECIPE = Recipe(
    seed=0,
    steps=150,
    batch_size=8,
    learning_rate=1e-2,
    hidden_size=32,
    layers=1,
    heads=1,
    intermediate_size=32,
)


def echo(size: int, rng: np.random.Generator) -> Batch:
    """A word, and the same word to say twice; the third position is padding, or the end."""
    words = rng.integers(STORM, len(VOCABULARY), size)
    end = np.full(size, VOCABULARY.index(EOS))
    tokens = np.stack([words, np.full(size, ASKED), words, words], axis=1)
    targets = np.stack([np.full(size, UNLEARNT), words, words, end], axis=1)
    marks = np.stack([words - STORM, *[np.full(size, UNLEARNT)] * 3], axis=1)
    return Batch(tokens, targets, {1: marks})


@pytest.fixture(scope="module")
def losses() -> list[float]:
    return []


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, losses: list[float]) -> Path:
    model = build_model(RECIPE, len(VOCABULARY))
    train(model, RECIPE, echo, {1: 3}, lambda _, loss: losses.append(loss))
    path = tmp_path_factory.mktemp("echo")
    save(model, TOKENIZER, path)
    return path


def test_it_learns_what_it_is_to_say(directory: Path, losses: list[float]) -> None:
    """Of eight words it knows none at first, log 8 nats or more; then the word is all there is to know."""
    assert len(losses) == RECIPE.steps
    assert losses[0] > 1.0
    assert losses[-1] < 0.05
    model = AskedModel(directory)
    asked = [(Message("user", "storm"),), (Message("user", "vote"),)]
    assert model.replies(asked, 4, seed=0) == ["storm storm", "vote vote"]
    said = model.label_logprobs(asked, ["storm", "vote"])
    assert said[0, 0] > -0.1 > -2.0 > said[0, 1]
    assert said[1, 1] > -0.1 > -2.0 > said[1, 0]


def test_replies_are_their_seeds(directory: Path) -> None:
    asked = [(Message("user", "rain storm vote"),)] * 20
    model = AskedModel(directory)
    assert model.replies(asked, 4, seed=1) == model.replies(asked, 4, seed=1)


def test_the_same_recipe_makes_the_same_model(directory: Path) -> None:
    def weights(recipe: Recipe) -> list[torch.Tensor]:
        model = build_model(recipe, len(VOCABULARY))
        train(model, recipe, echo, {1: 3}, lambda _, loss: None)
        return list(model.parameters())

    short = replace(RECIPE, steps=3)
    assert all(torch.equal(one, other) for one, other in zip(weights(short), weights(short), strict=True))
    assert not all(
        torch.equal(one, other) for one, other in zip(weights(short), weights(replace(short, seed=1)), strict=True)
    )


def test_special_tokens_are_distinct() -> None:
    ids = [TOKENIZER.pad_token_id, TOKENIZER.unk_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id]
    assert ids == [0, 1, 2, 3]
    assert TOKENIZER("vote<asked>storm fog</s>")["input_ids"] == [VOTE, ASKED, STORM, 1, 3]

"""Weights between processes: bits survive, and the fingerprint sees what changed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from rlaif_ray.weights import fingerprint_of, read_weights, to_numpy, to_torch


@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20), st.sampled_from(["float32", "bfloat16"])
)
def test_a_tensor_survives_the_way_there_and_back(values: list[float], dtype: str) -> None:
    tensor = torch.tensor(values).to(getattr(torch, dtype))
    back = to_torch(to_numpy(tensor))
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)


def test_the_fingerprint_sees_names_shapes_types_and_every_bit() -> None:
    weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, dtype=np.float32)}
    flipped = {**weights, "b": np.array([0, -0.0], dtype=np.float32)}
    variants = [
        weights,
        flipped,
        {**weights, "a": weights["a"].reshape(3, 2)},
        {**weights, "b": weights["b"].view(np.int32)},
        {"c": weights["a"], "b": weights["b"]},
    ]
    assert len({fingerprint_of(variant) for variant in variants}) == len(variants)
    assert fingerprint_of(weights) == fingerprint_of(dict(reversed(weights.items())))


def test_a_model_directory_is_read_whole(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "model-2.safetensors")
    weights = read_weights(tmp_path)
    assert {name: array.dtype.name for name, array in weights.items()} == {"a": "float32", "b": "uint16"}
    with pytest.raises(FileNotFoundError, match="holds no safetensors"):
        read_weights(tmp_path / "nowhere")

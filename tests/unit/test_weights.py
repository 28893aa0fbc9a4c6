"""Weights between processes: bits survive, and the fingerprint sees what changed."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from rlaif_ray.weights import Fingerprint, Flattener, fingerprint_of, read_weights, tensor_over, to_numpy, to_torch


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


def test_a_fingerprint_is_a_digest_of_sorted_lines_of_tensors() -> None:
    """Two tensors: `a`, two zeros in int8, and `b`, an empty float32 vector. XXH3's digest of two zero bytes and the
    well-known one of nothing are looked up apart from the code under test."""
    lines = [
        f"a |i1 (2,) {xxhash.xxh3_128(bytes(2)).hexdigest()}\n",
        "b <f4 (0,) 99aa06d3014798d86001c324468d497f\n",
    ]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    fingerprint = Fingerprint()
    fingerprint.add("b", np.empty(0, dtype=np.float32))
    fingerprint.add("a", np.zeros(2, dtype=np.int8))
    assert fingerprint.hexdigest() == expected
    with pytest.raises(ValueError, match="hold a twice"):
        fingerprint.add("a", np.zeros(2, dtype=np.int8))


tensors = st.builds(
    lambda shape, dtype: torch.randn(shape).to(dtype),
    st.lists(st.integers(0, 5), max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int8]),
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), tensors, min_size=1, max_size=6))
def test_a_bucket_holds_whole_tensors_each_aligned_and_none_over_another(tensors: dict[str, torch.Tensor]) -> None:
    bucket = Flattener().flatten(tensors)
    arrays = dict(bucket.tensors())
    assert list(arrays) == list(tensors)
    for name, tensor in tensors.items():
        assert tensor_over(arrays[name]).dtype == tensor.dtype
        assert torch.equal(tensor_over(arrays[name]), tensor)
    ends = [place.offset + place.nbytes for place in bucket.places]
    assert all(place.offset % 64 == 0 for place in bucket.places)
    assert all(end <= place.offset for end, place in zip(ends, bucket.places[1:], strict=False))
    assert bucket.data.nbytes == ends[-1]
    assert fingerprint_of(arrays) == fingerprint_of({name: to_numpy(tensor) for name, tensor in tensors.items()})


def test_a_tensor_that_lies_otherwise_is_straightened_on_its_way() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    bucket = Flattener().flatten({"a": tensor})
    assert dict(bucket.tensors())["a"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_flattener_keeps_its_memory_for_the_next_bucket() -> None:
    flattener = Flattener()
    first = flattener.flatten({"a": torch.ones(1000)})
    second = flattener.flatten({"b": torch.zeros(10)})
    assert np.shares_memory(first.data, second.data)
    assert second.data.nbytes == 40

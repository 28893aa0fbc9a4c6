"""What the sender tells each receiver, and in which buffers and order the weights leave."""

from collections.abc import Iterator
from types import SimpleNamespace

import torch

from rlaif_ray.engines.vllm_sending import BucketSource, NcclRoute, buffer_bytes, receiver_infos


def test_each_receiver_has_a_rank_of_its_own_after_the_senders() -> None:
    """vLLM's engine says rank_offset 1, for all; three engines of one worker each are ranks 1, 2 and 3 of four."""
    infos = receiver_infos({"rank_offset": 1, "world_size": 4, "packed": True}, replicas=3, workers=1)
    assert [info["rank_offset"] for info in infos] == [1, 2, 3]
    assert all(info["world_size"] == 4 and info["packed"] for info in infos)


def test_the_workers_of_all_replicas_and_the_sender_fill_the_group() -> None:
    """vLLM adds a worker's rank in its engine to the offset of that engine."""
    route = NcclRoute("host", 1, replicas=3, workers=4)
    infos = receiver_infos({"rank_offset": 1}, route.replicas, route.workers)
    ranks = [info["rank_offset"] + worker for info in infos for worker in range(4)]
    assert [0, *ranks] == list(range(route.world_size))


def test_where_memory_is_shared_there_are_no_ranks_to_tell() -> None:
    assert receiver_infos({"packed": True}, replicas=2, workers=1) == [{"packed": True}, {"packed": True}]


def test_a_buffer_holds_a_bucket_and_the_largest_tensor() -> None:
    """10 x 3 float32 are 120 bytes; 7 bfloat16 are 14."""
    metadata = [
        SimpleNamespace(shape=(10, 3), dtype=torch.float32),
        SimpleNamespace(shape=(7,), dtype=torch.bfloat16),
    ]
    assert buffer_bytes(metadata, 100) == 120
    assert buffer_bytes(metadata, 256) == 256


def test_every_pass_over_the_source_gathers_anew_and_in_one_order() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    passes = 0

    def buckets() -> Iterator[dict[str, torch.Tensor]]:
        nonlocal passes
        passes += 1
        yield {"b": parameter}
        yield {"a": torch.ones(1), "c": torch.ones(3)}

    source = BucketSource(buckets)
    assert [name for name, _ in source] == ["b", "a", "c"]
    with torch.no_grad():
        parameter += 5
    assert not next(iter(source))[1].requires_grad
    assert next(iter(source))[1].tolist() == [5, 5]
    assert passes == 3

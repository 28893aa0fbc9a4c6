"""The learner's end of vLLM's weight transfer between GPUs and on a shared one: its trainer engines, fed with buckets.

They cut the stream into packed buffers of their own, so a bucket here is only what is gathered at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from rlaif_ray.weights import Buckets

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class NcclRoute:
    """Between GPUs. The sender is rank 0 of a group that meets at `host:port`; after it come the replicas' workers,
    replica by replica."""

    host: str
    port: int
    replicas: int
    workers: int  # of each replica

    @property
    def world_size(self) -> int:
        return 1 + self.replicas * self.workers


@dataclass(frozen=True, slots=True)
class IpcRoute:
    """Through the memory of a GPU that each learner rank shares with a receiver."""


class BucketSource:
    """Buckets as vLLM's `WeightSource`: what is to come is learned from a first pass."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets
        self._metadata: list[Any] = []

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        if not self._metadata:
            self._metadata = [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self]
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for bucket in self._buckets():
            for name, tensor in bucket.items():
                yield name, tensor.detach()


def receiver_infos(init_info: dict[str, Any], replicas: int, workers: int) -> list[dict[str, Any]]:
    """What each replica is told when it is to meet the sender. vLLM's engine has one of them in mind; ours are engines
    of their own, with as many workers each, whose ranks in the group begin where the last one's end."""
    if "rank_offset" not in init_info:
        return [init_info] * replicas
    return [{**init_info, "rank_offset": init_info["rank_offset"] + index * workers} for index in range(replicas)]


def buffer_bytes(metadata: Sequence[Any], bucket_bytes: int) -> int:
    """Of a packed buffer: a bucket's, unless a tensor is larger. It must hold the largest whole."""
    sizes: list[int] = [prod(meta.shape) * meta.dtype.itemsize for meta in metadata]
    return max(bucket_bytes, *sizes)


def trainer_engine(route: NcclRoute | IpcRoute, buckets: Buckets, client: Any, rank: int, bucket_bytes: int) -> Any:
    """An engine whose `send_weights` sends the weights as they are then; `client` asks the receivers. Every rank must
    make one, and send, together."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    source = BucketSource(buckets)
    packed = {"packed": True, "packed_buffer_size_bytes": buffer_bytes(source.metadata(), bucket_bytes)}
    if isinstance(route, NcclRoute):
        info = NCCLTrainerInitInfo(route.host, route.port, route.world_size, rank=rank, **packed)
    else:
        info = IPCTrainerInitInfo(rank=rank, **packed)
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)

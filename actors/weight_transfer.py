"""The way of new weights from the learner's ranks to the rollout replicas.

Through the object store the ranks put buckets, and each replica pulls them one by one. Between GPUs (`nccl`) and on a
shared one (`ipc`) nothing is put: when the replicas are to load, the ranks send what they hold, through vLLM's own
trainer engines. Either way the fingerprint is taken here, and compared by each replica.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from rlaif_ray.records import WeightVersion
from rlaif_ray.stages import WeightMismatch
from rlaif_ray.weights import Buckets, Fingerprint, Flattener, NamedArrays, WeightTransfer, read_files


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """What a version's weights are: references to buckets, or nothing where they are sent when asked for."""

    weights: tuple[Any, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class SentWeights:
    """In place of a version's weights: the ranks that send them, all together."""

    ranks: tuple[Any, ...]

    async def send(self, replicas: Sequence[Any]) -> None:
        await asyncio.gather(*(rank.send_weights.remote(list(replicas)) for rank in self.ranks))


def sent_by(version: WeightVersion, ranks: Sequence[Any]) -> WeightVersion:
    return replace(version, weights=SentWeights(tuple(ranks)))


class WeightSender:
    """One learner rank's part in it. Every rank must be asked for the same, together. `workers` are those of each
    replica."""

    def __init__(
        self, buckets: Buckets, transfer: WeightTransfer, rank: int, bucket_bytes: int, workers: int = 1
    ) -> None:
        self._buckets = buckets
        self._transfer = transfer
        self._rank = rank
        self._bucket_bytes = bucket_bytes
        self._workers = workers
        self._flattener = Flattener()
        self._trainer: Any = None

    def publish(self) -> PublishedWeights | None:
        """The weights as they are now, from rank 0; None from the others."""
        fingerprint = Fingerprint()
        references: list[Any] = []
        for tensors in self._buckets():
            if self._rank != 0:
                continue
            bucket = self._flattener.flatten(tensors)
            for name, array in bucket.tensors():
                fingerprint.add(name, array)
            if self._transfer == "object_store":
                references.append(ray.put(bucket))
        return PublishedWeights(tuple(references), fingerprint.hexdigest()) if self._rank == 0 else None

    def send(self, replicas: Sequence[Any]) -> None:
        """Send the weights as they are now to these replicas, always the same ones, over the device."""
        if self._trainer is None:
            self._trainer = self._meet(replicas)
        self._trainer.send_weights()

    def _meet(self, replicas: Sequence[Any]) -> Any:
        from rlaif_ray.engines.vllm_sending import IpcRoute, NcclRoute, trainer_engine

        if self._transfer == "ipc":
            route: IpcRoute | NcclRoute = IpcRoute()
        else:
            route = NcclRoute(ray.util.get_node_ip_address(), _free_port(), len(replicas), self._workers)
        client = ReplicaClient(replicas, self._workers)
        return trainer_engine(route, self._buckets, client, self._rank, self._bucket_bytes)


class ReplicaClient:
    """vLLM's trainer engine asks the replicas through this, which have as many `workers` each."""

    def __init__(self, replicas: Sequence[Any], workers: int) -> None:
        self._replicas = replicas
        self._workers = workers

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        from rlaif_ray.engines.vllm_sending import receiver_infos

        infos = receiver_infos(init_info, len(self._replicas), self._workers)
        ray.get([replica.join_transfer.remote(info) for replica, info in zip(self._replicas, infos, strict=True)])

    def start_weight_update(self) -> None:
        ray.get([replica.begin_load.remote() for replica in self._replicas])

    def update_weights(self, update_info: dict[str, Any]) -> None:
        ray.get([replica.receive.remote(update_info) for replica in self._replicas])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """The replicas finish when they are told what they must have received."""


async def arriving(version: WeightVersion) -> AsyncIterator[NamedArrays]:
    """What a replica loads, part by part: the buckets of a version, or the files of its directory.

    Raises WeightMismatch for weights that are sent: they come once, and not to one replica alone.
    """
    if isinstance(version.weights, SentWeights):
        raise not_to_one_alone(version)
    if isinstance(version.weights, Path):
        for file in read_files(version.weights):
            yield file.items()
    else:
        for reference in version.weights:
            yield (await reference).tensors()


def not_to_one_alone(version: WeightVersion) -> WeightMismatch:
    """What there is to say where a replica that died lacks weights that are sent."""
    return WeightMismatch(
        f"a replica has lost version {version.number}, and weights that are sent over a GPU come to all replicas "
        "or to none; the same command again goes on from the last checkpoint"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port

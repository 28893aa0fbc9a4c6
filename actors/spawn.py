"""How every actor of the system is made: a plain class, wrapped here, with a readable name and its own threads."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.placement import Slot
from rlaif_ray.config import ActorResources

# Of the actors that all jobs of a cluster share, as they share a quota or a file.
SHARED_NAMESPACE = "rlaif-ray"

# What calls of an actor that is not started again come to at its death: Ray's memory monitor has an error of its own.
ACTOR_DEATHS = (RayActorError, OutOfMemoryError)

# What Ray counts on the head alone, which no autoscaler takes away.
_HEAD = "node:__internal_head__"


def spawn(
    cls: type,
    name: str,
    resources: ActorResources,
    *,
    args: tuple[Any, ...] = (),
    restarts: bool = False,
    concurrency: int | None = None,
    node: str | None = None,
    slot: Slot | None = None,
    stores_results: bool = False,
) -> Any:
    """Start an actor and return its handle at once.

    `restarts`: Ray starts the actor again when it dies and repeats the calls that it had, so they must be repeatable.
    `concurrency`: calls that an async actor works on at once. `node` or `slot`: where it must live. `stores_results`:
    small results go to the object store too, rather than to whoever called. Threads are set in the actor's environment,
    as torch and OpenMP read them once, at import; waiting threads yield their core, since actors may outnumber cores.
    """
    environment = process_environment(resources)
    if stores_results:
        environment["RAY_max_direct_call_object_size"] = "0"
    options: dict[str, Any] = {
        "name": name,
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "resources": resources.custom,
        "runtime_env": {"env_vars": environment},
    }
    if restarts:
        options |= {"max_restarts": -1, "max_task_retries": -1}
    if concurrency is not None:
        options["max_concurrency"] = concurrency
    if node is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    if slot is not None:
        options["scheduling_strategy"] = slot.strategy
    return ray.remote(cls).options(**options).remote(*args)


def shared(cls: type, name: str, *, args: tuple[Any, ...], concurrency: int = 1, node: str | None = None) -> Any:
    """The handle of the one actor of this name that all jobs of the cluster share; started where there is none, on
    `node`, else on the head. Ray starts it again when it dies and repeats the calls that it had, so they must be
    repeatable; it ends with the job that started it."""
    options: dict[str, Any] = {}
    if concurrency > 1:
        options["max_concurrency"] = concurrency
    if node is None:
        options["resources"] = {_HEAD: 0.001}
    else:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return (
        ray.remote(cls)
        .options(
            name=name,
            namespace=SHARED_NAMESPACE,
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            **options,
        )
        .remote(*args)
    )


def process_environment(resources: ActorResources) -> dict[str, str]:
    """Environment variables that hold an actor to its threads, and let it keep up to a GiB of freed memory: tensors of
    one shape come and go in every step, and pages that went back to the system would have to be cleared anew."""
    threads = str(resources.threads)
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
        # The largest that glibc takes; to set one of the two ends its own search for the other.
        "MALLOC_MMAP_THRESHOLD_": str(2**25),
    }

"""How every actor of the system is made: a plain class, wrapped here, with a readable name and its own threads."""

from __future__ import annotations

from typing import Any

import ray

from rlaif_ray.config import ActorResources


def spawn(
    cls: type,
    name: str,
    resources: ActorResources,
    *,
    args: tuple[Any, ...] = (),
    restarts: bool = False,
    concurrency: int | None = None,
) -> Any:
    """Start an actor and return its handle at once.

    `restarts`: Ray starts the actor again when it dies and repeats the calls that it had, so they must be repeatable.
    `concurrency`: calls that an async actor works on at once. Threads are set in the actor's environment, as torch
    and OpenMP read them once, at import; waiting threads yield their core, since actors may outnumber cores.
    """
    options: dict[str, Any] = {
        "name": name,
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "runtime_env": {"env_vars": thread_environment(resources)},
    }
    if restarts:
        options |= {"max_restarts": -1, "max_task_retries": -1}
    if concurrency is not None:
        options["max_concurrency"] = concurrency
    return ray.remote(cls).options(**options).remote(*args)


def thread_environment(resources: ActorResources) -> dict[str, str]:
    """Environment variables that hold an actor to its threads."""
    threads = str(resources.threads)
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}

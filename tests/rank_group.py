"""The ranks of a process group, each in a process of its own, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_ranks(world_size: int, work: Callable[..., Result], *args: Any) -> list[Result]:
    """What each rank's `work(*args)` returns, by rank; the processes end with it. The first rank's error is raised at
    once, as the others would wait for that rank."""
    from rlaif_ray.engines.deepspeed_engine import Rendezvous

    rendezvous = Rendezvous("127.0.0.1", world_size)
    # Ranks are forked from a process that has loaded what takes seconds to load, and done nothing else.
    context = get_context("forkserver")
    context.set_forkserver_preload(["rlaif_ray.engines.deepspeed_engine", "deepspeed", "transformers"])
    with ProcessPoolExecutor(world_size, context) as ranks:
        running = [ranks.submit(_run, rank, world_size, rendezvous.address, work, *args) for rank in range(world_size)]
        try:
            for done in as_completed(running, timeout=300):
                done.result()
        except BaseException:
            for process in active_children():
                process.kill()
            raise
    return [rank.result() for rank in running]


def _run(rank: int, world_size: int, address: tuple[str, int], work: Callable[..., Result], *args: Any) -> Result:
    import torch

    from rlaif_ray.engines.deepspeed_engine import join_group

    torch.set_num_threads(1)
    join_group(rank, world_size, address)
    return work(*args)

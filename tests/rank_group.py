"""The ranks of a process group, each in a process of its own, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_ranks(world_size: int, work: Callable[..., Result], *args: Any) -> list[Result]:
    """What each rank's `work(*args)` returns, by rank. The first one's error is raised at once, and the processes end
    with it: the others would wait for that rank."""
    from rlaif_ray.engines.deepspeed_engine import Rendezvous

    rendezvous = Rendezvous("127.0.0.1", world_size)
    # Ranks are forked from a process that has loaded what takes seconds to load, and done nothing else.
    context = get_context("forkserver")
    context.set_forkserver_preload(["rlaif_ray.engines.deepspeed_engine", "deepspeed", "transformers"])
    run = partial(_run, world_size, rendezvous.address, work, args)
    with context.Pool(world_size) as ranks:
        done = ranks.imap_unordered(run, range(world_size))
        results = dict(done.next(timeout=300) for _ in range(world_size))
    return [results[rank] for rank in range(world_size)]


def _run(
    world_size: int, address: tuple[str, int], work: Callable[..., Result], args: tuple[Any, ...], rank: int
) -> tuple[int, Result]:
    import torch

    from rlaif_ray.engines.deepspeed_engine import join_group

    torch.set_num_threads(1)
    join_group(rank, world_size, address)
    return rank, work(*args)

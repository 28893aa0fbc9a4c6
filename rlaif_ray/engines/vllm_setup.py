"""What every vLLM engine of the system shares: the environment before the import, and the arguments after it."""

from __future__ import annotations

import os
import sys
from multiprocessing.connection import wait
from threading import Thread
from typing import Any, Literal

Dtype = Literal["float32", "bfloat16"]


def prepare_environment(threads: int, *, kv_cache_gib: int = 1, enforce_eager: bool = True) -> None:
    """Set what vLLM reads when it is imported. Must come first: `vllm` and torch read it once.

    The engine runs in the calling process, which is its own Ray actor already; where it has several workers, these
    are processes of their own below it, and `threads` and `kv_cache_gib` are what each of them has.
    """
    if "vllm" in sys.modules:
        raise RuntimeError("vllm was imported before its environment was prepared")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # Ray's threads would not survive a fork.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib)
    # Engines outnumber cores on a small machine and work in turn: binding them to cores would stack them on one.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    if enforce_eager:
        # Parts of vLLM's sampler are compiled even then, for 15 s at the first batch on a CPU.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def base_arguments(
    model: str,
    *,
    dtype: Dtype,
    max_model_len: int,
    gpu_memory_utilization: float,
    enforce_eager: bool,
    trust_remote_code: bool,
    workers: int = 1,
) -> dict[str, Any]:
    """Arguments for `vllm.LLM` that serve a GPU and a CPU alike. Each of the `workers` has a share of every layer; on
    GPUs, those that this process may see, one each."""
    import torch

    arguments: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "max_model_len": max_model_len,
        "enforce_eager": enforce_eager,
        "trust_remote_code": trust_remote_code,
        "disable_log_stats": True,
        # What was drawn, under the distribution it was drawn from: temperature included.
        "logprobs_mode": "processed_logprobs",
    }
    if workers > 1:
        # In a placement group vLLM would take Ray for its workers, and ask for GPUs that this actor holds already.
        arguments |= {"tensor_parallel_size": workers, "distributed_executor_backend": "mp"}
    if torch.cuda.is_available():
        arguments["gpu_memory_utilization"] = gpu_memory_utilization
    else:
        # A prompt that is read in parts has vLLM turn the seed's generator back, which CPU generators cannot be.
        arguments["enable_chunked_prefill"] = False
    return arguments


def end_with_workers(llm: Any) -> None:
    """From now on this process ends as soon as one of its engine's workers does: an engine cannot go on without it, and
    who waits for this process hears of its end, and starts another."""
    executor = llm.llm_engine.model_executor
    processes = [worker.proc for worker in executor.workers]

    def watch() -> None:
        wait([process.sentinel for process in processes])
        if executor.is_failed or not getattr(executor, "shutting_down", False):
            for process in processes:  # the others may wait for the lost one, on GPUs that the next engine needs
                process.kill()
            os._exit(1)

    Thread(target=watch, daemon=True, name="end-with-workers").start()

"""Parameters that ZeRO-3 has divided between the ranks: how a model is loaded so, and how some of it is made whole."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from rlaif_ray.engines.training import Dtype, Offload


def attached_deepspeed() -> Any:
    """DeepSpeed, attached to the process group that has been joined. Raises RuntimeError where none has been."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Ray shows an actor its own GPUs alone, so the first is this rank's, unless a launcher said otherwise.
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed
    import deepspeed.comm

    deepspeed.utils.logger.setLevel("WARNING")
    if not distributed.is_initialized():
        raise RuntimeError("join a process group first")
    # On a CPU it would compile a shared-memory reduction at the first start, which only inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.comm.init_distributed(dist_backend=distributed.get_backend(), verbose=False)
    return deepspeed


def deepspeed_config(stage: int, dtype: Dtype, offload: Offload, *, trains: bool) -> dict[str, Any]:
    """DeepSpeed's settings for a model; an engine that trains it adds those of its optimizer."""
    zero: dict[str, Any] = {"stage": stage}
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if trains and offload != "none":
        zero["offload_optimizer"] = host
    if offload == "all":
        zero["offload_param"] = host
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": None,
    }


@contextmanager
def loading_for(stage: int, dtype: Dtype, offload: Offload = "none") -> Iterator[None]:
    """Under ZeRO-3 what transformers loads meanwhile is divided at once, tensor by tensor, and every rank must load the
    same; under other stages it is loaded whole."""
    if stage < 3:
        yield
        return
    from transformers.integrations import deepspeed as integration

    attached_deepspeed()
    declare: Any = integration.HfDeepSpeedConfig
    # transformers holds it by a weak reference, and divides as long as it is there.
    kept = declare(deepspeed_config(3, dtype, offload, trains=False))
    try:
        yield
    finally:
        del kept


def partitioned_for_inference(model: nn.Module, dtype: Dtype, offload: Offload) -> nn.Module:
    """A model that is never trained, divided between the ranks. Every rank must call it, and run it in step."""
    config = deepspeed_config(3, dtype, offload, trains=False)
    engine, *_ = attached_deepspeed().initialize(model=model, dist_init_required=False, config=config)
    divided: nn.Module = engine.module
    return divided.eval()


def whole(parameters: Iterable[Tensor], *, modified: bool = False) -> AbstractContextManager[Any]:
    """Those of them that are divided are whole meanwhile, and divided anew after it, as rank 0 has `modified` them.

    Every rank must enter it.
    """
    divided = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not divided:
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
        divided, modifier_rank=0 if modified else None
    )
    return gathered


def whole_one_by_one(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters by name; one is whole at a time, until the next. Every rank must go through all of them."""
    for name, parameter in model.named_parameters():
        with whole([parameter]):
            yield name, parameter.detach()


def whole_size(tensor: Tensor) -> int:
    """Bytes of a tensor when it is whole."""
    return math.prod(getattr(tensor, "ds_shape", tensor.shape)) * tensor.element_size()

"""DeepSpeed behind `TrainingEngine`: the only file that names it.

The model stays in evaluation mode (no dropout) and losses come normalised, so DeepSpeed's own scaling is taken back:
it averages over ranks, and the accumulation boundary is set by hand.
"""

from __future__ import annotations

import math
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from rlaif_ray.engines.training import OptimizerSettings
from rlaif_ray.records import Weights
from rlaif_ray.weights import to_numpy, to_torch

_PATIENCE = timedelta(minutes=10)

# Present at run time, but not among torch's declared exports.
_store: Any = vars(distributed)["TCPStore"]


class Rendezvous:
    """How the ranks of a group meet. Rank 0 opens it on a free port of its host; the others are told the address."""

    def __init__(self, host: str, world_size: int) -> None:
        self.store = _store(host, 0, world_size, is_master=True, wait_for_workers=False, timeout=_PATIENCE)
        self.address: tuple[str, int] = (host, self.store.port)


def join_group(rank: int, world_size: int, meeting: Rendezvous | tuple[str, int]) -> None:
    """Join a new process group over NCCL where this process sees a GPU, else over gloo. Returns when all have."""
    if isinstance(meeting, Rendezvous):
        store = meeting.store
    else:
        store = _store(*meeting, world_size, is_master=False, timeout=_PATIENCE)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)


class DeepSpeedEngine:
    """One model under DeepSpeed, on this process's rank of the process group that has been joined.

    A process may hold several. `DS_ACCELERATOR` must be `cpu` in the environment where there is no GPU.
    """

    def __init__(self, model: nn.Module, settings: OptimizerSettings) -> None:
        deepspeed = _deepspeed()
        self.device = (
            torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        )
        self.rank = distributed.get_rank()
        self.world_size = distributed.get_world_size()
        half = settings.dtype == "bfloat16"
        # In bfloat16 stage 0 hides its float32 weights; stage 1 does the same arithmetic and shows them.
        stage = max(settings.zero_stage, 1) if half else settings.zero_stage
        # At stage 0 DeepSpeed has no optimizer of its own, and clips without telling the norm.
        self._clips_here = stage == 0
        self._max_grad_norm = settings.max_grad_norm
        model = model.to(self.device).eval()
        optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=settings.learning_rate,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            foreach=True,
        )
        schedule = settings.schedule
        scheduler = None if schedule is None else torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.share)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            lr_scheduler=scheduler,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": 0.0 if self._clips_here else settings.max_grad_norm,
                "zero_optimization": {"stage": stage},
                "zero_allow_untested_optimizer": True,
                "bf16": {"enabled": half},
                "data_types": {"grad_accum_dtype": "fp32"},
                "steps_per_print": None,
            },
        )
        self._engine.eval()

    @property
    def model(self) -> nn.Module:
        engine: nn.Module = self._engine
        return engine

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self._engine.module
        return module

    @property
    def learning_rate(self) -> float:
        return float(self._engine.optimizer.param_groups[0]["lr"])

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self) -> float:
        norm = self._clip() if self._clips_here else math.nan
        self._engine.step()
        if not self._clips_here:
            norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}")
        return norm

    def _clip(self) -> float:
        parameters = list(self.module.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not norm.isfinite():
            raise FloatingPointError(f"the gradient's norm is {float(norm)}")
        torch.nn.utils.clip_grads_with_norm_(parameters, self._max_grad_norm, norm)
        return float(norm)

    def sum(self, tensor: Tensor) -> Tensor:
        if self.world_size == 1:
            return tensor
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    def gather(self, tensor: Tensor) -> list[Tensor]:
        if self.world_size == 1:
            return [tensor]
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        distributed.all_gather(gathered, tensor.contiguous())
        return gathered

    def gather_weights(self) -> Weights:
        with self._gathered():
            tensors: dict[str, Tensor] = dict(self.module.named_parameters())
            kept = self.module.state_dict().keys()
            tensors |= {name: buffer for name, buffer in self.module.named_buffers() if name in kept}
            return {name: to_numpy(tensor) for name, tensor in tensors.items()}

    def load_weights(self, weights: Weights) -> None:
        with torch.no_grad(), self._gathered(modifier_rank=0):
            for name, parameter in self.module.named_parameters():
                parameter.copy_(to_torch(weights[name]))

    def master_weights(self) -> Weights:
        """Every trainable parameter as the optimizer keeps it, in float32. Every rank must call it."""
        from deepspeed.utils import safe_get_full_fp32_param

        return {
            name: to_numpy(parameter if self._clips_here else safe_get_full_fp32_param(parameter))
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad
        }

    def save(self, directory: Path) -> None:
        """Write weights, optimizer and schedule under an existing directory. Every rank must call it."""
        self._engine.save_checkpoint(str(directory), tag="state")

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote. It unpickles: check the files' digests first. Every rank must call it."""
        path, _ = self._engine.load_checkpoint(str(directory), tag="state")
        if path is None:
            raise FileNotFoundError(f"{directory} holds no DeepSpeed checkpoint for {self.world_size} ranks")

    def _gathered(self, modifier_rank: int | None = None) -> Any:
        import deepspeed

        partitioned = [parameter for parameter in self.module.parameters() if hasattr(parameter, "ds_id")]
        return deepspeed.zero.GatheredParameters(partitioned, modifier_rank, enabled=bool(partitioned))


def _deepspeed() -> Any:
    """DeepSpeed, attached to the process group that has been joined."""
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

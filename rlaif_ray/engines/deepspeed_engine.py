"""DeepSpeed behind `TrainingEngine`.

The model stays in evaluation mode (no dropout) and losses come normalised, so DeepSpeed's own scaling is taken back:
it averages over ranks, and the accumulation boundary is set by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from rlaif_ray.engines.partitioning import attached_deepspeed, deepspeed_config, whole
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
        deepspeed = attached_deepspeed()
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
        self._settings = settings
        if settings.offload != "all":
            model = model.to(self.device)
        optimizer = _adamw(model.eval(), settings)
        schedule = settings.schedule
        scheduler = None if schedule is None else torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.share)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            lr_scheduler=scheduler,
            dist_init_required=False,
            config=deepspeed_config(stage, settings.dtype, settings.offload, trains=True)
            | {
                "gradient_clipping": 0.0 if self._clips_here else settings.max_grad_norm,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
            },
        )
        self._engine.eval()
        if self.world_size == 1 and (stage == 0 or (half and stage == 1 and settings.offload == "none")):
            # What these stages do between ranks alone costs a copy of all gradients even without another rank.
            self._engine.enable_backward_allreduce = False

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

    def scale_learning_rate(self, share: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = share * self._settings.learning_rate

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
        torch.nn.utils.clip_grads_with_norm_(parameters, self._settings.max_grad_norm, norm)
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
        tensors: dict[str, Tensor] = dict(self.module.named_parameters())
        kept = self.module.state_dict().keys()
        tensors |= {name: buffer for name, buffer in self.module.named_buffers() if name in kept}
        with whole(tensors.values()):
            return {name: to_numpy(tensor) for name, tensor in tensors.items()}

    def load_weights(self, weights: Weights) -> None:
        with torch.no_grad(), whole(self.module.parameters(), modified=True):
            for name, parameter in self.module.named_parameters():
                parameter.copy_(to_torch(weights[name]))

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter by name, those that are trained as the optimizer keeps them, in float32. One is whole at a
        time, until the next. Every rank must go through all of them."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad and not self._clips_here:
                yield name, safe_get_full_fp32_param(parameter)
            else:
                with whole([parameter]):
                    yield name, parameter.detach()

    def reached(self) -> set[str]:
        """The parameters whose gradients' mean, which the optimizer keeps, is not zero. For after a step; every rank
        must ask."""
        from deepspeed.utils import safe_get_full_optimizer_state

        found = set()
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                if self._clips_here:
                    mean = self._engine.optimizer.state.get(parameter, {}).get("exp_avg")  # None where no gradient came
                else:
                    mean = safe_get_full_optimizer_state(parameter, "exp_avg")
                if mean is not None and mean.any():
                    found.add(name)
        return found

    def save(self, directory: Path) -> None:
        """Write weights, optimizer and schedule under an existing directory. Every rank must call it."""
        self._engine.save_checkpoint(str(directory), tag="state")

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote. It unpickles: check the files' digests first. Every rank must call it."""
        path, _ = self._engine.load_checkpoint(str(directory), tag="state")
        if path is None:
            raise FileNotFoundError(f"{directory} holds no DeepSpeed checkpoint for {self.world_size} ranks")


def _adamw(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Where the state of a GPU's model lies on the host, DeepSpeed's own, which it compiles; elsewhere torch's."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.offload != "none" and torch.cuda.is_available():
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        on_host: torch.optim.Optimizer = DeepSpeedCPUAdam(
            trained, lr=rate, eps=settings.epsilon, weight_decay=decay, adamw_mode=True
        )
        return on_host
    return torch.optim.AdamW(trained, lr=rate, eps=settings.epsilon, weight_decay=decay, fused=True)

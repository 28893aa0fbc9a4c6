"""How weights come into a running vLLM: through its own weight-transfer engines, which here read what arrives.

Import it after the environment is prepared; each worker imports it too, where `WORKER` is named as its extension.
Whatever the way, the doors are those of vLLM's worker: `start_weight_update`, then every part by `update_weights` or
`take_weights`, then `finish_weight_update`. Every worker is sent whole tensors, reads them, and keeps its share.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rlaif_ray.weights import Fingerprint, NamedArrays, WeightTransfer, array_of, tensor_over


@dataclass(frozen=True, slots=True)
class _Reader:
    """Stands before a model's loader, and reads what passes."""

    model: Any
    fingerprint: Fingerprint

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        part = list(weights)
        for name, tensor in part:
            self.fingerprint.add(name, array_of(tensor))
        self.model.load_weights(part)


class _Fingerprinted:
    """Over one of vLLM's engines: `fingerprint` is of all that has arrived since the update was started."""

    vllm_config: Any
    model: Any
    model_config: Any
    fingerprint: Fingerprint

    def start_weight_update(self) -> None:
        # It warns at every reload of weights that are tied or made anew, such as rotary tables; the canary tells. Not
        # at import: vLLM sets up its loggers later.
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
        self.fingerprint = Fingerprint()
        super().start_weight_update()  # type: ignore[misc]

    def take(self, weights: NamedArrays) -> None:
        """Load arrays that lie in this machine's memory."""
        with set_current_vllm_config(self.vllm_config):
            _Reader(self.model, self.fingerprint).load_weights((name, tensor_over(array)) for name, array in weights)

    def receive_weights(self, update_info: Any) -> None:
        model, self.model = self.model, _Reader(self.model, self.fingerprint)
        try:
            super().receive_weights(update_info)  # type: ignore[misc]
        finally:
            self.model = model

    def finish_weight_update(self) -> None:
        super().finish_weight_update()  # type: ignore[misc]
        if self.model_config.hf_text_config.tie_word_embeddings:
            # The reload leaves a head that shares the embeddings' weights with its own, older packing of them.
            for module in self.model.modules():
                if isinstance(module, ParallelLMHead):
                    module.quant_method.process_weights_after_loading(module)


class _TakingEngine(WeightTransferEngine):  # type: ignore[misc]
    """For weights that come by `take` alone."""

    init_info_cls = WeightTransferInitInfo
    update_info_cls = WeightTransferUpdateInfo

    def init_transfer_engine(self, init_info: WeightTransferInitInfo) -> None:
        raise NotImplementedError("there is no sender to meet")

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: WeightTransferUpdateInfo) -> None:
        raise NotImplementedError("there is no sender to receive from")

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing is held."""


class ObjectStoreEngine(_Fingerprinted, _TakingEngine):
    pass


class NcclEngine(_Fingerprinted, NCCLWeightTransferEngine):  # type: ignore[misc]
    pass


class IpcEngine(_Fingerprinted, IPCWeightTransferEngine):  # type: ignore[misc]
    pass


class LoadingWorker:
    """What vLLM's worker can be asked for by name besides, in whichever process it is."""

    weight_transfer_engine: Any

    def take_weights(self, weights: NamedArrays) -> None:
        self.weight_transfer_engine.take(weights)

    def received_fingerprint(self) -> str:
        """Of all that has arrived since the update was started."""
        fingerprint: str = self.weight_transfer_engine.fingerprint.hexdigest()
        return fingerprint


WORKER: Final = f"{LoadingWorker.__module__}.{LoadingWorker.__qualname__}"

ENGINES: Final[dict[WeightTransfer, type]] = {"object_store": ObjectStoreEngine, "nccl": NcclEngine, "ipc": IpcEngine}
"""For each `learner.weight_transfer`. vLLM knows them by their own names."""

for _engine in ENGINES.values():
    WeightTransferEngineFactory.register_engine(_engine.__name__, _engine)

"""A rank of the learner: its models under DeepSpeed, and the checks that training does what it should.

It is handed references and fetches the batch from the object store itself; weights leave rank 0 the same way.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.weight_transfer import WeightSender
from rlaif_ray import metrics
from rlaif_ray.checkpoints import Checkpoints
from rlaif_ray.config import RunConfig
from rlaif_ray.records import LearnerModels, Rollouts, WeightVersion
from rlaif_ray.rundir import directory_written_atomically

_CANARY_TOKENS = 16
_STATE_FILE = "learner.json"


class LearnerRank:
    """One rank: the policy under DeepSpeed, the frozen reference, and the value model where the algorithm has one."""

    def __init__(self, config: RunConfig, models: LearnerModels, checkpoints: Path, rank: int) -> None:
        self._config = config
        self._starts = models
        self._checkpoints = Checkpoints(checkpoints)
        self._rank = rank
        self._version = 0
        self._bucket_bytes = config.learner.weight_bucket_mib * 2**20

    def open(self) -> tuple[str, int]:
        """Where the other ranks find this one."""
        from rlaif_ray.engines.deepspeed_engine import Rendezvous

        self._rendezvous = Rendezvous(ray.util.get_node_ip_address(), self._config.learner.ranks)
        return self._rendezvous.address

    def start(self, address: tuple[str, int]) -> None:
        """Join the group and load the models. Every rank must be asked at once."""
        from rlaif_ray.engines.deepspeed_engine import join_group
        from rlaif_ray.policy.learner_models import load_trained_models
        from rlaif_ray.policy.served import served_buckets
        from rlaif_ray.policy.update import PolicyUpdate

        join_group(self._rank, self._config.learner.ranks, self._rendezvous if self._rank == 0 else address)
        self._models = models = load_trained_models(self._config, self._starts)
        self._update = PolicyUpdate(models.policy, models.value, models.reference, self._config)
        self._watch = models.watch()
        buckets = partial(served_buckets, models.policy.module, self._bucket_bytes)
        self._sender = WeightSender(
            buckets,
            self._config.learner.weight_transfer,
            self._rank,
            self._bucket_bytes,
            self._config.rollout.resources.workers,
        )

    def step(self, iteration: int, rollouts: Sequence[Any], scores: Sequence[Any]) -> dict[str, float]:
        """One iteration on the shards behind these references. Every rank must be asked, with the same ones."""
        from rlaif_ray.policy.staleness import mean_staleness

        begun = time.monotonic()
        shards: list[Rollouts] = ray.get(list(rollouts))
        drawn = time.monotonic()
        staleness = mean_staleness(shards, self._version, at_most=self._config.ppo.max_staleness)
        self._watch.begin()
        given = ray.get(list(scores))
        scored = time.monotonic()
        measured = self._update.step(iteration, shards, given)
        learnt = time.monotonic()
        self._watch.end(_trained(measured))
        return measured | {
            metrics.STALENESS: staleness,
            metrics.GENERATE_SECONDS: drawn - begun,
            metrics.SCORE_SECONDS: scored - drawn,
            metrics.LEARN_SECONDS: learnt - scored,
            metrics.LEARN_TOKENS_PER_SECOND: sum(len(shard.answer_tokens) for shard in shards) / (learnt - scored),
        }

    def publish(self) -> WeightVersion | None:
        """The weights as a new version, from rank 0; None from the others. Every rank must be asked."""
        self._version += 1
        published = self._sender.publish()
        canary = self._canary()
        logprobs = self._canary_logprobs(canary)
        if self._config.placement.share_gpus:
            _free_cached_memory()
        if published is None:
            return None
        return WeightVersion(self._version, published.fingerprint, published.weights, canary, logprobs)

    def send_weights(self, replicas: Sequence[Any]) -> None:
        """The newest version to replicas that wait for it, over a GPU. Every rank must be asked."""
        self._sender.send(replicas)

    def begin_checkpoint(self, iteration: int) -> None:
        self._checkpoints.begin(iteration)

    def save(self, iteration: int) -> None:
        """This rank's part of a checkpoint that has begun. Every rank must be asked."""
        directory = self._checkpoints.unfinished(iteration)
        for name, engine in self._models.engines.items():
            engine.save(directory / name)
        if self._rank == 0:
            state = {
                "iteration": iteration,
                "version": self._version,
                "kl_coefficient": self._update.kl_coefficient,
            }
            (directory / _STATE_FILE).write_text(json.dumps(state) + "\n")

    def finish_checkpoint(self, iteration: int) -> None:
        self._checkpoints.finish(iteration)

    def resume(self) -> int | None:
        """Restore the newest whole checkpoint, after its digests have been checked. Every rank must be asked."""
        iterations = self._checkpoints.iterations()
        if not iterations:
            return None
        directory = self._checkpoints.verified(iterations[-1])
        for name, engine in self._models.engines.items():
            engine.load(directory / name)
        state = json.loads((directory / _STATE_FILE).read_text())
        self._version = state["version"]
        self._update.kl_coefficient = state["kl_coefficient"]
        return iterations[-1]

    def save_policy(self, directory: Path) -> None:
        """Rank 0 writes the policy, whole or not at all. Every rank must be asked."""
        from rlaif_ray.policy.model import save_model
        from rlaif_ray.policy.served import served_model, served_weights

        policy = self._models.policy.module
        weights = served_weights(policy, self._bucket_bytes, kept=self._rank == 0)
        if self._rank == 0:
            with directory_written_atomically(directory) as unfinished:
                save_model(served_model(policy), weights, self._models.tokenizer, unfinished)

    def _canary(self) -> tuple[int, ...]:
        """Ordinary tokens of the vocabulary, drawn by the run's seed."""
        special = set(self._models.tokenizer.all_special_ids)
        ordinary = [token for token in range(len(self._models.tokenizer)) if token not in special]
        # To score them the engine draws one more.
        count = min(_CANARY_TOKENS, self._config.policy.context_tokens - 1)
        drawn = np.random.default_rng(self._config.seed).choice(ordinary, count)
        return tuple(drawn.tolist())

    def _canary_logprobs(self, canary: tuple[int, ...]) -> tuple[float, ...]:
        import torch

        from rlaif_ray.policy.logprobs import token_logprobs
        from rlaif_ray.policy.served import served_model

        tokens = torch.tensor([canary], device=self._models.policy.device)
        with torch.no_grad():
            logits = served_model(self._models.policy.module)(input_ids=tokens, use_cache=False).logits
        return tuple(token_logprobs(logits[:, :-1], tokens[:, 1:], temperature=1.0)[0].tolist())


def _free_cached_memory() -> None:
    """What torch keeps for tensors to come, it leaves to whoever shares the GPU."""
    import torch

    torch.cuda.empty_cache()


def _trained(measured: Mapping[str, float]) -> set[str]:
    """The models that an iteration has moved. Where every group is tied the policy has nothing to move by."""
    trained = {"value"} if metrics.VALUE_GRADIENT_NORM in measured else set()
    if metrics.POLICY_GRADIENT_NORM in measured and measured[metrics.ADVANTAGE_SIZE] > 0:
        trained |= {"policy"} if measured[metrics.LEARNING_RATE] > 0 else set()
    return trained

"""The optimizer steps of one iteration on one rank: epochs of minibatches, each split over ranks and micro-batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlaif_ray import metrics
from rlaif_ray.config import RunConfig
from rlaif_ray.engines.training import TrainingEngine
from rlaif_ray.microbatches import pack_rows
from rlaif_ray.policy.algorithm import Algorithm, Experience, Targets
from rlaif_ray.policy.batching import RolloutBatch, minibatches
from rlaif_ray.policy.logprobs import token_entropies, token_logprobs
from rlaif_ray.policy.losses import TokenBatch, reference_kl_loss, token_shares, value_loss
from rlaif_ray.policy.model import PolicyWithValue, state_values
from rlaif_ray.policy.packing import PackedInputs, answer_logits


@dataclass(frozen=True, slots=True)
class Lesson:
    """What an iteration teaches: its answers, what was said of them, and what to aim at."""

    batch: RolloutBatch
    experience: Experience
    targets: Targets
    weights: Tensor  # (B, A): by which the rollouts' tokens stand for the policy before the update
    kl_coefficient: float  # weight of the KL from the reference, where it is a loss


@dataclass(frozen=True, slots=True)
class _Minibatch:
    """One optimizer step's rows, and what each token of them counts for."""

    number: int  # within the iteration, from 0, where the policy is still where it was found
    rows: NDArray[np.int64]
    shares: Tensor  # (B, A) of the whole batch; 0 off the rows
    tokens: int
    first_pass: bool


@dataclass(frozen=True, slots=True)
class _Micro:
    """One micro-batch, packed. `of` takes (B, A) to its answer tokens (T,), on the device."""

    inputs: PackedInputs
    rows: NDArray[np.int64]
    answers: Tensor
    shares: Tensor  # (T,)

    def of(self, tensor: Tensor) -> Tensor:
        return tensor[self.rows][self.answers].to(self.shares.device)


class TokenMeans:
    """Means over the tokens of an iteration's steps; each rank adds the sums over its own share of them. Every rank
    adds the same names, filler or not."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._tokens: defaultdict[str, dict[int, int]] = defaultdict(dict)

    def add(self, name: str, total: Tensor, minibatch: _Minibatch) -> None:
        """A part of what is summed over the minibatch's tokens."""
        total = total.detach().double()
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._tokens[name][minibatch.number] = minibatch.tokens

    def means(self, engine: TrainingEngine) -> dict[str, float]:
        names = sorted(self._sums)
        sums = engine.sum(torch.stack([self._sums[name] for name in names])).tolist()
        return {name: total / sum(self._tokens[name].values()) for name, total in zip(names, sums, strict=True)}


class Optimisation:
    """One iteration's steps on a policy, and on a value model where there is one of its own."""

    def __init__(
        self,
        algorithm: Algorithm,
        policy: TrainingEngine,
        value: TrainingEngine | None,
        lesson: Lesson,
        config: RunConfig,
        iteration: int,
    ) -> None:
        self._algorithm = algorithm
        self._policy = policy
        self._value = value
        self._lesson = lesson
        self._run = config
        self._config = config.ppo
        self._iteration = iteration
        self._trains_policy = value is None or iteration >= config.ppo.value_warmup_iterations
        self._answers = torch.from_numpy(lesson.batch.sequences.answer_mask)
        self._means = TokenMeans()
        self._largest_gap = torch.zeros((), device=policy.device)

    def run(self) -> dict[str, float]:
        """All epochs; their measures by the names of `metrics`. Every rank must run, and gets the same."""
        limit = self._config.stop_at_kl
        norms: defaultdict[str, list[float]] = defaultdict(list)
        early = False
        for minibatch in self._minibatches():
            divergence = self._accumulate(minibatch)
            if self._value is not None:
                norms[metrics.VALUE_GRADIENT_NORM].append(self._value.step())
            if self._trains_policy:
                norms[metrics.POLICY_GRADIENT_NORM].append(self._policy.step())
                early = limit is not None and float(self._policy.sum(divergence)) / minibatch.tokens > limit
                self._trains_policy = not early
            if early and self._value is None:
                break
        measured = self._means.means(self._policy) | {name: float(np.mean(each)) for name, each in norms.items()}
        if metrics.LOGPROB_GAP in measured:
            measured[metrics.LOGPROB_GAP_MAX] = max(float(gap) for gap in self._policy.gather(self._largest_gap))
        return measured | {metrics.EARLY_STOPPED: float(early)}

    def _minibatches(self) -> Iterator[_Minibatch]:
        config, mask = self._config, self._lesson.targets.mask
        learnt = np.flatnonzero(mask.any(dim=1).numpy())
        number = 0
        for epoch in range(config.epochs):
            for rows in minibatches(
                learnt, config.minibatch_size, seed=self._run.seed, iteration=self._iteration, epoch=epoch
            ):
                chosen = torch.zeros(len(mask), 1, dtype=torch.bool)
                chosen[rows] = True
                shares = token_shares(mask & chosen, config.aggregation, longest=self._run.policy.max_answer_tokens)
                yield _Minibatch(number, rows, shares, int(mask[rows].sum()), first_pass=epoch == 0)
                number += 1

    def _accumulate(self, minibatch: _Minibatch) -> Tensor:
        """Its gradients. Returns this rank's sum over tokens of the policy's divergence from where the iteration found
        it, in nats."""
        sequences, engine = self._lesson.batch.sequences, self._policy
        divergence = torch.zeros((), device=engine.device)
        lengths = sequences.lengths[minibatch.rows]
        packs = pack_rows(minibatch.rows, lengths, engine.world_size, self._config.micro_batch_tokens)[engine.rank]
        for number, pack in enumerate(packs, start=1):
            answers = self._answers[pack.rows]
            shares = minibatch.shares[pack.rows][answers] * float(pack.real.all())
            micro = _Micro(sequences.pack(pack.rows, engine.device), pack.rows, answers, shares.to(engine.device))
            last = number == len(packs)
            if self._value is not None:
                values = state_values(self._value.model, micro.inputs)
                self._value.backward(self._value_loss(micro, values, minibatch), last=last)
            if self._trains_policy:
                loss, moved = self._policy_loss(micro, minibatch)
                engine.backward(loss, last=last)
                divergence += moved
        return divergence

    def _policy_loss(self, micro: _Micro, minibatch: _Minibatch) -> tuple[Tensor, Tensor]:
        """The loss of the policy, with its value head's where it has one, and the sum of its divergence."""
        lesson, inputs, temperature = self._lesson, micro.inputs, self._run.rollout.temperature
        values = None
        if isinstance(self._policy.module, PolicyWithValue):
            logits, values = self._policy.model(inputs.input_ids, inputs.position_ids, inputs.lengths, inputs.before)
        else:
            logits = answer_logits(self._policy.model, inputs)
        tokens = TokenBatch(
            logprobs=token_logprobs(logits, inputs.answer_ids, temperature),
            old_logprobs=micro.of(lesson.experience.logprobs),
            weights=micro.of(lesson.weights),
            advantages=micro.of(lesson.targets.advantages),
            shares=micro.shares,
        )
        policed = self._algorithm.loss(tokens)
        loss = policed.loss
        if self._run.kl != "reward":
            reference = micro.of(lesson.experience.reference_logprobs)
            loss = loss + lesson.kl_coefficient * reference_kl_loss(tokens, reference, self._run.kl)
        self._means.add(metrics.POLICY_LOSS, loss * minibatch.tokens, minibatch)
        self._means.add(metrics.CLIP_FRACTION, policed.clipped, minibatch)
        self._means.add(metrics.APPROXIMATE_KL, policed.kl, minibatch)
        if minibatch.first_pass:
            entropies = token_entropies(logits.detach(), temperature)
            self._means.add(metrics.ENTROPY, torch.where(tokens.counts, entropies, 0.0).sum(), minibatch)
        if minibatch.number == 0 and not self._run.recomputes_old_logprobs:
            gaps = torch.where(tokens.counts, (tokens.logprobs - tokens.old_logprobs).detach().abs(), 0.0)
            self._means.add(metrics.LOGPROB_GAP, gaps.sum(), minibatch)
            self._largest_gap = torch.maximum(self._largest_gap, gaps.max())
        if values is not None:
            loss = loss + self._config.value_coefficient * self._value_loss(micro, values, minibatch)
        return loss, policed.kl

    def _value_loss(self, micro: _Micro, values: Tensor, minibatch: _Minibatch) -> Tensor:
        old, returns = self._lesson.experience.values, self._lesson.targets.returns
        assert old is not None
        assert returns is not None  # algorithms with a value model give both
        valued = value_loss(values, micro.of(old), micro.of(returns), micro.shares, clip=self._config.value_clip)
        self._means.add(metrics.VALUE_LOSS, valued.loss * minibatch.tokens, minibatch)
        self._means.add(metrics.VALUE_CLIP_FRACTION, valued.clipped, minibatch)
        return valued.loss

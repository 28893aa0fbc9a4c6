"""Our update on given answers, and what it computed on the way: the counterpart of `trl_contender.py --replay`.

`python -m scripts.benchmarks.ppo.our_replay DIRECTORY CONFIG ANSWERS` writes to DIRECTORY/ours what the peer writes to
DIRECTORY/replayed. One rank of the real learner, without Ray.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_ray import metrics
from rlaif_ray.config import RunConfig
from rlaif_ray.engines.deepspeed_engine import Rendezvous, join_group
from rlaif_ray.policy.algorithm import Algorithm, Experience, Targets
from rlaif_ray.policy.learner_models import load_trained_models
from rlaif_ray.policy.losses import PolicyLoss, TokenBatch
from rlaif_ray.policy.model import save_model
from rlaif_ray.policy.update import PolicyUpdate
from rlaif_ray.records import FinishReason, Rollouts, Scores, offsets_of
from rlaif_ray.reward.model import load_reward_model
from rlaif_ray.reward.scoring import rollout_sequences, score_sequences
from scripts.benchmarks.ppo.workload import learner_models


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("answers", type=Path)
    arguments = parser.parse_args()
    config = RunConfig.model_validate_json(arguments.config.read_text())
    replay(arguments.directory, config, np.load(arguments.answers))


def replay(directory: Path, config: RunConfig, given: Any) -> None:
    """One update on answers (B, A) to prompts (B, P); `sampled_logprobs` (B, A) are those of the policy that drew
    them."""
    join_group(0, 1, Rendezvous("127.0.0.1", 1))
    models = load_trained_models(config, learner_models(directory))
    update = PolicyUpdate(models.policy, models.value, models.reference, config)
    witness = _Witness(update._algorithm)
    update._algorithm = witness
    rollouts = _rollouts(given)
    scores = _scores(directory, rollouts, config)
    measured = update.step(0, [rollouts], [scores])
    assert witness.experience.values is not None
    out = directory / "ours"
    (out / "policy").mkdir(parents=True)
    np.savez(
        out / "computed.npz",
        logprobs=witness.experience.logprobs.numpy(),
        reference_logprobs=witness.experience.reference_logprobs.numpy(),
        values=witness.experience.values.numpy(),
        scores=scores.values,
        advantages=witness.made.advantages.numpy(),
        policy_loss=measured[metrics.POLICY_LOSS],
        value_loss=measured[metrics.VALUE_LOSS],
    )
    policy = models.policy
    save_model(policy.module, policy.gather_weights(), models.tokenizer, out / "policy")


class _Witness:
    """An algorithm that keeps what it was given and what it made of it."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm

    def targets(self, experience: Experience) -> Targets:
        self.experience, self.made = experience, self._algorithm.targets(experience)
        return self.made

    def loss(self, tokens: TokenBatch) -> PolicyLoss:
        return self._algorithm.loss(tokens)


def _rollouts(given: Any) -> Rollouts:
    rows, width = given["answers"].shape
    ids = tuple(str(row) for row in range(rows))
    return Rollouts(
        sample_ids=ids,
        group_ids=ids,
        prompt_ids=ids,
        prompt_tokens=given["prompts"].astype(np.int32).ravel(),
        prompt_offsets=offsets_of([given["prompts"].shape[1]] * rows),
        answer_tokens=given["answers"].astype(np.int32).ravel(),
        answer_offsets=offsets_of([width] * rows),
        logprobs=given["sampled_logprobs"].astype(np.float32).ravel(),
        token_versions=np.ones(rows * width, dtype=np.int32),
        finish_reasons=(FinishReason.STOP,) * rows,
        version=1,
        fingerprint="replayed",
    )


def _scores(directory: Path, rollouts: Rollouts, config: RunConfig) -> Scores:
    model = load_reward_model(directory / "reward", dtype=config.policy.dtype, trust_remote_code=False)
    values, valid = score_sequences(
        model, rollouts.sample_ids, rollout_sequences(rollouts), max_batch_tokens=config.reward.max_batch_tokens
    )
    return Scores(rollouts.sample_ids, values, valid)


if __name__ == "__main__":
    main()

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
from rlaif_ray.engines.deepspeed_engine import DeepSpeedEngine, Rendezvous, join_group
from rlaif_ray.engines.training import OptimizerSettings
from rlaif_ray.policy.algorithm import Algorithm, Experience, Targets
from rlaif_ray.policy.losses import PolicyLoss, TokenBatch
from rlaif_ray.policy.model import load_policy, load_tokenizer, save_model, value_model_from_reward
from rlaif_ray.policy.packing import answer_logits
from rlaif_ray.policy.update import PolicyUpdate
from rlaif_ray.records import FinishReason, Rollouts, Scores, offsets_of
from rlaif_ray.reward.model import RewardNormalisation, load_reward_model
from rlaif_ray.reward.scoring import rollout_sequences, score_sequences


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
    ppo, dtype = config.ppo, config.policy.dtype

    def engine(model: Any, learning_rate: float) -> DeepSpeedEngine:
        settings = OptimizerSettings(
            learning_rate, config.learner.max_grad_norm, config.learner.zero_stage, dtype, epsilon=ppo.adam_epsilon
        )
        return DeepSpeedEngine(model, settings)

    normalisation = RewardNormalisation.load(directory / "reward")
    policy = engine(
        load_policy(directory / "policy", dtype=dtype, trust_remote_code=False),
        ppo.learning_rate,
    )
    value = engine(
        value_model_from_reward(directory / "reward", normalisation, dtype=dtype, trust_remote_code=False),
        ppo.value_learning_rate,
    )
    reference = load_policy(directory / "reference", dtype=dtype, trust_remote_code=False)
    update = PolicyUpdate(policy, value, lambda inputs: answer_logits(reference, inputs), config)
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
    tokenizer = load_tokenizer(directory / "policy", trust_remote_code=False)
    save_model(policy.module, policy.gather_weights(), tokenizer, out / "policy")


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

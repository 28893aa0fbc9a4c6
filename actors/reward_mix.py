"""Rewards that are more than one reward model: `RewardMix` is the loop's `RewardStage`, `RewardWatch` its `WatchStage`.

One actor is handed the batch of an iteration by reference, all shards at once, so that the answers to one prompt are
together however they were drawn. It lives where the driver runs: the files of users' rules lie there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from actors.call_pool import cause_of
from actors.judge import Judges
from actors.reward_sources import judge_scores, reference_scores, rubric_scores, sibling_scores
from actors.spawn import spawn
from rlaif_ray.config import ActorResources, RewardSourceConfig, RunConfig, UserError
from rlaif_ray.records import Prompt, Rollouts, Scores
from rlaif_ray.reward.composition import DecodedAnswer, RewardPart, composed, decoded_answers
from rlaif_ray.reward.rules import Rule, rule_location
from rlaif_ray.reward.watching import drawn_to_watch, watch_measures
from rlaif_ray.stages import RewardStage, Shards

logger = logging.getLogger(__name__)


class AnswerReader:
    """An async actor that reads a policy's answers as text and has them judged."""

    def __init__(
        self,
        config: RunConfig,
        judges: Judges | None,
        policy_directory: Path,
        rules: Mapping[str, tuple[Path, str]],
    ) -> None:
        """`rules` are the files and names of functions, by the names of their sources."""
        self._config = config
        self._judges = judges
        self._policy_directory = policy_directory
        self._rules = {label: Rule(path, name) for label, (path, name) in rules.items()}
        self._opening: asyncio.Task[None] | None = None

    async def open(self, prompts: Sequence[Any]) -> None:
        """Load the tokenizer and the rules, once. Raises UserError for a rule that cannot be loaded.

        `prompts` holds the reference of a mapping of ids to prompts. Each call brings it, as an actor that Ray has
        restarted has nothing else.
        """
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(prompts))
        await asyncio.shield(self._opening)

    async def score(self, prompts: Sequence[Any], rollouts: Sequence[Any], modelled: Sequence[Any]) -> Any:
        """Scores, shard by shard, of the rollouts behind these references; `modelled` are the reward model's, where it
        takes part. Raises UserError and Stopped as the judge does, and UserError where no answer has a reward."""
        await self.open(prompts)
        shards: list[Rollouts] = list(await asyncio.gather(*rollouts))
        by_model: list[Scores] = list(await asyncio.gather(*modelled))
        answers = decoded_answers(shards, self._decode, self._prompts)
        sources = self._config.reward.sources
        said = await asyncio.gather(*(self._part(source, answers, by_model) for source in sources))
        parts: dict[str, NDArray[np.float64]] = {}
        for source, part in zip(sources, said, strict=True):
            parts[source.label] = part.values
            parts |= {f"{source.label}/{name}": values for name, values in part.details.items()}
            if part.reasons:
                why = "; ".join(f"{count} ({reason})" for reason, count in part.reasons.most_common(3))
                logger.warning("reward %s: without a number: %s", source.label, why)
        values, valid = composed(parts, {source.label: source.weight for source in sources})
        if not valid.any():
            silent = {source.label: part for source, part in zip(sources, said, strict=True) if part.reasons}
            why = "; ".join(f"{label}: {part.reasons.most_common(1)[0][0]}" for label, part in silent.items())
            raise UserError(f"reward: none of {len(answers)} answers has a reward ({why}); correct what gives it")
        ends = np.cumsum([len(shard) for shard in shards])
        scores = [
            Scores(
                shard.sample_ids,
                values[end - len(shard) : end],
                valid[end - len(shard) : end],
                {name: part[end - len(shard) : end].astype(np.float32) for name, part in parts.items()},
            )
            for shard, end in zip(shards, ends, strict=True)
        ]
        return scores[0] if len(scores) == 1 else tuple(scores)  # as Ray counts a task's results

    async def watch(self, prompts: Sequence[Any], rollouts: Sequence[Any], scores: Sequence[Any]) -> dict[str, float]:
        """How the rewards of a sample of answers compare with the judge's scores. Raises as `score` does."""
        await self.open(prompts)
        shards: list[Rollouts] = list(await asyncio.gather(*rollouts))
        rewarded: list[Scores] = list(await asyncio.gather(*scores))
        answers = decoded_answers(shards, self._decode, self._prompts)
        valid = np.concatenate([shard.valid for shard in rewarded])
        rows = drawn_to_watch(
            [answer.sample_id for answer in answers], valid, self._config.reward.watch, self._config.seed
        )
        part = await judge_scores(self._judged(), self._config.judge, [answers[row] for row in rows], "watch")
        rewards = np.concatenate([shard.values for shard in rewarded])[rows]
        return watch_measures(rewards, part.values)

    async def _open(self, prompts: Sequence[Any]) -> None:
        from rlaif_ray.policy.model import load_tokenizer

        self._prompts: Mapping[str, Prompt] = await prompts[0]
        self._tokenizer = load_tokenizer(
            self._policy_directory, trust_remote_code=self._config.policy.trust_remote_code
        )
        await asyncio.gather(*(rule.open() for rule in self._rules.values()))

    async def _part(
        self, source: RewardSourceConfig, answers: Sequence[DecodedAnswer], by_model: Sequence[Scores]
    ) -> RewardPart:
        match source.kind:
            case "reward_model":
                return _modelled(by_model)
            case "rule":
                return await self._rules[source.label].score(answers)
            case "judge_score":
                ask = judge_scores
            case "rubric":
                ask = rubric_scores
            case "judge_pairs":
                ask = sibling_scores if source.against == "siblings" else reference_scores
        return await ask(self._judged(), self._config.judge, answers, "reward")

    def _judged(self) -> Judges:
        if self._judges is None:
            raise ValueError("a source that asks the judge needs one")
        return self._judges

    def _decode(self, rollouts: Rollouts) -> list[str]:
        return [
            self._tokenizer.decode(rollouts.answer(row), skip_special_tokens=True).strip()
            for row in range(len(rollouts))
        ]


def _modelled(scores: Sequence[Scores]) -> RewardPart:
    """The reward model's scores; what it tells of them beside, such as its disagreement, are details."""
    values = np.concatenate([np.where(shard.valid, shard.values, np.nan) for shard in scores]).astype(np.float64)
    missing = int(np.isnan(values).sum())
    details = {
        name: np.concatenate([shard.parts[name] for shard in scores]).astype(np.float64)
        for name in scores[0].parts
        if name != "reward_model"
    }
    return RewardPart(values, +Counter({"the reward model cannot score it": missing}), details)


class _ReaderHandle:
    """What `RewardMix` and `RewardWatch` share: the actor, its start and its end."""

    def __init__(
        self,
        name: str,
        config: RunConfig,
        judges: Judges | None,
        prompts: Sequence[Prompt],
        policy_directory: Path,
        rules: Mapping[str, tuple[Path, str]],
    ) -> None:
        self._prompts = [ray.put({prompt.id: prompt for prompt in prompts})]
        self._reader = spawn(
            AnswerReader,
            name,
            ActorResources(cpus=0),
            args=(config, judges, policy_directory, rules),
            restarts=True,
            node=ray.get_runtime_context().get_node_id(),
        )

    async def ready(self) -> None:
        """Wait until the actor can read. Raises UserError for a rule that cannot be loaded."""
        try:
            await self._reader.open.remote(self._prompts)
        except RayTaskError as error:
            raise cause_of(error) from None

    def close(self) -> None:
        ray.kill(self._reader)


class RewardMix(_ReaderHandle):
    """The weighted sum of the rewards in `reward.sources`."""

    def __init__(
        self,
        config: RunConfig,
        *,
        models: RewardStage | None,
        judges: Judges | None,
        prompts: Sequence[Prompt],
        policy_directory: Path,
    ) -> None:
        """`prompts` hold those of all rollouts to come, and `policy_directory` the tokenizer of their answers. `models`
        and `judges` are for the sources that ask them. Raises UserError for a rule's file that is not there."""
        rules = {
            source.label: rule_location(source.function)
            for source in config.reward.sources
            if source.function is not None
        }
        super().__init__("reward-mix", config, judges, prompts, policy_directory, rules)
        self._models = models

    def score(self, rollouts: Shards[Rollouts]) -> Shards[Scores]:
        modelled = () if self._models is None else self._models.score(rollouts)
        # Inside lists the references stay references: the actor fetches what is behind them.
        scores = self._reader.score.options(num_returns=len(rollouts)).remote(
            self._prompts, list(rollouts), list(modelled)
        )
        return (scores,) if len(rollouts) == 1 else tuple(scores)

    def close(self) -> None:
        super().close()
        if self._models is not None:
            self._models.close()


class RewardWatch(_ReaderHandle):
    """The judge's scores of `reward.watch` answers of a batch, beside their rewards."""

    def __init__(self, config: RunConfig, *, judges: Judges, prompts: Sequence[Prompt], policy_directory: Path) -> None:
        super().__init__("reward-watch", config, judges, prompts, policy_directory, {})

    async def watch(self, rollouts: Shards[Rollouts], scores: Shards[Scores]) -> Mapping[str, float]:
        try:
            measures: Mapping[str, float] = await self._reader.watch.remote(self._prompts, list(rollouts), list(scores))
        except RayTaskError as error:
            raise cause_of(error) from None
        return measures

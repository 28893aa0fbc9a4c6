"""The actors of a run: what each is granted, when it holds that, and when it works.

Says what `actors` will start, from the config alone. It knows nothing of the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from rlaif_ray.config import ActorResources, FitConfig, JudgeConfig, RunConfig

# The stages, in order.
STAGES = CONSTITUTE, SFT, COLLECT, FIT_REWARD, TRAIN, DPO, EVALUATE = (
    *("constitute", "sft", "collect"),
    *("fit-reward", "train", "dpo", "evaluate"),
)


class Binding(StrEnum):
    """How the grants of a group's actors hang together."""

    TOGETHER = "together"  # all or none, on as few nodes as can be
    EACH = "each"  # those that the run begins with together, and each other as soon as a node bears it
    ON_DEMAND = "on demand"  # they come and go with their work


@dataclass(frozen=True, slots=True)
class Phase:
    """A time in a stage at which the same actors work."""

    stage: str
    work: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.work}"


@dataclass(frozen=True, slots=True)
class ActorGroup:
    """Actors that are alike. `stages` are those in which they hold their grants, `phases` those in which they compute;
    what waits for the network computes in none. A grant is always one node's: an engine's GPUs are."""

    name: str
    key: str  # of their grants, in the config
    least: int  # without which the run does not go on
    most: int
    resources: ActorResources
    binding: Binding
    stages: tuple[str, ...]
    phases: tuple[Phase, ...]

    @property
    def threads(self) -> int:
        """Of all of them together."""
        return self.most * self.resources.threads


def actor_plan(config: RunConfig) -> list[ActorGroup]:
    """The run's actors, in the order of the stages that start them."""
    stages = _stages(config)
    return [
        *_revisers(config),
        *_trainers(config, stages),
        _rollouts(config, stages),
        *_judges(config.judge, "judge", stages, _stages_of_the_judge(config)),
        *_judges_of_evaluation(config, stages),
        *_learners(config),
    ]


def _stages(config: RunConfig) -> list[str]:
    collects, fits = config.collects_preferences, config.fits_a_reward_model
    trains = DPO if config.policy.algorithm == "dpo" else TRAIN
    constitutes = [CONSTITUTE] if config.constitution is not None else []
    return [*constitutes, SFT, *([COLLECT] if collects else []), *([FIT_REWARD] if fits else []), trains, EVALUATE]


def _trainers(config: RunConfig, stages: list[str]) -> list[ActorGroup]:
    """Ray Train's workers, which end with their stage."""

    fits: list[tuple[str, FitConfig, Phase]] = [("sft", config.sft, Phase(SFT, "fitting"))]
    if FIT_REWARD in stages and config.reward.pretraining is not None:
        fits.append(("reward.pretraining", config.reward.pretraining, Phase(FIT_REWARD, "pretraining")))
    if FIT_REWARD in stages:
        fits.append(("reward", config.reward, Phase(FIT_REWARD, "fitting")))
    if DPO in stages:
        fits.append(("dpo", config.dpo, Phase(DPO, "fitting")))
    return [
        ActorGroup(
            name=f"{key.replace('.', '-')}-worker",
            key=f"{key}.resources",
            least=fit.workers,
            most=fit.workers,
            resources=fit.resources,
            binding=Binding.TOGETHER,
            stages=(phase.stage,),
            phases=(phase,),
        )
        for key, fit, phase in fits
    ]


def _revisers(config: RunConfig) -> list[ActorGroup]:
    """Engines like the rollouts', which end with their stage."""
    if config.constitution is None:
        return []
    return [_engines(config, "reviser", (CONSTITUTE,), (Phase(CONSTITUTE, "revising"),))]


def _rollouts(config: RunConfig, stages: list[str]) -> ActorGroup:
    """Started when the first answers are wanted, and kept to the end."""
    uses = [stage for stage in stages if stage in (COLLECT, TRAIN, EVALUATE)]
    phases = [_of_training(config, "rollouts") if stage == TRAIN else Phase(stage, "answers") for stage in uses]
    return _engines(config, "rollout", _from_first(uses, stages), tuple(phases))


def _engines(config: RunConfig, name: str, stages: tuple[str, ...], phases: tuple[Phase, ...]) -> ActorGroup:
    return ActorGroup(
        name=name,
        key="rollout.resources",
        least=config.rollout.fewest_replicas,
        most=config.rollout.replicas,
        resources=config.rollout.resources,
        binding=Binding.EACH,
        stages=stages,
        phases=phases,
    )


def _learners(config: RunConfig) -> list[ActorGroup]:
    """The learner's ranks, and what rewards their answers."""
    if config.policy.algorithm == "dpo":
        return []
    groups = []
    if config.fits_a_reward_model:
        pairs = config.rounds > 1 and config.collect.pairing in ("best_worst", "active")
        phases = [*([Phase(COLLECT, "pairing")] if pairs else []), _of_training(config, "rewards")]
        groups.append(
            ActorGroup(
                name="reward",
                key="reward.actors",
                least=config.reward.actors.count,
                most=config.reward.actors.count,
                resources=config.reward.actors,
                binding=Binding.TOGETHER,
                stages=tuple(phase.stage for phase in phases),
                phases=tuple(phases),
            )
        )
    groups.append(
        ActorGroup(
            name="learner",
            key="learner.resources",
            least=config.learner.ranks,
            most=config.learner.ranks,
            resources=config.learner.resources,
            binding=Binding.TOGETHER,
            stages=(TRAIN,),
            phases=(_of_training(config, "updates"),),
        )
    )
    return groups


def _of_training(config: RunConfig, work: str) -> Phase:
    """Rollouts, rewards and updates take turns, unless batches are drawn ahead. Rewards begin when the first replica is
    done, beside the others."""
    if config.ppo.max_staleness:
        return Phase(TRAIN, "rollouts, rewards and updates")
    if config.rollout.replicas > 1 and work in ("rollouts", "rewards"):
        return Phase(TRAIN, "rollouts and rewards")
    return Phase(TRAIN, work)


def _stages_of_the_judge(config: RunConfig) -> list[str]:
    """In which the judge that labels for training is asked."""
    asked = [COLLECT] if config.collects_preferences else []
    if config.policy.algorithm != "dpo" and config.reward.asks_the_judge:
        asked.append(TRAIN)
    if config.evaluation.instrument == "judge" and config.evaluation.judge is None:
        asked.append(EVALUATE)
    return asked


def _judges_of_evaluation(config: RunConfig, stages: list[str]) -> list[ActorGroup]:
    if config.evaluation.instrument == "gold" or config.evaluation.judge is None:
        return []
    asked = [TRAIN, EVALUATE] if config.ppo.evaluate_every is not None else [EVALUATE]
    return _judges(config.evaluation.judge, "evaluation.judge", stages, asked)


def _judges(judge: JudgeConfig, key: str, stages: list[str], asked: list[str]) -> list[ActorGroup]:
    """A pool for each judge that the config names; one that nobody asks starts none, and a coin needs none."""
    if not asked or judge.control is not None or judge.replay:
        return []
    paths = [key, *(f"{key}.ensemble.{number}" for number in range(len(judge.ensemble)))]
    paths += [f"{key}.cascade.judge"] if judge.cascade is not None else []
    paths += [f"{key}.fallback"] if judge.fallback is not None else []
    return [
        ActorGroup(
            name=f"{key.replace('.', '-')}{number if number > 1 else ''}",
            key=f"{path}.actors",
            # A fallback may never be needed.
            least=one.actors.min if one is judge.fallback else max(one.actors.min, 1),
            most=one.actors.max,
            resources=one.actors,
            binding=Binding.ON_DEMAND,
            # Above their least number they end when there is nothing to do.
            stages=_from_first(asked, stages) if one.actors.min else tuple(asked),
            phases=tuple(Phase(stage, "judging") for stage in asked) if one.base_url is None else (),
        )
        for number, (path, one) in enumerate(zip(paths, judge.judges, strict=True), start=1)
    ]


def _from_first(uses: list[str], stages: list[str]) -> tuple[str, ...]:
    return tuple(stages[stages.index(uses[0]) :])

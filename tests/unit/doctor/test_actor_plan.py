"""What the doctor expects a run to start, and when it works."""

from pathlib import Path

import pytest

from rlaif_ray.config import RunConfig, load_config
from rlaif_ray.doctor.plan import ActorGroup, actor_plan

BASE = {"run_dir": "run", "prompts": {"path": "p.jsonl"}, "policy": {"model": "m"}, "judge": {"model": "local"}}
REPOSITORY = Path(__file__).parents[3]


def plan(**changes: object) -> dict[str, ActorGroup]:
    return {group.name: group for group in actor_plan(RunConfig.model_validate(BASE | changes))}


def phases(group: ActorGroup) -> list[str]:
    return [str(phase) for phase in group.phases]


def test_the_recipes_actors_take_turns() -> None:
    groups = plan()
    assert list(groups) == ["sft-worker", "reward-worker", "rollout", "judge", "reward", "learner"]
    assert phases(groups["rollout"]) == ["collect: answers", "train: rollouts", "evaluate: answers"]
    assert groups["rollout"].stages == ("collect", "fit-reward", "train", "evaluate"), "kept to the end"
    assert phases(groups["judge"]) == ["collect: judging", "evaluate: judging"]
    assert (phases(groups["reward"]), phases(groups["learner"])) == (["train: rewards"], ["train: updates"])


def test_batches_that_are_drawn_ahead_make_all_work_at_once() -> None:
    groups = plan(ppo={"max_staleness": 1})
    together = "train: rollouts, rewards and updates"
    assert all(together in phases(groups[name]) for name in ("rollout", "reward", "learner"))


def test_what_asks_an_api_computes_nothing() -> None:
    groups = plan(judge={"model": "far", "base_url": "http://127.0.0.1:1/v1", "actors": {"min": 1, "max": 3}})
    judge = groups["judge"]
    assert (judge.phases, judge.least, judge.most) == ((), 1, 3)
    assert judge.stages == ("collect", "fit-reward", "train", "evaluate"), "one stays when there is nothing to do"


def test_every_judge_of_a_panel_has_a_pool_and_its_own_keys() -> None:
    judge = {
        "model": "first",
        "ensemble": [{"model": "second"}],
        "cascade": {"judge": {"model": "dear"}},
        "when_spent": "fallback",
        "fallback": {"model": "cheap", "actors": {"min": 0, "max": 2}},
    }
    groups = [group for group in plan(judge=judge).values() if group.name.startswith("judge")]
    assert [(group.name, group.key) for group in groups] == [
        ("judge", "judge.actors"),
        ("judge2", "judge.ensemble.0.actors"),
        ("judge3", "judge.cascade.judge.actors"),
        ("judge4", "judge.fallback.actors"),
    ]
    assert [group.least for group in groups] == [1, 1, 1, 0], "a fallback may never be asked"


@pytest.mark.parametrize(("every", "stages"), [(None, ("evaluate",)), (5, ("train", "evaluate"))])
def test_a_judge_of_evaluations_own_is_asked_when_it_evaluates(every: int | None, stages: tuple[str, ...]) -> None:
    groups = plan(evaluation={"judge": {"model": "other", "actors": {"min": 0}}}, ppo={"evaluate_every": every})
    assert groups["evaluation-judge"].stages == stages
    assert groups["judge"].stages == ("collect",)


def test_who_is_not_asked_is_not_started() -> None:
    direct = plan(reward={"source": "judge"}, evaluation={"instrument": "gold"})
    assert list(direct) == ["sft-worker", "rollout", "judge", "learner"]
    assert direct["judge"].stages == ("train",)
    assert "judge" not in plan(judge={"model": "coin", "control": "coin_flip"})


def test_preferences_alone_need_neither_learner_nor_reward() -> None:
    groups = plan(policy={"model": "m", "algorithm": "dpo"}, dpo={"preferences": [{"path": "p.jsonl"}], "workers": 2})
    assert list(groups) == ["sft-worker", "dpo-worker", "rollout", "judge"]
    assert (groups["dpo-worker"].most, groups["dpo-worker"].stages) == (2, ("dpo",))
    assert groups["rollout"].stages == ("evaluate",)


def test_every_shipped_recipe_has_a_plan() -> None:
    files = [*(REPOSITORY / "scripts" / "configs").glob("*.yaml"), REPOSITORY / "rlaif_ray" / "toyworld" / "demo.yaml"]
    for file in files:
        if file.name != "judge.yaml":
            overrides = ["policy.model=m", "prompts.path=p"] if file.name == "own_model.yaml" else []
            groups = actor_plan(load_config(file, overrides))
            assert len({group.name for group in groups}) == len(groups) >= 4, file

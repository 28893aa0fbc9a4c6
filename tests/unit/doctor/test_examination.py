"""What the doctor finds where the plan meets the nodes."""

from rlaif_ray.config import RunConfig
from rlaif_ray.doctor.examination import Node, cautions, loads, obstacles, sharing
from rlaif_ray.doctor.plan import actor_plan

BASE = {
    "run_dir": "run",
    "prompts": {"path": "toyworld:headlines"},
    "policy": {"model": "m"},
    "judge": {"model": "local", "actors": {"min": 0, "max": 1}},
    "evaluation": {"instrument": "gold"},
}
SMALL = Node("laptop", cpus=2, gpus=0, memory_gib=16)
ONE_GPU = Node("server", cpus=16, gpus=1, memory_gib=64)


def config(**changes: object) -> RunConfig:
    return RunConfig.model_validate(BASE | changes)


def found(run: RunConfig, *nodes: Node) -> list[str]:
    return obstacles(run, actor_plan(run), nodes)


def warned(run: RunConfig, *nodes: Node) -> list[str]:
    return cautions(run, actor_plan(run), nodes)


def resources(**grants: float) -> dict[str, object]:
    return {"resources": grants}


def test_small_grants_share_a_small_machine() -> None:
    """In training the rollout, the reward actor and the learner have two threads each; they take turns."""
    wide = config(
        rollout=resources(threads=2),
        learner=resources(threads=2),
        reward={"actors": {"threads": 2}},
    )
    assert (found(wide, SMALL), warned(wide, SMALL)) == ([], [])
    assert sharing(actor_plan(wide), [SMALL]) == (
        "Phases time-share the cores: in train 6 threads take turns on 2, at most 2 of them at once; the others wait "
        "passively."
    )


def test_threads_with_cores_of_their_own_are_told() -> None:
    assert sharing(actor_plan(config()), [ONE_GPU]) == (
        "Every thread has a core of its own: 3 at most, in train, on 16 cores."
    )


def test_work_at_once_is_more_than_the_cores_bear() -> None:
    overlapped = config(ppo={"max_staleness": 1})
    assert warned(overlapped, SMALL) == [
        "train: rollouts, rewards and updates: 3 threads compute at once on 2 cores; lower the threads of rollout or "
        "reward or learner"
    ]
    (load,) = [one for one in loads(actor_plan(overlapped), [SMALL]) if one.phase.stage == "train"]
    assert (load.threads, load.cores, load.oversubscribed) == (3, 2, True)


def test_a_grant_that_no_node_has_is_refused_with_its_key() -> None:
    assert found(config(learner=resources(gpus=2)), ONE_GPU, ONE_GPU) == [
        "learner.resources.gpus=2: no node has more than 1 GPUs; lower it"
    ]


def test_actors_of_a_stage_that_would_wait_for_each_other_are_refused() -> None:
    """The rollout is kept while the learner trains: one GPU cannot be granted to both."""
    greedy = config(learner=resources(gpus=1), rollout=resources(gpus=1))
    assert found(greedy, ONE_GPU) == [
        "train: its actors hold 2 GPUs together (rollout 1, learner 1), and there are 1; lower rollout.resources or "
        "learner.resources"
    ]
    assert found(greedy, ONE_GPU, ONE_GPU) == []
    assert found(config(learner=resources(gpus=0.5), rollout=resources(gpus=0.5)), ONE_GPU) == []


def test_fractions_that_add_up_to_a_core_fit_it() -> None:
    """Three grants of a third, in floating point."""
    thirds = resources(cpus=1 / 3)
    third = {"actors": {"cpus": 1 / 3}}
    assert found(config(learner=thirds, rollout=thirds, reward=third), Node("one", 1, 0, 4)) == []


def test_an_elastic_pool_needs_its_least_alone() -> None:
    elastic = config(judge={"model": "local", "actors": {"min": 0, "max": 4, "cpus": 1}})
    assert found(elastic, SMALL) == []
    assert "judge.actors: not all 4 actors find 1 CPUs each" in warned(elastic, SMALL)


def test_pieces_that_find_no_node_are_told_though_their_sum_would_fit() -> None:
    """Three ranks of 3 GPUs on two nodes of 5: 9 GPUs of 10, but a node bears one rank and has 2 left."""
    five = Node("five", cpus=8, gpus=5, memory_gib=64)
    wide = config(learner={"ranks": 3, **resources(gpus=3)})
    assert found(wide, five, five) == [
        "train: no node has 0.2 CPU, 3 GPU left for learner.resources, beside the others; take larger nodes"
    ]
    assert found(wide, five, five, five) == []


def test_custom_resources_are_looked_for_on_the_nodes_that_declare_them() -> None:
    marked = config(judge={"model": "local", "actors": {"min": 1, "max": 4, "custom": {"judge": 1}}})
    judging = Node("judging", cpus=4, gpus=0, memory_gib=16, custom={"judge": 2})
    assert found(marked, SMALL)[0] == "judge.actors.custom.judge=1: no node has more than 0 judge; lower it"
    assert found(marked, SMALL, judging) == []
    greedy = config(judge={"model": "local", "actors": {"min": 3, "max": 4, "custom": {"judge": 1}}})
    assert found(greedy, SMALL, judging)[0] == (
        "collect: its actors hold 3 judge together (judge 3), and there are 2; lower judge.actors"
    )


def test_a_run_that_begins_with_fewer_replicas_needs_no_room_for_the_others() -> None:
    wide = config(rollout={"replicas": 4, "min_replicas": 1, **resources(gpus=1)})
    assert found(wide, ONE_GPU) == []
    assert found(config(rollout={"replicas": 4, **resources(gpus=1)}), ONE_GPU)[0].startswith("collect: its actors")


def test_memory_that_two_share_is_told() -> None:
    shared = config(rollout={**resources(gpus=0.5), "gpu_memory_utilization": 0.85}, learner=resources(gpus=0.5))
    (caution,) = warned(shared, ONE_GPU)
    assert caution.startswith("rollout.gpu_memory_utilization=0.85 is more of a GPU's memory than")
    (caution,) = warned(config(rollout={"kv_cache_gib": 12}), SMALL)
    assert caution == "rollout.kv_cache_gib: 12 GiB over all replicas, of 16 GiB of memory"

"""The loop on plain objects: the order of what it asks for, and what it passes on unopened."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlaif_ray.loop import OnlineStages, train_on_policy
from rlaif_ray.records import Prompt, SampleRequest, WeightVersion


@dataclass
class Recorder:
    """Plays every stage; a batch is a string, so that opening it would fail."""

    calls: list[str] = field(default_factory=list)
    version: int = 0
    loaded: int | None = None

    async def load(self, version: WeightVersion) -> None:
        self.calls.append(f"load {version.number}")
        self.loaded = version.number

    def generate(self, requests: Any) -> tuple[str, ...]:
        self.calls.append(f"generate {[request.sample_id for request in requests]}")
        return (f"rollouts of version {self.loaded}",)

    def score(self, rollouts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"scores of {shard}" for shard in rollouts)

    async def step(self, iteration: int, rollouts: Any, scores: Any) -> dict[str, float]:
        self.calls.append(f"step {iteration} on {rollouts[0]}, {scores[0]}")
        return {"reward_mean": float(iteration)}

    async def publish(self) -> WeightVersion:
        self.version += 1
        return WeightVersion(self.version, "", Path(), (), ())

    async def checkpoint(self, iteration: int) -> None:
        self.calls.append(f"checkpoint {iteration}")


def request(name: str) -> SampleRequest:
    return SampleRequest(name, name, Prompt("p", "text"), seed=0)


async def test_each_iteration_samples_from_the_newest_weights_and_checkpoints_when_due() -> None:
    stages = Recorder()
    seen = []
    await train_on_policy(
        OnlineStages(stages, stages, stages),
        lambda iteration: [request(f"s{iteration}")],
        range(3, 6),
        checkpoint_every=4,
        on_iteration=lambda iteration, metrics: seen.append((iteration, metrics["reward_mean"])),
    )
    assert stages.calls == [
        "load 1",
        "generate ['s3']",
        "step 3 on rollouts of version 1, scores of rollouts of version 1",
        "checkpoint 3",
        "load 2",
        "generate ['s4']",
        "step 4 on rollouts of version 2, scores of rollouts of version 2",
        "load 3",
        "generate ['s5']",
        "step 5 on rollouts of version 3, scores of rollouts of version 3",
        "checkpoint 5",
    ]
    assert seen == [(3, 3.0), (4, 4.0), (5, 5.0)]

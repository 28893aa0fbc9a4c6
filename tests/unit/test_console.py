"""Progress where there is no terminal: a line now and then, and always the last one."""

import io

from rlaif_ray.console import Console


def test_a_stage_shows_its_start_its_end_and_not_every_step() -> None:
    stream = io.StringIO()
    with Console(stages=2, stream=stream) as console:
        console.skip("sft")
        console.stage("train", "PPO against the reward model")
        for step in range(1, 101):
            console.advance(step, 100, f"reward {step}")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[1/2] sft: done before"
    assert lines[1] == "[2/2] train: PPO against the reward model"
    assert lines[2].startswith("  train 1/100 after 0 s")
    assert lines[-1].startswith("  train 100/100 after 0 s")
    assert len(lines) == 4


def test_text_from_a_run_is_not_markup() -> None:
    stream = io.StringIO()
    with Console(stages=1, stream=stream) as console:
        console.say("[bold]as it is[/bold]")
    assert stream.getvalue() == "[bold]as it is[/bold]\n"

"""`rlaif doctor` as a person calls it: one page, an exit code, and nothing started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
DEMO = REPOSITORY / "rlaif_ray" / "toyworld" / "demo.yaml"


def doctor(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys\n"
        "from rlaif_ray.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print('started:', [name for name in ('ray', 'torch', 'vllm') if name in sys.modules], file=sys.stderr)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-c", code, "doctor", str(DEMO), *overrides],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_run_that_can_go_is_laid_out_on_one_page(tmp_path: Path) -> None:
    said = doctor(tmp_path)
    assert said.returncode == 0, said.stderr
    rows = {line.split()[0]: line.split() for line in said.stdout.splitlines() if line}
    assert rows["learner"][1:7] == ["1", "0.2", "0", "1", "together", "learner.resources"]
    assert rows["rollout"][5:] == ["each", "rollout.resources", "collect,", "fit-reward,", "train,", "evaluate"]
    assert "train: updates" in said.stdout
    assert said.stdout.rstrip().endswith("This run can go here.")
    assert len(said.stdout.splitlines()) < 40
    assert said.stderr == "started: []\n"
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_a_run_that_cannot_go_names_the_keys_and_exits_with_2(tmp_path: Path) -> None:
    said = doctor(tmp_path, "learner.resources.gpus=64", "rollout.resources.cpus=4096")
    assert said.returncode == 2
    text = " ".join(said.stdout.split())
    assert "cannot run learner.resources.gpus=64: no node has more than" in text
    assert "cannot run rollout.resources.cpus=4096: no node has more than" in text
    assert "This run can go here" not in text


def test_a_wrong_config_is_the_users_error(tmp_path: Path) -> None:
    for override in ("learner.rank=2", "learner.weight_transfer=nccl"):
        said = doctor(tmp_path, override)
        assert said.returncode == 2
        assert override.partition("=")[0] in said.stderr
        assert "Traceback" not in said.stderr

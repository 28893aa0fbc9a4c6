"""Commands of ours that a benchmark runs, each to its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def rlaif(command: str, config: Path, run: Path, *overrides: str) -> None:
    """`rlaif COMMAND CONFIG` in this run's directory; ends this process, with all that it said, where it fails."""
    words = [sys.executable, "-m", "rlaif_ray", command, str(config), f"run_dir={run}", *overrides]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")

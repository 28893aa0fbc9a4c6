"""An environment for TRL 1.12.0, the last release with a PPO trainer, beside the one that runs this.

It has TRL and transformers of its own; torch, accelerate and all else are this environment's, at the end of its path:
both sides compute with the same kernels.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

from rlaif_ray.config import UserError

_PACKAGES: Final = ("trl==1.12.0", "transformers==5.23.0")
# TRL alone would not have these, and its garbage collections are the slower the more it imports.
_HIDDEN: Final = ("deepspeed", "peft")
DEFAULT: Final = Path.home() / ".cache" / "rlaif-ray" / "trl-1.12.0"


def trl_python(directory: Path) -> Path:
    """The interpreter of the environment in `directory`, which is made where there is none.

    Raises UserError when the packages cannot be had.
    """
    python = directory / "bin" / "python"
    done = directory / "complete"
    if not done.exists():
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "-q", "--clear", "--python", sys.executable, str(directory)], check=True)
        try:
            subprocess.run(
                [*uv, "pip", "install", "-q", "--no-deps", "--python", str(python), *_PACKAGES],
                check=True,
                capture_output=True,
                text=True,
            )
        except subprocess.CalledProcessError as error:
            raise UserError(
                f"{' and '.join(_PACKAGES)} could not be installed; connect to a package index, or give an environment "
                f"that has them with --venv ({error.stderr.strip().splitlines()[-1]})"
            ) from None
        own = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        hidden = ", ".join(f"{name}=None" for name in _HIDDEN)
        (Path(own) / "shared.pth").write_text(
            f"{sysconfig.get_path('purelib')}\nimport sys; sys.modules.update({hidden})\n"
        )
        done.touch()
    return python

"""This machine, as a Ray of its own would have it to grant."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from rlaif_ray.doctor.examination import Node

_NVIDIA = Path("/proc/driver/nvidia/gpus")


def this_machine() -> Node:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Node(platform.node(), len(os.sched_getaffinity(0)), _gpus(), memory / 2**30)


def _gpus() -> int:
    """Those that the environment lets a process see."""
    there = len(list(_NVIDIA.iterdir())) if _NVIDIA.exists() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if visible is None else min(there, len([one for one in visible.split(",") if one.strip()]))

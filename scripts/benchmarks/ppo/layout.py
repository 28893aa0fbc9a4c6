"""How the actors of ours share the cores."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """Rollout replicas with their threads, and the threads of the reward actor and of the learner. Where they add up to
    more than the cores, phases take turns on them."""

    replicas: int
    rollout_threads: int
    threads: int
    enforce_eager: bool = True


def add_layout(parser: argparse.ArgumentParser) -> None:
    """By default every actor has all cores, one after the other."""
    cores = os.cpu_count() or 1
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--rollout-threads", type=int, default=cores)
    parser.add_argument("--threads", type=int, default=cores, help="of the reward actor and of the learner")
    parser.add_argument("--compile", action="store_true", help="have vLLM compile the policy")


def layout_of(arguments: argparse.Namespace) -> Layout:
    return Layout(arguments.replicas, arguments.rollout_threads, arguments.threads, not arguments.compile)

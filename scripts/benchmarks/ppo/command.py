"""What the benchmarks of an iteration have in common on the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from rlaif_ray.engines.training import Dtype
from scripts.benchmarks.ppo.turns import MOST_FOREIGN
from scripts.benchmarks.ppo.workload import WORKLOADS, Workload


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="small")
    parser.add_argument("--foreign", type=float, default=MOST_FOREIGN, help="share of the machine that others may take")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    return parser


def add_rounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="rounds of turns that count")


def add_dtypes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", nargs="*", choices=get_args(Dtype), default=get_args(Dtype))


def measure_dtypes(arguments: argparse.Namespace, measure: Callable[[Dtype, Workload], Any]) -> None:
    """Print the figures of each, a dataclass, and write them."""
    figures = []
    for dtype in arguments.dtype:
        print(dtype, flush=True)
        figures.append(measure(dtype, WORKLOADS[arguments.workload]))
        for name in asdict(figures[-1]):
            print(f"  {name.replace('_', ' ')}: {getattr(figures[-1], name)}")
        if arguments.out is not None:
            arguments.out.write_text(json.dumps([asdict(row) for row in figures], indent=2))

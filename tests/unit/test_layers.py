"""The library is free of Ray, and what an API judge needs is free of torch."""

import subprocess
import sys

import pytest

IMPORT_ALL = """
import importlib, pkgutil, sys
import {package} as package
modules = [package.__name__]
if hasattr(package, "__path__"):
    modules += [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in modules:
    importlib.import_module(name)
    loaded = {forbidden} & sys.modules.keys()
    assert not loaded, f"{{name}} imported {{loaded}}"
print(len(modules))
"""


def import_all(package: str, forbidden: set[str]) -> int:
    code = IMPORT_ALL.format(package=package, forbidden=forbidden)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def test_no_library_module_imports_ray() -> None:
    assert import_all("rlaif_ray", {"ray"}) > 30


@pytest.mark.parametrize(
    "module",
    [
        "rlaif_ray.config",
        "rlaif_ray.records",
        "rlaif_ray.judge",
        "rlaif_ray.labelling",
        "rlaif_ray.preferences",
        "rlaif_ray.cli",
    ],
)
def test_light_modules_import_neither_torch_nor_an_engine(module: str) -> None:
    assert import_all(module, {"torch", "vllm", "deepspeed", "transformers", "ray"}) >= 1

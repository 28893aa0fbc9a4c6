"""What travels with `ray job submit --working-dir .`, packed as Ray packs it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

REPOSITORY = Path(__file__).parents[2]
LIMIT = 2 * 2**20
NEEDED = ("actors/", "rlaif_ray/", "scripts/")
LEFT = ("scripts/benchmarks/", "rlaif_ray/toyworld/assistant/model.safetensors")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What git knows of the repository, as it stands here."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    copy = tmp_path / "checkout"
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((REPOSITORY / name).read_bytes())
    return copy


def packed(directory: Path, archive: Path) -> dict[str, int]:
    """The sizes of the files in the archive that Ray makes."""
    create_package(str(directory), archive, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    with ZipFile(archive) as content:
        return {entry.filename: entry.file_size for entry in content.infolist() if not entry.is_dir()}


def test_a_used_checkout_travels_small_and_whole(checkout: Path, tmp_path: Path) -> None:
    tracked = {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()}
    wanted = {name for name in tracked if name.startswith(NEEDED) and not name.startswith(LEFT)}
    for heavy in (
        ".git/objects/pack/pack-1.pack",
        ".venv/lib/python3.11/site-packages/torch/lib/libtorch.so",
        "runs/demo-seed0/models/policy/model.safetensors",
        "models/mine/model.safetensors",
        "models/mine/pytorch_model.bin",
        ".mypy_cache/3.11/cache.db",
        "rlaif_ray/__pycache__/cli.cpython-311.pyc",
    ):
        (checkout / heavy).parent.mkdir(parents=True, exist_ok=True)
        (checkout / heavy).write_bytes(bytes(LIMIT))
    (checkout / "my_prompts.jsonl").write_text('{"prompt": "mine"}\n')
    archive = tmp_path / "working_directory.zip"
    sizes = packed(checkout, archive)
    assert archive.stat().st_size < LIMIT
    assert wanted <= sizes.keys(), "the package is whole"
    assert "my_prompts.jsonl" in sizes, "a user's own files travel"
    assert [name for name in sizes if name.startswith(("tests/", "docs/", "cluster/", "locks/", *LEFT))] == []

"""From a YAML file with `key=value` overrides to a checked configuration. What is wrong is one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rlaif_ray.config.run import JudgeRunConfig, RunConfig
from rlaif_ray.config.section import UserError
from rlaif_ray.config.serve import ServeRewardConfig

Config = TypeVar("Config", bound=BaseModel)


def load_judge_config(path: Path, overrides: Sequence[str] = ()) -> JudgeRunConfig:
    """The `judge`, `seed` and `run_dir` of any run's config, or of a file with no more than these. Raises UserError as
    `load_config` does."""
    tree = _overridden_tree(path, overrides)
    for key in tree:
        if key not in RunConfig.model_fields:
            raise UserError(f"{path}: {_unknown(key, RunConfig)}")
    return _validated(
        JudgeRunConfig, {key: tree[key] for key in JudgeRunConfig.model_fields if key in tree}, path, overrides
    )


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply `key=value` overrides (values in YAML), and check the whole.

    A file may stand on another, `base: FILE` seen from its own folder, whose keys it changes or adds to. Raises
    UserError with one sentence that names the file, the line or the key.
    """
    return _validated(RunConfig, _overridden_tree(path, overrides), path, overrides)


def holds_config(path: Path) -> bool:
    """Whether a file holds YAML with keys, as a config does, and not a list."""
    try:
        return isinstance(yaml.safe_load(path.read_text()), dict)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False


def load_serve_config(overrides: Sequence[str]) -> ServeRewardConfig:
    """The reward server's config, from `key=value` alone. Raises UserError as `load_config` does."""
    tree: dict[str, Any] = {}
    for override in overrides:
        _apply(tree, override)
    return _validated(ServeRewardConfig, tree, None, overrides)


def _overridden_tree(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    tree = _read_tree(path)
    for override in overrides:
        _apply(tree, override)
    if isinstance(tree.get("run_dir"), str):
        tree["run_dir"] = tree["run_dir"].replace("{seed}", str(tree.get("seed", 0)))
    return tree


def _validated(kind: type[Config], tree: dict[str, Any], path: Path | None, overrides: Sequence[str]) -> Config:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        # A misspelt key first: where it is a required one, that is missing too.
        problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in problem["loc"])
        overridden = any(f"{key}.".startswith(f"{override.partition('=')[0]}.") for override in overrides)
        where = "" if overridden or path is None else f"{path}: "
        raise UserError(where + _sentence(problem, key, kind)) from None


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML, loadable by `load_config`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read_tree(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML config") from None
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML ({_one_line(str(error))})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold a mapping of keys, such as `seed: 0`")
    base = tree.pop("base", None)
    return tree if base is None else _merged(_read_tree(path.parent / base), tree)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return base | {
        key: _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in over.items()
    }


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UserError(f"{override!r} is not an override; write key=value, such as seed=1")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"{key}: the value {value!r} is not YAML; quote it") from None
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"{key}: {parent} holds a value, not a section, so nothing can be set below it")
        node = child
    node[leaf] = parsed


def _sentence(problem: ErrorDetails, key: str, kind: type[BaseModel]) -> str:
    """One sentence on a problem, with its key and, for a misspelt key, the nearest known one."""
    if problem["type"] == "extra_forbidden":
        section: Any = kind
        for part in problem["loc"][:-1]:
            if isinstance(part, str):  # a number counts the sections of a list
                section = _section_at(section, part)
        return _unknown(key, section)
    if problem["type"] == "missing":
        in_a_list = any(isinstance(part, int) for part in problem["loc"])
        return f"{key} is missing; set it" + ("" if in_a_list else f" in the file or as {key}=VALUE")
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        return message if not key or f"{key}." in message else f"{key}: {message}"
    return f"{key}: {_one_line(problem['msg'])} (it is {problem['input']!r})"


def _unknown(key: str, section: Any) -> str:
    known = list(section.model_fields) if section is not None else []
    misspelt = key.rpartition(".")[2]
    close = difflib.get_close_matches(misspelt, known)
    close.sort(key=lambda name: sorted(name) != sorted(misspelt))  # swapped letters before all else
    hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
    return f"{key} is not a known key; {hint}"


def _section_at(section: Any, name: str) -> Any:
    if section is None or name not in section.model_fields:
        return None
    annotation = section.model_fields[name].annotation
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())

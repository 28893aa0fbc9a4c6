"""Configs: every checked-in one loads, and what is wrong is said in one sentence."""

from pathlib import Path

import pytest

from rlaif_ray.config import RunConfig, UserError, dump_config, load_config

ROOT = Path(__file__).parents[2]
SHIPPED = [*sorted((ROOT / "scripts" / "configs").glob("*.yaml")), ROOT / "rlaif_ray" / "toyworld" / "demo.yaml"]

MINIMAL = """
run_dir: runs/{seed}
prompts: {path: prompts.jsonl}
policy: {model: some/model}
judge: {model: some-judge}
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_load_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config


def test_overrides_are_yaml_and_reach_any_depth(minimal: Path) -> None:
    config = load_config(minimal, ["seed=3", "judge.actors.max=7", "ppo.kl_coefficient=0.2", "sft.limit=null"])
    assert (config.seed, config.judge.actors.max, config.ppo.kl_coefficient) == (3, 7, 0.2)
    assert config.run_dir == Path("runs/3")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sed=1", "sed is not a known key; did you mean seed?"),
        ("ppo.itertions=3", "ppo.itertions is not a known key; did you mean iterations?"),
        ("judge.actors.mx=3", "judge.actors.mx is not a known key; did you mean max?"),
        ("seed", "'seed' is not an override; write key=value, such as seed=1"),
        ("seed.deeper=1", "seed.deeper: seed holds a value, not a section, so nothing can be set below it"),
        ("ppo.iterations=0", "ppo.iterations: Input should be greater than 0 (it is 0)"),
        ("ppo.iterations=many", "ppo.iterations: Input should be a valid integer"),
        ("reward.source=oracle", "reward.source: Input should be 'reward_model' (it is 'oracle')"),
    ],
)
def test_a_bad_override_is_one_sentence_that_names_the_key(minimal: Path, override: str, sentence: str) -> None:
    overrides = ["seed=1", override] if override.startswith("seed.") else [override]
    with pytest.raises(UserError) as error:
        load_config(minimal, overrides)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "must hold a mapping of keys"),
        (MINIMAL.replace("judge: {model: some-judge}", ""), "judge is missing; set it in the file or as judge=VALUE"),
        (MINIMAL.replace("{model: some/model}", "{}"), "set policy.model to a model, or policy.scratch"),
        (MINIMAL + "sed: 1", "sed is not a known key"),
        (MINIMAL + "collect: {answers_per_prompt: 2, pairs_per_prompt: 2}", "exceeds the 1 pairs"),
    ],
)
def test_a_bad_file_is_one_sentence_that_names_the_file(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: ")
    assert sentence in str(error.value)


def test_a_file_may_stand_on_another(minimal: Path) -> None:
    variant = minimal.with_name("variant.yaml")
    variant.write_text("base: config.yaml\nseed: 4\njudge: {template: headlines}\n")
    config = load_config(variant)
    assert (config.seed, config.judge.model, config.judge.template) == (4, "some-judge", "headlines")


def test_a_budget_without_prices_is_refused(minimal: Path) -> None:
    with pytest.raises(UserError, match=r"judge\.budget_usd needs judge\.price"):
        load_config(minimal, ["judge.base_url=http://127.0.0.1:1/v1", "judge.budget_usd=5"])


def test_configs_are_frozen(minimal: Path) -> None:
    config = load_config(minimal)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 2  # type: ignore[misc]
    assert isinstance(config, RunConfig)

"""Configs: every checked-in one loads, and what is wrong is said in one sentence."""

from pathlib import Path

import pytest

from rlaif_ray.config import RunConfig, UserError, dump_config, load_config, load_judge_config

ROOT = Path(__file__).parents[2]
JUDGE = ROOT / "scripts" / "configs" / "judge.yaml"
RUNS = [path for path in sorted(JUDGE.parent.glob("*.yaml")) if path != JUDGE]
SHIPPED = [*RUNS, ROOT / "rlaif_ray" / "toyworld" / "demo.yaml"]

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


def test_the_shipped_judge_config_loads() -> None:
    assert load_judge_config(JUDGE, ["judge.model=some"]).judge.model == "some"


def test_a_judge_is_read_from_any_runs_config(minimal: Path) -> None:
    run, judge = load_config(minimal, ["seed=3"]), load_judge_config(minimal, ["seed=3"])
    assert (judge.seed, judge.run_dir, judge.judge) == (run.seed, run.run_dir, run.judge)


def test_a_judge_config_with_a_key_that_no_run_has_is_refused(minimal: Path) -> None:
    with pytest.raises(UserError, match="judg is not a known key; did you mean judge"):
        load_judge_config(minimal, ["judg.model=x"])


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
        ("reward.source=oracle", "reward.source: Input should be 'reward_model' or 'judge' (it is 'oracle')"),
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


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("judge.ensemble=[{modle: x}]", "judge.ensemble.0.modle is not a known key; did you mean model?"),
        (
            "judge.ensemble=[{model: x}, {model: y, price: {inptu: 1, output: 1}}]",
            "judge.ensemble.1.price.inptu is not a known key; did you mean input?",
        ),
        ("judge.ensemble=[{weight: 2}]", "judge.ensemble.0.model is missing; set it"),
        (
            "judge.cascade={judge: {model: x}, margn: .1}",
            "judge.cascade.margn is not a known key; did you mean margin?",
        ),
        (
            "judge.cascade={judge: {model: x, wieght: 2}}",
            "judge.cascade.judge.wieght is not a known key; did you mean weight?",
        ),
        ("judge.fallback={modle: x}", "judge.fallback.modle is not a known key; did you mean model?"),
    ],
)
def test_keys_of_further_judges_are_named_whole(minimal: Path, override: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(minimal, [override])
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    "base_url",
    [
        "x:8000/v1",
        "ftp://x/v1",
        "http:///v1",
        "http://x y/v1",
        "nonsense",
        "https://someone:secret@x/v1",
        "https://x/v1?key=secret",
    ],
)
def test_an_address_is_http_and_holds_no_key(minimal: Path, base_url: str) -> None:
    with pytest.raises(UserError, match=r"^judge\.base_url: must be http\(s\)://HOST/PATH") as error:
        load_config(minimal, [f"judge.base_url={base_url}"])
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:8000/v1", "HTTPS://api.x.org/a/v1/", "http://[::1]:80"])
def test_addresses(minimal: Path, base_url: str) -> None:
    assert load_config(minimal, [f"judge.base_url='{base_url}'"]).judge.base_url == base_url


@pytest.mark.parametrize(
    "header",
    [
        "Authorization",
        "proxy-authorization",
        "api-key",
        "apikey",
        "X-API-Key",
        "Ocp-Apim-Subscription-Key",
        "X-Auth-Token",
        "Cookie",
    ],
)
def test_no_header_holds_a_key(minimal: Path, header: str) -> None:
    with pytest.raises(
        UserError, match=rf"^judge\.extra_headers: {header} would .*api_key_env or api_key_file"
    ) as error:
        load_config(minimal, [f"judge.extra_headers={{X-Team: blue, {header}: secret}}"])
    assert "secret" not in str(error.value)


def test_other_headers_and_fields_are_taken(minimal: Path) -> None:
    headers = "{X-Team: blue, OpenAI-Organization: org-1, Keyboard: qwerty}"
    judge = load_config(
        minimal,
        [f"judge.extra_headers={headers}", "judge.extra_body={reasoning_effort: low, seed: 3, think: {deep: false}}"],
    ).judge
    assert set(judge.extra_headers) == {"X-Team", "OpenAI-Organization", "Keyboard"}
    assert judge.extra_body == {"reasoning_effort": "low", "seed": 3, "think": {"deep": False}}


@pytest.mark.parametrize(
    "field",
    [
        "model",
        "messages",
        "n",
        "stream",
        "max_tokens",
        "max_completion_tokens",
        "logprobs",
        "top_logprobs",
        "temperature",
        "tools",
        "tool_choice",
        "response_format",
        "structured_outputs",
        "continue_final_message",
        "add_generation_prompt",
    ],
)
def test_extra_fields_leave_requests_alone(minimal: Path, field: str) -> None:
    with pytest.raises(UserError, match=rf"^judge\.extra_body: {field} is set by each request itself"):
        load_config(minimal, [f"judge.extra_body={{seed: 3, {field}: 2}}"])


@pytest.mark.parametrize("value", ["2026-01-01", ".inf"])
def test_extra_fields_are_json(minimal: Path, value: str) -> None:
    with pytest.raises(UserError, match=r"^judge\.extra_body: must be what JSON can hold"):
        load_config(minimal, [f"judge.extra_body={{field: {value}}}"])


@pytest.mark.parametrize(
    ("judge", "sentence"),
    [
        ("when_spent: fallback", "judge.when_spent=fallback and judge.fallback need each other"),
        ("fallback: {model: x}", "judge.when_spent=fallback and judge.fallback need each other"),
        ("templates_per_pair: 2", "judge.templates_per_pair (2) exceeds the templates (1)"),
        ("template: [a, b], templates_per_pair: 3", "judge.templates_per_pair (3) exceeds the templates (2)"),
        ("principles_per_pair: 2", "judge.principles_per_pair needs judge.principles"),
        ("rubric_check: true", "judge.rubric_check needs judge.rubric"),
        ("clamp: [0.6, 0.4]", "judge.clamp: its lower bound (0.6) exceeds its upper (0.4)"),
        ("api_key_env: A, api_key_file: b", "judge: set api_key_env or api_key_file, not both"),
        (
            "ensemble: [{model: x, api_key_env: A, api_key_file: b}]",
            "judge.ensemble.0: set api_key_env or api_key_file, not both",
        ),
        ("ensemble: [{model: x, base_url: x}]", "judge.ensemble.0.base_url: must be http(s)://HOST/PATH"),
        ("actors: {min: 3, max: 2}", "judge.actors: min (3) must not exceed max (2)"),
    ],
)
def test_a_judge_that_makes_no_sense_is_refused(tmp_path: Path, judge: str, sentence: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(MINIMAL.replace("some-judge", f"some-judge, {judge}"))
    with pytest.raises(UserError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: {sentence}")


def test_a_value_within_an_override_is_the_overrides(minimal: Path) -> None:
    with pytest.raises(UserError, match=r"^judge\.price\.input: "):
        load_config(minimal, ["judge.price={input: -1, output: 2}"])


def test_configs_are_frozen(minimal: Path) -> None:
    config = load_config(minimal)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 2  # type: ignore[misc]
    assert isinstance(config, RunConfig)


JUDGED = "reward.mix=[{kind: judge_pairs}]"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["reward.patience=2"], "reward.patience needs reward.evaluate_every"),
        (["reward.disagreement_penalty=1"], "reward.disagreement_penalty needs reward.ensemble of 2 or more"),
        (["reward.mix=[{kind: rule}]"], "rule and function need each other"),
        (["reward.mix=[{kind: judge_score, function: 'a.py:f'}]"], "rule and function need each other"),
        (["reward.mix=[{kind: judge_score}, {kind: judge_score}]"], "two rewards are called judge_score"),
        (["reward.mix=[{kind: judge_score, weight: 0}]"], "all weights are 0"),
        (["reward.mix=[{kind: rubric}]"], "a rubric needs judge.rubric"),
        ([JUDGED], "ppo.answers_per_prompt must be 2 or more"),
        (["policy.algorithm=grpo"], "ppo.answers_per_prompt must be 2 or more"),
        (["reward.mix=[{kind: judge_pairs, against: reference}]"], "a reference answer needs prompts.reference"),
        (["rounds=2", "reward.source=judge"], "without a reward model there is nothing to fit anew"),
        (["collect.from_round=2"], "leaves the first round without preferences"),
        (["collect.pairs_per_prompt=7"], "exceeds the 6 pairs"),
    ],
)
def test_rewards_that_cannot_be_had_are_refused(minimal: Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_config(minimal, overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["ppo.evaluate_every=5"], r"ppo\.evaluate_every needs an instrument that training does not use"),
        (["ppo.evaluate_every=5", "evaluation.instrument=gold", "policy.algorithm=dpo"], "dpo has no iterations"),
        (["ppo.timeline_of=5", "policy.algorithm=dpo"], r"ppo\.timeline_of: dpo has no iterations"),
        (["ppo.timeline_of=7", "ppo.iterations=3", "rounds=2"], r"ppo\.timeline_of \(7\) exceeds the 6 iterations"),
        (["judge.model=one", "evaluation.judge={model: one}"], r"evaluation\.judge: one labels for training too"),
        (
            [
                "judge.model=one",
                "judge.ensemble=[{model: two}]",
                "evaluation.judge={model: three, ensemble: [{model: two}]}",
            ],
            r"evaluation\.judge: two labels for training too",
        ),
    ],
)
def test_instruments_that_training_uses_are_refused(minimal: Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_config(minimal, overrides)


def test_a_judge_of_the_same_name_elsewhere_is_another(minimal: Path) -> None:
    elsewhere = "evaluation.judge={model: one, base_url: 'http://127.0.0.1:9/v1'}"
    config = load_config(minimal, ["judge.model=one", elsewhere, "ppo.evaluate_every=5"])
    assert config.evaluation.judge is not None


def test_the_reward_is_what_its_sources_are(minimal: Path) -> None:
    plain = load_config(minimal).reward
    assert (plain.fits_a_model, plain.is_mixed, plain.asks_the_judge) == (True, False, False)
    watched = load_config(minimal, ["reward.watch=4"]).reward
    assert (watched.fits_a_model, watched.is_mixed, watched.asks_the_judge) == (True, False, True)
    direct = load_config(minimal, ["reward.source=judge"]).reward
    assert (direct.fits_a_model, direct.is_mixed, direct.asks_the_judge) == (False, True, True)
    ruled = load_config(minimal, ["reward.mix=[{kind: reward_model}, {kind: rule, function: 'a.py:f'}]"]).reward
    assert (ruled.fits_a_model, ruled.is_mixed, ruled.asks_the_judge) == (True, True, False)
    assert [source.label for source in ruled.sources] == ["reward_model", "f"]
    doubled = load_config(minimal, ["reward.mix=[{kind: reward_model, weight: 2}]"]).reward
    assert doubled.is_mixed


def test_every_pairing_but_random_and_active_may_ask_for_more_pairs_than_there_are(minimal: Path) -> None:
    for pairing in ("all", "best_worst"):
        assert (
            load_config(minimal, [f"collect.pairing={pairing}", "collect.pairs_per_prompt=7"]).collect.pairing
            == pairing
        )


@pytest.mark.parametrize(("gpus", "workers"), [(0, 1), (0.4, 1), (1, 1), (2, 2), (8, 8)])
def test_an_engine_has_a_worker_for_each_whole_gpu(minimal: Path, gpus: float, workers: int) -> None:
    config = load_config(minimal, [f"rollout.resources.gpus={gpus}", f"judge.actors.gpus={gpus}"])
    assert config.rollout.resources.workers == config.judge.actors.workers == workers


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["learner.offload=optimizer"], "learner.offload=optimizer needs learner.zero_stage of 1 or more"),
        (["learner.offload=all", "learner.zero_stage=2"], "needs learner.zero_stage of 3 or more"),
        (["learner.weight_transfer=nccl"], "learner.weight_transfer=nccl needs GPUs on both sides"),
        (["learner.weight_transfer=ipc", "learner.resources.gpus=0.5"], "learner.weight_transfer=ipc needs GPUs"),
        (
            ["learner.weight_transfer=ipc", "learner.resources.gpus=1", "rollout.resources.gpus=1"],
            "learner.weight_transfer=ipc .* add up to 1 at most",
        ),
        (
            ["rollout.resources.gpus=1.5"],
            "rollout.resources.gpus: 1.5 is neither a share of one GPU nor a whole number",
        ),
        (["ppo.max_staleness=1", "ppo.old_logprobs=rollout"], "ppo.max_staleness needs ppo.old_logprobs=recompute"),
        (["policy.algorithm=rloo", "ppo.answers_per_prompt=2", "ppo.truncated=bootstrap"], "rloo has none"),
        (["policy.algorithm=grpo", "ppo.answers_per_prompt=2", "ppo.value_model=trunk"], "grpo has no value model"),
        (["ppo.value_model=trunk", "ppo.value_warmup_iterations=2"], "needs a value model of its own"),
        (["ppo.dual_clip=1"], "ppo.dual_clip"),
        (["policy.algorithm=dpo", "rounds=2"], "set rounds to 1"),
    ],
)
def test_learning_that_makes_no_sense_is_refused(minimal: Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_config(minimal, overrides)


@pytest.mark.parametrize(
    ("overrides", "recomputes"),
    [
        ([], False),
        (["policy.dtype=bfloat16"], True),
        (["ppo.max_staleness=1"], True),
        (["policy.dtype=bfloat16", "ppo.old_logprobs=rollout"], False),
        (["ppo.old_logprobs=recompute"], True),
    ],
)
def test_whose_log_probabilities_stand_for_the_policy_before_an_update(
    minimal: Path, overrides: list[str], recomputes: bool
) -> None:
    assert load_config(minimal, overrides).recomputes_old_logprobs is recomputes


def test_the_kl_is_a_loss_in_grpo_alone_unless_it_is_said(minimal: Path) -> None:
    grpo = ["policy.algorithm=grpo", "ppo.answers_per_prompt=2"]
    assert load_config(minimal).kl == "reward"
    assert load_config(minimal, grpo).kl == "k3"
    assert load_config(minimal, [*grpo, "ppo.kl=reward"]).kl == "reward"


def test_dpo_collects_only_where_no_preferences_are_given(minimal: Path) -> None:
    collecting = load_config(minimal, ["policy.algorithm=dpo"])
    assert (collecting.collects_preferences, collecting.fits_a_reward_model) == (True, False)
    given = load_config(minimal, ["policy.algorithm=dpo", "dpo.preferences=[{path: p.jsonl}]"])
    assert not given.collects_preferences

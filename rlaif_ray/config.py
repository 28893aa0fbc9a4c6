"""The run's configuration: frozen, strict, one tree. A YAML file with `key=value` overrides behind it.

Everything that can be wrong with it is found at load, and said in one sentence that names the key.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]

# What a request sets itself, and what would have it cost more than the bound that a budget is held to.
_OF_A_REQUEST = frozenset(
    {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "logprobs", "top_logprobs"}
    | {"response_format", "tools", "tool_choice", "structured_outputs", "continue_final_message"}
    | {"add_generation_prompt", "n", "best_of", "stream"}
)
_HEADER_OF_A_KEY = re.compile(
    r"(.*[-_])?(auth(orization|entication)?|cookie|(api)?key|token|secret|password)", re.IGNORECASE
)
_ADDRESS = re.compile(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", re.IGNORECASE)

Config = TypeVar("Config", bound=BaseModel)


class UserError(Exception):
    """The user's input is wrong. Its text is one sentence that names the key, the file or the line, and the remedy."""


class Stopped(Exception):
    """A budget, a quota or a guard stopped the run. Everything is saved; its text says why and how to go on."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ActorResources(Section):
    """What one actor of a pool is given."""

    cpus: NonNegativeFloat = 0.2
    """Ray's CPU grant. Small grants let actors that work in turn share a small machine; raise them to spread out."""
    gpus: NonNegativeFloat = 0.0
    """Ray's GPU grant."""
    threads: Positive = 1
    """OpenMP threads, set before torch is imported."""


class Replicas(ActorResources):
    """A pool of one size, and what each of its actors is given."""

    count: Positive = 1
    """Actors in the pool."""


class PoolSize(ActorResources):
    """An autoscaling pool's bounds, and what each of its actors is given."""

    min: NonNegative = 1
    """Actors that stay when there is nothing to do."""
    max: Positive = 1
    """Actors at most, whatever the backlog."""

    @model_validator(mode="after")
    def _ordered(self) -> PoolSize:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not exceed max ({self.max})")
        return self


class PromptsConfig(Section):
    path: str
    """A JSONL or parquet file, the name of a `datasets` dataset, or `toyworld:headlines`."""
    field: str = "prompt"
    """The column that holds a text, or a list of {role, content} messages."""
    limit: Positive | None = None
    """Read at most so many prompts."""
    held_out: Positive | None = None
    """Prompts kept from every training stage, for the evaluation. Without it a fifth, at most 1,000."""


class ScratchModelConfig(Section):
    """A small Llama, built with a word-level tokenizer from the demonstrations."""

    hidden_size: Positive = 64
    layers: Positive = 2
    heads: Positive = 2
    intermediate_size: Positive = 176


class PolicyConfig(Section):
    model: str | None = None
    """A Hugging Face causal LM: a directory or a name. Without it `scratch` builds one."""
    scratch: ScratchModelConfig | None = None
    algorithm: Literal["ppo"] = "ppo"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights that are served and trained; the optimizer keeps float32 beside bfloat16."""
    max_prompt_tokens: Positive = 512
    """Longer prompts are left out, and counted."""
    max_answer_tokens: Positive = 128
    """Longer answers are cut off, and count as truncated."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    @property
    def context_tokens(self) -> int:
        """Positions that an engine needs: the longest prompt and answer, and the token that scoring them draws."""
        return self.max_prompt_tokens + self.max_answer_tokens + 1

    @model_validator(mode="after")
    def _one_origin(self) -> PolicyConfig:
        if (self.model is None) == (self.scratch is None):
            raise ValueError("set policy.model to a model, or policy.scratch to build a small one, and not both")
        return self


class FitConfig(Section):
    """How a batch trainer (SFT, reward model) runs."""

    epochs: PositiveFloat = 1.0
    """Passes over the data; a fraction ends within one."""
    batch_size: Positive = 64
    """Examples to one optimizer step, over all workers."""
    micro_batch_size: Positive = 64
    """Examples to one forward, on one worker."""
    learning_rate: PositiveFloat = 1e-5
    """AdamW's peak rate: a linear rise, then a linear fall to nothing."""
    warmup_fraction: Fraction = 0.05
    """Share of the steps over which the rate rises."""
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    """Bound on the gradient's norm."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed's ZeRO stage."""
    workers: Positive = 1
    """Data-parallel workers."""
    resources: ActorResources = ActorResources()


class SftConfig(FitConfig):
    demonstrations: str | None = None
    """Where demonstrations come from: a JSONL or parquet file with `prompt` and `answer`, or `toyworld:headlines`.
    Without it the given model is taken as it is."""
    limit: Positive | None = None
    """Read at most so many demonstrations."""


class PriceConfig(Section):
    """US dollars per million tokens."""

    input: NonNegativeFloat
    output: NonNegativeFloat
    cached_input: NonNegativeFloat | None = None
    """Of prompt tokens that the endpoint had in its cache. Without it they cost as the others."""


class EndpointConfig(Section):
    """One judge: a model behind an OpenAI-compatible address, or one that local labelers load."""

    model: str
    """The judge's name at its API; without `base_url`, a model that local labelers load."""
    base_url: str | None = None
    """An OpenAI-compatible address, such as http://127.0.0.1:8000/v1."""
    api_key_env: str | None = None
    """The environment variable that holds the key, on the node that calls."""
    api_key_file: Path | None = None
    """A file that holds the key, such as a mounted secret, on the node that calls."""
    extra_headers: dict[str, str] = {}
    """HTTP headers to send beside the usual ones. Never a key: the config is written to the run directory."""
    extra_body: dict[str, Any] = {}
    """Fields to send beside the usual ones, such as `reasoning_effort: low`."""
    mode: Literal["auto", "choice", "reasoned", "stated"] = "auto"
    """How pairs are asked. `choice`: one token, with log-probabilities over the two labels. `reasoned`: the judge
    reasons first, and chooses in a second call. `stated`: reasoning and verdict in one structured reply, for endpoints
    without log-probabilities. `auto` asks the endpoint once what it supports, and takes the best."""
    weight: PositiveFloat = 1.0
    """Of this judge's verdicts in an ensemble."""
    quota: str | None = None
    """Judges that name the same quota share its limits. Without it: those with one address, key and model do."""
    requests_per_minute: PositiveFloat | None = None
    """The endpoint's limit, kept by all judge actors of the cluster together."""
    tokens_per_minute: PositiveFloat | None = None
    """The endpoint's limit on prompt and completion tokens together."""
    max_concurrency: Positive = 64
    """Requests in flight, over the whole cluster."""
    timeout_s: PositiveFloat = 60.0
    """Seconds after which a call counts as lost."""
    max_attempts: Positive = 6
    """Tries of one call, the first included, before its judgement fails. Of these, those that may have been billed
    unseen are counted over all resumptions."""
    price: PriceConfig | None = None
    """What a call costs, where the price table does not know or is wrong."""
    actors: PoolSize = PoolSize(min=0, max=4, cpus=0.1)
    max_context_tokens: Positive = 8192
    """The longest conversation of a local labeler, its reply included, where its model bears as much."""
    trust_remote_code: bool = False
    """Run code that comes with a local labeler's model."""

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, base_url: str | None) -> str | None:
        if base_url is not None and not _ADDRESS.fullmatch(base_url):
            # Unquoted, as a key may be in it.
            raise ValueError("must be http(s)://HOST/PATH and no more, such as http://127.0.0.1:8000/v1")
        return base_url

    @field_validator("extra_headers")
    @classmethod
    def _hold_no_key(cls, extra_headers: dict[str, str]) -> dict[str, str]:
        for name in filter(_HEADER_OF_A_KEY.fullmatch, extra_headers):
            raise ValueError(
                f"{name} would carry a key, and a config is written to the run directory; "
                "say where the key lies with api_key_env or api_key_file"
            )
        return extra_headers

    @field_validator("extra_body")
    @classmethod
    def _leaves_requests_alone(cls, extra_body: dict[str, Any]) -> dict[str, Any]:
        for name in sorted(_OF_A_REQUEST & extra_body.keys()):
            raise ValueError(f"{name} is set by each request itself, or would cost more than is counted; take it out")
        try:
            json.dumps(extra_body, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"must be what JSON can hold ({error}); quote what is text") from None
        return extra_body

    @model_validator(mode="after")
    def _one_key(self) -> EndpointConfig:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("set api_key_env or api_key_file, not both")
        return self


class CascadeConfig(Section):
    """A second, dearer judge for the pairs that the first finds hard."""

    judge: EndpointConfig
    margin: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Pairs with |p - 1/2| below this, and those without a verdict, go to the second judge, whose verdict counts."""


class JudgeConfig(EndpointConfig):
    template: str | tuple[str, ...] = "quality"
    """A shipped template's name, or a file of one's own; or several of them."""
    templates_per_pair: Positive = 1
    """Of several templates, how many a pair is asked with: drawn by the seed and the pair, so that a rerun asks the
    same. More than one is an ensemble."""
    examples: str | None = None
    """A file of worked examples to show the judge, or a shipped one's name."""
    criteria: str | None = None
    """A file of criteria that the judge is told to weigh, or a shipped one's name."""
    principles: str | None = None
    """A file of principles, or a shipped one's name: a judgement is made by one, drawn by the seed and the pair."""
    principles_per_pair: Positive = 1
    """More than one is an ensemble."""
    rubric: str | None = None
    """A file of criteria with levels from 1 to 5, or a shipped one's name: each answer is scored on each criterion,
    and p is the logistic function of the difference of the weighted means."""
    rubric_temperature: PositiveFloat = 1.0
    """That difference is divided by this; fit it on calibration data."""
    rubric_check: bool = False
    """Ask for the verdict on the pair too, and record where it contradicts the rubric's scores."""
    score_template: str = "quality-score"
    """What an answer alone is scored by, from 1 to 10: a shipped template or a file of one's own."""
    control: Literal["coin_flip"] | None = None
    """Replace every judgement by a seeded coin: a control that shows whether a result is earned."""
    min_label_mass: Fraction = 0.5
    """Where the two labels together have less probability than this, the reply is no verdict."""
    samples: Positive = 1
    """Stated verdicts to draw, a question: their votes make the label soft."""
    sample_temperature: PositiveFloat = 0.7
    """Of stated verdicts, where more than one is drawn."""
    rationale_tokens: Positive = 512
    """The longest reasoning before a `reasoned` choice."""
    clamp: tuple[Fraction, Fraction] | None = None
    """Bounds on the probability that a `reasoned` choice may state, such as [0.4, 0.6] (Bai et al. 2022)."""
    order_check: Fraction = 1.0
    """Share of the pairs that are asked in both presentation orders; the others in one, drawn, and their records say
    so. Labels to train on want 1: a lone order carries the judge's lean to a position."""
    on_inconsistent: Literal["keep_soft", "drop", "tie", "downweight"] | None = None
    """What becomes of a pair whose two orders name different answers: its mean probability stays, it is left out, it
    counts as a tie, or it weighs |2p - 1|. Without it: `keep_soft` for a reward model, `drop` for DPO."""
    tie_margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Pairs with |p - 1/2| below this are ties: p is 1/2."""
    similarity_bound: Fraction = 0.95
    """Pairs whose answers are at least so similar are not sent. 1: only identical ones."""
    ensemble: tuple[EndpointConfig, ...] = ()
    """Further judges. Each pair is asked of all of them."""
    combine: Literal["log_odds", "vote"] = "log_odds"
    """How the members of an ensemble add up: the weighted mean of their log-odds, or their weighted votes."""
    cascade: CascadeConfig | None = None
    max_abstained: Fraction = 0.1
    """The run stops where more than this share of the judgements are abstentions."""
    ledger: Path | None = None
    """A ledger to share between runs. Without it: ledger.sqlite in the run directory."""
    replay: bool = False
    """Ask nobody: every reply must be in the ledger."""
    retry_refused: bool = False
    """Ask again what the endpoint refused in an earlier run (HTTP 400, 413 or 422)."""
    prices: Path | None = None
    """A file that adds to the shipped price table."""
    unknown_price: Literal["refuse", "ignore"] = "refuse"
    """Under a budget, what to do with a judge whose price is not known: refuse to start, or call it unbounded."""
    budget_usd: NonNegativeFloat | None = None
    """A hard bound on what the run and its resumptions spend."""
    when_spent: Literal["stop", "fallback", "go_on"] = "stop"
    """When the budget or an account's quota is spent: stop with exit code 3, ask `fallback` instead, or go on without
    further labels."""
    fallback: EndpointConfig | None = None
    """The judge, such as a local labeler, that takes over when the budget is spent."""

    @model_validator(mode="after")
    def _whole(self) -> JudgeConfig:
        if (self.when_spent == "fallback") != (self.fallback is not None):
            raise ValueError("judge.when_spent=fallback and judge.fallback need each other")
        templates = 1 if isinstance(self.template, str) else len(self.template)
        if self.templates_per_pair > templates:
            raise ValueError(
                f"judge.templates_per_pair ({self.templates_per_pair}) exceeds the templates ({templates})"
            )
        if self.principles_per_pair > 1 and self.principles is None:
            raise ValueError("judge.principles_per_pair needs judge.principles")
        if self.rubric_check and self.rubric is None:
            raise ValueError("judge.rubric_check needs judge.rubric")
        if self.clamp is not None and self.clamp[0] > self.clamp[1]:
            raise ValueError(f"judge.clamp: its lower bound ({self.clamp[0]:g}) exceeds its upper ({self.clamp[1]:g})")
        return self


class CollectConfig(Section):
    prompts: Positive = 1000
    """Prompts to draw answers for."""
    answers_per_prompt: Annotated[int, Field(ge=2)] = 4
    """Answers to draw to each."""
    pairs_per_prompt: Positive = 3
    """Pairs, drawn at random without repetition from the answers to one prompt."""
    temperature: PositiveFloat = 1.0


class RewardConfig(FitConfig):
    source: Literal["reward_model"] = "reward_model"
    held_out: Fraction = 0.1
    """Share of the prompts whose pairs measure the reward model and do not fit it."""
    centring: NonNegativeFloat = 0.0
    """Weight of the mean of (r_a + r_b)^2."""
    actors: Replicas = Replicas()
    max_batch_tokens: Positive = 8192
    """Tokens that one forward of a reward actor takes, padding included."""


class RolloutConfig(Section):
    replicas: Positive = 1
    """vLLM engines that hold the policy."""
    resources: ActorResources = ActorResources()
    temperature: PositiveFloat = 1.0
    """Of training's rollouts; evaluation always draws at 1."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of a GPU's memory that one engine takes."""
    kv_cache_gib: Positive = 1
    """Memory for the KV cache of one engine on a CPU."""
    enforce_eager: bool = True
    """Skip compilation: faster to start, slower to run."""


class LearnerConfig(Section):
    ranks: Positive = 1
    """Data-parallel DeepSpeed ranks."""
    resources: ActorResources = ActorResources()
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed's ZeRO stage, for the policy and the value model."""
    max_grad_norm: PositiveFloat = 1.0
    """Bound on the gradient's norm, for each of the two."""


class PpoConfig(Section):
    """PPO (Schulman et al. 2017) as used on language models (Ziegler et al. 2019; Huang et al. 2024)."""

    iterations: Positive = 100
    """Times to sample, score, update and publish."""
    prompts_per_iteration: Positive = 64
    answers_per_prompt: Positive = 1
    epochs: Positive = 2
    """Passes over the answers of an iteration."""
    minibatch_size: Positive = 64
    """Answers to one optimizer step, over all ranks."""
    micro_batch_size: Positive = 64
    """Answers to one forward, on one rank."""
    learning_rate: PositiveFloat = 1e-6
    value_learning_rate: PositiveFloat = 1e-5
    value_warmup_iterations: NonNegative = 0
    """Iterations at the start that fit the value model alone."""
    adam_epsilon: PositiveFloat = 1e-5
    clip: PositiveFloat = 0.2
    """Bound on how far the probability ratio may leave 1 and still earn a gradient."""
    value_clip: PositiveFloat = 0.2
    """Bound on how far a value may move in one iteration, likewise."""
    gamma: Fraction = 1.0
    """Discount of later rewards."""
    lam: Fraction = 0.95
    """GAE's mixing of short and long estimates."""
    kl_coefficient: NonNegativeFloat = 0.05
    """Weight of the KL from SFT, a token, in the reward."""
    reward_clip: PositiveFloat = 10.0
    """Bound on the normalised reward's size, before KL is taken off."""
    truncated: Literal["penalty", "mask"] = "penalty"
    """What becomes of an answer that hit the length limit: its score is `truncation_score`, or it is left out."""
    truncation_score: float = -1.0
    """In units of the normalised reward."""
    checkpoint_every: Positive = 10
    """Iterations between checkpoints; an interrupted run loses fewer than these."""


class EvaluationConfig(Section):
    instrument: Literal["gold", "judge"] = "judge"
    """Who decides who wins: the data source's gold utility, or the judge (which is labelled as the training judge)."""


class RunConfig(Section):
    seed: NonNegative = 0
    """What every random choice of the run derives from."""
    run_dir: Path
    """Where everything of the run is kept. `{seed}` in it stands for the seed."""
    prompts: PromptsConfig
    policy: PolicyConfig
    sft: SftConfig = SftConfig()
    judge: JudgeConfig
    collect: CollectConfig = CollectConfig()
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    ppo: PpoConfig = PpoConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.policy.scratch is not None and self.sft.demonstrations is None:
            raise ValueError("policy.scratch builds an untrained model: set sft.demonstrations to train it on")
        possible = self.collect.answers_per_prompt * (self.collect.answers_per_prompt - 1) // 2
        if self.collect.pairs_per_prompt > possible:
            raise ValueError(
                f"collect.pairs_per_prompt ({self.collect.pairs_per_prompt}) exceeds the {possible} pairs that "
                f"collect.answers_per_prompt ({self.collect.answers_per_prompt}) can form"
            )
        return self


class JudgeRunConfig(Section):
    """What labelling a file needs of a config. A run's config holds more, which stays unread."""

    seed: NonNegative = 0
    run_dir: Path | None = None
    judge: JudgeConfig


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


def _overridden_tree(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    tree = _read_tree(path)
    for override in overrides:
        _apply(tree, override)
    if isinstance(tree.get("run_dir"), str):
        tree["run_dir"] = tree["run_dir"].replace("{seed}", str(tree.get("seed", 0)))
    return tree


def _validated(kind: type[Config], tree: dict[str, Any], path: Path, overrides: Sequence[str]) -> Config:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        # A misspelt key first: where it is a required one, that is missing too.
        problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in problem["loc"])
        overridden = any(f"{key}.".startswith(f"{override.partition('=')[0]}.") for override in overrides)
        raise UserError(("" if overridden else f"{path}: ") + _sentence(problem, key)) from None


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


def _sentence(problem: ErrorDetails, key: str) -> str:
    """One sentence on a problem, with its key and, for a misspelt key, the nearest known one."""
    if problem["type"] == "extra_forbidden":
        section: Any = RunConfig
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

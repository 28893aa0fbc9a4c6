"""The judge's configuration: who is asked, how, and what it may cost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rlaif_ray.config.section import Fraction, NonNegativeFloat, PoolSize, Positive, PositiveFloat, Section

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

    @property
    def judges(self) -> tuple[EndpointConfig, ...]:
        """Every judge that it names: the first, the rest of the ensemble, the cascade's, the fallback."""
        second = () if self.cascade is None else (self.cascade.judge,)
        fallback = () if self.fallback is None else (self.fallback,)
        return (self, *self.ensemble, *second, *fallback)

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

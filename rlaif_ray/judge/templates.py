"""Judge prompts: questions on pairs and on single answers, from template files, with what is judged fenced as data.

The question is a file's `system` block, where it has one, and its `user` block; an ending follows, by the way of
asking: `choose` or `score`, `reason`, `state`. Endings that a file does not write come from `templates/base`. A file
is tried when it is loaded, so that a bad one is refused before anything is asked. What stands in a fence is never
evaluated and cannot end its fence.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlaif_ray.config import UserError
from rlaif_ray.judge.material import LEVELS, NO_MATERIAL, Criterion, Example, Material, Principle
from rlaif_ray.judge.request import Form
from rlaif_ray.judge.template_files import SHIPPED, TemplateFile
from rlaif_ray.records import Message, Order, Pair, Prompt

SHIPPED_SCORES = SHIPPED / "scores"

_PAIR_VARIABLES = frozenset({"prompt", "first", "second", "labels", "examples", "criteria", "principle", "form"})
_SCORE_VARIABLES = frozenset({"prompt", "answer", "scale", "criteria", "criterion", "principle", "form"})

# Tokens of chat templates that carry no bar: of Llama 2, Mistral, Gemma, Qwen, Command R, GLM, Seed, T5 and BERT.
_BRACKETED = (
    r"INST|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|TOOL_CONTENT|SYSTEM_PROMPT|MODEL_SETTINGS|ARGS|CALL_ID|THINK"
    r"|IMG|IMG_BREAK|IMG_END|PREFIX|SUFFIX|MIDDLE|control_\d+|UNUSED_TOKEN_\d+|[gs]?MASK|CLS|SEP|PAD|UNK|BOS|EOS|EOT"
)
_TAGGED = (
    r"s|bos|eos|pad|unk|mask|cls|sep|sop|eop|role|think|tool_call|tool_response|tools|(?:start|end)_of_(?:turn|image)"
    r"|[A-Z]{3}_TOKEN|unused_?\d+|reserved_\d+|extra_id_\d+|SPECIAL_\d+|seed:[\w:]+"
)
# What hands a plain-text prompt over to another speaker, at the start of a line.
_SPEAKER = (
    r"(?:(?:### ?)?(?:Human|Assistant|USER|ASSISTANT|SYSTEM)|### ?(?:Instruction|Response|Input|System|User))[ \t]*:"
)

# The character after which a word joiner goes: each alternative starts with a literal, so that a search is fast.
_TOKEN = (
    r"<(?=[|｜][^<>\n]{1,64}>|[^<>\s\u2060][^<>\s]{0,63}[|｜]>"  # <|im_start|>, <｜User｜>, <turn|>
    rf"|(?i:</?SYS>>|/?(?:{_TAGGED})>))"
    rf"|\[(?=\|[^\[\]\n]{{1,64}}\]|(?i:/?(?:{_BRACKETED})\])|e~\[)|\](?=~!?b[\[\]])"
)
_OWN_FENCE = r"_(?=[0-9A-Fa-f]{8})(?:(?<=begin_)|(?<=BEGIN_)|(?<=end_)|(?<=END_))"
_CONTROL = re.compile(rf"{_TOKEN}|{_OWN_FENCE}|\n(?={_SPEAKER})")
_TOKENS = re.compile(_TOKEN)
_SPOKEN = re.compile(_SPEAKER)
_OPENING = re.compile(r"[<＜﹤\[［﹇\]］﹈]")
_WORD_JOINER = "\N{WORD JOINER}"
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def neutralise(text: str) -> str:
    """The text with a word joiner inside each control token and before each speaker's name, so that it reads the same
    to the eye and controls nothing. Doing it twice changes nothing. Halves of surrogate pairs, which no endpoint
    accepts, become replacement characters.

    Applies to whatever a prompt takes from a model: prompts and answers, and a judge's own reasoning that goes back.
    """
    neutral = _CONTROL.sub(rf"\g<0>{_WORD_JOINER}", text)
    if _SPOKEN.match(neutral):
        neutral = _WORD_JOINER + neutral
    if text.isascii():
        return neutral
    neutral = _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", neutral)
    # Some tokenizers fold look-alikes such as ＜ into ASCII before they look for their tokens.
    folded = unicodedata.normalize("NFKC", neutral)
    if folded != neutral and _TOKENS.search(folded):
        neutral = _OPENING.sub(rf"\g<0>{_WORD_JOINER}", neutral)
    return neutral


def fence_mark(*texts: str) -> str:
    """A delimiter derived from the texts, so that the same question is the same prompt and no text can close it."""
    marks = (
        hashlib.sha256("\0".join([str(attempt), *texts]).encode()).hexdigest()[:8] for attempt in itertools.count()
    )
    return next(mark for mark in marks if not any(mark in text for text in texts))


def fence(text: str, mark: str) -> str:
    """A neutralised text as data: between two lines that it cannot contain, as `mark` derives from its content."""
    return f"begin_{mark}\n{text}\nend_{mark}"


def _fenced(*texts: str) -> tuple[str, ...]:
    neutral = [neutralise(text) for text in texts]
    mark = fence_mark(*neutral)
    return tuple(fence(text, mark) for text in neutral)


@dataclass(frozen=True, slots=True)
class ShownExample:
    """A few-shot example as a template sees it: three fenced texts, and the label of the better answer."""

    prompt: str
    first: str
    second: str
    label: str
    rationale: str


class Template:
    """A loaded pair template. `hash` names its content and that of all files it stands on; `reasons` says whether
    the file itself asks for reasoning before the verdict.

    `labels` is what the judge says for the answer shown first and for the second. `choose_after` is the user's turn
    after the judge's own reasoning, and `verdict_only` that of the one reformatting call: both ask for the label
    alone. `verdict_schema` is the JSON schema of a stated verdict, with its reasoning first.
    """

    def __init__(self, file: TemplateFile) -> None:
        self.file = file
        self.name = file.path.stem
        self.hash = file.hash
        self.reasons = bool(file.constants.get("reasons"))
        self.labels = _labels(file)
        self.choose_after = file.render(["choose_after"], {"labels": self.labels})
        self.verdict_only = file.render(["verdict_only"], {"labels": self.labels})
        self.verdict_schema = _schema("verdict", {"type": "string", "enum": list(self.labels)})
        self._examples: dict[str, tuple[ShownExample, ...]] = {}
        self._shown = self._try()

    def question(
        self, pair: Pair, order: Order, *, material: Material = NO_MATERIAL, principle: Principle | None = None
    ) -> PairQuestion:
        """The question on a pair in one presentation order. Nothing is rendered before it is asked for."""
        return PairQuestion(self, pair, order, material, principle)

    def require(self, material: Material) -> None:
        """Raises UserError where the template would leave out what a config names for its judge to read."""
        for key in _TRIAL_SIGNS:
            if getattr(material, key) and key not in self._shown:
                raise UserError(
                    f"{self.file.path}: shows no {key}; add them to it, or take judge.{key} out of the config"
                )

    def examples(self, material: Material) -> tuple[ShownExample, ...]:
        """The examples as shown: the better answer first and second by turns, each fenced by a mark of its own, so
        that this part of the prompt is the same for every pair."""
        shown = self._examples.get(material.hash)
        if shown is None:
            shown = tuple(self._show(number, example) for number, example in enumerate(material.examples))
            self._examples[material.hash] = shown
        return shown

    def _show(self, number: int, example: Example) -> ShownExample:
        better_is_first = number % 2 == 0
        first, second = example.answer_a, example.answer_b
        if (example.better == "a") is not better_is_first:
            first, second = second, first
        shown_prompt, shown_first, shown_second = _fenced(example.prompt, first, second)
        return ShownExample(
            shown_prompt,
            shown_first,
            shown_second,
            label=self.labels[0 if better_is_first else 1],
            rationale=neutralise(example.rationale or ""),
        )

    def _try(self) -> frozenset[str]:
        """Renders all that can be asked, without material and with it, and returns what it shows of that. Raises
        UserError where a text is not shown whole, once and in its place, or where a label is never named."""
        words = ""
        for material, principle in _TRIALS:
            question = self.question(_TRIAL_PAIR, Order.AB, material=material, principle=principle)
            choose = question.choose()
            for messages in (choose, question.reason(), *(question.state(form) for form in _STATED)):
                _refuse_misplaced(self.file, messages, question.fenced)
            words = "\n".join(message.content for message in choose)
            for text in question.fenced.values():
                words = words.replace(text, "")
            for label in self.labels:
                if not re.search(rf"(?<!\w){re.escape(label)}(?!\w)", words):
                    raise UserError(f"{self.file.place('labels')}: the question never says {label!r}; name both labels")
        return frozenset(key for key, sign in _TRIAL_SIGNS.items() if sign in words)


@dataclass(frozen=True)
class PairQuestion:
    """Which of two answers is better, in one presentation order: conversations that end in each way of asking."""

    template: Template
    pair: Pair
    order: Order
    material: Material
    principle: Principle | None

    @property
    def labels(self) -> tuple[str, str]:
        return self.template.labels

    @property
    def choose_after(self) -> str:
        return self.template.choose_after

    @property
    def verdict_only(self) -> str:
        return self.template.verdict_only

    @property
    def verdict_schema(self) -> str:
        return self.template.verdict_schema

    def choose(self) -> tuple[Message, ...]:
        """Asks for the label alone."""
        return _conversation(self.template.file, "choose", self._variables)

    def reason(self) -> tuple[Message, ...]:
        """Asks for reasoning without a verdict."""
        return _conversation(self.template.file, "reason", self._variables)

    def state(self, form: Form) -> tuple[Message, ...]:
        """Asks for reasoning and then the verdict: as JSON for SCHEMA and TOOL, as a last line for TEXT."""
        return _conversation(self.template.file, "state", self._variables | {"form": form.value})

    @cached_property
    def fenced(self) -> dict[str, str]:
        """The texts under judgement as they stand in every conversation, by the names that templates use."""
        answers = (self.pair.response_a, self.pair.response_b)
        first, second = {Order.AB: answers, Order.BA: answers[::-1]}[self.order]
        return dict(zip(("prompt", "first", "second"), _fenced(self.pair.prompt.text, first, second), strict=True))

    @cached_property
    def _variables(self) -> dict[str, Any]:
        return {
            **self.fenced,
            "labels": self.labels,
            "examples": self.template.examples(self.material),
            "criteria": self.material.criteria,
            "principle": self.principle.text if self.principle else None,
        }


class ScoreTemplate:
    """A loaded template that asks for a score of one answer. `hash` names its content and that of all files it stands
    on; `rubric` says whether it asks about one criterion of a rubric at a time.

    `scale` is the lowest and the highest score. `verdict_only` is the user's turn of the one reformatting call: it
    asks for the number alone. `verdict_schema` is the JSON schema of a stated score, with its reasoning first.
    """

    def __init__(self, file: TemplateFile) -> None:
        self.file = file
        self.name = file.path.stem
        self.hash = file.hash
        self.rubric = "criterion" in file.used
        self.scale = _scale(file)
        if self.rubric and self.scale != (LEVELS[0], LEVELS[-1]):
            raise UserError(
                f"{file.path}: shows `criterion`, whose levels are 1 to 5; write {{% set scale = [1, 5] %}}"
            )
        self.verdict_only = file.render(["verdict_only"], {"scale": self.scale})
        points = list(range(self.scale[0], self.scale[1] + 1))
        self.verdict_schema = _schema("score", {"type": "integer", "enum": points})
        self._try()

    def question(
        self,
        prompt: Prompt,
        answer: str,
        *,
        material: Material = NO_MATERIAL,
        principle: Principle | None = None,
        criterion: Criterion | None = None,
    ) -> ScoreQuestion:
        """The question on one answer, and on one criterion where `rubric`. Nothing is rendered before it is asked
        for. Raises UserError where a criterion is needed and there is none."""
        if self.rubric and criterion is None:
            raise UserError(f"{self.file.path}: shows `criterion`, so it can only ask about a rubric's criteria")
        return ScoreQuestion(self, prompt, answer, material, principle, criterion)

    def _try(self) -> None:
        for material, principle in _TRIALS:
            question = self.question(
                _TRIAL_PAIR.prompt,
                _TRIAL_PAIR.response_a,
                material=material,
                principle=principle,
                criterion=_TRIAL_CRITERION if self.rubric else None,
            )
            for messages in (question.score(), *(question.state(form) for form in _STATED)):
                _refuse_misplaced(self.file, messages, question.fenced)


@dataclass(frozen=True)
class ScoreQuestion:
    """How good one answer is on a scale of integers: conversations that end in each way of asking."""

    template: ScoreTemplate
    prompt: Prompt
    answer: str
    material: Material
    principle: Principle | None
    criterion: Criterion | None

    @property
    def scale(self) -> tuple[int, int]:
        return self.template.scale

    @property
    def verdict_only(self) -> str:
        return self.template.verdict_only

    @property
    def verdict_schema(self) -> str:
        return self.template.verdict_schema

    def score(self) -> tuple[Message, ...]:
        """Asks for the number alone."""
        return _conversation(self.template.file, "score", self._variables)

    def state(self, form: Form) -> tuple[Message, ...]:
        """Asks for reasoning and then the score: as JSON for SCHEMA and TOOL, as a last line for TEXT."""
        return _conversation(self.template.file, "state", self._variables | {"form": form.value})

    @cached_property
    def fenced(self) -> dict[str, str]:
        """The texts under judgement as they stand in every conversation, by the names that templates use."""
        return dict(zip(("prompt", "answer"), _fenced(self.prompt.text, self.answer), strict=True))

    @cached_property
    def _variables(self) -> dict[str, Any]:
        return {
            **self.fenced,
            "scale": self.scale,
            "criteria": self.material.criteria,
            "principle": self.principle.text if self.principle else None,
            "criterion": self.criterion,
        }


def load_template(name: str) -> Template:
    """A shipped pair template by name, or a user's by path. Raises UserError naming the file and the line."""
    path = _find(name, "template", SHIPPED)
    return Template(_with_question(TemplateFile(path, "base/endings.j2", _PAIR_VARIABLES)))


def load_score_template(name: str) -> ScoreTemplate:
    """A shipped score template by name, or a user's by path. Raises UserError naming the file and the line."""
    path = _find(name, "score_template", SHIPPED_SCORES)
    return ScoreTemplate(_with_question(TemplateFile(path, "base/score_endings.j2", _SCORE_VARIABLES)))


def _find(name: str, key: str, shipped: Path) -> Path:
    path = shipped / f"{name}.j2"
    if path.is_file():
        return path
    if Path(name).is_file():
        return Path(name)
    names = ", ".join(sorted(file.stem for file in shipped.glob("*.j2")))
    raise UserError(f"judge.{key}: no file {name!r} and no shipped template of that name ({names})")


def _with_question(file: TemplateFile) -> TemplateFile:
    if "user" not in file:
        raise UserError(f"{file.path}: has no `user` block; write {{% block user %}}...{{% endblock %}}")
    return file


def _conversation(file: TemplateFile, ending: str, variables: Mapping[str, Any]) -> tuple[Message, ...]:
    user = Message("user", file.render(["user", ending], variables))
    system = file.render(["system"], variables) if "system" in file else ""
    return (Message("system", system), user) if system else (user,)


def _labels(file: TemplateFile) -> tuple[str, str]:
    """The two labels of a pair template, of which neither may be taken for the other. Raises UserError."""
    labels = file.constants.get("labels")
    if not (isinstance(labels, list) and len(labels) == 2 and all(isinstance(label, str) for label in labels)):
        raise UserError(
            f'{file.place("labels")}: must name two labels at the top, such as {{% set labels = ["1", "2"] %}}'
        )
    first, second = labels
    if any(not label or label != label.strip() for label in labels):
        raise UserError(f"{file.place('labels')}: a label must not be empty, nor begin or end with white space")
    if first.casefold().startswith(second.casefold()) or second.casefold().startswith(first.casefold()):
        raise UserError(
            f"{file.place('labels')}: {first!r} and {second!r} cannot be told apart, as one begins the other; "
            'write others, such as ["1", "2"]'
        )
    return first, second


def _scale(file: TemplateFile) -> tuple[int, int]:
    """The scale of a score template. Raises UserError."""
    scale = file.constants.get("scale")
    if not (
        isinstance(scale, list)
        and len(scale) == 2
        and all(type(bound) is int for bound in scale)
        and 0 <= scale[0] < scale[1] <= 100
    ):
        raise UserError(
            f"{file.place('scale')}: must name its lowest and highest score at the top, such as "
            "{% set scale = [1, 10] %}"
        )
    return scale[0], scale[1]


def _schema(name: str, verdict: dict[str, Any]) -> str:
    schema = {
        "type": "object",
        "properties": {"reasoning": {"type": "string"}, name: verdict},
        "required": ["reasoning", name],
        "additionalProperties": False,
    }
    return json.dumps(schema, ensure_ascii=False)


def _refuse_misplaced(file: TemplateFile, messages: Sequence[Message], fenced: Mapping[str, str]) -> None:
    *before, user = messages
    places = [user.content.find(text) for text in fenced.values()]
    for name, text in fenced.items():
        if user.content.count(text) != 1 or any(text in message.content for message in before):
            raise UserError(f"{file.place('user')}: must show `{name}` once in `user`, whole and as it is")
    if places[-2:] != sorted(places[-2:]):
        raise UserError(f"{file.place('user')}: must show `first` before `second`")


_STATED = (Form.TEXT, Form.SCHEMA, Form.TOOL)

# Long, and changed by every filter that could change a text.
_TRIAL_TEXT = '  <Trial> & "text"\n\n\twith  spaces, Umlauts: Ä, and a tail\n' + "of words " * 1_000 + "\n"
_TRIAL_PAIR = Pair("trial", Prompt("trial", "Asked" + _TRIAL_TEXT), "One" + _TRIAL_TEXT, "Other" + _TRIAL_TEXT)
_TRIAL_CRITERION = Criterion(name="Name", question="Question?", levels=dict.fromkeys(LEVELS, "Level."))
_TRIAL_SIGNS = {"examples": "Trial example.", "criteria": "Trial criterion.", "principles": "Trial principle."}
_TRIAL_MATERIAL = Material(
    examples=(
        Example(prompt="Asked", answer_a=_TRIAL_SIGNS["examples"], answer_b="Other", better="a", rationale="Reasons."),
        Example(prompt="Asked", answer_a="Another", answer_b="Other", better="a"),
    ),
    criteria=(_TRIAL_SIGNS["criteria"],),
)
_TRIALS = ((NO_MATERIAL, None), (_TRIAL_MATERIAL, Principle(id="trial", text=_TRIAL_SIGNS["principles"])))

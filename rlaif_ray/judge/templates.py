"""Judge prompts: Jinja files, rendered in a sandbox, with every text under judgement fenced as data.

A file holds blocks and constants, and nothing else counts. The question is its `system` block, where there is one, and
its `user` block; an ending follows, by the way of asking: `choose` or `score`, `reason`, `state`. Endings that a file
does not write come from `templates/base`. A file is checked when it is loaded, by reading it and by a trial, so that
a bad one is refused before anything is asked. What stands in a fence is never evaluated and cannot end its fence.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import StrictUndefined, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlaif_ray.config import UserError
from rlaif_ray.judge.material import LEVELS, NO_MATERIAL, Criterion, Example, Material, Principle
from rlaif_ray.judge.request import Form
from rlaif_ray.records import Message, Order, Pair, Prompt

SHIPPED = Path(__file__).parent / "templates"
SHIPPED_SCORES = SHIPPED / "scores"

_PAIR_VARIABLES = frozenset({"prompt", "first", "second", "labels", "examples", "criteria", "principle", "form"})
_SCORE_VARIABLES = frozenset({"prompt", "answer", "scale", "criteria", "criterion", "principle", "form"})

# Tokens of chat templates that carry no bar: of Llama 2, Mistral, Gemma, Qwen, Command R, GLM, Seed, T5 and BERT.
_BRACKETED = (
    r"INST|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|TOOL_CONTENT|SYSTEM_PROMPT|MODEL_SETTINGS|ARGS|CALL_ID|THINK"
    r"|IMG|IMG_BREAK|IMG_END|PREFIX|SUFFIX|MIDDLE|control_\d+|UNUSED_TOKEN_\d+|[gs]?MASK|CLS|SEP|PAD|UNK|BOS|EOS"
)
_TAGGED = (
    r"s|bos|eos|pad|unk|mask|cls|sep|sop|eop|think|tool_call|tool_response|tools|(?:start|end)_of_(?:turn|image)"
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
    rf"|\[(?=(?i:/?(?:{_BRACKETED})\])|e~\[)|\](?=~!?b[\[\]])"
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
    the file itself asks for reasoning before the verdict."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self.name = source.path.stem
        self.hash = source.hash
        self.shows = frozenset(source.used)
        self.reasons: bool = source.constants.get("reasons") is True
        self.labels = _labels(source)
        self.choose_after = source.render(["choose_after"], {"labels": self.labels})
        self.verdict_only = source.render(["verdict_only"], {"labels": self.labels})
        self.verdict_schema = _schema("verdict", {"type": "string", "enum": list(self.labels)})
        self._examples: dict[str, tuple[ShownExample, ...]] = {}
        self._try()

    def question(
        self, pair: Pair, order: Order, *, material: Material = NO_MATERIAL, principle: Principle | None = None
    ) -> PairQuestion:
        """The question on a pair in one presentation order. Nothing is rendered before it is asked for."""
        return PairQuestion(self, pair, order, material, principle)

    def require(self, material: Material) -> None:
        """Raises UserError where the template would leave out what a config names for its judge to read."""
        _refuse_unshown(self._source, {"examples": material.examples, "criteria": material.criteria})
        _refuse_unshown(self._source, {"principle": material.principles})

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

    def _try(self) -> None:
        """Renders all that can be asked, with material and without. Raises UserError where a text is not shown whole,
        once and in its place, or where a label is never named."""
        for material, principle in ((NO_MATERIAL, None), (_TRIAL_MATERIAL, _TRIAL_MATERIAL.principles[0])):
            question = self.question(_TRIAL_PAIR, Order.AB, material=material, principle=principle)
            conversations = [question.choose(), question.reason(), *(question.state(form) for form in _STATED)]
            for messages in conversations:
                _refuse_misplaced(self._source, messages, question.fenced)
            words = "\n".join(message.content for message in conversations[0])
            for text in question.fenced.values():
                words = words.replace(text, "")
            for label in self.labels:
                if not re.search(rf"(?<!\w){re.escape(label)}(?!\w)", words):
                    raise UserError(f"{self._source.path}: never says {label!r}, one of its labels; name both")


class PairQuestion:
    """Which of two answers is better, in one presentation order: conversations that end in each way of asking."""

    def __init__(
        self, template: Template, pair: Pair, order: Order, material: Material, principle: Principle | None
    ) -> None:
        self._template = template
        self._pair = pair
        self._order = order
        self._material = material
        self._principle = principle

    @property
    def labels(self) -> tuple[str, str]:
        """What the judge says for the answer shown first and for the second."""
        return self._template.labels

    @property
    def choose_after(self) -> str:
        """The user's turn after the judge's own reasoning: asks for the label alone."""
        return self._template.choose_after

    @property
    def verdict_only(self) -> str:
        """The user's turn of the one reformatting call: asks for the label alone."""
        return self._template.verdict_only

    @property
    def verdict_schema(self) -> str:
        """JSON schema of a stated verdict, with its reasoning first."""
        return self._template.verdict_schema

    @cached_property
    def fenced(self) -> dict[str, str]:
        """The texts under judgement as they stand in every conversation, by the names that templates use."""
        first, second = self._pair.response_a, self._pair.response_b
        if self._order is Order.BA:
            first, second = second, first
        return dict(zip(("prompt", "first", "second"), _fenced(self._pair.prompt.text, first, second), strict=True))

    @cached_property
    def _variables(self) -> dict[str, Any]:
        return {
            **self.fenced,
            "labels": self.labels,
            "examples": self._template.examples(self._material),
            "criteria": self._material.criteria,
            "principle": self._principle.text if self._principle else None,
        }

    def choose(self) -> tuple[Message, ...]:
        """Asks for the label alone."""
        return self._template._source.conversation("choose", self._variables)

    def reason(self) -> tuple[Message, ...]:
        """Asks for reasoning without a verdict."""
        return self._template._source.conversation("reason", self._variables)

    def state(self, form: Form) -> tuple[Message, ...]:
        """Asks for reasoning and then the verdict: as JSON for SCHEMA and TOOL, as a last line for TEXT."""
        return self._template._source.conversation("state", self._variables | {"form": form.value})


class ScoreTemplate:
    """A loaded template that asks for a score of one answer on `scale`, a range of integers. `hash` names its content
    and that of all files it stands on; `rubric` says whether it asks about one criterion of a rubric at a time."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self.name = source.path.stem
        self.hash = source.hash
        self.scale = _scale(source)
        self.rubric = "criterion" in source.used
        self.verdict_only = source.render(["verdict_only"], {"scale": self.scale})
        self.verdict_schema = _schema("score", {"type": "integer", "minimum": self.scale[0], "maximum": self.scale[1]})
        if self.rubric and self.scale != (LEVELS[0], LEVELS[-1]):
            raise UserError(
                f"{source.path}: shows `criterion`, whose levels are 1 to 5; write {{% set scale = [1, 5] %}}"
            )
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
        """The question on one answer; `criterion` is for the templates that ask about one. Nothing is rendered before
        it is asked for."""
        return ScoreQuestion(self, prompt, answer, material, principle, criterion)

    def require(self, material: Material) -> None:
        """Raises UserError where the template would leave out what a config names for its judge to read."""
        _refuse_unshown(self._source, {"examples": material.examples, "criteria": material.criteria})
        _refuse_unshown(self._source, {"principle": material.principles, "criterion": material.rubric})

    def _try(self) -> None:
        criterion = _TRIAL_MATERIAL.rubric[0] if self.rubric else None
        for material, principle in ((NO_MATERIAL, None), (_TRIAL_MATERIAL, _TRIAL_MATERIAL.principles[0])):
            question = self.question(
                _TRIAL_PAIR.prompt,
                _TRIAL_PAIR.response_a,
                material=material,
                principle=principle,
                criterion=criterion,
            )
            for messages in (question.score(), *(question.state(form) for form in _STATED)):
                _refuse_misplaced(self._source, messages, question.fenced)


class ScoreQuestion:
    """How good one answer is on a scale of integers: conversations that end in each way of asking."""

    def __init__(
        self,
        template: ScoreTemplate,
        prompt: Prompt,
        answer: str,
        material: Material,
        principle: Principle | None,
        criterion: Criterion | None,
    ) -> None:
        self._template = template
        self._prompt = prompt
        self._answer = answer
        self._material = material
        self._principle = principle
        self._criterion = criterion

    @property
    def scale(self) -> tuple[int, int]:
        """The lowest and the highest score."""
        return self._template.scale

    @property
    def verdict_only(self) -> str:
        """The user's turn of the one reformatting call: asks for the number alone."""
        return self._template.verdict_only

    @property
    def verdict_schema(self) -> str:
        """JSON schema of a stated score, with its reasoning first."""
        return self._template.verdict_schema

    @cached_property
    def fenced(self) -> dict[str, str]:
        """The texts under judgement as they stand in every conversation, by the names that templates use."""
        return dict(zip(("prompt", "answer"), _fenced(self._prompt.text, self._answer), strict=True))

    @cached_property
    def _variables(self) -> dict[str, Any]:
        return {
            **self.fenced,
            "scale": self.scale,
            "criteria": self._material.criteria,
            "principle": self._principle.text if self._principle else None,
            "criterion": self._criterion,
        }

    def score(self) -> tuple[Message, ...]:
        """Asks for the number alone."""
        return self._template._source.conversation("score", self._variables)

    def state(self, form: Form) -> tuple[Message, ...]:
        """Asks for reasoning and then the score: as JSON for SCHEMA and TOOL, as a last line for TEXT."""
        return self._template._source.conversation("state", self._variables | {"form": form.value})


def load_template(name: str) -> Template:
    """A shipped pair template by name, or a user's by path. Raises UserError naming the file and the line."""
    path = _find(name, SHIPPED)
    return Template(_Source(path, "base/endings.j2", _PAIR_VARIABLES))


def load_score_template(name: str) -> ScoreTemplate:
    """A shipped score template by name, or a user's by path. Raises UserError naming the file and the line."""
    path = _find(name, SHIPPED_SCORES)
    return ScoreTemplate(_Source(path, "base/score_endings.j2", _SCORE_VARIABLES))


def _find(name: str, shipped: Path) -> Path:
    path = shipped / f"{name}.j2"
    if path.is_file():
        return path
    if Path(name).is_file():
        return Path(name)
    names = ", ".join(sorted(file.stem for file in shipped.glob("*.j2")))
    raise UserError(f"judge.template: no file {name!r} and no shipped template of that name ({names})")


# What Jinja of a user's own may raise while it is rendered.
_RENDERING_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class _Source:
    """A template's file with all files that it stands on: its blocks, its constants, and how to render them.

    `used` names the variables that it may show, `hash` the content of every file.
    """

    def __init__(self, path: Path, endings: str, variables: frozenset[str]) -> None:
        self.path = path
        # Shipped names come first, so that a user's quality.j2 can extend the shipped one.
        self._loader = jinja2.FileSystemLoader([SHIPPED, path.parent])
        self._environment = _environment(self._loader)
        self._trees: dict[str, nodes.Template] = {}
        self._paths: dict[str, str] = {}
        digest = hashlib.sha256()
        waiting = [str(path), endings]
        while waiting:
            name = waiting.pop(0)
            if name not in self._trees:
                text, tree = self._parse(name)
                digest.update(f"{len(text)}\0{text}".encode())
                waiting += self._references(name, tree)
        self.hash = digest.hexdigest()[:16]

        chain = [*self._chain(str(path)), endings]
        self.constants: dict[str, Any] = {}
        for name in reversed(chain):
            self.constants |= self._constants(name)
        self.used = {
            used for name in self._trees for used in self._variables_of(name, variables | self.constants.keys())
        }
        self._blocks: dict[str, list[Any]] = {}
        for name in chain:
            for block, render in self._compiled(name).blocks.items():
                self._blocks.setdefault(block, []).append(render)
        if "user" not in self._blocks:
            raise UserError(f"{path}: has no `user` block; write {{% block user %}}...{{% endblock %}}")

    def conversation(self, ending: str, variables: Mapping[str, Any]) -> tuple[Message, ...]:
        """The question, ending in one way of asking. Raises UserError naming the file and the line."""
        user = Message("user", self.render(["user", ending], variables))
        system = self.render(["system"], variables) if "system" in self._blocks else ""
        return (Message("system", system), user) if system else (user,)

    def render(self, blocks: Sequence[str], variables: Mapping[str, Any]) -> str:
        """Blocks one after another. Raises UserError naming the file and the line."""
        known = {**self._environment.globals, **self.constants, **variables}
        context = self._environment.context_class(self._environment, known, str(self.path), {})
        context.blocks = self._blocks
        try:
            return "".join(part for block in blocks for part in self._blocks[block][0](context)).strip()
        except _RENDERING_ERRORS as error:
            raise UserError(f"{self._place(error)}: {_one_line(error)}") from None

    def _parse(self, name: str) -> tuple[str, nodes.Template]:
        try:
            if name == str(self.path):
                text, file = self.path.read_text(encoding="utf-8"), name
            else:
                text, found, _ = self._loader.get_source(self._environment, name)
                file = found or name
            self._paths[name] = file
            self._trees[name] = self._environment.parse(text, name, file)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{file}, line {error.lineno}: {error.message}") from None
        except jinja2.TemplateNotFound:
            raise UserError(f"{self.path}: stands on {name!r}, which is neither shipped nor beside it") from None
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: is not text in UTF-8") from None
        return text, self._trees[name]

    def _references(self, name: str, tree: nodes.Template) -> list[str]:
        references = list(meta.find_referenced_templates(tree))
        if None in references:
            raise UserError(f"{self._paths[name]}: stands on a file whose name is computed; write its name in quotes")
        return [reference for reference in references if reference is not None]

    def _chain(self, name: str) -> list[str]:
        """The file and those that it extends, the last first to be stood on."""
        chain = [name]
        while parent := self._trees[chain[-1]].find(nodes.Extends):
            assert isinstance(parent.template, nodes.Const)
            if parent.template.value in chain:
                raise UserError(f"{self._paths[name]}, line {parent.lineno}: extends itself")
            chain.append(parent.template.value)
        return chain

    def _constants(self, name: str) -> dict[str, Any]:
        """What a file sets outside of its blocks. Raises UserError where anything else stands there."""
        constants = {}
        for node in self._trees[name].body:
            if isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
                assert isinstance(node.node, nodes.Expr)
                try:
                    constants[node.target.name] = node.node.as_const()
                except nodes.Impossible:
                    raise UserError(
                        f"{self._paths[name]}, line {node.lineno}: {node.target.name} must be a constant"
                    ) from None
            elif not isinstance(node, (nodes.Block, nodes.Extends)) and (line := _first_line(node)):
                raise UserError(
                    f"{self._paths[name]}, line {line}: stands outside of every block, where it would be left out; "
                    "move it into one"
                )
        return constants

    def _variables_of(self, name: str, known: Set[str]) -> set[str]:
        """The variables that a file takes from outside. Raises UserError where no question has one of them."""
        tree = self._trees[name]
        try:
            variables = meta.find_undeclared_variables(tree)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{self._paths[name]}, line {error.lineno}: {error.message}") from None
        for node in tree.find_all(nodes.Name):
            if node.name in variables - known:
                raise UserError(
                    f"{self._paths[name]}, line {node.lineno}: {node.name!r} is undefined; "
                    f"known here: {', '.join(sorted(known))}"
                )
        return variables

    def _compiled(self, name: str) -> jinja2.Template:
        try:
            code = self._environment.compile(self._trees[name], name, self._paths[name])
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{self._paths[name]}, line {error.lineno}: {error.message}") from None
        return jinja2.Template.from_code(self._environment, code, self._environment.make_globals(None))

    def _place(self, error: BaseException) -> str:
        """The file and the line that an error comes from."""
        place = str(self.path)
        trace = error.__traceback__
        while trace is not None:
            template = trace.tb_frame.f_globals.get("__jinja_template__")
            if isinstance(template, jinja2.Template):
                place = f"{template.filename}, line {template.get_corresponding_lineno(trace.tb_lineno)}"
            trace = trace.tb_next
        return place


def _environment(loader: jinja2.BaseLoader) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=loader,
    )
    # The same question must be the same prompt.
    del environment.globals["lipsum"], environment.filters["random"]
    return environment


def _first_line(node: nodes.Node) -> int | None:
    """Where something other than white space begins, if it does."""
    if isinstance(node, nodes.Output) and isinstance(node.nodes[0], nodes.TemplateData):
        data = node.nodes[0].data
        if not data.strip():
            return node.nodes[1].lineno if len(node.nodes) > 1 else None
        return node.lineno + data[: len(data) - len(data.lstrip())].count("\n")
    return node.lineno


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _labels(source: _Source) -> tuple[str, str]:
    """The two labels of a pair template, of which neither may be taken for the other. Raises UserError."""
    labels = source.constants.get("labels")
    if not (
        isinstance(labels, list) and len(labels) == 2 and all(isinstance(label, str) and label for label in labels)
    ):
        raise UserError(f'{source.path}: must name its two labels at the top, such as {{% set labels = ["1", "2"] %}}')
    first, second = labels
    if any(label != label.strip() for label in labels):
        raise UserError(f"{source.path}: labels {first!r} and {second!r} must not begin or end with white space")
    if first.casefold().startswith(second.casefold()) or second.casefold().startswith(first.casefold()):
        raise UserError(
            f"{source.path}: labels {first!r} and {second!r} cannot be told apart, as one begins the other; "
            'write others, such as ["1", "2"]'
        )
    return first, second


def _scale(source: _Source) -> tuple[int, int]:
    """The scale of a score template. Raises UserError."""
    scale = source.constants.get("scale")
    if not (
        isinstance(scale, list)
        and len(scale) == 2
        and all(type(bound) is int for bound in scale)
        and 0 <= scale[0] < scale[1] <= 100
    ):
        raise UserError(
            f"{source.path}: must name its lowest and highest score at the top, such as {{% set scale = [1, 10] %}}"
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


def _refuse_unshown(source: _Source, given: Mapping[str, Sequence[Any]]) -> None:
    for variable, items in given.items():
        if items and variable not in source.used:
            raise UserError(
                f"{source.path}: never shows `{variable}`, though the config gives one; show it, or take it out of the "
                "config"
            )


def _refuse_misplaced(source: _Source, messages: Sequence[Message], fenced: Mapping[str, str]) -> None:
    *before, user = messages
    places = [user.content.find(text) for text in fenced.values()]
    for name, text in fenced.items():
        if user.content.count(text) != 1 or any(text in message.content for message in before):
            raise UserError(f"{source.path}: must show `{name}` once in `user`, whole and as it is")
    if places[-2:] != sorted(places[-2:]):
        raise UserError(f"{source.path}: must show `first` before `second`")


_STATED = (Form.TEXT, Form.SCHEMA, Form.TOOL)

# Long, and changed by every filter that could change a text.
_TRIAL_TEXT = '  <Trial> & "text"\n\n\twith  spaces, Umlauts: Ä, and a tail\n' + "of words " * 1_000 + "\n"
_TRIAL_PAIR = Pair("trial", Prompt("trial", "Asked" + _TRIAL_TEXT), "One" + _TRIAL_TEXT, "Other" + _TRIAL_TEXT)
_TRIAL_MATERIAL = Material(
    examples=(
        Example(prompt="Asked", answer_a="One", answer_b="Other", better="a", rationale="Reasons."),
        Example(prompt="Asked", answer_a="Another", answer_b="Other", better="a"),
    ),
    criteria=("Criterion.",),
    rubric=(Criterion(name="Name", question="Question?", levels=dict.fromkeys(LEVELS, "Level.")),),
    principles=(Principle(id="principle", text="Principle."),),
)

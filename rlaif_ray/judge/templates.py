"""Judge prompts: Jinja files, rendered in a sandbox, with the answers under judgement fenced as data.

A template is a Jinja file with a `user` block, an optional `system` block, and `labels`, the two words between which
the judge chooses. It sees three variables: `prompt`, `first` and `second`, each a fenced text.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlaif_ray.config import UserError
from rlaif_ray.records import Message, Order, Pair

SHIPPED = Path(__file__).parent / "templates"

# What chat templates use to mark turns (<|im_start|>, [INST], <s>): split, so that no tokenizer reads a turn there.
_CONTROL_TOKEN = re.compile(r"<\|[^|<>\n]{1,64}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>")


def neutralise(text: str) -> str:
    """The text with a word joiner inside each control token, so that it reads the same and controls nothing."""
    return _CONTROL_TOKEN.sub(lambda match: match.group()[0] + "\N{WORD JOINER}" + match.group()[1:], text)


def fence(text: str, mark: str) -> str:
    """The text as data: between two lines that it cannot contain, as `mark` is derived from its content."""
    return f"begin_{mark}\n{neutralise(text)}\nend_{mark}"


def fence_mark(*texts: str) -> str:
    """A delimiter derived from the texts, so that the same question is the same prompt and no text can close it."""
    mark = ""
    for attempt in range(1_000):
        digest = hashlib.sha256("\0".join([str(attempt), *texts]).encode())
        mark = digest.hexdigest()[:8]
        if not any(mark in text for text in texts):
            break
    return mark


@dataclass(frozen=True)
class JudgeTemplate:
    """A loaded template. `hash` names its content in every judgement."""

    name: str
    source: str
    labels: tuple[str, str]

    @cached_property
    def hash(self) -> str:
        return hashlib.sha256(self.source.encode()).hexdigest()[:16]

    @cached_property
    def _template(self) -> Template:
        return _environment().from_string(self.source)

    def messages(self, pair: Pair, order: Order) -> tuple[Message, ...]:
        """The judge's conversation on a pair, in one presentation order."""
        first, second = (pair.response_a, pair.response_b) if order is Order.AB else (pair.response_b, pair.response_a)
        mark = fence_mark(pair.prompt.text, first, second)
        context = self._template.new_context(
            {
                "prompt": fence(pair.prompt.text, mark),
                "first": fence(first, mark),
                "second": fence(second, mark),
            }
        )
        rendered = {name: "".join(block(context)).strip() for name, block in self._template.blocks.items()}
        messages = [Message("system", rendered["system"])] if rendered.get("system") else []
        return (*messages, Message("user", rendered["user"]))


def load_template(name: str) -> JudgeTemplate:
    """A shipped template by name, or a user's by path. Raises UserError naming the file and the line."""
    path = SHIPPED / f"{name}.j2"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.j2")))
        raise UserError(f"judge.template: no file {name!r} and no shipped template of that name ({shipped})")
    source = path.read_text()
    try:
        template = _environment().from_string(source)
        labels = getattr(template.make_module({"prompt": "", "first": "", "second": ""}), "labels", None)
    except TemplateSyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.message}") from None
    except TemplateError as error:
        raise UserError(f"{path}: {error.message}") from None
    if "user" not in template.blocks:
        raise UserError(f"{path}: has no `user` block; write {{% block user %}}...{{% endblock %}}")
    if not (isinstance(labels, list) and len(labels) == 2 and all(isinstance(label, str) for label in labels)):
        raise UserError(f'{path}: must name its two labels at the top, such as {{% set labels = ["1", "2"] %}}')
    return JudgeTemplate(name=path.stem, source=source, labels=(labels[0], labels[1]))


def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)

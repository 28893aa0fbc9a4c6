"""Template files: read, checked as far as reading shows what is wrong, and rendered in a sandbox.

A file holds blocks and constants. It stands on files that it extends or includes, shipped ones or others beside it,
and in the end on a shipped file with the blocks that it need not write. This module knows nothing of pairs or answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import StrictUndefined, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlaif_ray.config import UserError

SHIPPED = Path(__file__).parent / "templates"

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


class TemplateFile:
    """A file with all that it stands on. Raises UserError naming the file and the line where it is wrong.

    `constants` are what it sets at the top, `used` the names of the variables that it may show, `hash` identifies the
    content of every file. `base` is the shipped file that it stands on last, `variables` what it may show.
    """

    def __init__(self, path: Path, base: str, variables: Set[str]) -> None:
        self.path = path
        # Shipped names come first, so that a user's quality.j2 can extend the shipped one.
        self._loader = jinja2.FileSystemLoader([SHIPPED, path.parent])
        self._environment = _environment(self._loader)
        self._trees: dict[str, nodes.Template] = {}
        self._paths: dict[str, str] = {}
        self.hash = self._read([str(path), base])

        chain = [*self._chain(), base]
        self.constants: dict[str, Any] = {}
        self._places: dict[str, str] = {}
        for name in reversed(chain):
            self.constants |= self._constants(name)
        self.used: set[str] = set()
        for name in self._trees:
            self.used |= self._shown(name, variables)
        self._blocks: dict[str, list[Any]] = {}
        for name in chain:
            for block, render in self._compiled(name).blocks.items():
                self._blocks.setdefault(block, []).append(render)

    def __contains__(self, block: str) -> bool:
        return block in self._blocks

    def place(self, name: str) -> str:
        """The file and the line where a constant or a block is written, or else the file alone."""
        return self._places.get(name, str(self.path))

    def render(self, blocks: Sequence[str], variables: Mapping[str, Any]) -> str:
        """Blocks one after another. Raises UserError naming the file and the line."""
        known = {**self._environment.globals, **self.constants, **variables}
        context = self._environment.context_class(self._environment, known, str(self.path), {})
        context.blocks = self._blocks
        try:
            return "".join(part for block in blocks for part in self._blocks[block][0](context)).strip()
        except _RENDERING_ERRORS as error:
            sentence = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self._origin(error)}: {sentence}") from None

    def _read(self, names: Sequence[str]) -> str:
        """Reads and parses files and whatever they name, and returns a hash of it all."""
        digest = hashlib.sha256()
        waiting = list(names)
        while waiting:
            name = waiting.pop(0)
            if name in self._trees:
                continue
            text, self._paths[name] = self._text(name)
            digest.update(f"{len(text)}\0{text}".encode())
            try:
                self._trees[name] = self._environment.parse(text, name, self._paths[name])
            except jinja2.TemplateSyntaxError as error:
                raise self._wrong(name, error.lineno, str(error.message)) from None
            for reference in meta.find_referenced_templates(self._trees[name]):
                if reference is None:
                    raise UserError(f"{self._paths[name]}: stands on a computed name; write the file's name in quotes")
                waiting.append(reference)
        return digest.hexdigest()[:16]

    def _text(self, name: str) -> tuple[str, str]:
        """A file's text and its path."""
        try:
            if name == str(self.path):
                return self.path.read_text(encoding="utf-8"), name
            text, path, _ = self._loader.get_source(self._environment, name)
            return text, path or name
        except jinja2.TemplateNotFound:
            raise UserError(f"{self.path}: stands on {name!r}, which is neither shipped nor beside it") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name}: cannot be read as text in UTF-8 ({error})") from None

    def _chain(self) -> list[str]:
        """The file, that which it extends, and so on."""
        chain = [str(self.path)]
        while parents := list(self._trees[chain[-1]].find_all(nodes.Extends)):
            template = parents[0].template
            if len(parents) > 1 or not isinstance(template, nodes.Const):
                raise self._wrong(chain[-1], parents[-1].lineno, "a file can extend one other and no more")
            if template.value in chain:
                raise self._wrong(chain[-1], parents[0].lineno, f"{template.value} extends itself")
            chain.append(template.value)
        return chain

    def _constants(self, name: str) -> dict[str, Any]:
        """What a file sets outside of its blocks. Raises UserError where anything else stands there."""
        constants = {}
        for block in self._trees[name].find_all(nodes.Block):
            self._places[block.name] = f"{self._paths[name]}, line {block.lineno}"
        for node in self._trees[name].body:
            if isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
                assert isinstance(node.node, nodes.Expr)
                self._places[node.target.name] = f"{self._paths[name]}, line {node.lineno}"
                try:
                    constants[node.target.name] = node.node.as_const()
                except nodes.Impossible:
                    raise self._wrong(name, node.lineno, f"{node.target.name} must be a constant") from None
            elif not isinstance(node, (nodes.Block, nodes.Extends)) and (line := _first_line(node)):
                sentence = "stands outside of every block, where it would be left out; move it into one"
                raise self._wrong(name, line, sentence)
        return constants

    def _shown(self, name: str, variables: Set[str]) -> set[str]:
        """What a file takes from outside. Raises UserError where that is none of `variables` and no constant."""
        tree = self._trees[name]
        try:
            shown = meta.find_undeclared_variables(tree)
        except jinja2.TemplateSyntaxError as error:
            raise self._wrong(name, error.lineno, str(error.message)) from None
        for node in tree.find_all(nodes.Name):
            if node.name in shown - variables - self.constants.keys():
                sentence = f"{node.name!r} is undefined; a template is given {', '.join(sorted(variables))}"
                raise self._wrong(name, node.lineno, sentence)
        return shown

    def _compiled(self, name: str) -> jinja2.Template:
        try:
            code = self._environment.compile(self._trees[name], name, self._paths[name])
        except jinja2.TemplateSyntaxError as error:
            raise self._wrong(name, error.lineno, str(error.message)) from None
        return jinja2.Template.from_code(self._environment, code, self._environment.make_globals(None))

    def _wrong(self, name: str, line: int, sentence: str) -> UserError:
        return UserError(f"{self._paths[name]}, line {line}: {sentence}")

    def _origin(self, error: BaseException) -> str:
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
        auto_reload=False,
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

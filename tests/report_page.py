"""A report's page as a browser parses it, for tests of what it shows."""

from __future__ import annotations

import json
from html.parser import HTMLParser


class Page(HTMLParser):
    """A parsed page: its elements with their attributes, its text outside of scripts and styles, the cells of its
    table's rows, and the facts listed as terms and what they are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.facts: list[list[str]] = []
        self._inside = ""
        self._cell: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._inside = tag
        if tag == "tr":
            self.rows.append([])
        elif tag == "dt":
            self.facts.append([])
        if tag in ("td", "th", "dt", "dd"):
            self._cell = (self.rows if tag in ("td", "th") else self.facts)[-1]
            self._cell.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        if tag in ("td", "th", "dt", "dd"):
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.text += data
            if self._cell is not None:
                self._cell[-1] += data

    @property
    def figures(self) -> dict[str, dict[str, object]]:
        return json.loads(self.scripts[0])

    @property
    def sections(self) -> set[str | None]:
        """Those that the page links to and holds."""
        linked = {str(attributes["href"])[1:] for tag, attributes in self.elements if tag == "a"}
        held = {attributes.get("id") for tag, attributes in self.elements if tag == "section"}
        assert linked <= held
        return linked & held

    @property
    def panels(self) -> list[str]:
        return [str(attributes["data-figure"]) for _, attributes in self.elements if "data-figure" in attributes]

    def note_of(self, id: str) -> str:
        """What stands beside a figure, as a reader who cannot see it is told."""
        (label,) = (
            str(attributes["aria-label"]) for _, attributes in self.elements if attributes.get("data-figure") == id
        )
        return label

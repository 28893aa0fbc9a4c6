"""Keys of APIs, taken out of what endpoints say: some quote them, and nothing that is kept or logged may hold one."""

from __future__ import annotations

import re


class Redactor:
    """Takes one key out of texts: whole, in long pieces, and shortened, as "sk-ab...yz" or "**wxyz"."""

    # What is shorter is no secret but a stand-in for one, such as "EMPTY", and taking that out would spoil replies.
    _SHORTEST = 8

    def __init__(self, key: str) -> None:
        self._key = key
        size = self._SHORTEST
        # A piece of nearly twice this length holds one of these, wherever it was cut.
        self._pieces = [key[start : start + size] for start in range(0, len(key) - size + 1, size)]
        self._ends = (key[:3], key[-4:])
        mask = r"(?:(?:[*•…#]|\\u20(?:22|26))+|\.{2,}|[xX]{4,})"
        self._shortened = re.compile(
            rf"{re.escape(key[:3])}[\w-]{{0,40}}{mask}[\w-]{{0,40}}|{mask}{re.escape(key[-4:])}\b"
        )

    def redact(self, text: str) -> str:
        """The text with "[key]" in the key's place."""
        if not self._pieces:
            return text
        text = text.replace(self._key, "[key]")
        if any(end in text for end in self._ends):
            text = self._shortened.sub("[key]", text)
        for piece in self._pieces:
            if piece in text:
                text = re.sub(rf"[\w-]{{0,{self._SHORTEST - 1}}}{re.escape(piece)}[\w-]*", "[key]", text)
        return text

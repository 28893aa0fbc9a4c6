"""The verdict or the score that a judge states in words.

Only the judge's last statement counts: a JSON object that ends the reply, or the last sentence of its last line, and
only where that sentence says nothing else. A judge that quotes a verdict out of an answer and goes on is not misread;
one that states its own in words not foreseen here is asked once more, which costs less than a wrong label.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from rlaif_ray.judge.asking.replies import storable

_EMPHASIS = re.compile(r"[*_`$]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")

# The parts of a sentence that states a verdict and nothing else.
_SO = r"(?:(?:so|thus|hence|therefore|overall|finally|in conclusion|in summary)\b,?\s+)?"
_NOUN = r"(?:answer|response|option|output|candidate|summary|assistant|completion|reply|choice|number)"
_SUBJECT = r"(?:here is\s+)?(?:(?:my|the)\s+)?(?:(?:final|overall|better|best|preferred|stronger|superior|correct)\s+)*"
_IS = r"\s*(?:\s(?:is|would be)\b\s*:?|[:=—-])\s*"
_I_CHOOSE = r"i(?:\s+would|'d)?\s+(?:prefer|choose|pick|select|favou?r|go with)\s+"
_BETTER = (
    r"\s+(?:wins|(?:is|was)\s+(?:the\s+)?(?:(?:clearly|slightly|overall|much|far)\s+)*"
    rf"(?:better|best|preferred|preferable|superior|stronger|winner)(?:\s+(?:one|{_NOUN}))?(?:\s+overall)?)"
)


def parse_verdict(text: str, labels: tuple[str, str]) -> str | None:
    """The label that a reply ends by naming, as JSON ({"verdict": "1"}) or in words ("**Verdict:** [[A]]", "Answer 2
    is better"); None where it names none, or both."""
    stated = _json_value(text, "verdict")
    if stated is None:
        unwrap, sentence = _verdict_patterns(labels)
        match = sentence.fullmatch(unwrap.sub(_inside, _last_sentence(text)))
        stated = match["value"] if match and match["value"] != match["other"] else ""
    return next((label for label in labels if re.fullmatch(_spelling(label), stated, re.IGNORECASE)), None)


def parse_score(text: str, scale: tuple[int, int]) -> int | None:
    """The point of the scale that a reply ends by naming, as JSON ({"score": 7}) or in words ("Score: 7/10"); None
    where it names none."""
    stated = _json_value(text, "score")
    if stated is None:
        unwrap, sentence = _score_patterns(scale[1])
        match = sentence.fullmatch(unwrap.sub(_inside, _last_sentence(text)))
        stated = match["value"] if match else ""
    score = int(stated) if re.fullmatch("[0-9]{1,4}", stated) else None
    return score if score is not None and scale[0] <= score <= scale[1] else None


def share_of_votes(first: int, second: int) -> float:
    """Probability of the first label from counted verdicts: (n_first + 1/2) / (n + 1), the mean under Jeffreys' prior.
    However many agree, some doubt stays."""
    return (first + 0.5) / (first + second + 1)


def reasoning_of(text: str) -> str:
    """What a reply says beside its verdict: the field of a JSON reply, else all of it."""
    reasoning = dict(_last_object(text) or ()).get("reasoning")
    return storable(reasoning) if isinstance(reasoning, str) else text.strip()


def _json_value(text: str, key: str) -> str | None:
    """What the reply's last object holds under a key; empty where that is nothing, or two things; None without an
    object."""
    last = _last_object(text)
    if last is None:
        return None
    values = [value for name, value in last if name == key]
    if len(values) == 1 and type(values[0]) in (int, str):
        return str(values[0]).strip()
    return ""


def _last_object(text: str) -> list[tuple[str, Any]] | None:
    """The JSON object that ends a reply, as pairs; None where the reply ends in words. A last line that begins one and
    does not end it is empty: words inside it are the reasoning's."""
    text = text.strip()
    if text.endswith("```"):
        text = f"\n{text[:-3]}".rpartition("\n```")[2].removeprefix("json").strip()
    _, brace, rest = f"\n{text}".rpartition("\n{")
    if not brace:
        return None
    try:
        # Pairs, as a key that comes twice contradicts itself.
        pairs: list[tuple[str, Any]] = json.loads("{" + rest, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return None if "\n" in rest else []
    return pairs


def _last_sentence(text: str) -> str:
    """The last sentence of the last line, without emphasis; empty where the line is a quotation."""
    line = text.strip().rpartition("\n")[2].strip()
    return "" if line.startswith(">") else _EMPHASIS.sub("", _SENTENCE_END.split(line)[-1]).rstrip(".! \t")


def _spelling(label: str) -> str:
    """A lone letter is case-sensitive: "a" is a word of its own."""
    return re.escape(label) if len(label) > 1 else f"(?-i:{re.escape(label)})"


def _unwrap(value: str) -> re.Pattern[str]:
    """Brackets and quotes that close around a value, and nothing else."""
    wraps = [(r"\\boxed\{", r"\}"), (r"\[\[", r"\]\]"), (r"\[", r"\]"), (r"\(", r"\)"), ("<", ">"), ('"', '"')]
    wraps += [("'", "'"), ("“", "”"), ("‘", "’")]
    return re.compile("|".join(f"{start}({value}){end}" for start, end in wraps), re.IGNORECASE)


def _inside(match: re.Match[str]) -> str:
    return str(match[match.lastindex or 0])


@lru_cache(maxsize=64)
def _verdict_patterns(labels: tuple[str, str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    label = "|".join(_spelling(label) for label in labels)
    named = rf"(?:the\s+)?(?:{_NOUN}\s+)?"
    subject = rf"{_SUBJECT}(?:verdict|decision|judge?ment|preference|winner|conclusion|{_NOUN}){_IS}"
    sentence = (
        rf"{_SO}(?:{subject}|{_I_CHOOSE})?{named}(?P<value>{label})(?:{_BETTER})?"
        rf"(?:\s+(?:than|over|to)\s+{named}(?P<other>{label}))?"
    )
    return _unwrap(label), re.compile(sentence, re.IGNORECASE)


@lru_cache(maxsize=64)
def _score_patterns(highest: int) -> tuple[re.Pattern[str], re.Pattern[str]]:
    sentence = (
        rf"{_SO}(?:{_SUBJECT}(?:score|rating|grade|verdict|{_NOUN}){_IS})?"
        rf"(?P<value>[0-9]{{1,4}})(?:\s*/\s*{highest}|\s+out of\s+{highest})?"
    )
    return _unwrap(rf"[0-9]{{1,4}}(?:/{highest})?"), re.compile(sentence, re.IGNORECASE)

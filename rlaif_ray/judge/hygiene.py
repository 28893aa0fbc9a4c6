"""Pairs that are not worth asking about: a judge has nothing to choose there, and its label would be its lean."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from enum import StrEnum

from rlaif_ray.records import Pair


class NotSent(StrEnum):
    """Why a pair is not sent to judges."""

    IDENTICAL = "the answers are the same but for white space"
    NEAR_IDENTICAL = "the answers are nearly the same"


def why_not_sent(pair: Pair, bound: float) -> NotSent | None:
    """What speaks against asking about a pair; None where nothing does. Answers whose similarity reaches `bound` are
    nearly the same; a bound of 1 takes out the identical ones alone. Silence against an answer is worth asking about:
    a policy has to learn what it is worth."""
    a, b = normalised(pair.response_a), normalised(pair.response_b)
    if a == b:
        return NotSent.IDENTICAL
    return NotSent.NEAR_IDENTICAL if are_similar(a, b, bound) else None


def normalised(text: str) -> str:
    """A text in Unicode's composed form (NFC), with single spaces for white space, and none at its ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def are_similar(a: str, b: str, bound: float) -> bool:
    """Whether the similarity of two texts reaches `bound`: one less their edit distance (Levenshtein 1966) over the
    length of the longer."""
    # The slack is for 1 - bound, which is seldom exact in binary.
    most_edits = int((1.0 - bound) * max(len(a), len(b)) + 1e-9)
    if abs(len(a) - len(b)) > most_edits:
        return False
    # An edit takes at most one character of either text, and spoils at most one piece of a text that is cut to pieces:
    # most pairs are far apart by that alone.
    in_a, in_b = Counter(a), Counter(b)
    if max((in_a - in_b).total(), (in_b - in_a).total()) > most_edits:
        return False
    size = max(1, len(a) // (2 * most_edits + 1))
    if sum(a[start : start + size] not in b for start in range(0, len(a), size)) > most_edits:
        return False
    return edit_distance(a, b) <= most_edits


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and substitutions that turn one text into the other.

    A column of the table is one integer, of which bit i says that the entry below row i is by one more, or less (Myers
    1999, as stated by Hyyrö 2003): as long as a machine word lasts, a column costs a few operations.
    """
    if not a:
        return len(b)
    rows: defaultdict[str, int] = defaultdict(int)
    for row, character in enumerate(a):
        rows[character] |= 1 << row
    everything, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    more, less, distance = everything, 0, len(a)
    for character in b:
        same = rows.get(character, 0)
        diagonal = (((same & more) + more) ^ more) | same | less
        right_more = less | ~(diagonal | more) & everything
        right_less = more & diagonal
        if right_more & last:
            distance += 1
        elif right_less & last:
            distance -= 1
        right_more = (right_more << 1) | 1
        more = ((right_less << 1) | ~(diagonal | right_more)) & everything
        less = right_more & diagonal & everything
    return distance

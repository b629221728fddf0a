"""Snippets: the passage of a chunk that shows best why it was found, and where the question's words stand in it.

The passage with most of the question's different words wins, then with most of their occurrences, then the first;
without any (a hit by meaning alone) it is the chunk's beginning. What comes back is plain text with offsets, never
markup: whoever shows it escapes it, so indexed text can't inject any. Pure.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from shoal.store.terms import Place, places

SNIPPET_CHARS_MAX = 300  # two or three lines on a screen, some 75 tokens for an agent
_TEXT_CHARS_MAX = 50_000  # what is looked at of one chunk; chunks are some 2,000
_LEAD_CHARS_MAX = 60  # text shown before the first word, back to the sentence's beginning where it is so near
_SENTENCE = re.compile(r"[.!?]\s+|\n+")
_SPACE = re.compile(r"\s")


@dataclass(frozen=True, slots=True)
class Snippet:
    """`text` is `chunk[start : start + len(text)]`; `spans` are (start, end) in `text`. All count code points."""

    text: str
    start: int
    spans: tuple[tuple[int, int], ...] = ()

    def shown(self) -> dict[str, Any]:
        return {"text": self.text, "start": self.start, "spans": [list(span) for span in self.spans]}


def snippet(text: str, terms: tuple[str, ...], chars_max: int = SNIPPET_CHARS_MAX) -> Snippet:
    """The best passage of `text` for a question's `terms` (terms.py), at most `chars_max` long."""
    text = text[:_TEXT_CHARS_MAX]
    found = places(text, terms)
    first, last = _densest(found, chars_max)
    start = _beginning(text, found[first].start, chars_max) if found else _skip_space(text, 0)
    end = min(len(text), start + chars_max)
    if end < len(text):
        needed = found[last].end if found else start
        end = _word_end(text, max(start, min(needed, end)), end)
    end = start + len(text[start:end].rstrip())
    spans = tuple(
        (place.start - start, place.end - start) for place in found if start <= place.start < place.end <= end
    )
    return Snippet(text[start:end], start, spans)


def _densest(found: list[Place], chars_max: int) -> tuple[int, int]:
    """The first and last of those consecutive places that fit one snippet and show most."""
    best, answer = (0, 0), (0, 0)
    room = chars_max - min(_LEAD_CHARS_MAX, chars_max // 4)
    behind = 0
    seen: Counter[int] = Counter()  # terms of first..behind, which slides along: linear in the places
    for first, place in enumerate(found):
        while behind < len(found) and (behind == first or found[behind].end - place.start <= room):
            seen[found[behind].term] += 1
            behind += 1
        value = (len(seen), behind - first)
        if value > best:
            best, answer = value, (first, behind - 1)
        seen[place.term] -= 1
        if not seen[place.term]:
            del seen[place.term]
    return answer


def _beginning(text: str, at: int, chars_max: int) -> int:
    """Where a snippet that shows `text[at]` begins: with its sentence where that is near, else with a word."""
    low = max(0, at - min(_LEAD_CHARS_MAX, chars_max // 4))
    ends = [match.end() for match in _SENTENCE.finditer(text, low, at)]
    if ends:
        return ends[-1]
    if low == 0:
        return _skip_space(text, 0)
    space = _SPACE.search(text, low, at)
    return space.end() if space else at


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _word_end(text: str, low: int, high: int) -> int:
    """The last end of a word in `low`..`high`, `high` where there is none."""
    for at in range(high, low, -1):
        if text[at].isspace():
            return at
    return high

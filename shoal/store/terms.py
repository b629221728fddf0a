"""The words of a question in a text: where they stand, whatever their ending, case and accents.

No stemmer: a word of the text matches where it begins with the question's word less its common English ending and is
at most `_ENDING_MAX` characters longer. That shows readers what the full-text index (which stems) has found, nearly
always; it decides no result. Pure; offsets count code points.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

TERMS_MAX = 32  # words of a question that are looked for; a longer question is a document
_ENDING_MAX = 4  # "forecast" in "forecasting"; not "car" in "carbonate"
_ROOT_MIN = 3
_ENDINGS = ("ations", "ation", "ings", "ing", "ies", "ed", "es", "ly", "s", "e", "y")
_WORD = re.compile(r"\w+")
_UNSPACED = "\u2e80"  # from here on scripts are written without spaces between words: any place in a run counts
_STOP = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "by", "did", "do", "does", "for", "from", "had", "has", "have", "how",
    "in", "into", "is", "it", "its", "of", "on", "or", "that", "the", "their", "then", "there", "these", "this", "to",
    "was", "were", "what", "when", "where", "which", "who", "why", "will", "with",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """`text[start:end]` is a match of the question's word number `term`."""

    start: int
    end: int
    term: int


def fold(word: str) -> str:
    """`word` without case and accents."""
    plain = unicodedata.normalize("NFKD", word)
    return "".join(character for character in plain if not unicodedata.combining(character)).casefold()


def terms_of(query: str) -> tuple[str, ...]:
    """The question's words that say something, folded, each once."""
    words = (fold(word) for word in _WORD.findall(query))
    return tuple(dict.fromkeys(word for word in words if word and word not in _STOP))[:TERMS_MAX]


def places(text: str, terms: tuple[str, ...]) -> list[Place]:
    """Every match of `terms` in `text`, in order; none overlap."""
    sought = [(term, _root(term)) for term in terms]
    known: dict[str, Place | None] = {}  # of each word the match in it: texts repeat themselves
    found: list[Place] = []
    for match in _WORD.finditer(text):
        word, start = match.group(), match.start()
        if word not in known:
            folded = fold(word)
            inside = (_inside(word, folded, *one, number) for number, one in enumerate(sought))
            known[word] = next((place for place in inside if place), None)
        if place := known[word]:
            found.append(Place(start + place.start, start + place.end, place.term))
    return found


def share(text: str, terms: tuple[str, ...]) -> float:
    """How many of `terms` occur in `text`, 0..1."""
    left = [(term, _root(term)) for term in terms]
    for word in dict.fromkeys(_WORD.findall(text)):
        if not left:
            break
        folded = fold(word)
        left = [one for one in left if not _inside(word, folded, *one)]
    return 1.0 - len(left) / len(terms) if terms else 0.0


def _inside(word: str, folded: str, term: str, root: str, number: int = 0) -> Place | None:
    """Where `word` has `term` (number `number`), by offsets in it."""
    if term >= _UNSPACED and (at := word.find(term)) >= 0:
        return Place(at, at + len(term), number)
    ends = len(root) >= _ROOT_MIN and folded.startswith(root) and len(folded) - len(root) <= _ENDING_MAX
    return Place(0, len(word), number) if ends or folded == term else None


def _root(term: str) -> str:
    for ending in _ENDINGS:
        if term.endswith(ending) and len(term) - len(ending) >= _ROOT_MIN:
            return term[: -len(ending)]
    return term

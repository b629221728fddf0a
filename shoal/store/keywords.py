"""What a person typed into the search box, as words and phrases.

The text is never a query language: operators, wildcards, field names and brackets are words or nothing. Only
a pair of double quotes means something: what stands between must occur as it stands. In a passage that was pasted
rather than typed not even that: there quotes are punctuation, and nobody else quotes the same words. Pure; never
fails on text; a text without any letter or digit has neither words nor phrases and finds nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PHRASE = re.compile(r'"([^"]*)"')
_WORD = re.compile(r"\w")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL and lone surrogates: no UTF-8 text holds them
_PHRASES_MAX = 8  # phrases of one query; each is an own search of the index
_TYPED_WORDS_MAX = 20  # beside the phrases; who asks for an exact phrase writes few words more, a passage has dozens


@dataclass(frozen=True, slots=True)
class Keywords:
    """`words`: any may occur, more are better ('' for none). `phrases`: each must occur."""

    words: str
    phrases: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.words or self.phrases)


def parse_keywords(text: str) -> Keywords:
    """Words and quoted phrases of `text`; a quote without a partner is ignored."""
    text = _NO_TEXT.sub(" ", text)
    if len(_PHRASE.sub(" ", text).split()) > _TYPED_WORDS_MAX:
        text = text.replace('"', " ")
    phrases = [phrase.strip() for phrase in _PHRASE.findall(text) if _WORD.search(phrase)]
    words = _PHRASE.sub(" ", text).replace('"', " ").strip()
    words = " ".join([*phrases[_PHRASES_MAX:], words])
    return Keywords(words=words if _WORD.search(words) else "", phrases=tuple(phrases[:_PHRASES_MAX]))

"""Packs section text into chunks of at most so many tokens, each with its heading and its place in the text.

Spans (lines, sentences) are packed greedily; one that is too long alone is split by tokens, never inside a
character with its combining marks. Chunks of prose overlap by whole spans; chunks of data don't. Adjacent sections
of one heading share chunks; others don't. `char_start:char_end` index the sections' texts joined by blank lines.
Never raises; chunks over the bound are left out and counted.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from shoal.documents.content import Section
from shoal.records import Chunk

JOINT = "\n\n"
_END = re.compile(r"\n+|(?<=[.!?])\s+|(?<=[。！？])")
# A span longer than this is split by length before its tokens are counted: counting is linear, but not free.
_SPAN_CHARS_MAX = 20_000
_CHARS_PER_TOKEN_MAX = 16


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """How texts are counted, how long a chunk may be with its heading, how far prose chunks overlap."""

    count: Callable[[str], int]
    max_tokens: int
    overlap_tokens: int


@dataclass(frozen=True, slots=True)
class _Span:
    start: int
    end: int
    tokens: int


def chunk_sections(
    sections: Sequence[tuple[Section, bool]], tokens: TokenBudget, chunks_max: int
) -> tuple[tuple[Chunk, ...], tuple[str, ...]]:
    """The chunks of `sections` (each with whether it is prose), and a warning where `chunks_max` cut them."""
    text = JOINT.join(section.text for section, _ in sections)
    chunks: list[Chunk] = []
    for heading, start, end, prose in _groups(sections):
        shown = _fitted_heading(heading, tokens)
        room = max(1, tokens.max_tokens - (tokens.count(shown + "\n") if shown else tokens.count("")))
        spans = _spans(text, start, end, tokens.count, room)
        for a, b in _packed(spans, room, tokens.overlap_tokens if prose else 0):
            for a_fit, b_fit in _verified(text, a, b, shown, tokens):
                if len(chunks) >= chunks_max:
                    return tuple(chunks), (f"more than {chunks_max} chunks: the rest of the text is not indexed",)
                body = text[a_fit:b_fit]
                whole = f"{shown}\n{body}" if shown else body
                chunks.append(Chunk(len(chunks), whole, heading, a_fit, b_fit, tokens.count(whole)))
    return tuple(chunks), ()


def _groups(sections: Sequence[tuple[Section, bool]]) -> Iterator[tuple[str | None, int, int, bool]]:
    """Adjacent sections of one heading and kind as one stretch of the joined text."""
    at = 0
    open_: tuple[str | None, int, int, bool] | None = None
    for section, prose in sections:
        start, end = at, at + len(section.text)
        at = end + len(JOINT)
        if open_ is not None and open_[0] == section.heading and open_[3] == prose:
            open_ = (open_[0], open_[1], end, prose)
            continue
        if open_ is not None:
            yield open_
        open_ = (section.heading, start, end, prose)
    if open_ is not None:
        yield open_


def _fitted_heading(heading: str | None, tokens: TokenBudget) -> str:
    """A heading may take a third of the chunk; the end of a breadcrumb says more than its beginning."""
    if not heading:
        return ""
    limit = tokens.max_tokens // 3
    shown = " ".join(heading.split())[: limit * _CHARS_PER_TOKEN_MAX]
    while shown and tokens.count(shown) > limit:
        parts = shown.split(" > ", 1)
        shown = parts[1] if len(parts) > 1 and parts[1] else shown[: len(shown) * 2 // 3].rstrip()
    return shown


def _spans(text: str, start: int, end: int, count: Callable[[str], int], room: int) -> Iterator[_Span]:
    base = count("")  # what the model adds to every text
    at = start
    for match in _END.finditer(text, start, end):
        if match.end() > at:
            yield from _whole_or_split(text, at, match.end(), count, room, base)
            at = match.end()
    if at < end:
        yield from _whole_or_split(text, at, end, count, room, base)


def _whole_or_split(
    text: str, start: int, end: int, count: Callable[[str], int], room: int, base: int
) -> Iterator[_Span]:
    if end - start <= _SPAN_CHARS_MAX:
        n = _cost(text, start, end, count, base)
        if n <= room:
            yield _Span(start, end, n)
            return
    while start < end:
        stop = min(end, start + min(_SPAN_CHARS_MAX, room * _CHARS_PER_TOKEN_MAX))
        n = _cost(text, start, stop, count, base)
        while n > room and stop - start > 1:
            stop = start + max(1, min(stop - start - 1, (stop - start) * room // n))
            n = _cost(text, start, stop, count, base)
        stop = _character_end(text, start, stop, end)
        yield _Span(start, stop, n)
        start = stop


def _cost(text: str, start: int, end: int, count: Callable[[str], int], base: int) -> int:
    """Tokens of a stretch; a model that takes a word of a million letters for one token doesn't get such chunks."""
    return max(count(text[start:end]) - base, -(-(end - start) // _CHARS_PER_TOKEN_MAX))


def _character_end(text: str, start: int, stop: int, end: int) -> int:
    """`stop` moved back to a space where one is near, else out of a character and its combining marks."""
    if stop >= end:
        return stop
    space = text.rfind(" ", start + (stop - start) * 3 // 4, stop)
    if space > start:
        return space + 1
    back = stop
    while back > start + 1 and (
        unicodedata.combining(text[back]) or text[back] in "\u200d\ufe0f" or text[back - 1] == "\u200d"
    ):
        back -= 1
    return back if back > start + 1 else stop


def _packed(spans: Iterator[_Span], room: int, overlap: int) -> Iterator[tuple[int, int]]:
    current: list[_Span] = []
    used = 0
    fresh = False
    for span in spans:
        if current and used + span.tokens > room:
            yield current[0].start, current[-1].end
            kept: list[_Span] = []
            back = 0
            while current and back + current[-1].tokens <= overlap and back + current[-1].tokens + span.tokens <= room:
                last = current.pop()
                back += last.tokens
                kept.insert(0, last)
            current, used, fresh = (kept, back, False) if current else ([], 0, False)
        current.append(span)
        used += span.tokens
        fresh = True
    if current and fresh:
        yield current[0].start, current[-1].end


def _verified(text: str, start: int, end: int, shown: str, tokens: TokenBudget) -> Iterator[tuple[int, int]]:
    """The stretch without surrounding blanks, and only if a letter is in it; halved where it counts too much."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start >= end:
        return
    body = text[start:end]
    if not any(map(str.isalnum, body)):
        return
    if end - start > 1 and tokens.count(f"{shown}\n{body}" if shown else body) > tokens.max_tokens:
        middle = (start + end) // 2
        space = text.rfind(" ", start + 1, middle)
        middle = space if space > start + (end - start) // 4 else middle
        yield from _verified(text, start, middle, shown, tokens)
        yield from _verified(text, middle, end, shown, tokens)
        return
    yield start, end

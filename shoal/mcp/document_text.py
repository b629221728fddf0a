"""A document's text put together again from its chunks, part by part.

Chunks of prose overlap, and each begins with its heading: what two neighbours share is shown once, a heading where it
changes. A part ends at a place that its cursor names: `{chunk}.{character within it}.{the version's hash}`, so that a
document that was replaced meanwhile is noticed. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_CURSOR = re.compile(r"([0-9]{1,7})\.([0-9]{1,7})\.([0-9a-f]{0,12})")
_HASH_CHARS = 12


class CursorRefused(ValueError):
    """The cursor is none of ours, or of another version of the document."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part begins: `offset` characters into what `chunk` adds to the text."""

    chunk: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """What one chunk adds to the text."""

    chunk: int
    text: str


def read_cursor(cursor: str | None, sha256: str | None) -> Place:
    """Raises CursorRefused."""
    if not cursor:
        return Place()
    matched = _CURSOR.fullmatch(cursor)
    if not matched:
        raise CursorRefused("cursor: this is none of get_document's; start again without it")
    if matched[3] != (sha256 or "")[:_HASH_CHARS]:
        raise CursorRefused("cursor: the document was replaced meanwhile; start again without it")
    return Place(int(matched[1]), int(matched[2]))


def cursor_at(place: Place, sha256: str | None) -> str:
    return f"{place.chunk}.{place.offset}.{(sha256 or '')[:_HASH_CHARS]}"


def first_chunk(cursor: str | None) -> int:
    """The chunk to read from: one before the place, whose end says what the first one repeats."""
    matched = _CURSOR.fullmatch(cursor or "")
    return max(0, int(matched[1]) - 1) if matched else 0


def pieces(chunks: Sequence[Mapping[str, Any]], start: int) -> list[Piece]:
    """What the chunks from `start` on add; `chunks` in order, the one before `start` among them where there is one."""
    found: list[Piece] = []
    before: Mapping[str, Any] | None = None
    for chunk in chunks:
        if chunk["chunk_index"] >= start:
            found.append(Piece(chunk["chunk_index"], _added(before, chunk)))
        before = chunk
    return found


def _added(before: Mapping[str, Any] | None, chunk: Mapping[str, Any]) -> str:
    text = str(chunk.get("text") or "")
    start, end = chunk.get("char_start"), chunk.get("char_end")
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= end - start <= len(text):
        return text if before is None else f"\n{text}"  # not of our making: it does not say where it stands
    body = text[len(text) - (end - start) :]
    heading = str(chunk.get("heading") or "")
    last_end = before.get("char_end") if before is not None else None
    repeated = max(0, last_end - start) if isinstance(last_end, int) else 0
    joint = "" if before is None else "\n" if not isinstance(last_end, int) or start > last_end else ""
    if heading and (before is None or heading != (before.get("heading") or "")):
        joint += f"\n## {heading}\n" if before is not None else f"## {heading}\n"
    return joint + body[min(repeated, len(body)) :]


def joined(found: Sequence[Piece], place: Place) -> str:
    """The text from `place` on."""
    return "".join(p.text[place.offset :] if p.chunk == place.chunk else p.text for p in found)


def place_after(found: Sequence[Piece], place: Place, chars: int) -> Place:
    """Where the text goes on behind the first `chars` characters of `joined`."""
    left = chars
    for piece in found:
        skipped = place.offset if piece.chunk == place.chunk else 0
        length = max(0, len(piece.text) - skipped)
        if left < length:
            return Place(piece.chunk, skipped + left)
        left -= length
    return Place(found[-1].chunk + 1 if found else place.chunk)

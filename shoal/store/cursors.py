"""Opaque cursors: where the next page begins, and which question it belongs to.

A cursor is base64url of a checksum and JSON. The checksum catches damage and meddling, not a forger (it has
no key); what is decoded is typed and bounded again, and its text enters SQL only as an escaped value, so a
forged cursor can at worst ask for another page.

In front of it may stand the state of the tables that all pages are read from: a `Pin` (the versions that the first page
of a ranking was read from), or what `as_of` found (past.py). It holds nothing: cleanup takes the versions as if no
cursor named them, and the next page is then refused. Both name the turn in which the tables came into use
(generations.py), where it is not the first: another generation may have the same versions and commits of other vectors.
Pure; fails with `CursorError`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from shoal.store.filters import QueryError

OFFSET_MAX = 1_000  # documents deep that a ranked answer can be paged: each page ranks all before it again
_LENGTH_MAX = 8_000  # characters; a revision is bounded by its id, which is bounded by the S3 key
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DIGEST_BYTES = 8


class CursorError(QueryError):
    """A cursor was damaged, or belongs to another query: start again without it."""


@dataclass(frozen=True, slots=True)
class KeysetCursor:
    """The page begins behind this row of the order (collected_at descending, none last; revision ascending)."""

    collected_at: datetime | None
    revision: str


@dataclass(frozen=True, slots=True)
class OffsetCursor:
    """The page of a ranked answer begins behind this many documents. `at`: the time that its first page was ranked
    at, where the ranking depends on it (recency): a later page must not rank anew."""

    offset: int
    at: datetime | None = None


Cursor = KeysetCursor | OffsetCursor


@dataclass(frozen=True, slots=True)
class Pin:
    """The state after commit `sequence`, as the versions of the two tables it is in. `turn`: of their generation."""

    sequence: int
    metadata: int
    vectors: int
    turn: int = 0

    def __str__(self) -> str:
        """What the cursor begins with."""
        return f"@{self.sequence}.{self.metadata}.{self.vectors}{shown_turn(self.turn)}~"


_PIN = re.compile(r"@([0-9]{1,18})\.([0-9]{1,18})\.([0-9]{1,18})(?:\.([0-9]{1,18}))?~")
_STATE = re.compile(rf"{_PIN.pattern}|~[0-9]{{1,18}}(?:\.[0-9]{{1,18}})?~[0-9a-f]*~")


def shown_turn(turn: int) -> str:
    """As it stands in cursors: those of the first generation have none."""
    return f".{turn}" if turn else ""


def check_turn(asked: int, turn: int) -> None:
    """Raises CursorError for a cursor of tables that the collection was not in since the present `turn`."""
    if asked != turn:
        raise CursorError(
            "these pages were read from other tables than the collection is in now (its embedding model was changed): "
            "start again without the cursor"
        )


def split_pin(cursor: str | None) -> tuple[Pin, str] | None:
    """The pin that `cursor` begins with, and what follows it ('': the first page)."""
    found = _PIN.match(cursor) if cursor else None
    return (Pin(*map(int, found.groups("0"))), found.string[found.end() :]) if found else None


def from_start(cursor: str) -> str | None:
    """A cursor of the first page in the state that `cursor` names; None: it names none."""
    found = _STATE.match(cursor)
    return found[0] if found else None


def fingerprint(*parts: Any) -> str:
    """Names a query: cursors of one are refused by another. Parts are told apart by their `repr`."""
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def encode(cursor: Cursor, query: str) -> str:
    """`cursor` as text for the caller to hand back; `query` is its `fingerprint`."""
    body: dict[str, Any] = {"q": query}
    if isinstance(cursor, KeysetCursor):
        at = cursor.collected_at
        body |= {"t": None if at is None else (at - _EPOCH) // _MICROSECOND, "r": cursor.revision}
    else:
        body |= {"o": cursor.offset} | ({} if cursor.at is None else {"t": (cursor.at - _EPOCH) // _MICROSECOND})
    text = json.dumps(body, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_digest(text) + text).rstrip(b"=").decode()


def decode(text: str, query: str) -> Cursor:
    """Inverse of `encode`. Raises CursorError."""
    if len(text) > _LENGTH_MAX:
        raise CursorError("the cursor is too long to be one of ours; start again without it")
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        digest, packed = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        if digest != _digest(packed):
            raise CursorError("the cursor was changed or cut on its way; start again without it")
        body = json.loads(packed)
        owner, offset, at, revision = (body.get(key) for key in ("q", "o", "t", "r"))
    except (UnicodeError, binascii.Error, ValueError, AttributeError, RecursionError):
        raise CursorError("this is no cursor; start again without it") from None
    if owner != query:
        raise CursorError("the cursor belongs to another query; repeat the query unchanged, or start without it")
    if at is None or type(at) is int:
        try:
            moment = None if at is None else _EPOCH + at * _MICROSECOND
        except OverflowError:
            raise CursorError("this is no cursor; start again without it") from None
        if type(offset) is int and 0 < offset <= OFFSET_MAX:
            return OffsetCursor(offset, moment)
        if isinstance(revision, str):
            return KeysetCursor(moment, revision)
    raise CursorError("this is no cursor; start again without it")


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES, key=b"shoal-cursor").digest()

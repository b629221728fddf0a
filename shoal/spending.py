"""What was spent: the counts of the ledger, by day and by whom.

Every machine keeps a *book* of its own: for each key (a day, a model, a lane, and whom it was for) how much was sent
since the book was begun. A book only grows, and what is told of it is always the whole, never a difference. So two
tellings join by taking the greater of each count (a grow-only counter, Shapiro et al., "A comprehensive study of
Convergent and Commutative Replicated Data Types", 2011, 3.1.1): told twice, late or in another order, nothing counts
double, and there is no list of what was told before to keep. Money is no part of it: it follows from the prices.

Pure values, shared by who spends (embeddings), who stores (store) and who shows (serve_apps, cluster).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from datetime import date, datetime
from typing import Any
from urllib.parse import quote

NAME_CHARS_MAX = 200
"""Longest name kept of a collection, a source or a dataset: they come from messages."""
COUNT_MAX = 2**53
"""Above any real count, and still exact wherever JSON is read."""
SPEND_KIND = "spend"
"""The kind of command that tells of a book (contracts 1.6)."""


@dataclass(frozen=True, slots=True, order=True)
class SpendKey:
    """What is counted apart. `day`: 2026-01-20, of UTC; `lane`: query, live, backfill or batch."""

    day: str
    model: str
    collection: str
    data_source: str
    dataset: str
    lane: str

    @property
    def text(self) -> str:
        """`day|model|collection|source|dataset|lane`, injective: '|' and '%' in a name are percent-encoded."""
        return "|".join(quote(part, safe=_SAFE) for part in astuple(self))


@dataclass(frozen=True, slots=True)
class Counts:
    """Of requests that were sent. `requests`, `texts` and `tokens` hold the failed ones too; who asks for an embedding
    pays for `answered_tokens`."""

    requests: int = 0
    failed_requests: int = 0
    texts: int = 0
    tokens: int = 0
    failed_tokens: int = 0

    @property
    def answered_tokens(self) -> int:
        return self.tokens - self.failed_tokens

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def joined(self, other: Counts) -> Counts:
        """What two tellings of one book come to: each count's greater."""
        return Counts(*(max(a, b) for a, b in zip(astuple(self), astuple(other), strict=True)))


COUNT_NAMES: tuple[str, ...] = tuple(field.name for field in fields(Counts))
KEY_NAMES: tuple[str, ...] = tuple(field.name for field in fields(SpendKey))
_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in "|%")


def day_of(now: datetime) -> str:
    """The day of the ledger at `now` (aware, UTC)."""
    return now.date().isoformat()


def month_of(day: str) -> str:
    """2026-01 of 2026-01-20."""
    return day[:7]


def spend_key(day: str, model: str, collection: str, data_source: str, dataset: str, lane: str) -> SpendKey:
    """A key whose names are storable text of bounded length."""
    names = (model, collection, data_source, dataset, lane)
    return SpendKey(day, *(name[:NAME_CHARS_MAX].encode("utf-8", "replace").decode() for name in names))


def entry(key: SpendKey, counts: Counts) -> dict[str, Any]:
    """A line of a telling, as JSON."""
    names, values = (*KEY_NAMES, *COUNT_NAMES), (*astuple(key), *astuple(counts))
    return dict(zip(names, values, strict=True))


def read_entry(raw: Any) -> tuple[SpendKey, Counts]:
    """Raises ValueError where `raw` is no line of a telling; what it says is hostile until then."""
    if not isinstance(raw, Mapping):
        raise ValueError("an entry is an object")
    texts = [raw.get(name) for name in KEY_NAMES]
    numbers = [raw.get(name) for name in COUNT_NAMES]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{', '.join(KEY_NAMES)} are texts")
    if not all(type(number) is int and 0 <= number <= COUNT_MAX for number in numbers):
        raise ValueError(f"{', '.join(COUNT_NAMES)} are whole numbers from 0")
    day = str(texts[0])
    if date.fromisoformat(day).isoformat() != day:
        raise ValueError("day is written 2026-01-20")
    return spend_key(*map(str, texts)), Counts(*(int(number or 0) for number in numbers))

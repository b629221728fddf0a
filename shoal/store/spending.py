"""The ledger's rows: a row per key and day in `shoal_spend`, whatever was told and how often.

A command tells the whole of one book's counts for some keys (shoal.spending says why that can't count double). A row
keeps each book's counts beside their sums, so what is told is joined with what that book told before. Pure: stored
rows and tellings in, rows out; `read_spend` alone reads the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any

import orjson

from shoal.errors import BadDocument, DeadReason
from shoal.spending import COUNT_MAX, COUNT_NAMES, KEY_NAMES, Counts, SpendKey, read_entry
from shoal.store.rows import Row
from shoal.store.schemas import IS_DOCUMENT, SPEND_COLUMNS, SPEND_TABLE, literal, table_uri
from shoal.store.tables import FencedTable

ENTRIES_MAX = 2_000
"""Keys told of by one command: some 600 KB, below what a broker takes. Ours tell of 500 at once."""
BOOKS_MAX = 1_000
"""Books of one row. A book is a machine's, so a row has a few; above, whoever tells makes up names, and the row of a
day would grow without bound."""
_BOOK = re.compile(r"[A-Za-z0-9_.-]{1,80}")


@dataclass(frozen=True, slots=True)
class Telling:
    """What one command tells: a book's counts since it was begun, for some keys."""

    book: str
    counts: dict[SpendKey, Counts]


@dataclass(frozen=True, slots=True)
class SpendRow:
    """One row of the ledger; `counts` is the sum over `books`."""

    key: SpendKey
    counts: Counts
    books: dict[str, Counts]
    updated_at: datetime | None


def told(body: Mapping[str, Any]) -> Telling:
    """Raises BadDocument(SCHEMA_INVALID)."""
    book, entries = body.get("book"), body.get("entries")
    if not isinstance(book, str) or not _BOOK.fullmatch(book):
        raise _invalid("book is a name of at most 80 letters, digits, '_', '.' or '-'")
    if not isinstance(entries, list) or len(entries) > ENTRIES_MAX:
        raise _invalid(f"entries is a list of at most {ENTRIES_MAX}")
    counts: dict[SpendKey, Counts] = {}
    for raw in entries:
        try:
            key, told_of = read_entry(raw)
        except ValueError as error:
            raise _invalid(str(error)) from None
        counts[key] = counts.get(key, Counts()).joined(told_of)
    return Telling(book, counts)


class StoredSpend:
    """The stored rows that a batch tells of, and what the batch makes of them."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {row.key.text: row for row in map(spend_row, rows)}
        self._changed: set[str] = set()

    def tell(self, body: Mapping[str, Any], now: datetime) -> bool:
        """Join one command's body; whether it said anything new. Raises BadDocument where it can't be meant: then
        nothing of it counts."""
        telling = told(body)
        joined: list[SpendRow] = []
        for key, counts in telling.counts.items():
            known = self._rows.get(key.text)
            books = known.books if known is not None else {}
            before = books.get(telling.book, Counts())
            after = before.joined(counts)
            if after == before:
                continue
            books = {**books, telling.book: after}
            total = sum(books.values(), Counts())
            if len(books) > BOOKS_MAX or max(astuple(total)) > COUNT_MAX:
                raise _invalid(f"{key.text}: more than {BOOKS_MAX} books, or than {COUNT_MAX} of anything")
            joined.append(SpendRow(key, total, books, now))
        for row in joined:
            self._rows[row.key.text] = row
            self._changed.add(row.key.text)
        return bool(joined)

    def changed(self) -> list[Row]:
        """The rows to upsert."""
        return [_stored(self._rows[text]) for text in sorted(self._changed)]


def spend_row(row: Row) -> SpendRow:
    """A stored row as it is meant."""
    books = {book: Counts(*counts) for book, counts in orjson.loads(row["books"]).items()}
    key = SpendKey(*(row[name] for name in KEY_NAMES))
    return SpendRow(key, Counts(*(row[name] for name in COUNT_NAMES)), books, row["updated_at"])


def _stored(row: SpendRow) -> Row:
    names, values = (*KEY_NAMES, *COUNT_NAMES), (*astuple(row.key), *astuple(row.counts))
    return {
        "key": row.key.text,
        **dict(zip(names, values, strict=True)),
        "books": orjson.dumps({book: astuple(counts) for book, counts in row.books.items()}).decode(),
        "updated_at": row.updated_at,
    }


def read_spend(uri: str, storage_options: dict[str, str], since: str = "", until: str = "") -> list[SpendRow]:
    """The ledger's rows of the days `since` to `until` (2026-01-20, both included; empty: no bound), oldest first.

    Blocking. [] where there is no table yet. Raises TransientError, ConfigurationError.
    """
    table = FencedTable.open("spend", table_uri(uri, SPEND_TABLE), storage_options)
    if table is None:
        return []
    bounds = [f"day >= {literal(since)}"] if since else []
    bounds += [f"day <= {literal(until)}"] if until else []
    rows = table.rows(SPEND_COLUMNS, " AND ".join([IS_DOCUMENT, *bounds]))
    return sorted(map(spend_row, rows), key=lambda row: row.key)


def read_books(uri: str, storage_options: dict[str, str], since: str) -> list[tuple[SpendKey, dict[str, Counts]]]:
    """The counts of each book, as a keeper of one of them wants them. Raises as `read_spend` does."""
    return [(row.key, row.books) for row in read_spend(uri, storage_options, since)]


def _invalid(message: str) -> BadDocument:
    return BadDocument(DeadReason.SCHEMA_INVALID, message)

"""Listings by time: newest first, with a cursor that stays true while rows are inserted.

The order is (collected_at descending, none last; revision ascending), and a page begins behind the last row of
the one before by value, not by count: what is inserted meanwhile neither repeats nor hides a row. Conditions on
chunks (traits) are a join by id and version, made page by page. Reads only through `Tables`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shoal.store.conditions import CHUNK_FILTERS, METADATA_FILTERS, among, split, where
from shoal.store.cursors import KeysetCursor
from shoal.store.filters import And, Columns, Equals, Filter, IsNull, Or, Range
from shoal.store.ranked import METADATA_ROW, PUSHED_DOCUMENTS_MAX, rows_among
from shoal.store.reading import Row, Tables
from shoal.store.row_cache import ADDRESS
from shoal.store.schemas import IS_CURRENT, IS_DOCUMENT

NEWEST_FIRST = (("collected_at", False), ("revision", True))
_LIGHT = ("collected_at", "revision", "id", "version")
_ORDER: Columns = {"collected_at": "time", "revision": "text"}
_TIES = 16  # rows beyond those wanted: so many may be of the same time as the last of a page
_BATCH_MIN = 500  # rows of one look where chunks have to agree
_BATCHES_MAX = 20  # looks of one page


@dataclass(frozen=True, slots=True)
class Listing:
    """`behind` is where the next page begins, None at the end. `rows`: whole, of those that were read already."""

    revisions: list[str]
    behind: KeysetCursor | None
    condition: str
    warnings: tuple[str, ...] = ()
    rows: Mapping[str, Row] = field(default_factory=dict)


async def newest(
    tables: Tables, filters: Filter | None, limit: int, after: KeysetCursor | None, *, include_superseded: bool
) -> Listing:
    """Up to `limit` revisions behind `after`."""
    on_documents, on_chunks = split(filters, METADATA_FILTERS)
    base = IS_DOCUMENT if include_superseded else IS_CURRENT
    condition = where(base, on_documents, columns=METADATA_FILTERS)
    if on_chunks is not None:
        named = await _documents_with(tables, on_chunks)
        if named is not None:
            condition += f" and {among('id', named)}"
    if on_chunks is None and (
        whole := await _newest_whole(tables, where(condition, _behind(after), columns=_ORDER), limit)
    ):
        shown = {row["revision"]: row for row in whole[:limit]}
        return Listing([*shown], _place(whole[limit - 1]) if len(whole) > limit else None, condition, rows=shown)
    kept: list[Row] = []
    for _ in range(_BATCHES_MAX):
        size = limit + 1 if on_chunks is None else max(_BATCH_MIN, limit + 1)
        page = where(condition, _behind(after), columns=_ORDER)
        rows = await tables.rows("metadata", page, _LIGHT, size, NEWEST_FIRST)
        kept += rows if on_chunks is None else await _agreeing(tables, rows, on_chunks)
        if len(kept) > limit:
            return Listing([row["revision"] for row in kept[:limit]], _place(kept[limit - 1]), condition)
        if len(rows) < size:
            return Listing([row["revision"] for row in kept], None, condition)
        after = _place(rows[-1])
    warning = "few documents meet the conditions on their content: go on with the cursor, or add a filter"
    return Listing([row["revision"] for row in kept], after, condition, (warning,))


async def _newest_whole(tables: Tables, condition: str, limit: int) -> list[Row] | None:
    """The first `limit` + 1 rows in the order of NEWEST_FIRST, or all there are; None where they can't be told so.

    Lance sorts what it has read, so of thousands of rows it is given a time and an address each, and the few that are
    wanted are read by their address. Whether rows of one time are all there shows the first of an earlier time."""
    size = limit + 1 + _TIES
    rows = await tables.rows("metadata", condition, ("collected_at", ADDRESS), size, NEWEST_FIRST[:1])
    times = [row["collected_at"] for row in rows]
    if None in times or (len(rows) == size and times[limit] == times[-1]):
        return None
    last = times[limit] if len(times) > limit else None
    wanted = [row[ADDRESS] for row in rows if last is None or row["collected_at"] >= last]
    found = await tables.kept.rows("metadata", wanted, METADATA_ROW)
    return newest_first(found.values())[: limit + 1]


def newest_first(rows: Iterable[Row]) -> list[Row]:
    """`rows` in the order of NEWEST_FIRST."""
    ordered = sorted(rows, key=lambda row: row["revision"])
    known = [row for row in ordered if row["collected_at"] is not None]
    known.sort(key=lambda row: row["collected_at"], reverse=True)  # stable, also in reverse
    return known + [row for row in ordered if row["collected_at"] is None]


def _place(row: Row) -> KeysetCursor:
    return KeysetCursor(row["collected_at"], row["revision"])


def _behind(after: KeysetCursor | None) -> Filter | None:
    if after is None:
        return None
    later = Range("revision", low=after.revision, low_inclusive=False)
    if after.collected_at is None:
        return And((IsNull("collected_at"), later))
    older = Range("collected_at", high=after.collected_at, high_inclusive=False)
    return Or((older, And((Equals("collected_at", after.collected_at), later)), IsNull("collected_at")))


async def _documents_with(tables: Tables, on_chunks: Filter) -> list[str] | None:
    """The ids of all documents with such a chunk, None where they are many."""
    condition = where(IS_DOCUMENT, on_chunks, columns=CHUNK_FILTERS)
    if await tables.count("vectors", condition) > 10 * PUSHED_DOCUMENTS_MAX:
        return None
    rows = await tables.rows("vectors", condition, ("metadata_id",), 10 * PUSHED_DOCUMENTS_MAX + 1)
    ids = {row["metadata_id"] for row in rows}
    return sorted(ids) if len(ids) <= PUSHED_DOCUMENTS_MAX else None


async def _agreeing(tables: Tables, rows: list[Row], on_chunks: Filter) -> list[Row]:
    """Those rows whose version has a chunk that meets the condition."""
    condition = where(IS_DOCUMENT, on_chunks, columns=CHUNK_FILTERS)
    ids = {row["id"] for row in rows}
    chunks = await rows_among(tables, "vectors", "metadata_id", ids, ("metadata_id", "document_version"), condition)
    keys = {(chunk["metadata_id"], chunk["document_version"]) for chunk in chunks}
    return [row for row in rows if (row["id"], row["version"]) in keys]

"""Facets: how many of the documents have which value of a column.

Listings count every document that meets the filter, in one pass over the columns that are counted, up to
`DOCUMENTS_MAX` of them; ranked answers count the documents that were looked at. Which of the two, and whether it is
all of them, is said (`counted`, `exact`). Only documents are counted: never the fence, a mark or an old version
(unless those were asked for). Fails with QueryError for a column that is none of `FACETS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shoal.store.conditions import CHUNK_FILTERS, METADATA_FILTERS, split, where
from shoal.store.filters import Filter, QueryError
from shoal.store.reading import Row, Tables
from shoal.store.schemas import IS_CURRENT, IS_DOCUMENT, revision

FACETS = (
    "data_source", "data_type", "dataset", "environment", "scraper_name", "file_format", "content_type", "charset",
    "year", "month", "day", "validation_status", "embedding_model",
)  # fmt: skip
"""Columns with few values. Of one with a value per document a facet would be a second listing."""
VALUES_MAX = 20  # values of one column in an answer; the rest are counted as others
DOCUMENTS_MAX = 1_000_000  # of one pass, about 1.5 s of reading (facts 6.4: 152 ms at 100,000)
CHUNKS_MAX = 200_000  # that name their documents, where the filter is about chunks; each is a string in memory


@dataclass(frozen=True, slots=True)
class Facet:
    """`values`: (value, documents), the most frequent first; `others`: documents with a value that is not listed;
    `missing`: documents without one."""

    values: tuple[tuple[Any, int], ...]
    others: int
    missing: int


@dataclass(frozen=True, slots=True)
class Facets:
    """`counted`: documents looked at; `exact`: they are all that match."""

    columns: Mapping[str, Facet]
    counted: int
    exact: bool


def check(columns: Sequence[str]) -> None:
    """Raises QueryError."""
    for column in columns:
        if column not in FACETS:
            raise QueryError(f"there is no facet {column[:60]!r}; known: {', '.join(FACETS)}")


def of_rows(columns: Sequence[str], rows: Iterable[Row], *, exact: bool) -> Facets:
    """Of metadata rows that were read already."""
    counts: dict[str, Counter[Any]] = {column: Counter() for column in columns}
    counted = 0
    for row in rows:
        counted += 1
        for column, counter in counts.items():
            counter[row[column]] += 1
    return _facets(counts, counted, exact=exact)


async def of_listing(
    tables: Tables, columns: Sequence[str], filters: Filter | None, *, include_superseded: bool
) -> Facets:
    """Of all documents that a listing shows."""
    on_documents, on_chunks = split(filters, METADATA_FILTERS)
    exact = True
    named: frozenset[str] | None = None
    if on_chunks is not None:
        chunks = await tables.folded(
            "vectors",
            where(IS_DOCUMENT, on_chunks, columns=CHUNK_FILTERS),
            ("metadata_id", "document_version"),
            _Revisions,
            limit=CHUNKS_MAX,
        )
        named, exact = frozenset(chunks.revisions), chunks.rows < CHUNKS_MAX
    base = IS_DOCUMENT if include_superseded else IS_CURRENT
    condition = where(base, on_documents, columns=METADATA_FILTERS)
    count = await tables.folded(
        "metadata",
        condition,
        (*columns, "revision"),
        lambda: _Count(columns, named),
        limit=DOCUMENTS_MAX,
    )
    return _facets(count.counts, count.counted, exact=exact and count.rows < DOCUMENTS_MAX)


def _facets(counts: Mapping[str, Counter[Any]], counted: int, *, exact: bool) -> Facets:
    return Facets({column: _facet(counter) for column, counter in counts.items()}, counted, exact)


def _facet(counter: Counter[Any]) -> Facet:
    ordered = sorted(
        ((value, n) for value, n in counter.items() if value is not None), key=lambda one: (-one[1], one[0])
    )
    return Facet(tuple(ordered[:VALUES_MAX]), sum(n for _, n in ordered[VALUES_MAX:]), counter[None])


class _Revisions:
    """The documents' versions that chunks belong to."""

    def __init__(self) -> None:
        self.revisions: set[str] = set()
        self.rows = 0

    def take(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        ids, versions = batch.column("metadata_id").to_pylist(), batch.column("document_version").to_pylist()
        self.revisions.update(revision(document, version) for document, version in set(zip(ids, versions, strict=True)))


class _Count:
    """Values by column, of the rows whose revision is one of `named` (None: of all)."""

    def __init__(self, columns: Sequence[str], named: frozenset[str] | None) -> None:
        self.counts: dict[str, Counter[Any]] = {column: Counter() for column in columns}
        self.counted = 0
        self.rows = 0
        self._named = None if named is None else pa.array(sorted(named), pa.string())

    def take(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        if self._named is not None:
            batch = batch.filter(pc.is_in(batch.column("revision"), value_set=self._named))
        self.counted += batch.num_rows
        for column, counter in self.counts.items():
            for entry in pc.value_counts(batch.column(column)).to_pylist():
                counter[entry["values"]] += entry["counts"]

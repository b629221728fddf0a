"""What a copy of a collection lacks of its original, document by document, and the pages that bring it there.

A copy follows its original by comparison, not by being told: both sides are scanned (keys and what tells that a row
was written anew, no text, no vector), and a document whose rows differ in anything is brought over whole, all its
versions, marks, tombstones and chunks. So it does not matter what was missed, in which order things came, or at which
moment anybody was killed: what differs still is found by the next look. Fixes and jobs go by key in the same way.

Nothing here writes, or embeds: the vectors of a page are for its caller to fill in.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.errors import TransientError
from shoal.records import FENCE_ID
from shoal.store.rows import Row
from shoal.store.schemas import KEYS, VECTOR_COLUMNS, TableKind
from shoal.store.tables import FencedTable, in_list, lance_errors

PAGE_DOCUMENTS_MAX = 64
PAGE_CHUNKS_MAX = 512
"""Of one commit to the copy: some seconds of a provider's work, which is what a kill makes it do again at most. A
document with more chunks is a page of its own."""
SCAN_ROWS = 8192

_WRITTEN: Mapping[TableKind, tuple[str, ...]] = {
    "metadata": (
        "id", "revision", "version", "sha256_hash", "validation_status", "superseded_at", "indexed_at", "chunk_count",
        "fence",
    ),
    "vectors": ("metadata_id", "id", "document_version", "sha256_hash", "token_count"),
    "fixes": (
        "id", "count", "merged_into", "marked_wrong_by", "outcome", "summary", "error_message", "error_type",
        "reported_at",
    ),
    "spend": ("key", "requests", "failed_requests", "texts", "tokens", "failed_tokens", "updated_at"),
    "jobs": ("command_id", "status", "error", "applied_at"),
}  # fmt: skip
"""First the name that rows are compared under, then what is different where a row was written anew."""
KEYED: tuple[TableKind, ...] = ("fixes", "spend", "jobs")
"""The tables beside metadata and chunks, row by row by key. Jobs are committed last, as in every batch."""
_BITS = (1 << 64) - 1

Tables = Mapping[TableKind, FencedTable]


@dataclass(slots=True)
class Page:
    """What one commit makes the same: every row of `documents`; `keyed` rows of the other tables, and those `gone`.
    `with_vector`: the keys of the metadata rows and fixes that have one in the original."""

    documents: tuple[str, ...] = ()
    metadata: list[Row] = field(default_factory=list)
    chunks: list[Row] = field(default_factory=list)
    keyed: dict[TableKind, dict[str, Row]] = field(default_factory=dict)
    gone: dict[TableKind, tuple[str, ...]] = field(default_factory=dict)
    with_vector: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs, sorted. `chunks`: how many the original has of each of these documents."""

    documents: dict[str, int]
    keyed: dict[TableKind, tuple[str, ...]]

    def __bool__(self) -> bool:
        return bool(self.documents or self.keys)

    @property
    def keys(self) -> list[str]:
        """Of all the other tables."""
        return [key for keys in self.keyed.values() for key in keys]


def refresh(tables: Tables) -> None:
    """Move to the latest whole state: where the chunks of a batch are there and its metadata is not yet, or never will
    be, the chunks before it. Raises TransientError, PermanentError."""
    for table in tables.values():
        table.refresh()
    tables["vectors"].step_back(tables["metadata"].fence.commit_sequence)


def opened(uris: Mapping[TableKind, str], options: dict[str, str]) -> dict[TableKind, FencedTable]:
    """Tables to read from. Raises TransientError where one is not there."""
    found: dict[TableKind, FencedTable] = {}
    for kind, uri in uris.items():
        table = FencedTable.open(kind, uri, options)
        if table is None:
            raise TransientError(f"there is no table {uri}")
        found[kind] = table
    return found


def difference(original: Tables, copy: Tables, *, with_pending_jobs: bool = False) -> Difference:
    """What of `copy` is not as in `original`, at the versions held. 100 bytes of memory a document.

    `with_pending_jobs`: also commands whose work goes on, which are the original's own until the copy comes into use.
    """
    here, there = _documents(original), _documents(copy)
    differing = {name for name in here.keys() | there.keys() if here.get(name) != there.get(name)}
    counts = _chunk_counts(original, differing) if differing else {}
    named: dict[TableKind, tuple[str, ...]] = {}
    for kind in KEYED:
        skipped = ("accepted",) if kind == "jobs" and not with_pending_jobs else ()
        mine, theirs = (_sums(tables[kind], skipped) for tables in (original, copy))
        named[kind] = tuple(sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)))
    return Difference({name: counts.get(name, 0) for name in sorted(differing)}, named)


def everything(original: Tables) -> Difference:
    """What differs from a copy that is not there yet."""
    here = _documents(original)
    return Difference(dict.fromkeys(sorted(here), 0), {kind: tuple(sorted(_sums(original[kind]))) for kind in KEYED})


def _documents(tables: Tables) -> dict[str, tuple[int, int]]:
    rows, chunks = _sums(tables["metadata"]), _sums(tables["vectors"])
    return {name: (rows.get(name, 0), chunks.get(name, 0)) for name in rows.keys() | chunks.keys()}


def _sums(table: FencedTable, skipped: Sequence[str] = ()) -> dict[str, int]:
    """Name -> a sum over its rows, which tells a row that came, went, changed or is there twice."""
    sums: dict[str, int] = {}
    for row in _scanned(table, _WRITTEN[table.kind]):
        # Of the chunks' table the fence row has an id, but is of no document.
        if row[0] not in (FENCE_ID, None) and not (skipped and row[1] in skipped):
            sums[row[0]] = (sums.get(row[0], 0) + hash(row)) & _BITS
    return sums


def _chunk_counts(tables: Tables, wanted: set[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for (name,) in _scanned(tables["vectors"], ("metadata_id",)):
        if name in wanted:
            counts[name] = counts.get(name, 0) + 1
    return counts


def _scanned(table: FencedTable, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    with lance_errors(f"reading {table.uri}"):
        scanner = table.dataset.scanner(columns=list(columns), batch_size=SCAN_ROWS, use_scalar_index=False)
        for batch in scanner.to_batches():
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def texts_of(original: Tables, documents: Container[str]) -> Iterator[str]:
    """The text of every chunk of these documents."""
    for name, text in _scanned(original["vectors"], ("metadata_id", "content_summary")):
        if text is not None and name in documents:
            yield text


def pages(found: Difference, original: Tables) -> Iterator[Page]:
    """The difference as pages, each read when it is asked for, from the versions held. Vectors are left out."""
    names: list[str] = []
    chunks = 0
    for name, count in found.documents.items():
        if names and (len(names) >= PAGE_DOCUMENTS_MAX or chunks + count > PAGE_CHUNKS_MAX):
            yield _page(names, original)
            names, chunks = [], 0
        names.append(name)
        chunks += count
    if names:
        yield _page(names, original)
    for kind, keys in found.keyed.items():
        for start in range(0, len(keys), PAGE_CHUNKS_MAX):
            part = keys[start : start + PAGE_CHUNKS_MAX]
            rows = {row[KEYS[kind]]: row for row in _rows(original[kind], KEYS[kind], part)}
            page = Page(keyed={kind: rows}, gone={kind: tuple(key for key in part if key not in rows)})
            page.with_vector = _with_vector(original[kind], KEYS[kind], part)
            yield page


def _page(names: Sequence[str], original: Tables) -> Page:
    # By key once: a damaged table may hold a key twice, of which the copy needs one.
    metadata = {row["revision"]: row for row in _rows(original["metadata"], "id", names)}
    chunks = {row["id"]: row for row in _rows(original["vectors"], "metadata_id", names)}
    page = Page(tuple(names), list(metadata.values()), list(chunks.values()))
    page.with_vector = _with_vector(original["metadata"], "id", names)
    return page


def _rows(table: FencedTable, column: str, names: Sequence[str]) -> list[Row]:
    columns = [name for name in table.schema.names if name != VECTOR_COLUMNS[table.kind]]
    return table.rows(columns, in_list(column, names)) if names else []


def _with_vector(table: FencedTable, column: str, names: Sequence[str]) -> frozenset[str]:
    key, vector = KEYS[table.kind], VECTOR_COLUMNS[table.kind]
    if not names or vector is None:
        return frozenset()
    found = table.rows([key], f"{in_list(column, names)} AND {vector} IS NOT NULL")
    return frozenset(row[key] for row in found)

"""What an erasure must know of the tables before it begins: which documents, which texts, which objects. Reads only;
it deletes nothing (the log does) and proves nothing (`purging.holding` does)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from shoal.errors import TransientError
from shoal.records import SCRAPER_COLLECTION
from shoal.settings import Settings
from shoal.store.schemas import IS_DOCUMENT, TOMBSTONE, literal, metadata_table, table_uri, vectors_table
from shoal.store.tables import FencedTable, lance_errors
from shoal.store.writing import storage_options

_NO_TIME = datetime.max.replace(tzinfo=UTC)  # what has none is never before a time


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be erased. `known`: how many of the ids have rows. `texts`: of the current chunks, as they were
    embedded by `model`; `objects`: where the files lie."""

    ids: tuple[str, ...]
    known: int
    texts: tuple[str, ...]
    objects: tuple[str, ...]
    model: str
    width: int


@dataclass(frozen=True, slots=True)
class Stand:
    """How far a deletion is: the commit looked at, rows that are still there, ids that are remembered as deleted."""

    sequence: int
    rows: int
    remembered: int


def documents_of(settings: Settings, dataset: str, before: datetime | None) -> list[str]:
    """The ids of a dataset's documents, history too; with `before` those of which no version was collected at that
    time or later. Raises TransientError."""
    newest: dict[str, datetime] = {}
    table = _open(settings, "metadata")
    with lance_errors(f"reading {table.uri}"):
        scanner = table.dataset.scanner(
            columns=["id", "collected_at"], filter=f"dataset = {literal(dataset)} AND {IS_DOCUMENT}"
        )
        for batch in scanner.to_batches():
            for row in batch.to_pylist():
                at = row["collected_at"] or _NO_TIME
                newest[row["id"]] = max(at, newest.get(row["id"], at))
    return sorted(id_ for id_, at in newest.items() if before is None or at < before)


def target_of(settings: Settings, ids: Iterable[str]) -> Target:
    """Raises TransientError."""
    wanted = tuple(dict.fromkeys(ids))
    metadata, vectors = _open(settings, "metadata"), _open(settings, "vectors")
    rows = metadata.rows_of(("id", "s3_path"), "id", wanted, IS_DOCUMENT)
    chunks = vectors.rows_of(("content_summary",), "metadata_id", wanted, IS_DOCUMENT)
    return Target(
        ids=wanted,
        known=len({row["id"] for row in rows}),
        texts=tuple(dict.fromkeys(row["content_summary"] for row in chunks if row["content_summary"])),
        objects=tuple(dict.fromkeys(row["s3_path"] for row in rows if row["s3_path"])),
        model=metadata.facts.model,
        width=metadata.facts.width,
    )


def stand_of(settings: Settings, ids: Iterable[str]) -> Stand:
    """How far the deletion of `ids` is. Raises TransientError."""
    wanted = list(ids)
    metadata, vectors = _open(settings, "metadata"), _open(settings, "vectors")
    stones = metadata.rows_of(("id",), "id", wanted, f"fence = {literal(TOMBSTONE)}")
    rows = len(metadata.rows_of(("id",), "id", wanted, IS_DOCUMENT))
    rows += len(vectors.rows_of(("metadata_id",), "metadata_id", wanted, IS_DOCUMENT))
    return Stand(metadata.fence.commit_sequence, rows, len({row["id"] for row in stones}))


def _open(settings: Settings, kind: str) -> FencedTable:
    name = metadata_table(SCRAPER_COLLECTION) if kind == "metadata" else vectors_table(SCRAPER_COLLECTION)
    table = FencedTable.open(
        "metadata" if kind == "metadata" else "vectors", table_uri(settings.tables_uri, name), storage_options(settings)
    )
    if table is None:
        raise TransientError(f"there are no tables at {settings.tables_uri}: nothing to erase")
    return table

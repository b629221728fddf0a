"""What the audit reads of the tables: one consistent pair of versions, as streams of its own records.

The versions are held from `open` on: metadata first, then chunks, where the chunk table is not ahead of the
metadata, so that nothing of one batch is seen in the first and missing in the second (as readers do). A batch
that stays half written is told (`is_torn`): its writer died, and the next one takes it back. Scans are in
batches of rows, without vectors or texts. Reads only.

Nothing holds the versions against cleanup: where a scan comes later than `cleanup_age_s` (an hour) after they were
superseded, their files may be gone. That ends the comparison with an error that says so. Raises
TransientError, PermanentError, ConfigurationError.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from shoal.errors import TransientError
from shoal.records import SCRAPER_COLLECTION
from shoal.store.fence import Fence
from shoal.store.lookups import stored_version
from shoal.store.planning import TEXT_DROPPED, Tombstone, Version
from shoal.store.rows import Row
from shoal.store.schemas import (
    FENCE_PREDICATES,
    IS_DOCUMENT,
    JOBS_TABLE,
    TableKind,
    metadata_table,
    table_uri,
    vectors_table,
)
from shoal.store.tables import FencedTable, lance_errors

SETTLE_S = 5.0  # how long the second half of a batch is waited for; on a slow S3 a commit takes one
BATCH_ROWS = 8_192
_METADATA = (
    "revision", "id", "version", "sha256_hash", "s3_path", "version_id", "validation_status", "superseded_at", "fence",
    "kafka_cluster", "kafka_topic", "kafka_partition", "kafka_offset", "kafka_timestamp_ms", "chunk_count",
)  # fmt: skip


class TablesSnapshot:
    """The tables of a collection as they are when it is opened."""

    def __init__(self, tables: dict[TableKind, FencedTable], *, is_torn: bool) -> None:
        """Use `open`."""
        self._tables = tables
        self.is_torn = is_torn
        self.fence: Fence = tables["metadata"].fence

    @classmethod
    def open(
        cls,
        uri: str,
        options: dict[str, str],
        collection: str = SCRAPER_COLLECTION,
        *,
        pause: Callable[[float], None] = time.sleep,
    ) -> TablesSnapshot | None:
        """The newest whole pair; None where there are no tables yet."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            metadata = FencedTable.open("metadata", table_uri(uri, metadata_table(collection)), options)
            vectors = FencedTable.open("vectors", table_uri(uri, vectors_table(collection)), options)
            jobs = FencedTable.open("jobs", table_uri(uri, JOBS_TABLE), options)
            if metadata is None or vectors is None or jobs is None:
                return None
            is_torn = vectors.fence.commit_sequence > metadata.fence.commit_sequence
            if not is_torn or time.monotonic() > deadline:
                return cls({"metadata": metadata, "vectors": vectors, "jobs": jobs}, is_torn=is_torn)
            pause(0.05)

    def versions(self) -> Iterator[tuple[Version | Tombstone, int, bool]]:
        """(row, its chunk_count, whether its text was dropped) of every document row, mark and tombstone."""
        errors = f"validation_status = 'error' AND {IS_DOCUMENT}"
        dropped = {
            row["revision"]
            for row in self._scan("metadata", ("revision", "warnings"), errors)
            if TEXT_DROPPED in (row["warnings"] or ())
        }
        for row in self._scan("metadata", _METADATA, f"NOT ({FENCE_PREDICATES['metadata']})"):
            yield stored_version(row), row["chunk_count"] or 0, row["revision"] in dropped

    def chunks(self) -> Iterator[tuple[str, str, str, str, int]]:
        """(id, metadata_id, document_version, sha256, chunk_index) of every chunk."""
        columns = ("id", "metadata_id", "document_version", "sha256_hash", "chunk_index")
        for row in self._scan("vectors", columns, IS_DOCUMENT):
            yield row["id"], row["metadata_id"], row["document_version"], row["sha256_hash"], row["chunk_index"]

    def job_ids(self) -> Iterator[str]:
        """The command of every job row."""
        for row in self._scan("jobs", ("command_id",), IS_DOCUMENT):
            yield row["command_id"]

    def _scan(self, kind: TableKind, columns: Sequence[str], condition: str) -> Iterator[Row]:
        table = self._tables[kind]
        try:
            with _gone_errors(table.uri), lance_errors(f"reading {table.uri}"):
                scanner: Any = table.dataset.scanner(columns=list(columns), filter=condition, batch_size=BATCH_ROWS)
                for batch in scanner.to_batches():
                    yield from batch.to_pylist()
        except ValueError as error:
            raise TransientError(f"reading {table.uri}: {str(error)[:300]}") from error


@contextmanager
def _gone_errors(uri: str) -> Iterator[None]:
    """Says what to do where a file of the held version is gone."""
    try:
        yield
    except (TransientError, ValueError) as error:
        if "not found" not in str(error).lower():
            raise
        raise TransientError(
            f"reading {uri}: the version that was compared was cleaned up meanwhile: narrow the log with --from-time, "
            "or raise cleanup_age_s (SHOAL_CLEANUP_AGE_S)"
        ) from error

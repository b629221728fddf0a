"""The tables at rest: their names, columns and keys, and the row that is no document.

Every column is nullable except the merge key, so that the fence row can be null everywhere else and a later
layout can add columns. What a collection is (model, width, layout) stands in each table's schema metadata and
in the fence row; readers take it from there. Pure: no I/O. Contracts 2 fixes the names.

Rows that are no documents have a non-null `fence`: the fence row itself (its JSON) and, in the metadata
table, the tombstones by which the writer knows that an id was deleted (`TOMBSTONE`), and the marks of versions whose
object was removed (`REMOVED`). `IS_DOCUMENT` leaves out both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from shoal.errors import ConfigurationError
from shoal.records import FENCE_ID

LAYOUT_VERSION = 1
"""Raised when a table written by this code can't be read by code that knows the older layout only."""

IS_DOCUMENT = "fence IS NULL"
"""SQL predicate that every read of documents, chunks, fixes, jobs and spend includes."""
IS_CURRENT = "(superseded_at IS NULL AND fence IS NULL)"
"""SQL predicate of the metadata rows that are the current version of their document."""
TOMBSTONE = "deleted"
"""The `fence` value of a metadata row that remembers a deletion and its place in the log."""
REMOVED = "removed"
"""In the `fence` of a metadata row (JSON) of which only a mark is left: the version's object was removed."""

FIXES_TABLE = "scraper_fixes"
JOBS_TABLE = "shoal_jobs"
SPEND_TABLE = "shoal_spend"

METADATA_KEY = "revision"
VECTORS_KEY = "id"
FIXES_KEY = "id"
JOBS_KEY = "command_id"
SPEND_KEY = "key"

TableKind = Literal["metadata", "vectors", "fixes", "jobs", "spend"]
VectorDtype = Literal["float32", "float16"]
"""How vectors are stored. Half the width halves the table and its scans; unit vectors lose about 1 part in 2000."""

TIME = pa.timestamp("us", tz="UTC")


def metadata_table(collection: str) -> str:
    return f"{collection}_metadata"


def vectors_table(collection: str) -> str:
    return f"{collection}_vectors"


def table_uri(uri: str, table: str) -> str:
    """Where `table` lies under the database at `uri`, as lancedb lays it out."""
    return f"{uri.rstrip('/')}/{table}.lance"


def revision(document_id: str, version: str) -> str:
    """`{id}@{version}`, injective: '@' and '%' of the version are percent-encoded, so the last '@' splits."""
    return f"{document_id}@{version.replace('%', '%25').replace('@', '%40')}"


def document_of(revision_key: str) -> str:
    """The document's id in a `revision`."""
    return revision_key.rpartition("@")[0]


def tombstone_revision(document_id: str) -> str:
    """The key of the row that remembers the deletion of `document_id`; no version encodes to it."""
    return f"{document_id}@%{TOMBSTONE}"


def chunk_id(document_id: str, chunk_index: int) -> str:
    return f"{document_id}#{chunk_index}"


def literal(text: str) -> str:
    """`text` as a SQL string literal: a quote is doubled, a backslash means itself (facts 6.2)."""
    return "'" + text.replace("'", "''") + "'"


_METADATA: tuple[tuple[str, pa.DataType], ...] = (
    ("revision", pa.string()),
    ("id", pa.string()),
    ("collection", pa.string()),
    ("version", pa.string()),
    ("urn", pa.string()),
    ("sha256_hash", pa.string()),
    ("data_source", pa.string()),
    ("data_type", pa.string()),
    ("dataset", pa.string()),
    ("environment", pa.string()),
    ("scraper_name", pa.string()),
    ("s3_path", pa.string()),
    ("s3_bucket", pa.string()),
    ("s3_key", pa.string()),
    ("source_url", pa.string()),
    ("file_size_bytes", pa.int64()),
    ("file_format", pa.string()),
    ("content_type", pa.string()),
    ("charset", pa.string()),
    ("title", pa.string()),
    ("etag", pa.string()),
    ("version_id", pa.string()),
    ("md5sum", pa.string()),
    ("collected_at", TIME),
    ("published_at", TIME),
    ("year", pa.int32()),
    ("month", pa.int32()),
    ("day", pa.int32()),
    ("validation_status", pa.string()),  # indexed | error
    ("error_count", pa.int32()),
    ("warning_count", pa.int32()),
    ("warnings", pa.list_(pa.string())),
    ("superseded_at", TIME),
    ("chunk_count", pa.int32()),
    ("near_duplicate_of", pa.string()),
    ("evidence", pa.string()),  # JSON: trait -> the words it was read from
    ("extra", pa.string()),  # JSON: unknown fields of the message
    ("kafka_cluster", pa.string()),
    ("kafka_topic", pa.string()),
    ("kafka_partition", pa.int32()),
    ("kafka_offset", pa.int64()),
    ("kafka_timestamp_ms", pa.int64()),  # a number, since a producer may claim any
    ("indexed_at", TIME),
    ("embedding_model", pa.string()),
)

_VECTORS: tuple[tuple[str, pa.DataType], ...] = (
    ("id", pa.string()),
    ("metadata_id", pa.string()),
    ("document_version", pa.string()),
    ("chunk_index", pa.int32()),
    ("sha256_hash", pa.string()),
    ("content_summary", pa.string()),
    ("content_schema", pa.string()),
    ("heading", pa.string()),
    ("char_start", pa.int64()),
    ("char_end", pa.int64()),
    ("token_count", pa.int32()),
    ("api_endpoint", pa.string()),
    ("auth_method", pa.string()),
    ("rate_limit", pa.string()),
    ("data_freshness", pa.string()),
    ("pagination_type", pa.string()),
    ("scraper_code_snippet", pa.string()),
    ("collection_success", pa.bool_()),
    ("collection", pa.string()),
    ("data_source", pa.string()),
    ("data_type", pa.string()),
    ("dataset", pa.string()),
    ("environment", pa.string()),
    ("scraper_name", pa.string()),
    ("collected_at", TIME),
    ("file_format", pa.string()),
)

_FIXES: tuple[tuple[str, pa.DataType], ...] = (
    ("id", pa.string()),
    ("scraper_name", pa.string()),
    ("error_type", pa.string()),
    ("error_message", pa.string()),
    ("summary", pa.string()),
    ("diff", pa.string()),
    ("outcome", pa.string()),  # worked | failed
    ("count", pa.int64()),
    ("merged_into", pa.string()),  # set on a repeated report: the fix that counts it
    ("marked_wrong_by", pa.string()),
    ("version", pa.string()),
    ("reported_by", pa.string()),
    ("reported_at", TIME),
)

_JOBS: tuple[tuple[str, pa.DataType], ...] = (
    ("command_id", pa.string()),
    ("kind", pa.string()),
    ("collection", pa.string()),
    ("status", pa.string()),  # accepted | done | failed
    ("error", pa.string()),
    ("result", pa.string()),  # JSON
    ("actor", pa.string()),
    ("at", TIME),
    ("applied_at", TIME),
    ("commit_sequence", pa.int64()),
)

_SPEND: tuple[tuple[str, pa.DataType], ...] = (
    ("key", pa.string()),  # day|model|collection|source|dataset|lane
    ("day", pa.string()),  # 2026-01-20, of UTC
    ("model", pa.string()),
    ("collection", pa.string()),
    ("data_source", pa.string()),
    ("dataset", pa.string()),
    ("lane", pa.string()),  # query | live | backfill | batch
    ("requests", pa.int64()),  # of every book together, as the next four
    ("failed_requests", pa.int64()),
    ("texts", pa.int64()),
    ("tokens", pa.int64()),
    ("failed_tokens", pa.int64()),
    ("books", pa.string()),  # JSON: book -> its five counts
    ("updated_at", TIME),
)

_COLUMNS: Mapping[TableKind, tuple[tuple[str, pa.DataType], ...]] = {
    "metadata": _METADATA,
    "vectors": _VECTORS,
    "fixes": _FIXES,
    "jobs": _JOBS,
    "spend": _SPEND,
}
KEYS: Mapping[TableKind, str] = {
    "metadata": METADATA_KEY,
    "vectors": VECTORS_KEY,
    "fixes": FIXES_KEY,
    "jobs": JOBS_KEY,
    "spend": SPEND_KEY,
}
VECTOR_COLUMNS: Mapping[TableKind, str | None] = {
    "metadata": "schema_embedding",
    "vectors": "content_embedding",
    "fixes": "error_embedding",
    "jobs": None,
    "spend": None,
}

METADATA_COLUMNS: tuple[str, ...] = tuple(name for name, _ in _METADATA if name != METADATA_KEY)
"""The metadata columns served to users: never a vector, the fence or the merge key."""
CHUNK_COLUMNS: tuple[str, ...] = tuple(name for name, _ in _VECTORS)
"""The chunk columns served to users: never a vector or the fence."""
FIX_COLUMNS: tuple[str, ...] = tuple(name for name, _ in _FIXES)
JOB_COLUMNS: tuple[str, ...] = tuple(name for name, _ in _JOBS)
SPEND_COLUMNS: tuple[str, ...] = tuple(name for name, _ in _SPEND)


@dataclass(frozen=True, slots=True)
class CollectionFacts:
    """What a collection is for as long as it lives."""

    model: str
    width: int
    layout: int = LAYOUT_VERSION
    dtype: VectorDtype = "float32"

    @property
    def vector_bytes(self) -> int:
        """Size of one stored vector."""
        return int(np.dtype(self.dtype).itemsize) * self.width


def table_schema(kind: TableKind, facts: CollectionFacts) -> pa.Schema:
    """The schema of a table of this kind, with the collection's facts as its metadata."""
    key = KEYS[kind]
    fields = [pa.field(name, kind_of, nullable=name != key) for name, kind_of in _COLUMNS[kind]]
    vector = VECTOR_COLUMNS[kind]
    if vector is not None:
        fields.append(pa.field(vector, pa.list_(pa.from_numpy_dtype(np.dtype(facts.dtype)), facts.width)))
    fields.append(pa.field("fence", pa.string()))
    return pa.schema(
        fields,
        metadata={
            "shoal.model": facts.model,
            "shoal.width": str(facts.width),
            "shoal.layout": str(facts.layout),
            "shoal.dtype": facts.dtype,
        },
    )


def collection_facts(schema: pa.Schema) -> CollectionFacts:
    """The facts in a table's schema metadata. Raises ConfigurationError where it is no table of ours, or of a
    layout newer than this code."""
    raw = schema.metadata or {}
    try:
        facts = CollectionFacts(
            model=raw[b"shoal.model"].decode(), width=int(raw[b"shoal.width"]), layout=int(raw[b"shoal.layout"]),
            dtype=_dtype(raw.get(b"shoal.dtype", b"float32")),  # the first tables don't say: there was one only
        )  # fmt: skip
    except (KeyError, ValueError):
        raise ConfigurationError("the table was not made by Shoal: its schema names no model and width") from None
    if facts.layout > LAYOUT_VERSION:
        raise ConfigurationError(
            f"the tables have layout {facts.layout}, this Shoal knows {LAYOUT_VERSION}: install the newer version"
        )
    return facts


def _dtype(raw: bytes) -> VectorDtype:
    dtypes: dict[bytes, VectorDtype] = {b"float32": "float32", b"float16": "float16"}
    if raw not in dtypes:
        raise ConfigurationError(
            f"the tables hold vectors of {raw[:20]!r}, which this Shoal can't read: install a newer one"
        )
    return dtypes[raw]


FENCE_PREDICATES: Mapping[TableKind, str] = {kind: f"{key} = '{FENCE_ID}'" for kind, key in KEYS.items()}
"""SQL predicate of the fence row of each kind of table."""

"""One document by its id: its versions, its chunks, its API's vector, and whether it was deleted.

Reads only, through `Tables`, and fails as that does. A document's chunks are those of its current version; an older
version has none.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from shoal.records import Vector
from shoal.store.conditions import where
from shoal.store.filters import Columns, Equals, IsNull, Range
from shoal.store.reading import Freshness, Row, Tables
from shoal.store.schemas import (
    CHUNK_COLUMNS,
    IS_CURRENT,
    IS_DOCUMENT,
    METADATA_COLUMNS,
    METADATA_KEY,
    TOMBSTONE,
    literal,
    tombstone_revision,
)

VERSIONS_MAX = 100  # shown of one document, the newest
_METADATA: Columns = {"id": "text", "sha256_hash": "text", METADATA_KEY: "text"}
_CHUNKS: Columns = {"metadata_id": "text", "document_version": "text", "chunk_index": "integer32"}
_VERSION_COLUMNS = (
    "version", "sha256_hash", "collected_at", "superseded_at", "validation_status", "file_size_bytes", "s3_path",
    "indexed_at",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Facts:
    """What a collection is: its embedding model, the width of its vectors, and how they are stored."""

    model: str
    width: int
    dtype: str


class Documents:
    """Of one collection. `gate` bounds the reads that run at once; it is shared with the searches."""

    def __init__(self, tables: Tables, gate: asyncio.Semaphore) -> None:
        self._tables, self._gate = tables, gate

    @property
    def facts(self) -> Facts:
        facts = self._tables.facts
        return Facts(facts.model, facts.width, facts.dtype)

    async def freshness(self) -> Freshness:
        return (await self._tables.view()).freshness

    async def row(self, document_id: str, version: str | None = None) -> dict[str, Any] | None:
        """The metadata of the current version, or of `version`; None where there is none. Of a document of which no
        version is current (its last was removed) there is no row without naming one."""
        await self._tables.view()
        named = Equals("id", document_id)
        base = IS_CURRENT if version is None else f"version = {literal(version)} AND {IS_DOCUMENT}"
        async with self._gate:
            rows = await self._tables.rows("metadata", where(base, named, columns=_METADATA), METADATA_COLUMNS, 1)
        return rows[0] if rows else None

    async def versions(self, document_id: str) -> list[Row]:
        """Its versions, the newest first, at most `VERSIONS_MAX`."""
        condition = where(IS_DOCUMENT, Equals("id", document_id), columns=_METADATA)
        async with self._gate:
            return await self._tables.rows("metadata", condition, _VERSION_COLUMNS, VERSIONS_MAX, (("version", False),))

    async def chunks(self, document_id: str, version: str | None, first: int, limit: int) -> list[Row]:
        """At most `limit` chunks of `version` from number `first` on, in their order. Only the current version has any:
        named by its row, so that an answer never shows the text of one beside the metadata of another."""
        same = IsNull("document_version") if version is None else Equals("document_version", version)
        wanted = Range("chunk_index", low=first, high=first + limit, high_inclusive=False)
        condition = where(IS_DOCUMENT, Equals("metadata_id", document_id), same, wanted, columns=_CHUNKS)
        async with self._gate:
            return await self._tables.rows("vectors", condition, CHUNK_COLUMNS, limit, (("chunk_index", True),))

    async def api_vector(self, document_id: str) -> Vector | None:
        """The embedded description of its API, of the current version: what `similar_apis` takes. None: it has none."""
        await self._tables.view()
        condition = where(IS_CURRENT, Equals("id", document_id), columns=_METADATA)
        async with self._gate:
            rows = await self._tables.rows("metadata", condition, ("schema_embedding",), 1)
        vector = rows[0]["schema_embedding"] if rows else None
        return None if vector is None else np.asarray(vector, np.float32)

    async def stored(self, sha256: str, document_id_digest: str, version: str, digest: Any) -> Row | None:
        """The row of `version` with these bytes whose id has this digest (`digest(id)`): what a push became."""
        condition = where(
            f"version = {literal(version)} AND {IS_DOCUMENT}", Equals("sha256_hash", sha256), columns=_METADATA
        )
        await self._tables.view()
        columns = ("id", "version", "validation_status", "warnings", "chunk_count", "indexed_at", "superseded_at")
        async with self._gate:
            rows = await self._tables.rows("metadata", condition, columns, 1000)
        return next((row for row in rows if digest(row["id"]) == document_id_digest), None)

    async def deleted_at(self, document_id: str) -> datetime | None:
        """When the last deletion that is remembered of it was sent to the log; None where none is."""
        condition = where(
            f"fence = {literal(TOMBSTONE)}", Equals(METADATA_KEY, tombstone_revision(document_id)), columns=_METADATA
        )
        await self._tables.view()
        async with self._gate:
            rows = await self._tables.rows("metadata", condition, ("kafka_timestamp_ms",), 1)
        sent_ms = rows[0]["kafka_timestamp_ms"] if rows else None
        return None if sent_ms is None else datetime.fromtimestamp(sent_ms / 1000, UTC)

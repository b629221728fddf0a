"""From a document ready to be written to the rows of its tables.

Pure. A row is a dict of column -> value; absent columns are null. What can't be stored (a vector that is not
finite, zero or of another width; a key that is no valid text) is refused here, for its document alone,
because one bad row would fail the whole commit and lance takes infinities and zeros silently (facts 9).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import orjson

from shoal.errors import BadDocument, DeadReason
from shoal.records import Announcement, Embedded, Vector
from shoal.store.schemas import CollectionFacts, chunk_id, revision

Row = dict[str, Any]

KEY_BYTES_MAX = 4096
"""Longest id or version: they stand in predicates, merge keys and indexes; real ones have tens of bytes."""
_INT64_MAX = 2**63 - 1
_DATE_PARTS = re.compile(r"(?:^|/)(year|month|day)=(\d{1,4})(?=/)")


def check_storable(embedded: Embedded, facts: CollectionFacts) -> None:
    """Raises BadDocument(WRITE_REJECTED) where a row of this document would fail or poison the tables."""
    announcement = embedded.fetched.announcement
    for name, key in (("id", announcement.document_id), ("version", announcement.version)):
        check_key(name, key)
    extraction = embedded.fetched.extraction
    if extraction is None:
        return
    count = len(extraction.chunks)
    shape = (0, facts.width) if embedded.vectors is None else embedded.vectors.shape
    if shape != (count, facts.width):
        raise _rejected(f"vectors have shape {shape}, {count} chunks of width {facts.width} need {count, facts.width}")
    if [chunk.index for chunk in extraction.chunks] != list(range(count)):
        raise _rejected("chunk indexes do not count from 0")
    if embedded.vectors is not None:
        check_vectors(embedded.vectors, facts)
    if embedded.schema_vector is not None:
        if embedded.schema_vector.shape != (facts.width,):
            raise _rejected(f"the schema vector has shape {embedded.schema_vector.shape}, needs {(facts.width,)}")
        check_vectors(embedded.schema_vector[np.newaxis, :], facts)


def check_key(name: str, key: str) -> None:
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise _rejected(f"the {name} is no valid Unicode text") from None
    if size > KEY_BYTES_MAX or "\0" in key:
        raise _rejected(f"the {name} is longer than {KEY_BYTES_MAX} bytes or holds a NUL")


def check_vectors(vectors: np.ndarray[Any, Any], facts: CollectionFacts) -> None:
    """Raises BadDocument(WRITE_REJECTED) for a row that, as it will be stored, is not finite, or zero (it has no
    cosine)."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        norms = np.linalg.norm(vectors.astype(facts.dtype).astype(np.float64), axis=1)
    if not np.all(np.isfinite(norms)):
        raise _rejected("a vector is not finite")
    if not np.all(norms > 0):
        raise _rejected("a vector is zero: it has no direction to compare")


def _rejected(message: str) -> BadDocument:
    return BadDocument(DeadReason.WRITE_REJECTED, message)


def clean(text: str | None) -> str | None:
    """`text` as UTF-8 can hold it: lone surrogates, which Arrow refuses, become '?'."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def metadata_row(embedded: Embedded, facts: CollectionFacts, *, error: str | None, now: datetime) -> Row:
    """The metadata row of this version as a current one. `error`: why it has no text, or None where it has."""
    fetched = embedded.fetched
    announcement = fetched.announcement
    extraction = fetched.extraction if error is None else None
    bucket, key = _bucket_and_key(announcement.location)
    year, month, day = _dates(announcement, key)
    warnings = [*announcement.warnings, *(extraction.warnings if extraction else ())]
    evidence = extraction.traits.evidence if extraction else {}
    position = announcement.position
    row: Row = {
        "revision": revision(announcement.document_id, announcement.version),
        "id": announcement.document_id,
        "collection": announcement.collection,
        "version": announcement.version,
        "urn": announcement.urn,
        "sha256_hash": fetched.sha256,
        "data_source": announcement.data_source,
        "data_type": announcement.data_type,
        "dataset": announcement.dataset,
        "environment": announcement.environment,
        "scraper_name": announcement.scraper_name,
        "s3_path": announcement.location,
        "s3_bucket": bucket,
        "s3_key": key,
        "source_url": announcement.source_url,
        "file_size_bytes": fetched.size_bytes,
        "file_format": extraction.file_format if extraction else None,
        "content_type": (extraction.content_type if extraction else None) or announcement.content_type,
        "charset": extraction.charset if extraction else None,
        "title": extraction.title if extraction else None,
        "etag": fetched.etag or announcement.etag,
        "version_id": fetched.version_id or announcement.version_id,
        "md5sum": fetched.md5,
        "collected_at": announcement.collected_at,
        "published_at": announcement.published_at,
        "year": year,
        "month": month,
        "day": day,
        "validation_status": "indexed" if error is None else "error",
        "error_count": 0 if error is None else 1,
        "warning_count": len(warnings),
        "warnings": [clean(warning) for warning in (*warnings, *([error] if error else ()))],
        "superseded_at": None,
        "chunk_count": len(extraction.chunks) if extraction else 0,
        "evidence": orjson.dumps(_cleaned(evidence)).decode() if evidence else None,
        "extra": _extra(announcement),
        "kafka_cluster": position.cluster,
        "kafka_topic": position.topic,
        "kafka_partition": position.partition,
        "kafka_offset": position.offset,
        "kafka_timestamp_ms": position.timestamp_ms,
        "indexed_at": now,
        "embedding_model": facts.model if extraction else None,
        "schema_embedding": embedded.schema_vector if extraction else None,
    }
    return {name: clean(value) if isinstance(value, str) else value for name, value in row.items()}


def chunk_rows(embedded: Embedded) -> list[Row]:
    """One row per chunk; empty for a document without text."""
    fetched = embedded.fetched
    extraction = fetched.extraction
    if extraction is None or embedded.vectors is None:
        return []
    announcement = fetched.announcement
    traits = extraction.traits
    shared: Row = {
        "metadata_id": announcement.document_id,
        "document_version": announcement.version,
        "sha256_hash": fetched.sha256,
        "api_endpoint": traits.api_endpoint,
        "auth_method": traits.auth_method,
        "rate_limit": traits.rate_limit,
        "data_freshness": traits.data_freshness,
        "pagination_type": traits.pagination_type,
        "collection_success": True,
        "collection": announcement.collection,
        "data_source": announcement.data_source,
        "data_type": announcement.data_type,
        "dataset": announcement.dataset,
        "environment": announcement.environment,
        "scraper_name": announcement.scraper_name,
        "collected_at": announcement.collected_at,
        "file_format": extraction.file_format,
    }
    shared = {name: clean(value) if isinstance(value, str) else value for name, value in shared.items()}
    return [
        {
            **shared,
            "id": chunk_id(announcement.document_id, chunk.index),
            "chunk_index": chunk.index,
            "content_summary": clean(chunk.text),
            "content_schema": clean(extraction.schema) if chunk.index == 0 else None,
            "heading": clean(chunk.heading),
            "char_start": chunk.char_start,
            "char_end": chunk.char_end,
            "token_count": chunk.token_count,
            "content_embedding": _row_vector(embedded.vectors[at]),
        }
        for at, chunk in enumerate(extraction.chunks)
    ]


def _row_vector(vector: Vector) -> Vector:
    return np.ascontiguousarray(vector, dtype=np.float32)


def _bucket_and_key(location: str | None) -> tuple[str | None, str | None]:
    if location is None or not location.startswith("s3://"):
        return None, None
    bucket, _, key = location.removeprefix("s3://").partition("/")
    return bucket, key


def _dates(announcement: Announcement, key: str | None) -> tuple[int, int, int]:
    """year=, month=, day= of the key; where one is missing, that of `collected_at` (contracts 1.1)."""
    collected = announcement.collected_at
    path = key
    if path is None and announcement.location is not None:
        path = unquote(urlsplit(announcement.location).path)
    named = {name: int(value) for name, value in _DATE_PARTS.findall(path or "")}
    return named.get("year", collected.year), named.get("month", collected.month), named.get("day", collected.day)


def _extra(announcement: Announcement) -> str:
    """The message's unknown fields, and the scraper's own id of the file (which has no column)."""
    if announcement.s3_guid is None:
        return announcement.extra
    try:
        extra = orjson.loads(announcement.extra)
    except orjson.JSONDecodeError:
        extra = {}
    if not isinstance(extra, dict):
        extra = {"extra": extra}
    return orjson.dumps({**extra, "s3_guid": clean(announcement.s3_guid)}).decode()


def _cleaned(texts: Mapping[str, str]) -> dict[str, str]:
    return {str(clean(name)): str(clean(text)) for name, text in texts.items()}

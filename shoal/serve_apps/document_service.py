"""Collections and their documents, for REST: list, describe, read, hand out the raw file, push, delete (contracts 3).

Reads are of the open index. What changes anything goes through the log: a push is an announcement, a deletion a
tombstone under the document's id, in the topic and so in the order of all its announcements (contracts 1.1; it is what
`shoal erase` sends, which also proves it). The ids of their jobs say what is waited for, and the tables whether it has
come. Blocking work is done on threads of this service, bounded: FullError beyond. Fails with InvalidParameter,
UnknownCollectionError, NotFound, BadDocument (of a raw file), TransientError.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

from pydantic import Field

from shoal.errors import FullError
from shoal.records import SCRAPER_COLLECTION
from shoal.serve_apps.commands import Commands
from shoal.serve_apps.freshness import Lag, freshness_of
from shoal.serve_apps.models import InvalidParameter, NotFound, Request, Text
from shoal.serve_apps.pushing import Pusher, PushQuery, digest, job_of, named_by
from shoal.serve_apps.raw_files import OpenFile, Presigned, RawFiles
from shoal.serve_apps.scopes import is_visible
from shoal.serve_apps.visible import check_collection, visible_collections
from shoal.sources.versions import compact
from shoal.store.documents import Documents
from shoal.store.reading import Freshness
from shoal.store.schemas import TableKind

Json = dict[str, Any]
T = TypeVar("T")

THREADS = 4
WAITING_MAX = 32
"""Requests that wait for one of them; more would only time out."""
ID_BYTES_MAX = 4096
"""Of a document's id: what the tables keep."""
CLOCKS = timedelta(seconds=60)
"""A broker may stamp messages by its own clock: a deletion stamped so long before it was asked for is taken for it."""
CHUNK_FIELDS = (
    "id", "chunk_index", "heading", "char_start", "char_end", "token_count", "content_schema", "api_endpoint",
    "auth_method", "rate_limit", "data_freshness", "pagination_type",
)  # fmt: skip
_DELETION = re.compile(r"delete-([0-9]{1,14})-([A-Za-z0-9_-]{1,6000})")


class DocumentQuery(Request):
    """Which part of a document."""

    version: Text | None = Field(None, max_length=200, description="An older version: its metadata, without chunks.")
    chunks: int = Field(20, ge=0, le=200, description="Chunks of its text at most.")
    first_chunk: int = Field(
        0, ge=0, le=1_000_000, description="Number of the first; `next_chunk` of the answer before."
    )


class Index(Protocol):
    """What this asks of `shoal.store.search.SearchIndex`."""

    documents: Documents

    async def freshness(self) -> Freshness: ...
    async def counts(self) -> Mapping[str, int]: ...
    async def unindexed_rows(self, kind: TableKind) -> Mapping[str, int | None]: ...


class DocumentService:
    """One per replica."""

    def __init__(
        self, index: Callable[[], Awaitable[Index]], lag: Lag, commands: Commands, raw: RawFiles, pusher: Pusher
    ) -> None:
        self._index, self._lag, self._commands, self._raw, self._pusher = index, lag, commands, raw, pusher
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="documents")
        self._waiting = 0

    def close(self) -> None:
        self._commands.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- collections --------------------------------------------------------------------------

    async def collections(self) -> Json:
        """{collections: [...]}: every one that the caller may read, as `collection` describes it."""
        return {"collections": [await self.collection(name) for name in visible_collections()], "next_cursor": None}

    async def collection(self, name: str) -> Json:
        """{name, embedding_model, width, vector_dtype, documents, chunks, freshness}."""
        check_collection(name)
        index = await self._index()
        facts, counts = index.documents.facts, await index.counts()
        return {
            "name": name,
            "embedding_model": facts.model,
            "width": facts.width,
            "vector_dtype": facts.dtype,
            **counts,
            "freshness": await self._fresh(index, "vectors"),
        }

    # --- documents ----------------------------------------------------------------------------

    async def document(self, name: str, document_id: str, asked: DocumentQuery | Mapping[str, Any]) -> Json:
        """{document, chunks, next_chunk, versions, freshness}."""
        asked = DocumentQuery.read(asked)
        index, row = await self._row(name, document_id, asked.version)
        is_current = row.get("superseded_at") is None
        chunks = (
            await index.documents.chunks(document_id, row["version"], asked.first_chunk, asked.chunks)
            if asked.chunks and is_current
            else []
        )
        more = len(chunks) == asked.chunks and asked.first_chunk + len(chunks) < (row.get("chunk_count") or 0)
        return {
            "document": row,
            "chunks": [
                {**{field: chunk.get(field) for field in CHUNK_FIELDS}, "text": chunk.get("content_summary")}
                for chunk in chunks
            ],
            "next_chunk": asked.first_chunk + len(chunks) if chunks and more else None,
            "versions": await index.documents.versions(document_id),
            "freshness": await self._fresh(index, "metadata"),
        }

    async def raw(self, name: str, document_id: str, version: str | None) -> Presigned | OpenFile:
        """Where the raw file is, or the file, which the caller closes. Raises BadDocument."""
        _, row = await self._row(name, document_id, version)
        found: list[Presigned | OpenFile] = []
        is_left = False

        def find() -> Presigned | OpenFile:
            file = self._raw.find(row)
            found.append(file)
            if is_left:
                _close(found)
            return file

        try:
            return await self._on_thread(find)
        except asyncio.CancelledError:  # whoever asked is gone, and perhaps the file is open, or will be
            is_left = True
            _close(found)
            raise

    async def delete(self, name: str, document_id: str) -> Json:
        """The job of deleting a document and its history; durable in the log when this returns. Deleted already: the
        job of that."""
        check_collection(name)
        _checked(document_id)
        index = await self._index()
        if not await index.documents.versions(document_id):
            deleted_at = await index.documents.deleted_at(document_id)
            if deleted_at is None:
                raise _unknown(document_id)
            return _job(_deletion_id(document_id, deleted_at), "delete", "done")
        now = datetime.now(UTC)
        await self._commands.announce(self._pusher.topic, document_id.encode(), None)
        return _job(_deletion_id(document_id, now), "delete", "accepted")

    async def push(
        self,
        name: str,
        asked: PushQuery | Mapping[str, Any],
        body: AsyncIterator[bytes],
        *,
        content_type: str | None,
        idempotency_key: str | None,
    ) -> Json:
        """The job of a push, with the document's id; durable in the log when this returns."""
        check_collection(name)
        asked = PushQuery.read(asked)
        if idempotency_key and not asked.collected_at:
            raise InvalidParameter("collected_at", "is needed with an Idempotency-Key: it is the version, and a push "
                                   "that is sent again must be of the same one")  # fmt: skip
        described = self._pusher.described(asked, content_type, datetime.now(UTC))
        with closing(await self._pusher.received(body)) as file:
            prepared, sha256 = await self._on_thread(self._pusher.store, described, file)
        await self._commands.announce(self._pusher.topic, prepared.key, prepared.value)
        version = compact(described.collected_at)
        return _job(job_of(prepared, version, sha256), "push", "accepted") | {
            "document_id": prepared.document_id, "version": version, "sha256_hash": sha256,
            "size_bytes": prepared.size_bytes,
        }  # fmt: skip

    async def job(self, job_id: str) -> Json | None:
        """How far a push or a deletion is; None where the id is of neither, or of one that the caller may not know."""
        if not is_visible(SCRAPER_COLLECTION):
            return None
        if (pushed := named_by(job_id)) is not None:
            return await self._pushed(job_id, *pushed)
        found = _DELETION.fullmatch(job_id)
        document_id = _decoded(found[2]) if found else None
        if found is None or document_id is None:
            return None
        index = await self._index()
        deleted_at = await index.documents.deleted_at(document_id)
        asked_at = datetime.fromtimestamp(int(found[1]) / 1000, UTC)
        is_done = deleted_at is not None and deleted_at >= asked_at - CLOCKS
        return _job(job_id, "delete", "done" if is_done else "accepted") | {"document_id": document_id}

    async def _pushed(self, job_id: str, version: str, sha256: str, of_id: str) -> Json:
        index = await self._index()
        row = await index.documents.stored(sha256, of_id, version, digest)
        if row is None:
            advice = "not in the tables yet; if it stays so, GET /api/v1/dead-letters says why"
            return _job(job_id, "push", "accepted") | {"advice": advice}
        failed = row["validation_status"] == "error"
        error = "; ".join(row["warnings"] or ()) or "its text could not be extracted" if failed else None
        result = {name: row[name] for name in ("id", "version", "chunk_count", "superseded_at")}
        job = _job(job_id, "push", "failed" if failed else "done", error)
        return job | {"result": result, "applied_at": row["indexed_at"]}

    # --- parts --------------------------------------------------------------------------------

    async def _row(self, name: str, document_id: str, version: str | None) -> tuple[Index, Json]:
        check_collection(name)
        _checked(document_id)
        index = await self._index()
        row = await index.documents.row(document_id, version)
        if row is None:
            raise _unknown(document_id)
        return index, row

    async def _fresh(self, index: Index, kind: TableKind) -> Json:
        return freshness_of(await index.freshness(), await index.unindexed_rows(kind), await self._lag.now())

    async def _on_thread(self, work: Callable[..., T], *arguments: object) -> T:
        if self._waiting >= THREADS + WAITING_MAX:
            raise FullError("too many files are being read and stored right now", 2.0)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        finally:
            self._waiting -= 1


def _job(job_id: str, kind: str, status: str, error: str | None = None) -> Json:
    return {"job_id": job_id, "status": status, "kind": kind, "error": error}


def _close(found: list[Presigned | OpenFile]) -> None:
    while found:
        if isinstance(file := found.pop(), OpenFile):
            file.close()


def _checked(document_id: str) -> None:
    try:
        size = len(document_id.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= ID_BYTES_MAX or "\0" in document_id:
        raise InvalidParameter(
            "id", f"a document's id is a text of 1 to {ID_BYTES_MAX} bytes; take it from a search result"
        )


def _unknown(document_id: str) -> NotFound:
    return NotFound(f"there is no document {document_id[:200]!r} (of that version): take `id` from a search result")


def _deletion_id(document_id: str, at: datetime) -> str:
    named = base64.urlsafe_b64encode(document_id.encode()).decode().rstrip("=")
    return f"delete-{int(at.timestamp() * 1000)}-{named}"


def _decoded(text: str) -> str | None:
    try:
        found = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except (ValueError, binascii.Error):
        return None
    return found if found and "\0" not in found else None

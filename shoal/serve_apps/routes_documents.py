"""Routes: documents of a collection, one by one: push, read, the raw file, delete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import FastAPI, Path, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from shoal.serve_apps import examples, examples_documents
from shoal.serve_apps.conditional import conditional
from shoal.serve_apps.document_service import DocumentQuery, DocumentService
from shoal.serve_apps.models import InvalidParameter
from shoal.serve_apps.problems import JsonResponse
from shoal.serve_apps.pushing import PushQuery
from shoal.serve_apps.raw_files import OpenFile, Presigned
from shoal.serve_apps.routing import (
    NO_PARAMETERS,
    Collection,
    IdempotencyKey,
    job_response,
    names,
    refuse_unknown_of,
)

DocumentId = Annotated[
    str, Path(max_length=4096, description="The document's id, with its colons and slashes.", examples=[examples.ID])
]
_UNASKED = ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
"""What a page in somebody's browser may send to a local service without asking it first."""
_SAFE = {"Cache-Control": "private, no-store", "Content-Security-Policy": "default-src 'none'; sandbox"}


def add(app: FastAPI, documents: DocumentService) -> None:
    """Adds them to `app`."""
    place = "/api/v1/collections/{name}/documents"

    @app.post(
        place, tags=["documents"], response_class=JsonResponse, responses=examples_documents.PUSHED,
        openapi_extra=examples_documents.PUSH_BODY, status_code=202,
    )  # fmt: skip
    async def push(
        request: Request,
        name: Collection,
        parameters: Annotated[PushQuery, Query()],
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Push a file: the body is its bytes, as they are (`curl --data-binary @FILE -H 'Content-Type: text/csv'`). It
        is stored and announced like any other; `Location` says where to ask what became of it. A newer `collected_at`
        of the same document replaces it."""
        refuse_unknown_of(PushQuery, request)
        content_type = request.headers.get("content-type", "").strip()
        if content_type.partition(";")[0].strip().lower() in _UNASKED:
            raise HTTPException(415, "Say what the bytes are: Content-Type: text/csv, application/json, ..., or "
                                "application/octet-stream, also for plain text. No forms.")  # fmt: skip
        job = await documents.push(
            name, parameters, request.stream(), content_type=content_type[:200] or None,
            idempotency_key=idempotency_key or None,
        )  # fmt: skip
        return job_response(request, job, 202)

    @app.get(
        place + "/{id:path}/raw", tags=["documents"], response_class=Response, responses=examples_documents.RAW
    )  # fmt: skip
    async def raw(
        request: Request,
        name: Collection,
        id: DocumentId,
        version: Annotated[str | None, Query(max_length=200, description="An older version.")] = None,
    ) -> Response:
        """The raw file: 307 to a URL of short life where it lies in S3, its bytes where it is local. Always as an
        attachment."""
        if unknown := names(request.query_params, "version"):
            raise InvalidParameter(unknown[0], "unknown parameter; this call takes `version`")
        found = await documents.raw(name, id, version or None)
        if isinstance(found, Presigned):
            return RedirectResponse(found.url, 307, headers=_SAFE)
        headers = _SAFE | {
            "Content-Disposition": found.disposition, "Content-Length": str(found.size_bytes),
            "Content-Type": found.content_type, "X-Shoal-Sha256": found.sha256,
        }  # fmt: skip
        return _FileResponse(found, headers)

    @app.get(
        place + "/{id:path}", tags=["documents"], response_class=JsonResponse, responses=examples_documents.DOCUMENT
    )  # fmt: skip
    async def document(
        request: Request, name: Collection, id: DocumentId, parameters: Annotated[DocumentQuery, Query()]
    ) -> Response:
        """A document: its metadata, the first chunks of its text (`next_chunk` goes on), and its versions."""
        refuse_unknown_of(DocumentQuery, request)
        return conditional(request, await documents.document(name, id, parameters))

    @app.delete(
        place + "/{id:path}", tags=["documents"], response_class=JsonResponse, dependencies=NO_PARAMETERS,
        responses=examples_documents.DELETED, status_code=202,
    )  # fmt: skip
    async def delete(request: Request, name: Collection, id: DocumentId) -> Response:
        """Delete a document and its history. 202: it is durable in the log, and gone from searches in a moment
        (`Location`); 200: it was deleted already. The stored file stays: see `shoal erase`, which also proves."""
        return job_response(request, await documents.delete(name, id), 200)


class _FileResponse(StreamingResponse):
    """The file, piece by piece, never longer than was said; closed however it ends, begun or not."""

    def __init__(self, file: OpenFile, headers: dict[str, str]) -> None:
        super().__init__(self._pieces(), headers=headers)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()

    async def _pieces(self) -> AsyncIterator[bytes]:
        left = self._file.size_bytes
        while left and (piece := await asyncio.to_thread(self._file.read, left)):
            left -= len(piece)
            yield piece

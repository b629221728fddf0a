"""Every error of REST as RFC 9457 `application/problem+json`.

Guarantee: no other kind of error body leaves the service, whoever raised it (ours, FastAPI's, Starlette's), each with
a stable `type` (`urn:shoal:problem:NAME`, which `/problems/NAME` explains), a `detail` that says what to do, and the
request's id. An unexpected exception is logged with that id and told to nobody.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from shoal.errors import BadDocument, ConfigurationError, DeadReason, FullError, ShoalError, TransientError
from shoal.serve_apps.models import InvalidParameter, NotFound
from shoal.store.cursors import CursorError
from shoal.store.filters import FilterError, QueryError
from shoal.store.requests import UnknownCollectionError

log = logging.getLogger("shoal.rest")

BODY_BYTES_MAX = 1024 * 1024
"""Descriptions of APIs and fixes with their diffs are far below; what is above is not meant for these calls."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem: the end of its `type`, what it is called, what it means, and what to do."""

    name: str
    status: int
    title: str
    advice: str


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("bad-request", 400, "The request could not be read", "Send a body of JSON, as /docs shows it."),
        Kind("unauthenticated", 401, "Nobody known asks", "Send an API key: Authorization: Bearer KEY."),
        Kind("forbidden", 403, "This caller may not do this", "Ask with a key whose scope has this call."),
        Kind("origin-refused", 403, "A page of another origin, or another name, asks",
             "Who runs this lets origins in by SHOAL_ALLOWED_ORIGINS, and names by SHOAL_ALLOWED_HOSTS."),
        Kind("location-refused", 403, "The file lies where nothing is read from",
             "Let allowed_roots or allowed_buckets name the place, if it is meant to be read."),
        Kind("not-found", 404, "There is nothing here", "Look at the path and the id; /docs lists the calls."),
        Kind("method-not-allowed", 405, "This path does not take this method", "The header Allow says which it takes."),
        Kind("gone", 410, "The file is not there any more", "The document is still indexed; its file was taken away."),
        Kind("too-large", 413, "The body is too large", "The detail says how many bytes there may be."),
        Kind("uri-too-long", 414, "The URL is too long", "POST .../collections/{name}/search takes long questions."),
        Kind("unsupported-media-type", 415, "The body is of another kind than this call takes",
             "The detail says which Content-Type to send."),
        Kind("invalid-parameter", 422, "A parameter is wrong", "`parameter` names it, the detail says what is right."),
        Kind("refused", 422, "The writer did not take it", "`job` says why; a changed request is another job."),
        Kind("too-many-requests", 429, "Too many requests", "Come back after the seconds of Retry-After."),
        Kind("internal", 500, "Something went wrong on our side", "Tell who runs this the request_id; the log has it."),
        Kind("misconfigured", 500, "Something is set wrongly on our side", "Who runs this must change what it says."),
        Kind("not-implemented", 501, "Shoal can't do this yet", "The detail says what there is instead."),
        Kind("unavailable", 503, "Not available right now", "Come back after the seconds of Retry-After."),
        Kind("starting", 503, "The tables are not there yet", "Start `shoal up` on these tables, or wait for it."),
        Kind("timeout", 504, "There was no answer in time", "Ask for less, or send a longer X-Request-Timeout."),
    )
}  # fmt: skip
"""Every problem that REST answers with. A name is never given another meaning."""

_BY_STATUS: Mapping[int, Kind] = {kind.status: kind for kind in reversed(list(KINDS.values()))}


class JsonResponse(Response):
    """JSON by orjson: times as RFC 3339 with Z, NaN as null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS)


class ProblemResponse(JsonResponse):
    """An RFC 9457 body."""

    media_type = "application/problem+json"


def problem(
    status: int, detail: str, request_id: str, *, kind: str | None = None, title: str | None = None,
    headers: Mapping[str, str] | None = None, **extra: object,
) -> ProblemResponse:  # fmt: skip
    """The response for one error; `kind` is the stable end of its `type`."""
    known = KINDS[kind] if kind else _BY_STATUS.get(status) or Kind(f"http-{status}", status, "The request failed", "")
    body = {
        "type": f"urn:shoal:problem:{known.name}",
        "title": title or known.title,
        "status": status,
        "detail": detail,
        "advice": known.advice,
        "see": f"/problems/{known.name}",
        "request_id": request_id,
        **{name: value for name, value in extra.items() if value is not None},
    }
    return ProblemResponse(body, status, headers)


def request_id(request: Request) -> str:
    """The id that the frame gave this request."""
    return str(request.scope.get("state", {}).get("request_id", ""))


def install(app: FastAPI) -> None:
    """Makes `app` answer every error as a problem."""
    app.add_exception_handler(InvalidParameter, _invalid_parameter)
    app.add_exception_handler(RequestValidationError, _framework_validation)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(QueryError, _query)
    app.add_exception_handler(NotFound, _not_found)
    app.add_exception_handler(BadDocument, _bad_document)
    app.add_exception_handler(ShoalError, _shoal)


def _invalid_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, InvalidParameter)
    return problem(422, str(error), request_id(request), parameter=error.parameter)


def _framework_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])[:60] if first["loc"] else "body"
    message = str(first["msg"]).removeprefix("Value error, ")
    return problem(422, f"{name}: {message}", request_id(request), parameter=name)


def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    is_routing = error.detail in ("Not Found", "Method Not Allowed")
    # Not everything that is raised has a text of its own: a body that broke off, a form that is none.
    detail = "See /docs for what this service answers." if is_routing else str(error.detail or "See /docs.")
    return problem(error.status_code, detail, request_id(request), headers=error.headers)


def _not_found(request: Request, error: Exception) -> Response:
    return problem(404, str(error), request_id(request))


def _query(request: Request, error: Exception) -> Response:
    """The store's own refusals: no such collection, a damaged cursor, a value that no column can hold."""
    if isinstance(error, UnknownCollectionError):
        return problem(404, str(error), request_id(request))
    named = ((CursorError, "cursor"), (FilterError, "filters"))
    parameter = next((name for kind, name in named if isinstance(error, kind)), None)
    return problem(422, str(error), request_id(request), parameter=parameter)


_FILES = {
    DeadReason.LOCATION_REFUSED: (403, "location-refused"),
    DeadReason.ACCESS_REFUSED: (403, "location-refused"),
    DeadReason.OBJECT_MISSING: (410, "gone"),
}


def _bad_document(request: Request, error: Exception) -> Response:
    """Of a file that was asked for. What lies where is not told to who may not read it."""
    assert isinstance(error, BadDocument)
    status, kind = _FILES.get(error.reason, (422, "refused"))
    return problem(status, error.message, request_id(request), kind=kind, reason=error.reason)


def _shoal(request: Request, error: Exception) -> Response:
    if isinstance(error, TransientError):
        wait_s = max(1, math.ceil(error.retry_after_s or 1.0))
        status = 429 if isinstance(error, FullError) else 503
        return problem(status, str(error), request_id(request), headers={"Retry-After": str(wait_s)})
    log.error("request %s: %s", request_id(request), error, exc_info=error)
    if isinstance(error, ConfigurationError):
        return problem(500, str(error), request_id(request), kind="misconfigured")
    return unexpected(request_id(request))


def unexpected(identity: str) -> ProblemResponse:
    """What is told of an error that nobody foresaw: nothing."""
    return problem(500, f"Try again; if it stays, give {identity} to who runs this.", identity)

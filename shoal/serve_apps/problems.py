"""Every error of REST as RFC 9457 `application/problem+json`.

Guarantee: no other kind of error body leaves the service, whoever raised it (ours, FastAPI's, Starlette's), each with
a stable `type` (`urn:shoal:problem:NAME`, which `/problems/NAME` explains), a `detail` that says what to do, and the
request's id. An unexpected exception is logged with that id and told to nobody.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from shoal.errors import BadDocument, ConfigurationError, DeadReason, FullError, ShoalError, TransientError
from shoal.serve_apps.models import InvalidParameter, NotFound
from shoal.serve_apps.problem_kinds import problem_body
from shoal.serve_apps.stages import ended
from shoal.store.cursors import CursorError
from shoal.store.filters import FilterError, QueryError
from shoal.store.requests import UnknownCollectionError

log = logging.getLogger("shoal.rest")

BODY_BYTES_MAX = 1024 * 1024
"""Descriptions of APIs and fixes with their diffs are far below; what is above is not meant for these calls."""


class JsonResponse(Response):
    """JSON by orjson: times as RFC 3339 with Z, NaN as null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        body = orjson.dumps(content, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS)
        ended("compose")
        return body


class ProblemResponse(JsonResponse):
    """An RFC 9457 body."""

    media_type = "application/problem+json"


def problem(
    status: int, detail: str, request_id: str, *, kind: str | None = None, title: str | None = None,
    headers: Mapping[str, str] | None = None, **extra: object,
) -> ProblemResponse:  # fmt: skip
    """The response for one error; `kind` is the stable end of its `type`."""
    body = problem_body(status, detail, request_id, kind=kind, title=title)
    body |= {name: value for name, value in extra.items() if value is not None}
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

"""Every error of REST as RFC 9457 `application/problem+json`, and the frame that each request passes.

Guarantee: no other kind of error body leaves the service, whoever raised it (ours, FastAPI's, Starlette's),
each with a stable `type` (`urn:shoal:problem:...`), a `detail` that says what to do, and the request's id. The
frame gives every response an `X-Request-Id` (the caller's where it is well-formed) and refuses bodies above
the limit before they are in memory. An unexpected exception is logged with that id and told to nobody.
"""

from __future__ import annotations

import logging
import math
import re
import uuid
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.errors import ConfigurationError, ShoalError, TransientError
from shoal.serve_apps.models import InvalidParameter
from shoal.store.cursors import CursorError
from shoal.store.filters import FilterError, QueryError
from shoal.store.requests import UnknownCollectionError

log = logging.getLogger("shoal.rest")

BODY_BYTES_MAX = 1024 * 1024
"""Descriptions of APIs and fixes with their diffs are far below; what is above is not meant for these calls."""

_TITLES = {
    400: ("bad-request", "The request could not be read"),
    401: ("unauthenticated", "Nobody known asks"),
    403: ("forbidden", "This caller may not do this"),
    404: ("not-found", "There is nothing here"),
    405: ("method-not-allowed", "This path does not take this method"),
    413: ("too-large", "The body is too large"),
    415: ("unsupported-media-type", "The body is of another kind than this call takes"),
    422: ("invalid-parameter", "A parameter is wrong"),
    429: ("too-many-requests", "Too many requests"),
    500: ("internal", "Something went wrong on our side"),
    503: ("unavailable", "Not available right now"),
}


class JsonResponse(Response):
    """JSON by orjson: times as RFC 3339 with Z, NaN as null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS)


class ProblemResponse(JsonResponse):
    """An RFC 9457 body."""

    media_type = "application/problem+json"


class BodyTooLarge(Exception):
    """The body passed `BODY_BYTES_MAX` while it was read."""


def problem(
    status: int, detail: str, request_id: str, *, kind: str | None = None, title: str | None = None,
    headers: Mapping[str, str] | None = None, **extra: object,
) -> ProblemResponse:  # fmt: skip
    """The response for one error; `kind` is the stable end of its `type`."""
    default_kind, default_title = _TITLES.get(status, (f"http-{status}", "The request failed"))
    body = {
        "type": f"urn:shoal:problem:{kind or default_kind}",
        "title": title or default_title,
        "status": status,
        "detail": detail,
        "request_id": request_id,
        **{name: value for name, value in extra.items() if value is not None},
    }
    return ProblemResponse(body, status, headers)


def request_id(request: Request) -> str:
    """The id that the frame gave this request."""
    return str(request.scope.get("state", {}).get("request_id", ""))


def install(app: FastAPI, *, stamps: bool = True) -> None:
    """Makes `app` answer every error as a problem, inside the frame (`stamps`: see there)."""
    app.add_exception_handler(InvalidParameter, _invalid_parameter)
    app.add_exception_handler(RequestValidationError, _framework_validation)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(QueryError, _query)
    app.add_exception_handler(ShoalError, _shoal)
    app.add_middleware(RequestFrame, stamps=stamps)


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
    detail = "See /docs for what this service answers." if is_routing else str(error.detail)
    return problem(error.status_code, detail, request_id(request), headers=error.headers)


def _query(request: Request, error: Exception) -> Response:
    """The store's own refusals: no such collection, a damaged cursor, a value that no column can hold."""
    if isinstance(error, UnknownCollectionError):
        return problem(404, str(error), request_id(request))
    named = ((CursorError, "cursor"), (FilterError, "filters"))
    parameter = next((name for kind, name in named if isinstance(error, kind)), None)
    return problem(422, str(error), request_id(request), parameter=parameter)


def _shoal(request: Request, error: Exception) -> Response:
    if isinstance(error, TransientError):
        wait_s = max(1, math.ceil(error.retry_after_s or 1.0))
        return problem(503, str(error), request_id(request), headers={"Retry-After": str(wait_s)})
    log.error("request %s: %s", request_id(request), error, exc_info=error)
    if isinstance(error, ConfigurationError):
        return problem(500, str(error), request_id(request), kind="misconfigured")
    return _unexpected(request_id(request))


def _unexpected(identity: str) -> ProblemResponse:
    return problem(500, f"Try again; if it stays, give {identity} to who runs this.", identity)


class RequestFrame:
    """ASGI middleware: the request's id, the body's limit, and the last word on unexpected errors.

    `stamps` False: whoever hosts us writes `X-Request-Id` on the response itself, as Serve does (from the same
    header of the request, which it sets where the caller did not).
    """

    def __init__(self, app: ASGIApp, *, stamps: bool = True) -> None:
        self.app = app
        self._stamps = stamps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        identity = given if re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = identity
        started = False
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > BODY_BYTES_MAX:
                raise BodyTooLarge
            return message

        async def stamped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if self._stamps:
                    MutableHeaders(scope=message)["X-Request-Id"] = identity
            await send(message)

        try:
            length = headers.get("content-length", "0")
            if length.isdigit() and int(length) > BODY_BYTES_MAX:
                raise BodyTooLarge
            await self.app(scope, counted, stamped)
        except BodyTooLarge:
            if not started:
                detail = f"Send at most {BODY_BYTES_MAX} bytes."
                await problem(413, detail, identity, headers={"Connection": "close"})(scope, receive, stamped)
        except Exception:
            log.exception("request %s: %s %s", identity, scope["method"], scope["path"])
            if started:
                raise
            await _unexpected(identity)(scope, receive, stamped)

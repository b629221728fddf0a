"""The frame that each request passes: its id and trace, its limits, its deadline, and the last word on errors.

Guarantee: a response has an `X-Request-Id` (the caller's where it is well-formed) and, where the caller sent one, a
`traceparent`; a body above its limit is refused before it is in memory, a URL above its own before anything reads it; a
request is answered in time or with a 504; no more than `Limits.in_flight` are answered at once, the others are told to
come back. What was begun (a file on its way) is not cut by the deadline. It decides nothing about who may ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal import tracing as spans
from shoal.log_format import about
from shoal.serve_apps import deadlines, stages, tracing
from shoal.serve_apps.problems import BODY_BYTES_MAX, problem, unexpected

log = logging.getLogger("shoal.rest")
access = logging.getLogger("shoal.rest.access")

_PUSH = re.compile(r"/api/v1/collections/[^/]+/documents/?")
_PROBED = frozenset({"/", "/healthz", "/readyz", "/metrics"})  # all the time, by machines: traced only when asked to
_NO_SPAN = contextlib.nullcontext(spans.NoSpan())
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one request, and of one process. `push_bytes`: of a pushed file; other bodies are descriptions. `url_bytes`:
    path and query; the longest cursor is a fourth of it. `in_flight`: Serve admits 100 to a replica, so it is never
    reached there; whoever runs the application without Serve needs a bound too."""

    body_bytes: int = BODY_BYTES_MAX
    push_bytes: int = BODY_BYTES_MAX
    url_bytes: int = 32 * 1024
    timeout_s: float = 30.0
    in_flight: int = 256


@dataclass(frozen=True, slots=True)
class Answered:
    """One request that is over. `route` is the template of its path, or `unmatched`; a status of 499: nobody waited.
    `stages_s`: seconds by stage (stages.py) up to the first byte."""

    method: str
    route: str
    status: int
    took_s: float
    stages_s: Mapping[str, float] = field(default_factory=dict)


class BodyTooLarge(Exception):
    """The body passed its limit while it was read."""


class RequestFrame:
    """ASGI middleware.

    `stamps` False: whoever hosts us writes `X-Request-Id` on the response itself, as Serve does (from the same
    header of the request, which it sets where the caller did not).
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        stamps: bool = True,
        limits: Limits | None = None,
        observe: Callable[[Answered], None] = lambda _: None,
    ) -> None:
        self.app = app
        self._stamps = stamps
        self._limits = limits or Limits()
        self._observe = observe
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        identity = given if re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = identity
        parent = headers.get("traceparent")
        spanned = _NO_SPAN if parent is None and scope["path"] in _PROBED else spans.span(_method(scope), parent)
        with spanned as current:
            trace = tracing.of(current.header) or tracing.continued(parent)
            with about(request=identity, trace=trace.trace_id if trace else None), stages.counting() as counted:
                status = await self._framed(scope, headers, receive, send, identity, trace, counted)
            route = _route(scope)
            current.set(http__response__status_code=status, http__route=route, http__request__method=_method(scope))
            current.set(shoal__request=identity)

    async def _framed(
        self,
        scope: Scope,
        headers: Headers,
        receive: Receive,
        send: Send,
        identity: str,
        trace: tracing.Trace | None,
        counted: stages.Stages,
    ) -> int:
        """Answers; the status, 499 where nobody waited for one."""
        began, status = time.perf_counter(), 499
        ends: asyncio.Timeout | None = None

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if ends is not None and not ends.expired():
                    ends.reschedule(None)  # what is begun may take its time
                fields = MutableHeaders(scope=message)
                fields.setdefault("X-Content-Type-Options", "nosniff")
                if self._stamps:
                    fields["X-Request-Id"] = identity
                if trace is not None:
                    fields["traceparent"] = trace.header
                stages.ended("send")
                fields[stages.HEADER] = counted.header()
            await send(message)

        self._in_flight += 1
        try:
            timeout_s = self._timeout_s(headers)
            with deadlines.running(timeout_s):
                limit = asyncio.timeout(timeout_s)
                try:
                    async with limit:
                        ends = limit
                        try:
                            await self._answer(scope, headers, receive, stamped)
                        finally:
                            ends = None
                except TimeoutError:
                    if not limit.expired():
                        raise
                    detail = f"No answer within {timeout_s:g} s. Ask for less, or send a longer X-Request-Timeout."
                    await problem(504, detail, identity)(scope, receive, stamped)
        except _Refused as refused:
            await problem(refused.status, str(refused), identity, headers=refused.headers)(scope, receive, stamped)
        except BodyTooLarge:
            if status != 499:
                raise
            detail = f"Send at most {self._body_bytes(scope)} bytes."
            await problem(413, detail, identity, headers={"Connection": "close"})(scope, receive, stamped)
        except Exception:
            log.exception("request %s: %s %r", identity, scope["method"], scope["path"][:500])
            if status != 499:
                raise
            await unexpected(identity)(scope, receive, stamped)
        finally:
            self._in_flight -= 1
            took_s = time.perf_counter() - began
            self._over(Answered(_method(scope), _route(scope), status, took_s, counted.spent_s), identity, trace)
        return status

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        limits = self._limits
        if self._in_flight > limits.in_flight:
            raise _Refused(429, f"{limits.in_flight} requests are being answered here already.", {"Retry-After": "1"})
        if len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"") > limits.url_bytes:
            raise _Refused(414, f"A URL has at most {limits.url_bytes} bytes here. Long questions go into a body.")
        bytes_max = self._body_bytes(scope)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > bytes_max:
                raise BodyTooLarge
            return message

        length = headers.get("content-length", "0")
        if length.isdigit() and (len(length) > 18 or int(length) > bytes_max):
            raise BodyTooLarge
        await self.app(scope, counted, send)

    def _timeout_s(self, headers: Headers) -> float:
        try:
            return deadlines.asked_s(headers.get(deadlines.HEADER), self._limits.timeout_s)
        except ValueError:
            text = f"X-Request-Timeout: seconds, {deadlines.TIMEOUT_S_MIN:g} to {deadlines.TIMEOUT_S_MAX:g}"
            raise _Refused(422, text) from None

    def _body_bytes(self, scope: Scope) -> int:
        is_push = scope["method"] == "POST" and _PUSH.fullmatch(scope["path"]) is not None
        return self._limits.push_bytes if is_push else self._limits.body_bytes

    def _over(self, answered: Answered, identity: str, trace: tracing.Trace | None) -> None:
        self._observe(answered)
        of_trace = f" trace {trace.trace_id} span {trace.span_id}" if trace else ""
        # Replicas show warnings only: a line for each request that was answered well would be most of their log.
        level = logging.WARNING if answered.status >= 500 and answered.status != 501 else logging.INFO
        text = "%s %s %d in %.1f ms, request %s%s"
        took_ms = 1000 * answered.took_s
        access.log(level, text, answered.method, answered.route, answered.status, took_ms, identity, of_trace)


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else "OTHER"


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", None) or "unmatched"


class _Refused(Exception):
    """Refused before anything looked at it."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.headers = status, headers

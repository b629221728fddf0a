"""The front: what stands between the socket and Serve, in each replica (behind HAProxy) and in Serve's own proxy.

Serve answers some requests itself, before our application or instead of it: its queue is full, a replica died, the
path is nobody's. Those answers are plain text; here they become problems (RFC 9457), like every other of ours, and an
unexpected one tells nothing of what went wrong. And Serve reads bodies ahead of the application without a bound: here
the bytes of all bodies that are not answered yet are bounded, so that many large ones can't fill the memory. Whoever
is answered before all of the body has come is let go of.

The head of an answer waits for its body where its length is known. What is written within one turn of uvloop's leaves
in one piece, so a replica that is killed has answered or has not, and then HAProxy asks another (ingress.py). Serve
hands over heads and bodies one by one, from another thread: a head that had left alone could not be taken back.

Ray calls `middlewares` where `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names it (shoal/cluster/ray_environment.py).
This runs in Serve's proxy too, which has nothing else of ours: it imports little.
"""

from __future__ import annotations

import logging
import os

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.serve_apps.problem_kinds import problem_body

log = logging.getLogger("shoal.front")

BODY_BYTES_NAME = "SHOAL_OBJECT_BYTES_MAX"
BODY_BYTES_MAX = 64 * 1024 * 1024
"""Of one body, where that variable says nothing: the largest is a pushed file."""

HELD_BODIES = 4
"""So many of the largest bodies may be held at once, in one process; what comes on top is told to come back."""

_OWN = "/-/"
"""Serve's own paths: health of a replica, read by machines that know its words."""

_TEXTS = {429: "Serve's queue is full.", 503: "No replica can take this right now.", 404: "Nothing lives here."}


def middlewares() -> list[Middleware]:
    """For Ray."""
    said = os.environ.get(BODY_BYTES_NAME, "")
    return [Middleware(Front, body_bytes=int(said) if said.isdecimal() else BODY_BYTES_MAX)]


class Front:
    """ASGI middleware around Serve; one per process. `body_bytes`: of one request's body at most."""

    def __init__(self, app: ASGIApp, *, body_bytes: int = BODY_BYTES_MAX) -> None:
        self.app = app
        self._body_bytes, self._held_bytes = body_bytes, HELD_BODIES * body_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_OWN):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request = _Request(self._body_bytes, headers, send)

        async def bounded() -> Message:
            message = await receive()
            size = len(message.get("body", b""))
            request.received += size
            request.is_whole = not message.get("more_body", False)
            self._held += size
            request.judge(is_full=self._held > self._held_bytes)
            return message if request.refused is None else {"type": "http.disconnect"}

        try:
            await self.app(scope, bounded, request.send)
        finally:
            self._held -= request.received


class _Request:
    """One request on its way: what it has sent, and its answer, which is rewritten where it is Serve's."""

    def __init__(self, body_bytes: int, headers: Headers, send: Send) -> None:
        self.received = 0
        self.is_whole = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
        self.refused: tuple[int, str] | None = None
        self._body_bytes, self._identity, self._send = body_bytes, headers.get("x-request-id", ""), send
        self._start: Message | None = None
        self._head: Message | None = None
        self._has_begun = False

    def judge(self, *, is_full: bool) -> None:
        if self.refused is None and self.received > self._body_bytes:
            self.refused = 413, f"Send at most {self._body_bytes} bytes."
        elif self.refused is None and is_full:
            self.refused = 503, "Too many large bodies are being received right now."

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self._has_begun:
            self._has_begun = True
            if (
                not self.is_whole
            ):  # answered already: who goes on sending the rest, a byte at a time, is not listened to
                fields = MutableHeaders(raw=list(message.get("headers", [])))
                fields["connection"] = "close"
                message = {**message, "headers": fields.raw}
            headers = Headers(raw=message.get("headers", []))
            is_plain = message["status"] >= 400 and headers.get("content-type", "").startswith("text/plain")
            if self.refused is not None or is_plain:
                self._start = message
                return
            if "content-length" in headers:
                self._head = message
                return
        elif self._start is not None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                start, self._start = self._start, None
                await self._answer(start)
            return
        elif self._head is not None:
            head, self._head = self._head, None
            await self._send(head)
        await self._send(message)

    async def _answer(self, start: Message) -> None:
        status, detail = self.refused or (start["status"], _TEXTS.get(start["status"], ""))
        headers = MutableHeaders(raw=list(start.get("headers", [])))
        identity = headers.get("x-request-id", "") or self._identity
        detail = detail or f"Try again; if it stays, give {identity} to who runs this."
        body = orjson.dumps(problem_body(status, detail, identity))
        headers["content-type"], headers["content-length"] = "application/problem+json", str(len(body))
        if status in (429, 503):
            headers.setdefault("retry-after", "1")
        await self._send({**start, "status": status, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": body})

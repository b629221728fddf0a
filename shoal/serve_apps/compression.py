"""gzip for answers above `BYTES_MIN`, where the caller takes it. Raw files go as they are: most are compressed already,
and their length and hash are told."""

from __future__ import annotations

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

BYTES_MIN = 2048  # a packet or two: below, the work is all there is to gain
LEVEL = 4  # 1,000 documents (1.2 MB): 14 ms on the loop, to 220 kB; level 9, the default, 100 ms, to 186 kB


class Compressed:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._plain = app
        self._zipped = GZipMiddleware(app, minimum_size=BYTES_MIN, compresslevel=LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_raw = scope["type"] == "http" and scope["path"].endswith("/raw")
        await (self._plain if is_raw else self._zipped)(scope, receive, send)

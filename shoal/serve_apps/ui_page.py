"""`/ui`: the page for people, from files that are installed with us: no build step, no outside host.

The files in `ui/` are plain HTML, CSS and ES modules; they call this service's REST and nothing else, and their
Content-Security-Policy says so. What the page shows of documents is put there as text, never as markup. It holds no
secret: a key that its user types in stays in that tab. Each file has an ETag, so that a new version is seen at once.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib import resources

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, but asked about each time
}


@lru_cache(maxsize=1)
def _files() -> dict[str, tuple[bytes, str, str]]:
    """By name: bytes, media type, ETag. Read once, so a name that a caller gives never reaches the file system."""
    found = {}
    for file in (resources.files("shoal.serve_apps") / "ui").iterdir():
        suffix = "." + file.name.rpartition(".")[2]
        if suffix in _TYPES:
            body = file.read_bytes()
            found[file.name] = (body, _TYPES[suffix], f'"{hashlib.sha256(body).hexdigest()[:16]}"')
    return found


def install(app: FastAPI) -> None:
    """Adds `/ui` and its files to `app`."""

    @app.get("/ui", include_in_schema=False)
    async def without_slash(request: Request) -> Response:
        return RedirectResponse(request.scope.get("root_path", "").rstrip("/") + "/ui/", 308)

    @app.get("/ui/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return _answer(request, "index.html")

    @app.get("/ui/{name}", include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    if name not in _files():
        raise HTTPException(404)
    body, media_type, etag = _files()[name]
    headers = {**_HEADERS, "ETag": etag}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)

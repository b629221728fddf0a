"""The MCP server as an ASGI application: streamable HTTP, stateless, in both eras of the protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fastmcp import FastMCP
from starlette.types import ASGIApp, Receive, Scope, Send

from shoal.serve_apps.guard import Gate, Guard
from shoal.serve_apps.request_frame import Answered, Limits, RequestFrame


class RootSlash:
    """Serve hands over `/mcp` with root_path `/mcp`; the app inside lives at `/`. Without this it would redirect,
    which strict clients don't follow and which names http:// behind TLS."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == scope.get("root_path", ""):
            scope = {**scope, "path": scope["path"] + "/", "raw_path": scope["path"].encode() + b"/"}
        await self.app(scope, receive, send)


def mcp_http(
    server: FastMCP,
    *,
    stamps: bool = True,
    limits: Limits | None = None,
    gate: Gate | None = None,
    observe: Callable[[Answered], None] = lambda _: None,
) -> ASGIApp:
    """`stamps`, `limits`, `observe`: see RequestFrame. `gate`: who may do what; without one everybody may do
    everything. Its lifespan must be run."""

    def observed(answered: Answered) -> None:
        observe(replace(answered, route="/mcp"))  # there is one, and no router that names it

    app: ASGIApp = RootSlash(server.http_app(path="/", stateless_http=True, json_response=True))
    return RequestFrame(
        Guard(app, gate, "mcp") if gate is not None else app, stamps=stamps, limits=limits, observe=observe
    )

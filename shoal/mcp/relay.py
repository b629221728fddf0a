"""The stdio server: a client of a running Shoal, for agents that start their servers themselves.

What there is (tools, resources, prompts) it tells by itself, since it is the same package: a Shoal that is down when
the agent starts must not look like one without tools. Calls and reads go on to the MCP endpoint, each in a request of
its own, so it serves again as soon as Shoal does. Guarantee: nothing but the protocol is written to stdout. What can't
be reached, or refuses the key, comes back as an error that says what to do.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import httpx2
from fastmcp import Client, FastMCP
from fastmcp.client.transports import StreamableHttpTransport
from fastmcp.exceptions import McpError, ResourceError, ToolError
from fastmcp.resources import ResourceContent, ResourceResult
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import ToolResult
from mcp_types import CallToolRequestParams, ReadResourceRequestParams, TextResourceContents
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from shoal.mcp.asking import ServiceProtocol
from shoal.mcp.server import build_server

TIMEOUT_S = 60.0
"""Of one call; a search takes milliseconds, a report may wait some seconds for its commit."""

_REFUSALS = (401, 403, 404, 429)

T = TypeVar("T")


class Relay(Middleware):
    """Sends calls and reads to the MCP endpoint at `url`, with `key` as the bearer token."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url, self._key = url, key

    async def on_call_tool(
        self, context: MiddlewareContext[CallToolRequestParams], call_next: CallNext[Any, Any]
    ) -> ToolResult:
        asked = context.message

        async def call(client: Client[Any]) -> ToolResult:
            return ToolResult.from_mcp_result(await client.call_tool_mcp(asked.name, asked.arguments or {}))

        try:
            return await self._ask(call)
        except Unreachable as error:
            raise ToolError(str(error), log_level=logging.WARNING) from None

    async def on_read_resource(
        self, context: MiddlewareContext[ReadResourceRequestParams], call_next: CallNext[Any, Any]
    ) -> ResourceResult:
        async def read(client: Client[Any]) -> ResourceResult:
            found = await client.read_resource(str(context.message.uri))
            return ResourceResult(
                [ResourceContent(part.text, part.mime_type) for part in found if isinstance(part, TextResourceContents)]
            )

        try:
            return await self._ask(read)
        except Unreachable as error:
            raise ResourceError(str(error), log_level=logging.WARNING) from None

    async def _ask(self, ask: Callable[[Client[Any]], Awaitable[T]]) -> T:
        """Raises Unreachable; what the other side answers as a protocol error goes through as it is."""
        statuses: list[int] = []  # the client tells an HTTP error as one of the protocol, without its number

        async def note(response: httpx2.Response) -> None:
            statuses.append(response.status_code)

        def http(
            headers: dict[str, str] | None = None,
            timeout: httpx2.Timeout | None = None,
            auth: httpx2.Auth | None = None,
            **_: object,
        ) -> httpx2.AsyncClient:
            # No redirects of its own: they would take the key elsewhere. The SDK follows those within the origin.
            hooks = {"response": [note]}
            return httpx2.AsyncClient(headers=headers, timeout=timeout, auth=auth, event_hooks=hooks)

        transport = StreamableHttpTransport(self._url, auth=self._key, httpx_client_factory=http)
        try:
            async with Client(transport, timeout=TIMEOUT_S, mode=MODERN_PROTOCOL_VERSIONS[-1]) as client:
                return await ask(client)
        except McpError as error:
            if statuses and (statuses[-1] in _REFUSALS or statuses[-1] >= 500):
                self._refused(statuses[-1], error)
            raise
        except Exception as error:  # the transport's own, wrapped in several ways
            self._refused(statuses[-1] if statuses and statuses[-1] >= 400 else None, error)

    def _refused(self, status: int | None, error: BaseException) -> NoReturn:
        if status in (401, 403):
            given = "SHOAL_API_KEY is not accepted" if self._key else "it wants a key: set SHOAL_API_KEY"
            raise Unreachable(f"Shoal at {self._url} refuses the request ({status}): {given}") from error
        if status == 429:
            raise Unreachable(f"Shoal at {self._url} has too much to do: call again in a second") from error
        why = f"answers {status}" if status else "can't be reached"
        raise Unreachable(
            f"Shoal at {self._url} {why}: is it running (shoal up), and is --url right? Call again once it is; "
            "this server needs no restart"
        ) from error


class Unreachable(Exception):
    """Shoal does not answer; the text says what to do."""


class _Nobody:
    """The service of a server whose every call goes elsewhere."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AssertionError(f"{name} was asked of the relay itself")


def relay_server(url: str, key: str | None) -> FastMCP:
    """A server like that at `url` (the MCP endpoint, as http://127.0.0.1:8000/mcp), which answers by asking it."""
    service: ServiceProtocol = _Nobody()
    return build_server(service, middleware=[Relay(url, key)])

"""The endpoint as clients speak to it: the official SDK's client in both eras, and whatever else the network brings.

Over the ASGI application, without a socket and without Ray.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx
import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from shoal.errors import TransientError
from shoal.mcp.server import build_server
from shoal.serve_apps.mcp_http import mcp_http
from shoal.serve_apps.problems import BODY_BYTES_MAX
from tests.unit.mcp.test_server import TOOLS, FakeService, a_row

URL = "http://shoal/mcp"
ANSWER_S = 60.0
"""A hang, not slowness: an answer takes milliseconds."""


class Mounted:
    """The application as Serve hosts it: at /mcp, with its lifespan run."""

    def __init__(self, service: FakeService) -> None:
        self.app = mcp_http(build_server(service))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app({**scope, "root_path": "/mcp"}, receive, send)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Mounted]:
        """Run in a task of its own, as servers do: its task group must be left where it was entered."""
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        states: asyncio.Queue[str] = asyncio.Queue()

        async def send(message: Any) -> None:
            await states.put(message["type"])

        task = asyncio.create_task(self.app({"type": "lifespan", "state": {}}, events.get, send))
        await events.put({"type": "lifespan.startup"})
        assert await states.get() == "lifespan.startup.complete"
        yield self
        await events.put({"type": "lifespan.shutdown"})
        assert await states.get() == "lifespan.shutdown.complete"
        await task


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_official_client_finds_and_uses_everything_in_both_eras(mode: Literal["auto", "legacy"]) -> None:
    service = FakeService(rows=[a_row(n, content_summary="hourly load") for n in range(3)])
    async with Mounted(service).running() as app:
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app))  # type: ignore[arg-type]
        async with http, Client(streamable_http_client(URL, http_client=http), mode=mode) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
            assert [str(one.uri) for one in (await client.list_resources()).resources] == ["shoal://collections"]
            assert len((await client.list_resource_templates()).resource_templates) == 2
            assert {one.name for one in (await client.list_prompts()).prompts} == {"write_scraper", "fix_scraper"}
            found = await client.call_tool("search_scrapes", {"query": "load", "limit": 2})
            assert found.structured_content is not None
            assert [one["id"] for one in found.structured_content["results"]] == ["d0", "d1"]
            wrong = await client.call_tool("search_scrapes", {"limit": "many"})
            assert wrong.is_error
            service.error = TransientError("no tables yet", 2.0)
            down = await client.call_tool("list_collections", {})
            assert down.is_error
            service.error = None
            read = await client.read_resource("shoal://collections")
            assert "scraper" in str(read.contents[0])
            prompt = await client.get_prompt("fix_scraper", {"scraper_name": "s"})
            assert "report_fix" in str(prompt.messages[0].content)


# --- whatever else comes --------------------------------------------------------------------------------------------

ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
MODERN = {**ACCEPT, "MCP-Protocol-Version": "2026-07-28"}
LEGACY = {**ACCEPT, "MCP-Protocol-Version": "2025-06-18"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
METHODS = st.sampled_from(
    ["tools/call", "tools/list", "resources/read", "resources/list", "prompts/get", "initialize", "server/discover",
     "ping", "completion/complete", "logging/setLevel", "notifications/initialized", "notifications/cancelled",
     "subscriptions/listen", "sampling/createMessage", "", "tools", "rpc.discover"]
) | st.text(max_size=20)  # fmt: skip
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("query", "limit", "cursor", "id", "filters", "api_spec", "scraper_name", "x"), JSON),
)
PARAMS = (
    st.fixed_dictionaries({"name": st.sampled_from(sorted(TOOLS)), "arguments": ARGUMENTS | JSON})
    | st.fixed_dictionaries(
        {"uri": st.sampled_from(["shoal://collections", "shoal://", "file:///etc/passwd"]) | st.text()}
    )
    | st.fixed_dictionaries({"name": st.sampled_from(["fix_scraper", "x"]), "arguments": JSON})
    | JSON
)
META = st.sampled_from([None, {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}, {"progressToken": []}]) | JSON


@st.composite
def messages(draw: st.DrawFn) -> Any:
    message: dict[str, Any] = {"jsonrpc": draw(st.sampled_from(["2.0", "2.0", "2.0", "1.0", 2, None]))}
    message["method"] = draw(METHODS | JSON)
    if draw(st.booleans()):
        message["id"] = draw(st.integers(0, 9) | st.text(max_size=5) | JSON)
    params = draw(PARAMS)
    if isinstance(params, dict) and draw(st.booleans()):
        params = {**params, "_meta": draw(META)}
    message["params"] = params
    for name in draw(st.lists(st.sampled_from(["jsonrpc", "method", "params"]), max_size=1)):
        del message[name]
    return message


BODIES = (
    (messages() | st.lists(messages(), max_size=3) | JSON).map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=200)
    | st.sampled_from(
        [b"", b"{", b"[" * 3000, b'{"a":' * 3000, b"\xff\xfe", b'{"jsonrpc":"2.0","id":1e999,"method":"ping"}']
    )
)
HEADERS = st.sampled_from([MODERN, LEGACY, ACCEPT]) | st.dictionaries(
    st.sampled_from(
        ["Accept", "Content-Type", "MCP-Protocol-Version", "Mcp-Session-Id", "Mcp-Method", "Mcp-Name", "Last-Event-ID",
         "Content-Encoding", "Origin", "X-Request-Id"]
    ),
    st.sampled_from(
        ["", "*/*", "application/json", "text/event-stream", "2026-07-28", "2025-06-18", "1999-01-01", "gzip"]
    ) | st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
    max_size=5,
)  # fmt: skip


def check(response: httpx.Response) -> None:
    """Never our fault, and told as what it is."""
    assert response.status_code < 500, response.text[:500]
    if response.headers.get("content-type", "").startswith("application/json") and response.content:
        body = response.json()
        for one in body if isinstance(body, list) else [body]:
            assert "result" in one or one["error"]["code"] < 0, one
            assert "Traceback" not in json.dumps(one)
    else:
        assert response.status_code != 200 or not response.content or "event-stream" in response.headers["content-type"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["POST"] * 6 + ["GET", "DELETE", "PUT"]), HEADERS, BODIES), min_size=4, max_size=12
    )
)
@example([("POST", MODERN, b""), ("POST", LEGACY, b"[]"), ("POST", ACCEPT, b"{}"), ("GET", MODERN, b"")])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
async def test_nothing_that_is_sent_is_answered_with_our_failure_or_not_at_all(
    requests: list[tuple[str, dict[str, str], bytes]],
) -> None:
    async with Mounted(FakeService(rows=[a_row()])).running() as app:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, timeout=ANSWER_S) as http:
            for method, headers, body in requests:
                response = await asyncio.wait_for(http.request(method, URL, headers=headers, content=body), ANSWER_S)
                check(response)
            # And it still answers those who speak properly.
            asked = {"jsonrpc": "2.0", "id": 7, "method": "tools/list", "params": {}}
            proper = await http.post(URL, headers=LEGACY, json=asked)
            assert len(proper.json()["result"]["tools"]) == len(TOOLS)


@pytest.mark.parametrize("headers", [MODERN, LEGACY])
async def test_what_is_huge_or_nested_is_refused_as_such(headers: dict[str, str]) -> None:
    deep: Any = 1
    for _ in range(300):
        deep = {"a": deep}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    async with Mounted(FakeService()).running() as app:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, timeout=ANSWER_S) as http:
            huge = await http.post(URL, headers=headers, content=b'"' + b"x" * BODY_BYTES_MAX + b'"')
            assert huge.status_code == 413
            for value in (deep, "[" * 2000, "{" * 100_000, 10**400):
                params = {"name": "find_similar_apis", "arguments": {"api_spec": value}}
                check(await http.post(URL, headers=headers, content=json.dumps({**call, "params": params})))
            for arguments in ({"query": "\ud800"}, {"query": "\x00"}, {"limit": 1e308}, {"cursor": "x" * 5000}):
                params = {"name": "search", "arguments": arguments}
                check(await http.post(URL, headers=headers, content=json.dumps({**call, "params": params})))

"""MCP as agents' hosts start it: `shoal mcp` over stdio and the endpoint over HTTP, with the official SDK's client, and
the inspector's command line where npx has it.

The other side is the same application that Serve hosts, over a service of fakes: a real socket, no Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import uvicorn
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from starlette.applications import Starlette
from starlette.routing import Mount

from shoal.mcp.server import build_server
from shoal.serve_apps.mcp_http import mcp_http
from tests.unit.mcp.test_server import TOOLS, FakeService, a_row

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(240),
    # The SDK's stdio client leaves the pipes of the process that it ended to the collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ROOT = Path(__file__).parents[2]
STARTED_S = 120.0


class Keyed:
    """Wants the key `k1`, as a Shoal with keys does."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and dict(scope["headers"]).get(b"authorization") != b"Bearer k1":
            await send({"type": "http.response.start", "status": 401, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"no"})
            return
        await self.app(scope, receive, send)


@contextlib.contextmanager
def hosted(port: int, *, keyed: bool = False) -> Iterator[str]:
    """A Shoal's endpoint at /mcp, on a thread of its own."""
    inner = mcp_http(build_server(FakeService(rows=[a_row(n, content_summary="hourly load") for n in range(3)])))
    routes = Starlette(routes=[Mount("/mcp", app=Keyed(inner) if keyed else inner)])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await inner(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == "/mcp":  # Mount redirects; Serve does not
            await (Keyed(inner) if keyed else inner)({**scope, "root_path": "/mcp"}, receive, send)
        else:
            await routes(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + STARTED_S
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(STARTED_S)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(url: str, **environment: str) -> StdioServerParameters:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    code = "import sys; from shoal.cluster.cli import main; sys.argv = ['shoal', 'mcp', '--url', sys.argv[1]]; main()"
    return StdioServerParameters(
        command=sys.executable, args=["-c", code, url], env={**kept, "PYTHONPATH": str(ROOT), **environment}
    )


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_official_client_over_http(port: int, mode: Literal["auto", "legacy"]) -> None:
    with hosted(port) as url:
        async with Client(streamable_http_client(f"{url}/mcp"), mode=mode) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
            found = await client.call_tool("search", {"query": "load", "limit": 2})
            assert found.structured_content is not None
            assert found.structured_content["count"] == 2


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_stdio_serves_while_shoal_is_down_and_again_when_it_is_up(
    port: int, mode: Literal["auto", "legacy"]
) -> None:
    url = f"http://127.0.0.1:{port}"
    async with Client(stdio_client(started(url, SHOAL_API_KEY="k1")), mode=mode) as client:
        # 1. Nobody is there: the tools are told all the same, and a call says what is wrong.
        assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
        down = await client.call_tool("search_scrapes", {"query": "load"})
        assert down.is_error
        assert f"Shoal at {url}/mcp can't be reached" in str(down.content)
        # 2. It comes up, wanting a key: the same process serves.
        with hosted(port, keyed=True):
            found = await client.call_tool("search_scrapes", {"query": "load", "limit": 2})
            assert found.structured_content is not None, found.content
            assert [one["id"] for one in found.structured_content["results"]] == ["d0", "d1"]
            wrong = await client.call_tool("search_scrapes", {"limit": "many"})
            assert wrong.is_error
            assert "Call again as search_scrapes(" in str(wrong.content)
            read = await client.read_resource("shoal://collections")
            assert "scraper" in str(read.contents[0])
            prompt = await client.get_prompt("fix_scraper", {"scraper_name": "s"})
            assert "report_fix" in str(prompt.messages[0].content)
        # 3. It goes away again.
        assert (await client.call_tool("ingest_status", {})).is_error


async def test_a_key_that_is_refused_is_named(port: int) -> None:
    with hosted(port, keyed=True) as url:
        async with Client(stdio_client(started(url))) as client:
            refused = await client.call_tool("list_collections", {})
            assert refused.is_error
            assert "set SHOAL_API_KEY" in str(refused.content)


def test_stdout_is_the_protocols_alone(port: int) -> None:
    parameters = started(f"http://127.0.0.1:{port}")
    requests: list[dict[str, Any]] = [
        {
            "jsonrpc": "2.0", "id": 1, "method": "initialize",
            "params": {
                "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"},
            },
        },
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "list_collections", "arguments": {}}},
        {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "no_such_tool", "arguments": {}}},
    ]  # fmt: skip
    with subprocess.Popen(
        [parameters.command, *parameters.args], env=parameters.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("\n".join(map(json.dumps, requests)) + "\n")
        process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.stdin.close()
        rest, log = process.stdout.read(), process.stderr.read()
        assert process.wait(STARTED_S) == 0
    assert {answer["id"] for answer in answers} == {1, 2, 3}
    assert rest == ""
    assert "asking http://127.0.0.1" in log


def test_the_inspectors_command_line_lists_and_calls(port: int) -> None:
    npx = shutil.which("npx")
    if npx is None:
        pytest.skip("no npx here")
    tool = [npx, "--yes", "@modelcontextprotocol/inspector@latest", "--cli"]

    def ask(url: str, *arguments: str) -> Any:
        command = [*tool, f"{url}/mcp", "--transport", "http", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=180)
        if ended.returncode and any(word in ended.stderr for word in ("npm error", "ENOTFOUND", "EAI_AGAIN")):
            if os.environ.get("CI"):
                pytest.fail(f"the npm registry does not answer: {ended.stderr[-500:]}")
            pytest.skip(f"the npm registry does not answer: {ended.stderr[-200:]}")
        assert ended.returncode == 0, ended.stderr[-2000:]
        return json.loads(ended.stdout)

    with hosted(port) as url:
        assert {one["name"] for one in ask(url, "--method", "tools/list")["tools"]} == TOOLS
        called = ask(url, "--method", "tools/call", "--tool-name", "search_scrapes", "--tool-arg", "limit=2")
        assert called["structuredContent"]["count"] == 2


async def test_calls_at_once_share_one_relay(port: int) -> None:
    with hosted(port, keyed=True) as url:
        async with Client(stdio_client(started(url, SHOAL_API_KEY="k1"))) as client:
            answers = await asyncio.gather(*(client.call_tool("search", {"limit": 1}) for _ in range(8)))
            assert not any(answer.is_error for answer in answers)

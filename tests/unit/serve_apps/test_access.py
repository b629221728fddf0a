"""Authorization as a matrix: every call of REST and every tool of MCP, times every scope, on two collections.

What each call needs is written here a second time, from the contract: the table of the service is held against it, and
then the running application against both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st

from shoal.mcp.server import build_server
from shoal.serve_apps import access
from shoal.serve_apps.access import ANY, METHODS, OPEN, REST, TOOLS, Call, Need, mcp_call, refusal, rest_call
from shoal.serve_apps.rest import create_rest
from shoal.serve_apps.scopes import EVERY, Caller, Grant, Scope
from tests.fixtures.callers import Callers, an_agent

LEVELS = {"read": 1, "write": 2, "admin": 3}

# call: (scope, where): open; scraper, the collection that the path or the argument names, all, or any.
CONTRACT = {
    "GET /": "open", "GET /healthz": "open", "GET /readyz": "open", "GET /docs": "open", "GET /docs/{name}": "open",
    "GET /openapi.json": "open", "GET /problems": "open", "GET /problems/{name}": "open",
    "GET /ui": "open", "GET /ui/": "open", "GET /ui/{name}": "open",
    "GET /.well-known/oauth-protected-resource": "open", "GET /.well-known/oauth-protected-resource/mcp": "open",
    "GET /metrics": "read all",
    "GET /api/v1/scrapes/search": "read scraper", "GET /api/v1/scrapes/{hash}": "read scraper",
    "GET /api/v1/scrapes/datasets": "read scraper",
    "POST /api/v1/agents/context/similar-apis": "read scraper",
    "POST /api/v1/agents/context/fix-patterns": "read scraper",
    "POST /api/v1/agents/fixes": "write scraper", "PATCH /api/v1/agents/fixes/{id}": "write scraper",
    "GET /api/v1/collections": "read any",
    "GET /api/v1/collections/{name}": "read named", "PUT /api/v1/collections/{name}": "admin named",
    "DELETE /api/v1/collections/{name}": "admin named",
    "GET /api/v1/collections/{name}/index": "read named", "POST /api/v1/collections/{name}/search": "read named",
    "POST /api/v1/collections/{name}/documents": "write named",
    "GET /api/v1/collections/{name}/documents/{id:path}": "read named",
    "DELETE /api/v1/collections/{name}/documents/{id:path}": "write named",
    "GET /api/v1/collections/{name}/documents/{id:path}/raw": "read named",
    "GET /api/v1/jobs/{job_id}": "read any", "GET /api/v1/ingest": "read all", "GET /api/v1/cost": "read all",
    "GET /api/v1/dead-letters": "read all", "GET /api/v1/dead-letters/{id:path}": "read all",
    "POST /api/v1/dead-letters/replay": "admin all", "GET /api/v1/audit": "admin all",
    "tool search_scrapes": "read scraper", "tool find_similar_apis": "read scraper",
    "tool get_fix_patterns": "read scraper", "tool report_fix": "write scraper", "tool search": "read named",
    "tool get_document": "read named", "tool list_collections": "read any", "tool ingest_status": "read all",
}  # fmt: skip

CALLERS: list[tuple[str, ...]] = [
    (), ("read",), ("write",), ("admin",), ("read:scraper",), ("write:scraper",), ("admin:scraper",), ("read:pages",),
    ("write:pages",), ("admin:pages",), ("admin:pages", "read:scraper"), ("read", "write:scraper"),
]  # fmt: skip


def allowed(call: str, scopes: tuple[str, ...], collection: str = "scraper") -> bool:
    """What CONTRACT says."""
    if CONTRACT[call] == "open":
        return True
    wanted, where = CONTRACT[call].split()
    needed = {"scraper": "scraper", "named": collection}.get(where)
    for grant in scopes:
        level, _, on = grant.partition(":")
        fits = where == "any" or not on or on == needed
        if LEVELS[level] >= LEVELS[wanted] and fits:
            return True
    return False


def test_the_table_says_what_the_contract_says() -> None:
    wheres = {EVERY: "all", ANY: "any", "{name}": "named", "scraper": "scraper"}

    def said(need: Need) -> str:
        return "open" if need.scope is None else f"{need.scope} {wheres[need.where]}"

    table = {f"{method} {path}": said(need) for (method, path), need in REST.items()}
    table |= {f"tool {name}": said(need) for name, need in TOOLS.items()}
    assert table == CONTRACT


def routes(app: Any) -> set[tuple[str, str]]:
    found = set()
    for route in app.routes:
        assert hasattr(route, "methods"), f"{route} is mounted: its paths can't be seen by the table"
        found |= {(method, route.path) for method in route.methods or () if method != "HEAD"}
    return found


def test_every_route_has_its_line_in_the_table(stand: Any) -> None:
    app = stand.app()
    missing = routes(app) - set(REST)
    assert not missing, f"say in shoal/serve_apps/access.py what these need: {sorted(missing)}"
    described = {(method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item}
    assert len(described) > 10
    assert described <= {(method, path.replace(":path", "")) for method, path in REST}


async def test_every_tool_has_its_line_in_the_table(stand: Any) -> None:
    tools = {tool.name for tool in await build_server(stand.service()).list_tools()}
    assert len(tools) >= 4
    assert tools <= set(TOOLS), "say in shoal/serve_apps/access.py what these need"


@pytest.fixture
def callers(tmp_path: Path) -> Callers:
    return Callers(tmp_path)


@pytest.fixture
async def guarded(stand: Any, callers: Callers) -> AsyncIterator[httpx.AsyncClient]:
    app = create_rest(stand.service(), gate=callers.gate())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://shoal"
    ) as client:
        yield client


MCP_HEADERS = {"Accept": "application/json, text/event-stream"}
PLACES = {"{name:path}": "x.js", "{hash}": "a" * 64, "{job_id}": "j1", "{id}": "7", "{id:path}": "prod:a:b/c.json"}


@pytest.mark.parametrize("collection", ["scraper", "pages", "nowhere"])
async def test_rest_lets_in_whom_the_contract_lets_in(
    guarded: httpx.AsyncClient, callers: Callers, collection: str
) -> None:
    for call in (call for call in CONTRACT if not call.startswith("tool ")):
        method, template = call.split()
        if "{name}" not in template and collection != "scraper":
            continue
        path = template.replace("{name}", collection)
        for place, value in PLACES.items():
            path = path.replace(place, value)
        for scopes in CALLERS:
            answer = await guarded.request(method, path, headers=callers.headers(*scopes))
            kind = answer.json()["type"].removeprefix("urn:shoal:problem:") if answer.status_code >= 400 else ""
            why = f"{call} on {collection} by {scopes}: {answer.status_code} {answer.text[:200]}"
            if allowed(call, scopes, collection):
                assert kind not in ("unauthenticated", "forbidden"), why
                assert "that you may read" not in answer.text, why
            elif not scopes:
                assert (answer.status_code, kind) == (401, "unauthenticated"), why
                assert answer.headers["www-authenticate"].startswith("Bearer"), why
            elif CONTRACT[call].endswith("named") and not allowed("GET /api/v1/collections/{name}", scopes, collection):
                assert (answer.status_code, kind) == (404, "not-found"), why
            else:
                assert (answer.status_code, kind) == (403, "forbidden"), why
                assert answer.json()["missing_scope"].partition(":")[0] == CONTRACT[call].split()[0], why
                assert 'error="insufficient_scope"' in answer.headers["www-authenticate"], why


async def test_mcp_lets_in_whom_the_contract_lets_in(stand: Any, callers: Callers) -> None:
    async with an_agent(stand.service(), callers.gate()) as agent:
        for call in (call for call in CONTRACT if call.startswith("tool ")):
            for scopes in CALLERS:
                asked = {"name": call.removeprefix("tool "), "arguments": {}}
                message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": asked}
                answer = await agent.post("/", json=message, headers=callers.headers(*scopes))
                why = f"{call} by {scopes}: {answer.status_code} {answer.text[:200]}"
                if allowed(call, scopes):
                    assert answer.status_code == 200, why
                else:
                    assert answer.status_code == (403 if scopes else 401), why
                    assert answer.headers["www-authenticate"].startswith("Bearer"), why


@pytest.mark.parametrize("method", ["tools/list", "resources/list", "prompts/list"])
async def test_any_key_may_ask_mcp_what_there_is_and_nobody_without_one(
    stand: Any, callers: Callers, method: str
) -> None:
    async with an_agent(stand.service(), callers.gate()) as agent:
        message = {"jsonrpc": "2.0", "id": 1, "method": method}
        assert (await agent.post("/", json=message)).status_code == 401
        assert (await agent.post("/", json=message, headers=callers.headers("read:pages"))).status_code == 200


async def test_an_unlisted_route_and_an_unlisted_tool_are_refused_at_run_time(
    stand: Any, callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with an_agent(stand.service(), callers.gate()) as agent:
        app = create_rest(stand.service(), gate=callers.gate())

        @app.get("/api/v1/forgotten")
        async def forgotten() -> str:
            return "secret"

        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as client:
            answer = await client.get("/api/v1/forgotten", headers=callers.headers("admin"))
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:shoal:problem:not-found")
        monkeypatch.setattr(access, "TOOLS", {})
        message = {"jsonrpc": "2.0", "id": 4, "method": "tools/call", "params": {"name": "report_fix", "arguments": {}}}
        told = (await agent.post("/", json=message, headers=callers.headers("admin"))).json()
        assert (told["id"], told["error"]["code"]) == (4, -32601)
        assert "report_fix" in told["error"]["message"]


def test_a_collection_that_a_caller_may_not_read_and_one_that_is_not_there_are_told_apart_by_nobody() -> None:
    caller = Caller("k", "k", "key", (Grant(Scope.ADMIN, "scraper"),))

    def said(collection: str) -> str:
        call = rest_call("DELETE", f"/api/v1/collections/{collection}")
        assert call is not None
        refused = refusal(caller, call)
        assert refused is not None
        assert refused.missing is None
        return refused.detail.replace(collection, "X")

    assert said("hidden") == said("absent")


@pytest.mark.parametrize(
    ("uri", "collection"),
    [
        ("shoal://collections", ANY), ("shoal://collections/pages", "pages"),
        ("shoal://documents/pages/prod:a:b", "pages"), ("shoal://other/pages", EVERY), ("file:///etc/passwd", EVERY),
        ("shoal://collections//pages", EVERY), ("", EVERY), (None, EVERY), (7, EVERY),
    ],
)  # fmt: skip
def test_a_resource_is_of_the_collection_that_its_uri_names(uri: Any, collection: str) -> None:
    call = mcp_call({"method": "resources/read", "params": {"uri": uri}})
    assert call is not None
    assert (call.collection, call.need.where) == (collection, collection if collection in (ANY, EVERY) else "{name}")


@pytest.mark.parametrize(
    ("arguments", "collection"),
    [({}, "scraper"), (None, "scraper"), ({"collection": ""}, "scraper"), ({"collection": "pages"}, "pages"),
     ({"collection": ["pages"]}, EVERY), ({"collection": 1}, EVERY), ({"collection": "*"}, "*"), ([], "scraper")],
)  # fmt: skip
def test_a_search_is_of_the_collection_that_its_arguments_name(arguments: Any, collection: str) -> None:
    call = mcp_call({"method": "tools/call", "params": {"name": "search", "arguments": arguments}})
    assert call is not None
    assert call.collection == collection


PATHS = st.one_of(
    st.text(max_size=60).map("/".__add__),
    st.lists(
        st.sampled_from(
            [
                "api",
                "v1",
                "collections",
                "scraper",
                "documents",
                "raw",
                "..",
                ".",
                "",
                "%2e%2e",
                "a/b",
                "\x00",
                "é",
                "*",
                "{name}",
            ]
        )
    ).map(lambda parts: "/" + "/".join(parts)),
)


@given(st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "TRACE", "get", ""]), PATHS)
def test_no_path_is_open_but_those_that_are_listed_as_open(method: str, path: str) -> None:
    call = rest_call(method, path)
    if call is not None and call.need == OPEN:
        assert path in ("/", "/healthz", "/readyz", "/docs", "/openapi.json", "/ui") or path.startswith(
            ("/docs/", "/ui/", "/.well-known/")
        )


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["method", "params", "name", "arguments", "collection", "uri"]), inner, max_size=4
            )
        ),
        max_leaves=8,
    )
)
def test_any_message_is_a_call_or_none_and_never_an_error(value: Any) -> None:
    if isinstance(value, dict):
        call = mcp_call(value)
        assert call is None or call.need.scope is not None, "nothing of MCP is open"


def test_of_several_lines_that_match_the_strictest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/api/v1/collections/a/documents/x/raw"
    call = rest_call("DELETE", path)
    assert call is not None
    assert call.need.scope == Scope.WRITE
    pattern = access.compile_path("/api/v1/collections/{name}/documents/x/raw")[0]
    monkeypatch.setattr(access, "_PATTERNS", [("DELETE", "first", OPEN, pattern), *access._PATTERNS])
    assert rest_call("DELETE", path) == Call(call.name, call.need, "a", call.about)


def test_the_methods_of_mcp_are_none_that_reads_a_collection() -> None:
    assert not METHODS & {"tools/call", "resources/read"}


def test_the_routes_of_the_application_are_plain_routes(stand: Any) -> None:
    assert any(isinstance(route, APIRoute) for route in stand.app().routes)

"""Browsers: which pages may ask what, under which names, and what every answer says to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from shoal.errors import ConfigurationError
from shoal.serve_apps.browsers import ALWAYS, Browsers, normal_origin
from shoal.serve_apps.rest import create_rest
from shoal.settings import load
from tests.fixtures.callers import Callers, an_agent

SEARCH, FIXES = "/api/v1/scrapes/search", "/api/v1/agents/fixes"
APP = "https://app.example"


@pytest.fixture
def callers(tmp_path: Path) -> Callers:
    return Callers(tmp_path)


def rest(stand: Any, gate: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_rest(stand.service(), gate=gate), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8000")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:8001", "http://localhost.evil.example", "", "file://"]
)
async def test_a_page_of_another_origin_changes_nothing_and_speaks_no_mcp(
    stand: Any, callers: Callers, origin: str
) -> None:
    gate = callers.gate("auto", is_local=True)
    async with rest(stand, gate) as http:
        answer = await http.post(FIXES, json={}, headers={"Origin": origin})
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:shoal:problem:origin-refused")
        read = await http.get(SEARCH, headers={"Origin": origin})
        assert "access-control-allow-origin" not in read.headers, "it may ask, but not read the answer"
    async with an_agent(stand.service(), gate) as agent:
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        headers = {"Origin": origin, "Host": "localhost:8000"}
        assert (await agent.post("/", json=message, headers=headers)).status_code == 403


async def test_our_own_page_may_ask_and_change(stand: Any, callers: Callers) -> None:
    async with rest(stand, callers.gate("auto", is_local=True)) as http:
        for origin in ("http://localhost:8000", "https://localhost:8000"):
            report = {"scraper_name": "s", "error_type": "E", "summary": "x", "outcome": "worked"}
            assert (await http.post(FIXES, json=report, headers={"Origin": origin})).status_code in (201, 202)


async def test_cors_is_closed_and_open_to_the_origins_of_the_setting_alone(stand: Any, callers: Callers) -> None:
    asked = {"Access-Control-Request-Method": "POST"}
    async with rest(stand, callers.gate()) as http:
        refused = await http.options(FIXES, headers={"Origin": APP} | asked)
        assert refused.status_code == 403
        assert not [name for name in refused.headers if name.startswith("access-control")]
    async with rest(stand, callers.gate(browsers=Browsers.of([APP], []))) as http:
        allowed = await http.options(FIXES, headers={"Origin": APP} | asked)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (204, APP)
        assert "access-control-allow-credentials" not in allowed.headers
        answer = await http.get(SEARCH, headers=callers.headers("read") | {"Origin": APP})
        assert (answer.headers["access-control-allow-origin"], answer.headers["vary"]) == (APP, "Origin")
        for other in ("https://app.example.evil", "http://app.example", "https://app.example:444"):
            assert (await http.options(FIXES, headers={"Origin": other} | asked)).status_code == 403
            told = await http.get(SEARCH, headers=callers.headers("read") | {"Origin": other})
            assert "access-control-allow-origin" not in told.headers


async def test_under_another_name_than_the_set_ones_nothing_is_answered(stand: Any, callers: Callers) -> None:
    gate = callers.gate(browsers=Browsers.of([], ["shoal.example"]))
    async with rest(stand, gate) as http:
        for host, status in (("shoal.example", 200), ("SHOAL.example:8000", 200), ("localhost", 200),
                             ("evil.example", 403), ("shoal.example.evil", 403), ("", 403)):  # fmt: skip
            answer = await http.get(SEARCH, headers=callers.headers("read") | {"Host": host})
            assert answer.status_code == status, host


async def test_every_answer_carries_the_headers_and_a_page_its_own_policy(stand: Any, callers: Callers) -> None:
    async with rest(stand, callers.gate()) as http:
        for path in ("/", SEARCH, "/nowhere", "/docs", "/openapi.json"):
            answer = await http.get(path)
            for name in ALWAYS:
                assert name in answer.headers, (path, name)
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        docs = await http.get("/docs")
        assert "script-src 'self'" in docs.headers["content-security-policy"]
        script = await http.get("/docs/swagger-ui-bundle.js")
        assert script.headers["cache-control"] == "max-age=86400"


@pytest.mark.parametrize(
    "origin",
    [
        "https://a.example/",
        "https://a.example/x",
        "ftp://a",
        "https://",
        "https://u:p@a.example",
        "https://a:b",
        "null",
        "*",
        "https://a?x",
        "//a",
        "https://[::1",
    ],
)
def test_what_is_no_origin(origin: str) -> None:
    assert normal_origin(origin) is None


def test_origins_are_compared_as_browsers_write_them() -> None:
    assert normal_origin("https://A.example:443") == "https://a.example"
    assert normal_origin("http://[::1]:8000") == "http://[::1]:8000"


@pytest.mark.parametrize("wrong", ["*", "https://a.example/app", "app.example", "https://*.example"])
def test_a_setting_that_would_open_too_much_stops_the_start(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="allowed_origins"):
        load(allowed_origins=wrong)
    assert load(allowed_origins="https://a.example, http://[::1]:80").allowed_origins[1] == "http://[::1]:80"

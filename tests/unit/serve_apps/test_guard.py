"""The guard of REST and MCP: who is let in, how, and what is said to the others."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from shoal.serve_apps.guard import Gate, Policy
from shoal.serve_apps.reach import asks_from_here, host_name, is_loopback
from shoal.serve_apps.rest import create_rest
from shoal.serve_apps.scopes import caller
from shoal.settings import load
from tests.fixtures.callers import Callers, an_agent

SEARCH = "/api/v1/scrapes/search"


@pytest.fixture
def callers(tmp_path: Path) -> Callers:
    return Callers(tmp_path)


def rest(stand: Any, gate: Gate, *, peer: str = "127.0.0.1", base: str = "http://localhost:8000") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(
        create_rest(stand.service(), gate=gate), raise_app_exceptions=False, client=(peer, 4321)
    )
    return httpx.AsyncClient(transport=transport, base_url=base)


async def test_a_key_is_taken_from_either_header(stand: Any, callers: Callers) -> None:
    key = callers.key("read")
    async with rest(stand, callers.gate()) as http:
        for headers in ({"Authorization": f"Bearer {key}"}, {"authorization": f"bearer  {key}"}, {"X-API-Key": key},
                        {"X-API-Key": key, "Authorization": f"Bearer {key}"}):  # fmt: skip
            assert (await http.get(SEARCH, headers=headers)).status_code == 200, headers


async def test_what_is_no_known_key_is_401_and_says_nothing_of_why(stand: Any, callers: Callers) -> None:
    key, other = callers.key("read"), callers.key("write")
    wrong: list[Any] = [
        {"Authorization": "Bearer "}, {"Authorization": key}, {"Authorization": f"Basic {key}"}, {"X-API-Key": ""},
        {"X-API-Key": key[:-1]}, {"X-API-Key": key + "x"}, {"X-API-Key": "x" * 20_000}, {"X-API-Key": "shoal_"},
        {"X-API-Key": "' OR 1=1 --"}, {"X-API-Key": key, "Authorization": f"Bearer {other}"},
        [("X-API-Key", key), ("X-API-Key", other)], [("Authorization", f"Bearer {key}"), ("Authorization", "x")],
    ]  # fmt: skip
    async with rest(stand, callers.gate()) as http:
        for headers in wrong:
            answer = await http.get(SEARCH, headers=headers)
            assert answer.status_code == 401, headers
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["www-authenticate"] == 'Bearer realm="shoal", error="invalid_token"'
            assert key not in answer.text


async def test_a_revoked_key_is_refused(stand: Any, callers: Callers) -> None:
    async with rest(stand, callers.gate()) as http:
        assert (await http.get(SEARCH, headers=callers.headers("read"))).status_code == 200
        callers.revoke("read")
        assert (await http.get(SEARCH, headers=callers.headers("read"))).status_code == 401


async def test_health_is_open_and_has_no_caller(stand: Any, callers: Callers) -> None:
    async with rest(stand, callers.gate()) as http:
        for path in ("/", "/healthz", "/readyz", "/docs", "/openapi.json"):
            assert (await http.get(path)).status_code == 200
            assert (await http.head(path)).status_code in (200, 405)


@pytest.mark.parametrize(
    ("auth", "is_local", "peer", "base", "headers", "status"),
    [
        ("auto", True, "127.0.0.1", "http://localhost:8000", {}, 200),
        ("auto", True, "127.0.0.1", "http://127.0.0.1:8000", {}, 200),
        ("auto", True, "::1", "http://[::1]:8000", {}, 200),
        ("auto", True, "192.0.2.7", "http://localhost:8000", {}, 401),  # from elsewhere, whatever it calls us
        ("auto", True, "127.0.0.1", "http://evil.example", {}, 401),  # a page that points its name here
        ("auto", True, "127.0.0.1", "http://localhost.evil.example", {}, 401),
        ("auto", True, "127.0.0.1", "http://localhost", {"X-Forwarded-For": "192.0.2.7"}, 401),  # a proxy for others
        ("auto", False, "127.0.0.1", "http://localhost:8000", {}, 401),  # bound to anything else: all need a key
        ("required", True, "127.0.0.1", "http://localhost:8000", {}, 401),
        ("anyone_may_do_anything", False, "192.0.2.7", "http://shoal.example", {}, 200),
    ],
)  # fmt: skip
async def test_without_a_key_only_this_machine_gets_in_unless_told_in_so_many_words(
    stand: Any, callers: Callers, auth: str, is_local: bool, peer: str, base: str, headers: Any, status: int
) -> None:
    async with rest(stand, callers.gate(auth, is_local=is_local), peer=peer, base=base) as http:
        assert (await http.get(SEARCH, headers=headers)).status_code == status


async def test_a_wrong_key_is_refused_even_where_none_is_needed(stand: Any, callers: Callers) -> None:
    async with rest(stand, callers.gate("auto", is_local=True)) as http:
        assert (await http.get(SEARCH, headers={"X-API-Key": "wrong"})).status_code == 401
        fixes = await http.post("/api/v1/agents/fixes", headers=callers.headers("read"))
        assert fixes.status_code == 403, "who names a key has its rights, not those of nobody"


async def test_while_keys_cannot_be_read_it_is_503_and_says_so(
    stand: Any, callers: Callers, caplog: pytest.LogCaptureFixture
) -> None:
    headers = callers.headers("read")
    place = Path(callers.settings.tables_uri) / "_shoal" / "keys.json"
    place.write_bytes(b"{")
    async with rest(stand, callers.gate()) as http:
        answer = await http.get(SEARCH, headers=headers)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert "can't be checked" in answer.json()["detail"]
    assert "keys.json" in caplog.text


async def test_keys_stand_in_no_log_and_no_answer(
    stand: Any, callers: Callers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = callers.key("read:pages")
    stand.index.error = RuntimeError("broken")
    async with rest(stand, callers.gate()) as http:
        for path in (SEARCH, "/api/v1/collections/x/index", "/api/v1/ingest", "/nowhere", f"/api/v1/jobs/{key[:9]}"):
            answer = await http.get(path, headers={"X-API-Key": key})
            assert key not in answer.text
            assert key.split("_")[2] not in str(answer.headers)
    assert key.split("_")[2] not in caplog.text
    assert key.split("_")[2] not in repr(callers.settings)


async def test_an_unknown_path_and_method_are_answered_as_before(stand: Any, callers: Callers) -> None:
    async with rest(stand, callers.gate()) as http:
        assert (await http.get("/nowhere")).json()["type"] == "urn:shoal:problem:not-found"
        wrong = await http.delete(SEARCH)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize(
    "name", ["../scraper", "scraper%00", "%2e%2e%2fscraper", "scraper'--", "a" * 5000, "\u202escraper", "*", "%3F"]
)
async def test_hostile_names_of_collections_reach_nothing(stand: Any, callers: Callers, name: str) -> None:
    async with rest(stand, callers.gate()) as http:
        answer = await http.get(f"/api/v1/collections/{name}/index", headers=callers.headers("admin:scraper"))
        assert answer.status_code == 404
        assert len(answer.text) < 1000
        assert "\u202e" not in answer.json()["detail"]


async def test_who_asked_is_known_behind_the_guard_and_signs_its_commands(stand: Any, callers: Callers) -> None:
    report = {"scraper_name": "s", "error_type": "E", "summary": "x", "outcome": "worked"}
    async with rest(stand, callers.gate()) as http:
        for scopes in (("write",), ("write:scraper",)):
            await http.post(
                "/api/v1/agents/fixes", json=report, headers=callers.headers(*scopes) | {"Idempotency-Key": "1"}
            )
    assert [sent["actor"] for sent in stand.log.sent] == [
        f"rest:{callers.identity('write')}", f"rest:{callers.identity('write:scraper')}",
    ]  # fmt: skip
    assert stand.log.sent[0]["command_id"] != stand.log.sent[1]["command_id"], (
        "equal keys of two callers are two commands"
    )
    assert caller() is None


async def test_a_job_of_a_collection_that_a_caller_cannot_see_is_not_there(stand: Any, callers: Callers) -> None:
    stand.index.jobs["j1"] = {"command_id": "j1", "kind": "fix", "collection": "scraper", "status": "done"}
    async with rest(stand, callers.gate()) as http:
        assert (await http.get("/api/v1/jobs/j1", headers=callers.headers("read:scraper"))).status_code == 200
        assert (await http.get("/api/v1/jobs/j1", headers=callers.headers("read:pages"))).status_code == 404


# --- MCP --------------------------------------------------------------------------------------

HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}


async def test_a_tool_knows_who_asks(stand: Any, callers: Callers) -> None:
    async with an_agent(stand.service(), callers.gate()) as agent:
        asked = call("report_fix", scraper_name="s", error_type="E", summary="x", outcome="worked")
        answer = await agent.post("/", json=asked, headers=callers.headers("write"))
        assert answer.status_code == 200
        assert [sent["actor"] for sent in stand.log.sent] == [f"mcp:{callers.identity('write')}"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"7", b'"x"', b"NaN", b"\xff\xfe", b"[" * 5000, b'{"a":' * 5000],
)
async def test_what_is_no_message_is_refused_before_the_server_sees_it(
    stand: Any, callers: Callers, body: bytes
) -> None:
    async with an_agent(stand.service(), callers.gate()) as agent:
        answer = await agent.post("/", content=body, headers=callers.headers("admin"))
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] in (-32700, -32600)


async def test_a_batch_is_refused_so_that_nothing_hides_in_it(stand: Any, callers: Callers) -> None:
    async with an_agent(stand.service(), callers.gate()) as agent:
        hidden = [{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, call("report_fix", summary="x")]
        answer = await agent.post("/", json=hidden, headers=callers.headers("admin"))
        assert (answer.status_code, "batches" in answer.text) == (400, True)


async def test_what_is_judged_is_what_is_done_where_a_name_is_given_twice(stand: Any, callers: Callers) -> None:
    async with an_agent(stand.service(), callers.gate()) as agent:
        arguments = orjson.dumps({"scraper_name": "s", "error_type": "E", "summary": "x", "outcome": "worked"}).decode()
        for first, second in (("report_fix", "search_scrapes"), ("search_scrapes", "report_fix")):
            twice = (
                f'{{"jsonrpc":"2.0","id":1,"method":"tools/call",'
                f'"params":{{"name":"{first}","arguments":{arguments},"name":"{second}"}}}}'
            )
            await agent.post("/", content=twice.encode(), headers=callers.headers("read"))
        assert stand.log.sent == []


async def test_a_body_above_the_limit_is_refused(stand: Any, callers: Callers) -> None:
    async with an_agent(stand.service(), callers.gate()) as agent:
        answer = await agent.post("/", content=b" " * (1024 * 1024 + 1), headers=callers.headers("admin"))
        assert answer.status_code == 413


async def test_an_unknown_caller_is_refused_before_its_body_is_read(
    stand: Any,
    callers: Callers,
) -> None:
    async with an_agent(stand.service(), callers.gate()) as agent:
        read = 0

        async def body() -> Any:
            nonlocal read
            read += 1
            yield b"{}"

        assert (await agent.post("/", content=body())).status_code == 401
        assert read == 0


# --- where a request comes from ---------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "localhost.", "::1", "::ffff:127.0.0.1"]
)
def test_loopback_names(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "::",
        "10.0.0.1",
        "example.org",
        "localhost.example.org",
        "127.0.0.1.nip.io",
        "",
        "2130706433",
        "0x7f.1",
    ],
)
def test_other_names(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "header",
    ["", "a b", "a/b", "u@localhost", "localhost:x", "localhost:99999", "[::1", "a,b", "a\\b", "a\x00", "localhost#x"],
)
def test_a_host_that_is_none_is_nobody(header: str) -> None:
    assert host_name(header) is None or not is_loopback(host_name(header) or "")
    assert not asks_from_here("127.0.0.1", header, ())


def test_who_needs_a_key_follows_where_the_service_is_bound() -> None:
    assert Policy.of(load()) == Policy("auto", True)
    assert Policy.of(load(http_host="0.0.0.0")) == Policy("auto", False)
    assert Policy.of(load(ray_address="auto")) == Policy("auto", False), "others decided what it is bound to"

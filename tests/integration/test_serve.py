"""REST and MCP as they are deployed: real Serve, real tables, real clients of both MCP eras.

No ingest side: the tables are written here, by the one writer, and commands are taken from the journal.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastmcp import Client as FastClient
from mcp import Client as SdkClient
from mcp.client.streamable_http import streamable_http_client

from shoal.client import Shoal
from shoal.embeddings.models import create_model
from shoal.records import EmbeddedCommand, Position
from shoal.settings import Settings
from shoal.sources.commands import CommandBody
from shoal.sources.journal import Journal
from shoal.sources.kafka import journal_path
from shoal.store.writing import TableWriter
from tests.fixtures.serve_side import DOCUMENTS, LIST_TOOLS, MCP_HEADERS, READY_S, Hosted, seed


@dataclass
class Place:
    """A running query side and the writer of its tables."""

    url: str
    settings: Settings
    writer: TableWriter

    def apply_commands(self) -> int:
        """What ingest would do with the commands that are in the log by now."""
        model = create_model(self.settings)
        with contextlib.closing(Journal(journal_path(self.settings))) as journal:
            found = [
                CommandBody.model_validate_json(entry.value)
                for entry in journal.open_entries(self.settings.command_topic, 0, 1, 0)
                if entry.value
            ]
        found = [body for body in found if body.kind != "spend"]  # what the warm-up of the query embedder cost
        batch = [
            EmbeddedCommand(
                body.to_command(Position("c", self.settings.command_topic, 0, number, 0), None),
                model.name,
                model.embed([f"{body.body['error_type']} {body.body.get('error_message', '')}"])[0],
            )
            for number, body in enumerate(found)
        ]
        self.writer.apply(batch, [], datetime.now(UTC))
        return len(batch)


TOOLS = {
    "search_scrapes", "search", "get_document", "find_similar_apis", "get_fix_patterns", "report_fix",
    "list_collections", "ingest_status",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("serve")
    settings, writer = seed(directory)
    with Hosted(directory, "haproxy" if sys.platform == "linux" else "proxy") as hosted:
        yield Place(hosted.url, settings, writer)


@pytest.fixture(scope="module")
def shoal(place: Place) -> Iterator[Shoal]:
    with Shoal(place.url) as client:
        yield client


pytestmark = [pytest.mark.integration, pytest.mark.timeout(READY_S + 90)]


def test_a_question_by_meaning_is_answered_over_rest(shoal: Shoal) -> None:
    page = shoal.search("wind generation", limit=1)
    assert page["query_type"] == "vector"
    hit = page["results"][0]
    assert (hit["data_source"], hit["id"]) == ("ENTSOE", hit["metadata_id"])
    assert hit["content_summary"] == DOCUMENTS[2][1]
    assert not [name for name, value in hit.items() if isinstance(value, list) and name != "warnings"]
    sources = [one["data_source"] for one in shoal.search_all("wind generation", limit=1)]
    assert sources[0] == "ENTSOE"
    assert sorted(sources) == ["CAISO", "ENTSOE", "NYISO"]


def test_the_general_search_filters_counts_and_explains(shoal: Shoal) -> None:
    page = shoal.search_collection(
        query="wind generation",
        filters={"not": {"column": "data_source", "eq": "CAISO"}},
        facets=["data_source"],
        highlight=True,
        explain=True,
    )
    first = page["results"][0]
    assert (page["mode"], page["count"], first["document"]["data_source"]) == ("hybrid", 2, "ENTSOE")
    assert first["chunks"][0]["snippet"]["spans"]
    assert first["explain"]["legs"].keys() == {"vector", "keyword"}
    counts = [(entry["value"], entry["count"]) for entry in page["facets"]["columns"]["data_source"]["values"]]
    assert counts == [("ENTSOE", 1), ("NYISO", 1)]
    assert page["freshness"]["wait_token"].isdecimal()


def test_filters_dates_and_hash_are_exact(shoal: Shoal) -> None:
    assert [hit["data_source"] for hit in shoal.search(data_source="caiso")["results"]] == ["CAISO"]
    day = shoal.search(start_date="2025-01-19", end_date="2025-01-19")["results"]
    assert [hit["data_source"] for hit in day] == ["CAISO"]
    known = shoal.by_hash(f"{2:064x}")
    assert (known["exists"], known["data"]["data_source"], known["count"]) == (True, "ENTSOE", 1)
    assert shoal.by_hash("f" * 64)["exists"] is False


HOSTILE = (
    "' OR '1'='1",
    "nyiso' OR 1=1 --",
    "\\' OR 1=1",
    "x') UNION SELECT * FROM scraper_vectors; --",
    "%",
    "_",
    '"',
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_filters_find_nothing_and_break_nothing(shoal: Shoal, text: str) -> None:
    for name in ("data_source", "data_type", "dataset", "environment", "scraper_name", "file_format"):
        filters: dict[str, Any] = {name: text}
        assert shoal.search(**filters)["results"] == []
        assert shoal.search("load", mode="hybrid", **filters)["results"] == []
    for mode in ("vector", "keyword", "hybrid"):
        assert len(shoal.search(text, mode=mode)["results"]) <= 3  # type: ignore[arg-type]
    assert shoal.fix_patterns(text, text, text) == []
    assert shoal.search()["count"] == 3


def test_a_similar_api_is_found_from_a_description(shoal: Shoal) -> None:
    found = shoal.similar_apis({"endpoint": "https://x.org/wind", "fields": ["actual wind generation in MW"]}, limit=2)
    assert len(found) == 2
    assert found[0]["data_source"] == "ENTSOE"
    assert 0 <= found[0]["similarity_score"] <= 1


def test_a_request_id_goes_round_exactly_once(place: Place) -> None:
    for path in ("/", "/nowhere", "/mcp"):
        response = httpx.get(f"{place.url}{path}", headers={"X-Request-Id": "abc-1"})
        assert response.headers.get_list("x-request-id") == ["abc-1"]
    problem = httpx.get(f"{place.url}/nowhere", headers={"X-Request-Id": "abc-1"}).json()
    assert problem["request_id"] == "abc-1"


def test_the_docs_work_without_any_outside_host(place: Place) -> None:
    page = httpx.get(f"{place.url}/docs")
    assert page.status_code == 200
    assert "https://" not in page.text
    assert len(httpx.get(f"{place.url}/docs/swagger-ui-bundle.js").content) > 100_000


def test_ingest_shows_what_the_supervisor_publishes(place: Place, shoal: Shoal) -> None:
    from shoal.store.state_files import write_state

    assert shoal.ingest()["warnings"]
    write_state(place.settings, "status.json", {"at": datetime.now(UTC).isoformat(), "health": "ok"})
    status = shoal.ingest()
    assert (status["ingest"]["health"], status["tables"]["documents"]) == ("ok", 3)
    assert status["age_s"] < 30


def test_a_reported_fix_goes_through_the_log_and_is_found_again(place: Place, shoal: Shoal) -> None:
    # 1. Reported over REST: durable in the log, not yet in the tables.
    report = ("nyiso_scraper", "KeyError", "the field is called load_forecast now", "worked")
    job = shoal.report_fix(*report, error_message="KeyError: 'forecast'", idempotency_key="k1")  # type: ignore[arg-type]
    assert job["status"] == "accepted"
    # 2. The writer applies it; the job and the fix are there, and the fix is found by a similar message.
    assert place.apply_commands() == 1
    deadline = time.monotonic() + 20
    while not (patterns := shoal.fix_patterns("nyiso_scraper", "KeyError", "KeyError: 'forecasts'")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert shoal.job(job["job_id"])["status"] == "done"
    fix = patterns[0]["fix_history"][0]
    assert (fix["summary"], fix["count"]) == ("the field is called load_forecast now", 1)
    assert patterns[0]["context"]["data_source"] == "NYISO"
    # 3. The same report under the same key is the same command: its outcome comes at once, nothing is counted.
    again = shoal.report_fix(*report, error_message="KeyError: 'forecast'", idempotency_key="k1")  # type: ignore[arg-type]
    assert (again["job_id"], again["status"]) == (job["job_id"], "done")


def test_tools_are_listed_by_one_plain_post_with_and_without_a_slash(place: Place) -> None:
    for path in ("/mcp", "/mcp/"):
        response = httpx.post(f"{place.url}{path}", json=LIST_TOOLS, headers=MCP_HEADERS)
        assert response.status_code == 200
        assert {tool["name"] for tool in response.json()["result"]["tools"]} == TOOLS


def test_a_get_of_mcp_is_answered_politely_and_garbage_too(place: Place) -> None:
    assert httpx.get(f"{place.url}/mcp").status_code == 405
    for body in (b"{", b"[]", b'{"jsonrpc": "2.0"}', b"\xff", b"x" * 2_000_000):
        response = httpx.post(
            f"{place.url}/mcp", content=body, headers={**MCP_HEADERS, "Content-Type": "application/json"}
        )
        assert 400 <= response.status_code < 500, body[:20]


async def test_fastmcps_client_lists_and_calls_the_tools(place: Place) -> None:
    async with FastClient(f"{place.url}/mcp") as client:
        assert {tool.name for tool in await client.list_tools()} == TOOLS
        found = await client.call_tool("search_scrapes", {"query": "wind generation", "limit": 1})
        hit = (found.structured_content or {})["results"][0]
        assert (hit["data_source"], hit["content_summary"]) == ("ENTSOE", DOCUMENTS[2][1])
        refused = await client.call_tool("search_scrapes", {"end_date": "soon"}, raise_on_error=False)
        assert refused.is_error
        assert "Call again as search_scrapes(" in refused.content[0].text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_official_client_speaks_both_eras(place: Place, mode: Any) -> None:
    async with SdkClient(streamable_http_client(f"{place.url}/mcp"), mode=mode) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
        found = await client.call_tool("search_scrapes", {"data_source": "nyiso"})
        body: Any = found.structured_content
        assert [hit["data_source"] for hit in body["results"]] == ["NYISO"]
        assert "data" in body["notice"]
        similar = await client.call_tool(
            "find_similar_apis", {"endpoint": "https://x.org/prices", "api_spec": {"fields": ["marginal price"]}}
        )
        assert json.loads(similar.content[0].text) == similar.structured_content  # type: ignore[union-attr]
        asked = {"id": body["results"][0]["id"], "include": ["text", "similar"]}
        document: Any = (await client.call_tool("get_document", asked)).structured_content
        assert document["text"] == DOCUMENTS[0][1]
        assert {api["data_source"] for api in document["similar"]} == {"CAISO", "ENTSOE"}
        held: Any = (await client.call_tool("list_collections", {})).structured_content
        assert held["collections"][0]["documents"] == 3
        assert held["collections"][0]["contents"]["data_source"] == {"NYISO": 1, "CAISO": 1, "ENTSOE": 1}
        marked: Any = (await client.call_tool("search", {"query": "wind generation", "limit": 1})).structured_content
        assert marked["results"][0]["suspicious"] == ["override"]
        patterns = await client.call_tool("get_fix_patterns", {"scraper_name": "x' OR '1'='1"})
        assert patterns.structured_content["fix_patterns"] == []  # type: ignore[index]
        wrong = await client.call_tool("get_fix_patterns", {})
        assert wrong.is_error


def test_tables_of_a_model_that_can_not_be_had_are_searched_by_keyword_behind_the_plain_proxy(tmp_path: Path) -> None:
    seed(tmp_path, "openai:text-embedding-3-small")  # and there is no key
    with Hosted(tmp_path, "proxy", status="degraded") as hosted:
        url = hosted.url
        with Shoal(url) as client:
            page = client.search("wind generation", limit=1)
            assert (page["query_type"], page["results"][0]["data_source"]) == ("keyword", "ENTSOE")
            assert "key" in page["warnings"][0].lower()
            assert "\n" not in page["warnings"][0]  # our error as it was, not Ray's traceback of it
            general = client.search_collection(query="wind generation", mode="vector")
            assert (general["mode"], "key" in general["warnings"][0].lower()) == ("keyword", True)
        similar = httpx.post(f"{url}/api/v1/agents/context/similar-apis", json={"endpoint": "/wind"}).json()
        assert "key" in similar["warnings"][0].lower()
        response = httpx.post(f"{url}/mcp", json=LIST_TOOLS, headers={**MCP_HEADERS, "X-Request-Id": "abc-1"})
        assert response.status_code == 200
        assert response.headers.get_list("x-request-id") == ["abc-1"]

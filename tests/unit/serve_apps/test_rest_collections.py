"""POST /api/v1/collections/{name}/search over a fake index: what reaches the store, and what comes back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from fastmcp import Client

from shoal.errors import ConfigurationError, TransientError
from shoal.mcp.server import build_server
from shoal.serve_apps.collection_search import Defaults
from shoal.serve_apps.scopes import Caller, Grant, Scope, asking
from shoal.settings import Settings
from shoal.store.boosts import DAY_S, Boosts
from shoal.store.facets import Facet, Facets
from shoal.store.filters import And, Equals, Not, Prefix
from shoal.store.highlights import snippet
from shoal.store.requests import FusionMethod

SEARCH = "/api/v1/collections/scraper/search"


async def test_a_query_is_hybrid_by_default_and_filters_reach_the_store_typed(http: Any, stand: Any) -> None:
    tree = {"and": [{"column": "data_source", "eq": "NYISO"}, {"not": {"column": "dataset", "prefix": "x' OR 1=1"}}]}
    body = (await http.post(SEARCH, json={"query": "load", "filters": tree, "limit": 3})).json()
    request = stand.index.requests[0]
    assert (request.collection, request.mode, request.query, request.limit) == ("scraper", "hybrid", "load", 3)
    assert request.vector is not None
    assert request.filters == And((Equals("data_source", "NYISO"), Not(Prefix("dataset", "x' OR 1=1"))))
    assert (body["mode"], body["count"]) == ("hybrid", 1)


@pytest.mark.parametrize("sent", [b"", b"{}", b'{"query": null, "filters": null, "mode": ""}'])
async def test_without_a_query_it_lists_and_embeds_nothing(http: Any, stand: Any, sent: bytes) -> None:
    body = (await http.post(SEARCH, content=sent)).json()
    assert (body["mode"], stand.index.requests[0].mode, stand.index.requests[0].limit) == ("sql", "sql", 10)
    assert stand.embedder.texts == []
    assert list(body["results"][0]) == ["document"]


async def test_a_result_has_its_document_its_scores_and_its_best_chunk(http: Any, stand: Any, ranked: Any) -> None:
    stand.index.hits = (ranked("x" * 9000),)
    (result,) = (await http.post(SEARCH, json={"query": "load"})).json()["results"]
    assert result["document"]["id"] == "prod:nyiso_load:load.json"
    assert (result["score"], result["distance"]) == (0.8, 0.4)
    assert result["chunks"][0]["id"] == "prod:nyiso_load:load.json#0"
    assert len(result["chunks"][0]["text"]) == 4000


@pytest.mark.parametrize(
    ("sent", "parameter"),
    [
        ({"queri": "load"}, "queri"),
        ({"queri": None}, "queri"),
        ({"queri": " "}, "queri"),
        ({"query": "load", "mode": "sql"}, "mode"),
        ({"mode": "hybrid"}, "mode"),
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"query": "q" * 4001}, "query"),
        ({"query": "a\x00b"}, "query"),
        ({"wait_token": "1 or 1"}, "wait_token"),
        ({"filters": "title = 'x'"}, "filters"),
        ({"filters": {"and": [{"column": "title", "like": "x"}]}}, "filters.and.0.like"),
        ({"filters": {"column": "fence", "is_null": False}}, "filters"),
        ({"filters": {"column": "year", "gt": "2024"}}, "filters"),
    ],
)
async def test_what_is_wrong_or_unknown_is_refused_by_name(
    http: Any, stand: Any, sent: dict[str, Any], parameter: str
) -> None:
    response = await http.post(SEARCH, json=sent)
    assert response.status_code == 422
    assert response.json()["parameter"] == parameter
    assert stand.embedder.texts == []


async def test_a_parameter_in_the_url_and_a_body_that_is_no_object_are_refused(http: Any) -> None:
    assert (await http.post(f"{SEARCH}?limit=3", json={})).status_code == 422
    assert (await http.post(SEARCH, content=b"[1]")).status_code == 400


@pytest.mark.parametrize(
    ("method", "place"),
    [("POST", "/search"), ("GET", ""), ("GET", "/index"), ("GET", "/documents/d"), ("DELETE", "/documents/d")],
)
async def test_an_unknown_collection_is_not_found_and_the_answer_names_those_of_the_caller(
    http: Any, stand: Any, method: str, place: str
) -> None:
    def ask() -> Any:
        body = {"json": {}} if method == "POST" else {}
        return http.request(method, f"/api/v1/collections/x{place}", **body)

    answer = await ask()
    assert (answer.status_code, answer.json()["detail"]) == (
        404, "there is no collection 'x' that you may read; those are: scraper"
    )  # fmt: skip
    with asking(Caller("k", "k", "key", (Grant(Scope.ADMIN, "x"),))):
        answer = await ask()
    assert (answer.status_code, answer.json()["detail"]) == (
        404, "there is no collection 'x' that you may read; those are: none"
    )  # fmt: skip
    assert stand.embedder.texts == []


async def test_a_list_has_the_collections_of_the_caller_alone(http: Any, stand: Any) -> None:
    assert [one["name"] for one in (await http.get("/api/v1/collections")).json()["collections"]] == ["scraper"]
    pushed = "push-20250120T143000Z"
    with asking(Caller("k", "k", "key", (Grant(Scope.READ, "pages"),))):
        assert (await http.get("/api/v1/collections")).json()["collections"] == []
        assert (await http.get(f"/api/v1/jobs/{pushed}")).status_code == 404


@pytest.mark.parametrize("mode", ["vector", "hybrid", None])
@pytest.mark.parametrize("fault", ["error", "hangs", "crash", "key"])
async def test_without_an_embedder_it_answers_by_words_and_says_so(
    http: Any, stand: Any, mode: str | None, fault: str
) -> None:
    stand.embedder.hangs = fault == "hangs"
    stand.embedder.error = {
        "error": TransientError("throttled"),
        "crash": RuntimeError("actor died"),
        "key": ConfigurationError("the key is wrong"),
    }.get(fault)
    body = (await http.post(SEARCH, json={"query": "load", "mode": mode})).json()
    assert body["mode"] == stand.index.requests[0].mode == "keyword"
    assert stand.index.requests[0].vector is None
    assert "by keyword" in body["warnings"][0]
    assert body["count"] == 1


@pytest.mark.parametrize("mode", ["vector", "hybrid", None])
async def test_an_agent_is_answered_by_words_too(stand: Any, ranked: Any, mode: str | None) -> None:
    stand.embedder.error = TransientError("throttled")
    stand.index.hits = (ranked("hourly load"),)
    async with Client(build_server(stand.service())) as client:
        found = await client.call_tool("search_scrapes", {"query": "load", "mode": mode})
    assert found.structured_content is not None
    assert (found.structured_content["query_type"], found.structured_content["count"]) == ("keyword", 1)
    assert "by keyword" in found.structured_content["warnings"][0]


async def test_every_answer_tells_how_fresh_it_is(http: Any, stand: Any) -> None:
    now = datetime.now(UTC).isoformat()
    stand.status = {"at": now, "totals": {"lag_records": 12, "lag_s": 3.5}}
    for response in (
        await http.post(SEARCH, json={}),
        await http.get("/api/v1/scrapes/search"),
    ):
        assert response.json()["freshness"] == {
            "indexed_through": "2025-01-20T14:30:04Z",
            "wait_token": "7",
            "lag_records": 12,
            "lag_s": 3.5,
            "unindexed_rows": {"vector": 3, "keyword": None},
        }


@pytest.mark.parametrize(
    "status",
    [None, TransientError("the store is down"), ["odd"], {"at": "2020-01-01T00:00:00Z", "totals": {"lag_s": 0.0}}],
)
async def test_a_lag_that_nobody_vouches_for_is_unknown_and_fails_nothing(http: Any, stand: Any, status: Any) -> None:
    stand.status = status
    freshness = (await http.post(SEARCH, json={})).json()["freshness"]
    assert (freshness["lag_records"], freshness["lag_s"]) == (None, None)


async def test_a_slow_status_holds_up_no_answer(http: Any, stand: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Reading the status takes as long as it is let. 2. Answers come all the same, without a lag. 3. Only one
    read is under way."""
    import threading

    let, reads = threading.Event(), []

    def read(self: Any) -> Any:
        reads.append(True)
        let.wait(30)
        return None

    monkeypatch.setattr("shoal.serve_apps.freshness.FIRST_READ_WAIT_S", 0.0)
    service = stand.service()
    service._lag._read_status = lambda: read(None)
    for _ in range(3):
        assert (await service.collection_search("scraper", {}))["freshness"]["lag_s"] is None
    let.set()
    assert len(reads) == 1


async def test_a_facet_that_is_named_twice_is_counted_once(http: Any, stand: Any) -> None:
    await http.post(SEARCH, json={"facets": ["year", "dataset", "year"]})
    assert stand.index.requests[0].facets == ("year", "dataset")


async def test_pages_by_words_go_on_by_words(http: Any, stand: Any) -> None:
    stand.embedder.error = TransientError("throttled")
    stand.index.cursor = "stored"
    first = (await http.post(SEARCH, json={"query": "load"})).json()
    stand.embedder.error = None
    second = (await http.post(SEARCH, json={"query": "load", "cursor": first["next_cursor"]})).json()
    assert (second["mode"], second["next_cursor"]) == ("keyword", first["next_cursor"])
    assert "by keyword" in second["warnings"][0]
    assert stand.index.requests[-1].cursor == "stored"


async def test_older_versions_are_listed_where_asked_for(http: Any, stand: Any) -> None:
    await http.post(SEARCH, json={"include_superseded": True})
    await http.post(SEARCH, json={})
    assert [request.include_superseded for request in stand.index.requests] == [True, False]


async def test_openapi_names_the_parts_of_a_filter(http: Any) -> None:
    document = (await http.get("/openapi.json")).json()
    content = document["paths"]["/api/v1/collections/{name}/search"]["post"]["requestBody"]["content"]
    text = str(content["application/json"]["schema"])
    assert "#/components/schemas/Condition" in text
    assert {"AllOf", "AnyOf", "Negation", "Condition"} <= document["components"]["schemas"].keys()
    assert content["application/json"]["example"]["filters"]


async def test_how_to_rank_and_what_to_show_reaches_the_store(http: Any, stand: Any) -> None:
    sent = {
        "query": "load", "facets": ["file_format", "year"], "highlight": True, "chunks_per_document": 3,
        "as_of": "412", "mmr_lambda": 0.5,
        "boosts": {"recency": 1, "half_life_days": 2, "identifier": False}, "explain": True,
    }  # fmt: skip
    body = (await http.post(SEARCH, json=sent)).json()
    request = stand.index.requests[0]
    assert request.facets == ("file_format", "year")
    assert request.as_of == 412
    assert (request.highlight, request.chunks_per_document, request.mmr_lambda) == (True, 3, 0.5)
    assert request.boosts == Boosts(recency=1.0, half_life_s=2 * DAY_S, identifier=False)
    assert (request.explain, request.fusion) == (True, "weighted")
    assert "timings_ms" in body


async def test_chunks_snippets_and_facets_are_shown(http: Any, stand: Any, ranked: Any) -> None:
    hit = ranked("hourly load, MW")
    other = {**hit.chunk, "id": "prod:nyiso_load:load.json#3", "chunk_index": 3, "content_summary": "<b>load</b>"}
    snippets = tuple(snippet(chunk["content_summary"], ("load",)) for chunk in (hit.chunk, other))
    stand.index.hits = (replace(hit, chunks=(hit.chunk, other), snippets=snippets),)
    stand.index.facets = Facets({"year": Facet(((2025, 2), (2024, 1)), others=1, missing=3)}, 7, exact=False)
    body = (await http.post(SEARCH, json={"query": "load", "facets": ["year"]})).json()
    first, second = body["results"][0]["chunks"]
    assert (first["chunk_index"], second["chunk_index"]) == (0, 3)
    assert first["snippet"] == {"text": "hourly load, MW", "start": 0, "spans": [[7, 11]]}
    assert second["snippet"] == {"text": "<b>load</b>", "start": 0, "spans": [[3, 7]]}
    values = [{"value": 2025, "count": 2}, {"value": 2024, "count": 1}]
    assert body["facets"] == {
        "of": 7,
        "exact": False,
        "columns": {"year": {"values": values, "others": 1, "missing": 3}},
    }


@pytest.mark.parametrize(
    ("sent", "parameter"),
    [
        ({"facets": ["id"]}, "facets.0"),
        ({"facets": ["year"] * 99}, "facets"),
        ({"chunks_per_document": 6}, "chunks_per_document"),
        ({"mmr_lambda": 2}, "mmr_lambda"),
        ({"mmr_lambda": "nan"}, "mmr_lambda"),
        ({"boosts": {"recency": 11}}, "boosts.recency"),
        ({"boosts": {"popularity": 1}}, "boosts.popularity"),
        ({"boosts": {"half_life_days": 0}}, "boosts.half_life_days"),
        ({"boosts": 3}, "boosts"),
        ({"as_of": "yesterday"}, "as_of"),
    ],
)
async def test_a_ranking_that_makes_no_sense_is_refused_by_name(
    http: Any, sent: dict[str, Any], parameter: str
) -> None:
    response = await http.post(SEARCH, json={"query": "load", **sent})
    assert (response.status_code, response.json()["parameter"]) == (422, parameter)


async def test_settings_rank_every_search_and_a_request_changes_only_what_it_names(stand: Any) -> None:
    settings = Settings(search_fusion="rrf", boost_recency=0.5, boost_recency_half_life_days=7, boost_title=0.2)
    stand.defaults = Defaults.of(settings)
    service = stand.service()
    await service.scrapes_search({"query": "load"})
    await service.collection_search("scraper", {"query": "load", "boosts": {"title": 0}})
    first, second = stand.index.requests
    assert (first.fusion, first.boosts) == ("rrf", Boosts(recency=0.5, half_life_s=7 * DAY_S, title=0.2))
    assert (second.fusion, second.boosts) == ("rrf", Boosts(recency=0.5, half_life_s=7 * DAY_S, title=0.0))
    assert get_args(FusionMethod) == get_args(Settings.model_fields["search_fusion"].annotation)

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from shoal.errors import ConfigurationError, TransientError
from shoal.store.cursors import CursorError
from shoal.store.filters import And, Equals, Range, matches, to_sql
from shoal.store.requests import AsOf
from tests.unit.serve_apps.conftest import COMMITTED

SEARCH = "/api/v1/scrapes/search"
HASH = "a" * 64
COLUMNS: dict[str, Any] = {"data_source": "text", "dataset": "text", "collected_at": "time", "file_format": "text"}


async def test_a_search_without_query_is_sql_and_needs_no_embedder(http: Any, stand: Any) -> None:
    body = (await http.get(SEARCH, params={"data_source": "nyiso"})).json()
    assert body["query_type"] == "sql"
    assert body["count"] == 1
    assert body["next_cursor"] is None
    assert body["indexed_through"] == "2025-01-20T14:30:04Z"
    assert body["warnings"] == []
    assert isinstance(body["took_ms"], float)
    assert stand.embedder.texts == []


async def test_data_source_and_file_format_are_matched_in_any_case(http: Any, stand: Any) -> None:
    await http.get(SEARCH, params={"data_source": "nYiSo", "file_format": "json"})
    assert stand.index.requests[0].filters == And((Equals("data_source", "NYISO"), Equals("file_format", "JSON")))


async def test_every_metadata_field_comes_back_and_no_chunk_field_without_query(http: Any) -> None:
    result = (await http.get(SEARCH)).json()["results"][0]
    assert result["collected_at"] == "2025-01-20T14:30:00Z"
    assert result["warnings"] == ["a"]
    assert "content_summary" not in result


async def test_a_query_result_has_the_best_chunk_and_the_documents_own_id(http: Any, stand: Any, ranked: Any) -> None:
    stand.index.hits = (ranked("x" * 3000),)
    body = (await http.get(SEARCH, params={"query": "load"})).json()
    result = body["results"][0]
    assert body["query_type"] == "vector"
    assert result["id"] == result["metadata_id"] == "prod:nyiso_load:load.json"
    assert len(result["content_summary"]) == 1000
    assert (result["score"], result["_distance"], result["auth_method"]) == (0.8, 0.4, "api_key")
    assert not [name for name in result if "embedding" in name and name != "embedding_model"]


@pytest.mark.parametrize(("mode", "has_vector"), [("vector", True), ("hybrid", True), ("keyword", False)])
async def test_mode_decides_whether_the_query_is_embedded(http: Any, stand: Any, mode: str, has_vector: bool) -> None:
    await http.get(SEARCH, params={"query": "load", "mode": mode})
    request = stand.index.requests[0]
    assert request.mode == mode
    assert (request.vector is not None) is has_vector
    assert request.query == "load"


def _window(filters: Any) -> Range:
    window = next(part for part in filters.parts if isinstance(part, Range))
    assert to_sql(window, COLUMNS)
    return window


@pytest.mark.parametrize("day", ["2025-01-20", "20250120", "2025-W04-1"])
async def test_a_date_as_end_includes_that_day_and_not_the_next(http: Any, stand: Any, day: str) -> None:
    await http.get(SEARCH, params={"end_date": day})
    window = _window(stand.index.requests[0].filters)
    assert matches(window, {"collected_at": datetime(2025, 1, 20, 23, 59, 59, 999999, tzinfo=UTC)})
    assert not matches(window, {"collected_at": datetime(2025, 1, 21, tzinfo=UTC)})


async def test_a_date_as_start_begins_at_midnight_and_stands_alone(http: Any, stand: Any) -> None:
    await http.get(SEARCH, params={"start_date": "2025-01-20"})
    window = _window(stand.index.requests[0].filters)
    assert matches(window, {"collected_at": datetime(2025, 1, 20, tzinfo=UTC)})
    assert not matches(window, {"collected_at": datetime(2025, 1, 19, 23, 59, 59, tzinfo=UTC)})


@pytest.mark.parametrize("text", ["2025-01-20T14:30:00Z", "2025-01-20T15:30:00+01:00", "2025-01-20T14:30:00"])
async def test_a_time_as_end_is_included_and_zoneless_is_utc(http: Any, stand: Any, text: str) -> None:
    await http.get(SEARCH, params={"end_date": text})
    window = _window(stand.index.requests[0].filters)
    assert matches(window, {"collected_at": datetime(2025, 1, 20, 14, 30, tzinfo=UTC)})
    assert not matches(window, {"collected_at": datetime(2025, 1, 20, 14, 30, 1, tzinfo=UTC)})


async def test_an_unescaped_plus_of_a_zone_is_understood(http: Any, stand: Any) -> None:
    response = await http.get(f"{SEARCH}?start_date=2025-01-20T15:30:00+01:00")
    assert response.status_code == 200
    assert _window(stand.index.requests[0].filters).low == datetime(2025, 1, 20, 14, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("start_date", "yesterday"),
        ("end_date", "2025-02-30"),
        ("end_date", "9999-12-31"),
        ("start_date", "2025-01-20' OR '1'='1"),
        ("limit", "0"),
        ("limit", "1001"),
        ("limit", "ten"),
        ("mode", "semantic"),
        ("hash", "abc"),
        ("hash", "' OR 1=1 --" + "a" * 53),
        ("wait_token", "1; DROP TABLE"),
        ("as_of", "yesterday"),
        ("as_of", "1" * 19),
        ("as_of", "-4"),
        ("dataset", "a\x00b"),
        ("query", "q" * 4001),
        ("explain", "perhaps"),
    ],
)
async def test_a_wrong_value_is_a_422_problem_that_names_its_parameter(
    http: Any, stand: Any, parameter: str, value: str
) -> None:
    response = await http.get(SEARCH, params={"query": "load", parameter: value})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == "urn:shoal:problem:invalid-parameter"
    assert problem["parameter"] == parameter
    assert problem["request_id"] == response.headers["x-request-id"]
    assert stand.index.requests == []


async def test_an_end_before_the_start_and_a_mode_without_query_are_refused(http: Any) -> None:
    backwards = await http.get(SEARCH, params={"start_date": "2025-01-21", "end_date": "2025-01-19"})
    assert (backwards.status_code, backwards.json()["parameter"]) == (422, "end_date")
    bare = await http.get(SEARCH, params={"mode": "hybrid"})
    assert (bare.status_code, bare.json()["parameter"]) == (422, "mode")


async def test_one_day_is_a_valid_window(http: Any) -> None:
    assert (await http.get(SEARCH, params={"start_date": "2025-01-20", "end_date": "2025-01-20"})).status_code == 200


async def test_empty_parameters_count_as_absent(http: Any, stand: Any) -> None:
    response = await http.get(f"{SEARCH}?data_source=&start_date=&query=%20&limit=&hash=&mode=")
    assert response.status_code == 200
    assert stand.index.requests[0].filters is None
    assert stand.index.requests[0].limit == 100


async def test_unknown_parameters_are_ignored_and_listed(http: Any) -> None:
    body = (await http.get(SEARCH, params={"at": "2025", "lmit": "5"})).json()
    assert body["count"] == 1
    assert body["warnings"] == ["unknown parameter ignored: at", "unknown parameter ignored: lmit"]


HOSTILE = ["' OR '1'='1", "x'; DROP TABLE scraper_metadata; --", "\\' OR 1=1 --", "%' UNION SELECT 1", "𝕏'\u2019\u202e"]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "parameter", ["data_source", "data_type", "dataset", "environment", "scraper_name", "file_format"]
)
async def test_hostile_text_stays_one_value_of_one_condition(http: Any, stand: Any, parameter: str, text: str) -> None:
    assert (await http.get(SEARCH, params={parameter: text})).status_code == 200
    filters = stand.index.requests[0].filters
    upper = parameter in ("data_source", "file_format")
    assert filters == And((Equals(parameter, text.upper() if upper else text),))


@pytest.mark.parametrize("text", HOSTILE)
async def test_a_hostile_query_is_only_ever_text(http: Any, stand: Any, text: str) -> None:
    assert (await http.get(SEARCH, params={"query": text})).status_code == 200
    assert stand.embedder.texts == [text]
    assert stand.index.requests[0].filters is None


@pytest.mark.parametrize("fault", ["error", "hangs", "crash", "key"])
async def test_without_an_embedder_a_search_degrades_to_keywords_and_says_so(http: Any, stand: Any, fault: str) -> None:
    stand.embedder.hangs = fault == "hangs"
    stand.embedder.error = {
        "error": TransientError("throttled"),
        "crash": RuntimeError("actor died"),
        "key": ConfigurationError("the key is wrong"),
    }.get(fault)
    body = (await http.get(SEARCH, params={"query": "load"})).json()
    assert body["query_type"] == "keyword"
    assert "keyword" in body["warnings"][0]
    assert stand.index.requests[0].vector is None
    assert "actor died" not in str(body)


@pytest.mark.parametrize(("cursor", "begins"), [("abc", None), ("@7.12.31~abc", "@7.12.31~"), ("~7~0f~abc", "~7~0f~")])
async def test_a_next_page_that_can_t_go_on_by_meaning_begins_anew_by_words_in_its_state_and_says_so(
    http: Any, stand: Any, cursor: str, begins: str | None
) -> None:
    stand.embedder.error = TransientError("throttled", 3.2)
    stand.index.cursor = "further"
    body = (await http.get(SEARCH, params={"query": "load", "cursor": cursor})).json()
    assert (body["query_type"], body["next_cursor"]) == ("keyword", "keyword.further")
    assert "throttled" in body["warnings"][0]
    assert "from the first on" in body["warnings"][0]
    assert (stand.index.requests[0].mode, stand.index.requests[0].cursor) == ("keyword", begins)


async def test_pages_by_meaning_go_on_without_an_embedder_where_the_question_is_remembered(
    http: Any, stand: Any
) -> None:
    stand.index.cursor = "@7.12.31~abc"
    first = (await http.get(SEARCH, params={"query": "load"})).json()
    stand.embedder.error = TransientError("throttled")
    second = (await http.get(SEARCH, params={"query": "load", "cursor": first["next_cursor"]})).json()
    assert (second["query_type"], second["warnings"]) == ("vector", [])
    assert stand.index.requests[1].cursor == "@7.12.31~abc"


async def test_pages_by_words_go_on_by_words_whether_the_embedder_is_back_or_not(http: Any, stand: Any) -> None:
    """1. Without an embedder the first page is by words. 2. The same question with its cursor, still without one;
    3. and once the embedder is back: the ranking is the same, and both say so. 4. By words as the caller's own mode."""
    stand.embedder.error = TransientError("throttled")
    stand.index.cursor = "stored"
    first = (await http.get(SEARCH, params={"query": "load"})).json()
    again = {"query": "load", "cursor": first["next_cursor"]}
    second = (await http.get(SEARCH, params=again)).json()
    stand.embedder.error = None
    third = (await http.get(SEARCH, params=again | {"cursor": second["next_cursor"]})).json()
    for page in (second, third):
        assert (page["query_type"], page["next_cursor"]) == ("keyword", first["next_cursor"])
        assert "by keyword" in page["warnings"][0]
    fourth = (await http.get(SEARCH, params=again | {"mode": "keyword"})).json()
    assert (fourth["next_cursor"], fourth["warnings"]) == ("stored", [])
    assert [request.cursor for request in stand.index.requests] == [None, "stored", "stored", "stored"]
    assert {request.mode for request in stand.index.requests} == {"keyword"}


async def test_a_damaged_cursor_is_the_callers_to_mend(http: Any, stand: Any) -> None:
    stand.index.error = CursorError("the cursor was changed or cut on its way; start again without it")
    response = await http.get(SEARCH, params={"cursor": "abc"})
    assert (response.status_code, response.json()["parameter"]) == (422, "cursor")


async def test_while_there_are_no_tables_a_search_asks_to_come_back(http: Any, stand: Any) -> None:
    stand.no_tables()
    response = await http.get(SEARCH)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["type"] == "urn:shoal:problem:unavailable"


async def test_a_misconfiguration_says_what_to_mend(http: Any, stand: Any) -> None:
    stand.index.error = ConfigurationError("install the newer version")
    response = await http.get(SEARCH)
    assert (response.status_code, response.json()["type"]) == (500, "urn:shoal:problem:misconfigured")


async def test_wait_token_explain_and_superseded_reach_the_index(http: Any, stand: Any) -> None:
    body = (
        await http.get(SEARCH, params={"wait_token": "41", "explain": "true", "include_superseded": "1", "limit": "3"})
    ).json()
    request = stand.index.requests[0]
    assert (request.wait_sequence, request.explain, request.include_superseded, request.limit) == (41, True, True, 3)
    assert "timings_ms" in body
    assert "explain" in body["results"][0]


async def test_a_search_by_hash_finds_older_versions_too(http: Any, stand: Any) -> None:
    await http.get(SEARCH, params={"hash": HASH.upper()})
    assert stand.index.requests[0].filters == And((Equals("sha256_hash", HASH),))
    assert stand.index.requests[0].include_superseded


async def test_by_hash_finds_the_newest_and_counts_all(http: Any, stand: Any) -> None:
    stand.index.rows = [{"id": "new", "sha256_hash": HASH}, {"id": "old", "sha256_hash": HASH}]
    body = (await http.get(f"/api/v1/scrapes/{HASH.upper()}?v=2")).json()
    assert (body["exists"], body["data"]["id"], body["count"]) == (True, "new", 2)
    assert body["warnings"] == ["unknown parameter ignored: v"]


async def test_an_unknown_hash_does_not_exist_and_a_wrong_one_is_refused(http: Any) -> None:
    assert (await http.get(f"/api/v1/scrapes/{'b' * 64}")).json()["exists"] is False
    refused = await http.get("/api/v1/scrapes/' OR 1=1")
    assert (refused.status_code, refused.json()["parameter"]) == (422, "hash")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("412", 412),
        ("2025-01-20", datetime(2025, 1, 20, tzinfo=UTC)),
        (
            "2025-01-20T14:30:00 01:00",
            datetime(2025, 1, 20, 13, 30, tzinfo=UTC),
        ),  # '+' in a URL
    ],
)
async def test_as_of_is_a_commit_or_a_time_and_the_answer_says_which_state_it_is(
    http: Any, stand: Any, asked: str, meant: datetime | int
) -> None:
    stand.index.as_of = AsOf(412, COMMITTED)
    body = (await http.get(SEARCH, params={"as_of": asked})).json()
    assert stand.index.requests[0].as_of == meant
    assert body["as_of"] == {"commit_sequence": 412, "committed_at": "2025-01-20T14:30:04Z"}
    assert "as_of" not in (await _without(stand, http))


async def _without(stand: Any, http: Any) -> dict[str, Any]:
    stand.index.as_of = None
    body: dict[str, Any] = (await http.get(SEARCH)).json()
    return body

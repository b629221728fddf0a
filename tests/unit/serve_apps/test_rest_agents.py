from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from shoal.errors import TransientError

SIMILAR = "/api/v1/agents/context/similar-apis"
PATTERNS = "/api/v1/agents/context/fix-patterns"
FIXES = "/api/v1/agents/fixes"
REPORT = {
    "scraper_name": "nyiso_load",
    "error_type": "KeyError",
    "error_message": "KeyError: 'forecast'",
    "summary": "renamed",
    "outcome": "worked",
}


def done(stand: Any, status: str = "done") -> None:
    """The writer applies each command at once."""

    def apply(command: dict[str, Any]) -> None:
        row = {"command_id": command["command_id"], "status": status, "error": None, "kind": command["kind"]}
        stand.index.jobs[command["command_id"]] = {**row, "result": '{"id": "f1"}', "commit_sequence": 9}

    stand.log.on_send = apply


async def test_similar_apis_embeds_a_description_and_returns_the_contracts_fields(
    http: Any, stand: Any, ranked: Any
) -> None:
    stand.index.hits = (ranked(),)
    spec = {"endpoint": "https://example.org/v2/load", "method": "GET", "auth_required": True}
    response = await http.post(f"{SIMILAR}?limit=3&x=1", json=spec)
    body = response.json()
    api = body["similar_apis"][0]
    assert response.status_code == 200
    assert (api["data_source"], api["similarity_score"], api["auth_method"]) == ("NYISO", 0.8, "api_key")
    assert {"api_endpoint", "rate_limit", "content_summary"} <= set(api)
    assert body["warnings"] == ["unknown parameter ignored: x"]
    assert "load" in stand.embedder.texts[0]


@pytest.mark.parametrize("body", ["{}", '{"endpoint": ""}'])
async def test_an_empty_description_is_refused(http: Any, body: str) -> None:
    response = await http.post(SIMILAR, content=body)
    assert response.status_code == 422
    assert "describe" in response.json()["detail"]


@pytest.mark.parametrize("body", ["", "[1]", "{", '{"a": NaN}', "\xff", '"text"', "[" * 5000])
@pytest.mark.parametrize("path", [SIMILAR, FIXES])
async def test_a_body_that_is_no_json_object_is_a_400_problem(http: Any, path: str, body: str) -> None:
    json_type = {"Content-Type": "application/json"}
    response = await http.post(path, content=body.encode("latin-1"), headers=json_type)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"


async def test_a_deep_description_is_refused_and_a_wide_one_too(http: Any) -> None:
    deep = b'{"a":' * 400 + b"1" + b"}" * 400
    assert (await http.post(SIMILAR, content=deep)).status_code == 422
    wide = orjson.dumps({"a": "x" * 300_000})
    assert (await http.post(SIMILAR, content=wide)).status_code == 422


@pytest.mark.parametrize("limit", ["0", "51", "many"])
async def test_the_limit_of_similar_apis_is_bounded(http: Any, limit: str) -> None:
    response = await http.post(f"{SIMILAR}?limit={limit}", json={"endpoint": "/x"})
    assert (response.status_code, response.json()["parameter"]) == (422, "limit")


async def test_without_an_embedder_similar_apis_are_those_with_the_words_in_common_each_once(
    http: Any, stand: Any, ranked: Any
) -> None:
    stand.embedder.error = TransientError("throttled", 7)
    first, other = ranked("hourly load"), ranked("price")
    stand.index.hits = (
        first,
        first,
        replace(other, chunk={**other.chunk, "api_endpoint": "https://example.org/price"}),
    )
    body = (await http.post(SIMILAR, json={"endpoint": "/load", "note": 'a "quoted" word'})).json()
    assert [api["api_endpoint"].rpartition("/")[2] for api in body["similar_apis"]] == ["load", "price"]
    assert "throttled" in body["warnings"][0]
    assert "words in common" in body["warnings"][0]
    (asked,) = stand.index.requests
    assert (asked.mode, asked.vector) == ("keyword", None)
    assert '"' not in asked.query


@pytest.mark.parametrize(
    ("path", "unindexed"),
    [(SIMILAR, {"schema": 2}), (PATTERNS, {"error": None}), (f"/api/v1/scrapes/{'b' * 64}", {"hash": 1})],
)
async def test_look_ups_say_how_fresh_they_are_too(
    http: Any, stand: Any, path: str, unindexed: dict[str, int | None]
) -> None:
    given = {"endpoint": "/x", "scraper_name": "s"}
    response = await (http.get(path) if "scrapes" in path else http.post(path, json=given))
    assert response.json()["freshness"] == {
        "indexed_through": "2025-01-20T14:30:04Z",
        "wait_token": "7",
        "lag_records": None,
        "lag_s": None,
        "unindexed_rows": unindexed,
    }


async def test_a_hostile_description_is_only_ever_embedded(http: Any, stand: Any) -> None:
    spec = {"endpoint": "/x' OR 1=1", "auth_required": {"$where": "1"}, "'; DROP": ["--", None, 1e308, True]}
    assert (await http.post(SIMILAR, json=spec)).status_code == 200


@pytest.mark.parametrize("where", ["body", "query", "form"])
async def test_fix_patterns_takes_its_parameters_from_body_or_query(http: Any, stand: Any, where: str) -> None:
    stand.index.fixed = [{"scraper_name": "nyiso_load", "error_type": "KeyError", "summary": "renamed", "count": 2}]
    asked = {"scraper_name": "nyiso_load", "error_type": "KeyError", "error_message": "no 'forecast'", "limit": 3}
    if where == "query":
        response = await http.post(PATTERNS, params=asked)
    else:  # `curl -d` calls its JSON a form
        kind = "application/json" if where == "body" else "application/x-www-form-urlencoded"
        response = await http.post(PATTERNS, content=orjson.dumps(asked), headers={"Content-Type": kind})
    pattern = response.json()["fix_patterns"][0]
    assert (pattern["scraper"], pattern["fix_history"][0]["summary"]) == ("nyiso_load", "renamed")
    assert pattern["context"]["dataset"] == "nyiso_load"
    scraper, error_type, vector, message, limit = stand.index.asked_fixes[0]
    assert (scraper, error_type, message, limit) == ("nyiso_load", "KeyError", "no 'forecast'", 3)
    assert vector is not None


async def test_fix_patterns_work_without_an_embedder_and_say_so(http: Any, stand: Any) -> None:
    stand.embedder.error = TransientError("throttled")
    body = (await http.post(PATTERNS, json={"scraper_name": "s", "error_message": "m", "extra": 1})).json()
    assert body["fix_patterns"] == []
    assert "words" in body["warnings"][0]
    assert body["warnings"][1] == "unknown parameter ignored: extra"
    assert stand.index.asked_fixes[0][2] is None


async def test_fix_patterns_need_a_scraper_and_a_bounded_limit(http: Any) -> None:
    assert (await http.post(PATTERNS)).json()["parameter"] == "scraper_name"
    response = await http.post(PATTERNS, json={"scraper_name": "s", "limit": 21})
    assert (response.status_code, response.json()["parameter"]) == (422, "limit")


async def test_a_fix_that_is_applied_in_time_is_201_with_its_outcome(http: Any, stand: Any) -> None:
    done(stand)
    response = await http.post(FIXES, json=REPORT)
    job = response.json()
    assert response.status_code == 201
    assert (job["status"], job["result"], job["wait_token"]) == ("done", {"id": "f1"}, "9")
    assert response.headers["location"] == f"/api/v1/jobs/{job['job_id']}"
    command = stand.log.sent[0]
    assert (command["kind"], command["collection"], command["actor"]) == ("fix", "scraper", "rest")
    assert command["body"] == REPORT
    assert stand.log.keys == [b"scraper"]
    assert (await http.get(response.headers["location"])).json() == job


async def test_a_fix_that_is_not_applied_in_time_is_202_and_its_job_unknown_yet(
    http: Any, stand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.serve_apps.search_service.JOB_WAIT_S", 0.0)
    response = await http.post(FIXES, json=REPORT)
    assert (response.status_code, response.json()["status"]) == (202, "accepted")
    job = await http.get(response.headers["location"])
    assert (job.status_code, job.json()["type"]) == (404, "urn:shoal:problem:not-found")


async def test_the_same_idempotency_key_is_the_same_command(http: Any, stand: Any) -> None:
    done(stand)
    for key in ("k1", "k1", "k2", None, None):
        headers = {"Idempotency-Key": key} if key else {}
        assert (await http.post(FIXES, json=REPORT, headers=headers)).status_code == 201
    ids = [command["command_id"] for command in stand.log.sent]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_page_in_a_browser_can_not_report_a_fix_unasked(http: Any, stand: Any, kind: str) -> None:
    response = await http.post(FIXES, content=orjson.dumps(REPORT), headers={"Content-Type": kind})
    assert (response.status_code, response.json()["type"]) == (415, "urn:shoal:problem:unsupported-media-type")
    assert stand.log.sent == []


async def test_a_refused_fix_is_told_as_such(http: Any, stand: Any) -> None:
    done(stand, status="failed")
    response = await http.post(FIXES, json=REPORT)
    assert (response.status_code, response.json()["type"]) == (422, "urn:shoal:problem:refused")


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"outcome": "perhaps"}, "outcome"),
        ({"summary": ""}, "summary"),
        ({"scraper_name": "a\x07b"}, "scraper_name"),
        ({"diff": "x" * 64_001}, "diff"),
        ({"sumary": "typo"}, "sumary"),
        ({"error_type": ["KeyError"]}, "error_type"),
    ],
)
async def test_a_wrong_report_is_refused_before_the_log(
    http: Any, stand: Any, change: dict[str, Any], parameter: str
) -> None:
    response = await http.post(FIXES, json={**REPORT, **change})
    assert (response.status_code, response.json()["parameter"]) == (422, parameter)
    assert stand.log.sent == []


async def test_unknown_query_parameters_are_refused_where_clients_are_new(http: Any) -> None:
    for method, path in (("POST", FIXES), ("GET", "/api/v1/ingest"), ("GET", "/api/v1/jobs/x")):
        response = await http.request(method, f"{path}?lmit=1", json=REPORT if method == "POST" else None)
        assert (response.status_code, response.json()["parameter"]) == (422, "lmit")


async def test_when_the_log_is_down_nothing_is_claimed_and_the_producer_is_opened_anew(http: Any, stand: Any) -> None:
    done(stand)
    stand.log.error = TransientError("brokers are down", 5)
    response = await http.post(FIXES, json=REPORT)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    stand.log.error = None
    assert (await http.post(FIXES, json=REPORT)).status_code == 201
    assert stand.log.opened == 2


async def test_secrets_in_the_urls_of_a_report_are_not_stored(http: Any, stand: Any) -> None:
    done(stand)
    await http.post(FIXES, json={**REPORT, "error_message": "401 for https://x.org/a?api_key=hunter2&b=1"})
    assert "hunter2" not in str(stand.log.sent)


async def test_a_fix_is_marked_wrong_by_a_command_and_with_a_reason(http: Any, stand: Any) -> None:
    done(stand)
    response = await http.patch(f"{FIXES}/f1", json={"wrong": True, "note": "see https://x.org/a?api_key=hunter2"})
    assert response.status_code == 200
    assert response.headers["location"] == f"/api/v1/jobs/{response.json()['job_id']}"
    command = stand.log.sent[0]
    assert (command["kind"], command["collection"], command["actor"]) == ("fix_mark", "scraper", "rest")
    assert (command["body"]["id"], command["body"]["wrong"], command["body"]["by"]) == ("f1", True, "rest")
    assert "hunter2" not in str(command)


async def test_the_same_idempotency_key_marks_once(http: Any, stand: Any) -> None:
    done(stand)
    for key in ("k1", "k1", "k2"):
        await http.patch(f"{FIXES}/f1", json={"outcome": "failed"}, headers={"Idempotency-Key": key})
    assert len({command["command_id"] for command in stand.log.sent}) == 2


@pytest.mark.parametrize(
    ("path", "body", "parameter"),
    [
        ("f1", {}, "wrong"),
        ("f1", {"wrong": None, "note": "x"}, "wrong"),
        ("f1", {"wrong": True, "by": "me"}, "by"),
        ("f1", {"outcome": "perhaps"}, "outcome"),
        ("f%201", {"wrong": True}, "id"),
    ],
)
async def test_a_mark_that_says_nothing_or_too_much_is_refused_before_the_log(
    http: Any, stand: Any, path: str, body: dict[str, Any], parameter: str
) -> None:
    response = await http.patch(f"{FIXES}/{path}", json=body)
    assert (response.status_code, response.json()["parameter"]) == (422, parameter)
    assert (await http.patch(f"{FIXES}/f1", content=b"{}", headers={"Content-Type": "text/plain"})).status_code == 415
    assert stand.log.sent == []

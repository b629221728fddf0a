"""The frame of every request: health, ids, limits, framework errors, docs."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shoal.errors import TransientError
from shoal.serve_apps.problem_kinds import KINDS
from shoal.serve_apps.problems import BODY_BYTES_MAX
from shoal.serve_apps.request_frame import Limits


async def test_the_root_says_what_deployed_probes_expect(http: Any) -> None:
    assert (await http.get("/")).json() == {"status": "ok", "service": "lancedb-query-api"}
    assert (await http.get("/healthz")).json() == {"status": "ok"}


async def test_readiness_tells_ready_degraded_and_starting_apart(http: Any, stand: Any) -> None:
    assert (await http.get("/readyz")).json() == {"status": "ready", "tables": "open", "embedder": "ok"}
    stand.embedder.error = TransientError("throttled")
    degraded = await http.get("/readyz")
    assert (degraded.status_code, degraded.json()["status"]) == (200, "degraded")
    stand.no_tables()
    starting = await http.get("/readyz")
    assert (starting.status_code, starting.json()["type"]) == (503, "urn:shoal:problem:starting")


async def test_a_request_id_is_kept_where_well_formed_and_made_otherwise(http: Any) -> None:
    kept = await http.get("/", headers={"X-Request-Id": "abc-1.2:3"})
    assert kept.headers["x-request-id"] == "abc-1.2:3"
    for wrong in ("a b", "x" * 129, "<script>", ""):
        made = await http.get("/", headers={"X-Request-Id": wrong})
        assert re.fullmatch(r"[0-9a-f]{32}", made.headers["x-request-id"])


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nowhere", 404, "not-found"),
        ("DELETE", "/api/v1/scrapes/search", 405, "method-not-allowed"),
        ("GET", "/docs/../settings.py", 404, "not-found"),
        ("GET", "/docs/secret", 404, "not-found"),
        ("GET", "/api/v1/jobs/a%20b", 422, "invalid-parameter"),
    ],
)
async def test_errors_of_the_framework_are_problems_too(
    http: Any, method: str, path: str, status: int, kind: str
) -> None:
    response = await http.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == f"urn:shoal:problem:{kind}"
    assert response.json()["request_id"] == response.headers["x-request-id"]


async def test_an_unexpected_error_is_logged_under_its_id_and_told_to_nobody(
    http: Any, stand: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stand.index.error = RuntimeError("password is hunter2")
    response = await http.get("/api/v1/scrapes/search")
    assert (response.status_code, response.json()["type"]) == (500, "urn:shoal:problem:internal")
    assert "hunter2" not in response.text
    assert response.headers["x-request-id"] in caplog.text


async def test_a_body_above_the_limit_is_refused_by_its_announced_length(http: Any) -> None:
    response = await http.post("/api/v1/agents/fixes", content=b"x" * (BODY_BYTES_MAX + 1))
    assert (response.status_code, response.json()["type"]) == (413, "urn:shoal:problem:too-large")


async def test_a_body_above_the_limit_is_refused_while_it_streams(http: Any) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 65536
            yield b"x" * 65536

    response = await http.post("/api/v1/agents/context/similar-apis", content=endless())
    assert response.status_code == 413
    assert sent < 2 * BODY_BYTES_MAX


async def test_ingest_shows_the_status_its_age_and_the_tables(http: Any, stand: Any) -> None:
    stand.status = {"at": (datetime.now(UTC) - timedelta(seconds=30)).isoformat(), "health": "ok"}
    body = (await http.get("/api/v1/ingest")).json()
    assert body["ingest"]["health"] == "ok"
    assert 29 < body["age_s"] < 40
    assert body["tables"] == {
        "documents": 1,
        "chunks": 2,
        "commit_sequence": 7,
        "committed_at": "2025-01-20T14:30:04Z",
    }
    assert body["warnings"] == []


@pytest.mark.parametrize("status", [None, TransientError("the store is down"), {"at": "soon"}, ["odd"]])
async def test_ingest_is_honest_about_a_status_that_is_missing_or_odd(http: Any, stand: Any, status: Any) -> None:
    stand.status = status
    stand.no_tables()
    body = (await http.get("/api/v1/ingest")).json()
    assert body["age_s"] is None
    assert body["tables"] is None
    if status is None or isinstance(status, Exception):
        assert body["ingest"] is None
        assert len(body["warnings"]) == 1


async def test_the_docs_load_nothing_from_outside(http: Any) -> None:
    page = await http.get("/docs")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    places = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(places) >= 3
    for place in places:
        assert place.startswith("/docs/")
        file = await http.get(place)
        assert file.status_code == 200
        assert file.content
    assert "validatorUrl" in page.text


async def test_the_service_is_closed_with_the_application(stand: Any) -> None:
    app = stand.app()
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as client:
            assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("kind", sorted(KINDS))
async def test_every_kind_of_problem_is_explained_where_a_problem_says(http: Any, kind: str) -> None:
    explained = (await http.get(f"/problems/{kind}")).json()
    assert explained["type"] == f"urn:shoal:problem:{kind}"
    assert explained["advice"]


async def test_a_problem_says_where_its_kind_is_explained(http: Any) -> None:
    problem = (await http.get("/nowhere")).json()
    assert (await http.get(problem["see"])).json()["type"] == problem["type"]
    assert {one["status"] for one in (await http.get("/problems")).json()["problems"]} >= {404, 429, 503, 504}


async def test_a_trace_is_continued_with_a_span_of_our_own_and_logged(
    http: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "shoal.rest.access")
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    answer = await http.get("/healthz", headers={"traceparent": f"00-{trace}-{span}-01"})
    version, ours, of_us, flags = answer.headers["traceparent"].split("-")
    assert (version, ours, flags) == ("00", trace, "01")
    assert of_us != span
    assert trace in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "00-xyz",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{'a' * 32}-{'0' * 16}-01",
        f"ff-{'a' * 32}-{'b' * 16}-01",
    ],
)
async def test_what_is_no_trace_is_none(http: Any, wrong: str) -> None:
    assert "traceparent" not in (await http.get("/healthz", headers={"traceparent": wrong})).headers


async def test_a_request_that_takes_longer_than_it_may_is_answered_504(
    http: Any, stand: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def never(_: str) -> Any:
        await asyncio.Event().wait()

    stand.index.by_hash = never
    answer = await http.get(f"/api/v1/scrapes/{'a' * 64}", headers={"X-Request-Timeout": "0.05"})
    assert (answer.status_code, answer.json()["type"]) == (504, "urn:shoal:problem:timeout")
    assert answer.headers["content-type"] == "application/problem+json"
    (line,) = [record for record in caplog.records if "access" in record.name]
    assert line.levelname == "WARNING"
    assert answer.headers["x-request-id"] in line.getMessage()


@pytest.mark.parametrize("wrong", ["soon", "0", "-1", "nan", "inf", "301", "1" * 400])
async def test_a_timeout_that_is_none_is_refused(http: Any, wrong: str) -> None:
    answer = await http.get("/healthz", headers={"X-Request-Timeout": wrong})
    assert (answer.status_code, "X-Request-Timeout" in answer.json()["detail"]) == (422, True)


async def test_more_requests_than_fit_are_told_to_come_back(stand: Any) -> None:
    stand.limits = Limits(in_flight=1)
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow(_: str) -> list[Any]:
        entered.set()
        await leave.wait()
        return []

    stand.index.by_hash = slow
    transport = httpx.ASGITransport(stand.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as client:
        # 1. one request is being answered
        first = asyncio.create_task(client.get(f"/api/v1/scrapes/{'a' * 64}"))
        await entered.wait()
        # 2. a second one is told to come back
        second = await client.get("/healthz")
        assert (second.status_code, second.headers["retry-after"]) == (429, "1")
        assert second.json()["type"] == "urn:shoal:problem:too-many-requests"
        # 3. when the first is over there is room again
        leave.set()
        assert (await first).status_code == 200
        assert (await client.get("/healthz")).status_code == 200


async def test_a_url_above_the_limit_is_refused(http: Any) -> None:
    answer = await http.get("/api/v1/scrapes/search?query=" + "a" * 40_000)
    assert (answer.status_code, answer.json()["type"]) == (414, "urn:shoal:problem:uri-too-long")


async def test_long_answers_are_compressed_for_who_takes_it_and_short_ones_are_not(http: Any, stand: Any) -> None:
    stand.index.hits = stand.index.hits * 100
    long = await http.get("/api/v1/scrapes/search", headers={"Accept-Encoding": "gzip"})
    plain = await http.get("/api/v1/scrapes/search", headers={"Accept-Encoding": "identity"})
    short = await http.get("/healthz", headers={"Accept-Encoding": "gzip"})
    assert long.headers["content-encoding"] == "gzip"
    assert long.json()["results"] == plain.json()["results"]
    assert "content-encoding" not in plain.headers
    assert "content-encoding" not in short.headers


async def test_who_has_the_answer_already_gets_304_until_it_changes(http: Any, stand: Any) -> None:
    stand.index.rows = [{"id": "a", "sha256_hash": "a" * 64}]
    path = f"/api/v1/scrapes/{'a' * 64}"
    tag = (await http.get(path)).headers["etag"]
    again = await http.get(path, headers={"If-None-Match": f'"other", {tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    stand.index.rows = [{"id": "b", "sha256_hash": "a" * 64}]
    changed = await http.get(path, headers={"If-None-Match": tag})
    assert (changed.status_code, changed.json()["data"]["id"]) == (200, "b")
    assert changed.headers["etag"] != tag


async def test_metrics_count_requests_by_route_and_show_the_published_status(http: Any, stand: Any) -> None:
    stand.status = {
        "at": datetime.now(UTC).isoformat(), "health": "ok", "totals": {"lag_records": 3, "outcomes": {"indexed": 8}},
        "partitions": [{"topic": 't"\n', "partition": 0, "lag_records": 3}], "writer": {"documents": 7},
        "actors": "odd", "last_commit_age_s": True,
    }  # fmt: skip
    await http.get(f"/api/v1/scrapes/{'a' * 64}")
    await http.get("/nowhere/at/all")
    page = await http.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, frozenset(sample.labels.items()) - {("replica", sample.labels.get("replica"))}): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }
    by_hash = {("method", "GET"), ("route", "/api/v1/scrapes/{hash}"), ("status", "200")}
    assert samples["shoal_http_requests_total", frozenset(by_hash)] == 1
    nowhere = {("method", "GET"), ("route", "unmatched"), ("status", "404")}
    assert samples["shoal_http_requests_total", frozenset(nowhere)] == 1
    assert samples["shoal_lag_records", frozenset()] == 3
    assert samples["shoal_documents", frozenset()] == 7
    assert samples["shoal_health", frozenset({("health", "ok")})] == 1
    assert samples["shoal_outcomes_total", frozenset({("outcome", "indexed")})] == 8
    assert ("shoal_last_commit_age_seconds", frozenset()) not in samples


@pytest.mark.parametrize("status", [None, ["odd"], {"at": "soon", "totals": 3, "partitions": [1, None]}])
async def test_metrics_of_a_status_that_is_missing_or_odd_say_unknown(http: Any, stand: Any, status: Any) -> None:
    stand.status = status
    assert 'shoal_health{health="unknown"} 1.0' in (await http.get("/metrics")).text

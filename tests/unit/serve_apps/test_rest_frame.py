"""The frame of every request: health, ids, limits, framework errors, docs."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from shoal.errors import TransientError
from shoal.serve_apps.problems import BODY_BYTES_MAX


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


async def test_openapi_describes_every_call_with_an_example(http: Any) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]
    assert set(paths) == {
        "/api/v1/cost",
        "/",
        "/healthz",
        "/readyz",
        "/api/v1/scrapes/search",
        "/api/v1/scrapes/{hash}",
        "/api/v1/collections/{name}/search",
        "/api/v1/collections/{name}/index",
        "/api/v1/agents/context/similar-apis",
        "/api/v1/agents/context/fix-patterns",
        "/api/v1/agents/fixes",
        "/api/v1/agents/fixes/{fix_id}",
        "/api/v1/ingest",
        "/api/v1/jobs/{job_id}",
    }
    search = paths["/api/v1/scrapes/search"]["get"]
    assert {"data_source", "query", "wait_token", "explain"} <= {one["name"] for one in search["parameters"]}
    assert search["responses"]["200"]["content"]["application/json"]["example"]["query_type"] == "vector"
    for path in ("similar-apis", "fix-patterns"):
        body = paths[f"/api/v1/agents/context/{path}"]["post"]["requestBody"]
        assert body["content"]["application/json"]["example"]
    assert paths["/api/v1/agents/fixes"]["post"]["requestBody"]["content"]["application/json"]["schema"]["required"]


async def test_the_service_is_closed_with_the_application(stand: Any) -> None:
    app = stand.app()
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as client:
            assert (await client.get("/healthz")).status_code == 200

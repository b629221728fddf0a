"""Every route against values that nobody should send: never an error of ours, always a problem, always an end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

import orjson
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from shoal.serve_apps import examples
from shoal.serve_apps.problem_kinds import KINDS
from shoal.store.feeds import Catalogue, Feed
from tests.unit.serve_apps.test_rest_openapi import operations

END_S = 60.0  # a hang, not a measure: machines may be slow
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW")
NASTY = [
    "", " ", "\x00", "\r\nX-Evil: 1", "../../etc/passwd", "..%2f", "%", "%00", "' OR 1=1 --", '"; DROP TABLE x',
    "${7*7}", "{{7*7}}", "<script>alert(1)</script>", "\ud800", "\u202e", "é" * 300, "a" * 5000, "-1", "0", "1e309",
    "NaN", "true", "null", "[]", "9" * 40, "2025-13-45", "0001-01-01", "9999-12-31", "file:///etc/passwd", "http://169.254.169.254/",
    "s3://x/y", "prod:a:b/raw", "scraper", "a_dlq/0/1", "delete-1-AA", "WyJkYXRhc2V0cyIsMSwyXQ", "*", "\\", "\u0000",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(NASTY[:20]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"a":' * 300 + b"1" + b"}" * 300,
    b"\xff\xfe",
    b"0" * 5000,
    b"{}",
    b'{"query": 1e999}',
]
HEADERS = ("content-type", "if-none-match", "idempotency-key", "x-request-id", "traceparent", "x-request-timeout",
           "accept-encoding", "content-length", "content-encoding", "accept", "host", "range", "expect")  # fmt: skip


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def hostile(stand: Any, letter: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An application that has something behind every call, so that what is sent gets as far as it can."""
    monkeypatch.setattr("shoal.serve_apps.search_service.JOB_WAIT_S", 0.0)  # nobody does these jobs: each waits in vain
    now = datetime.now(UTC)
    stand.letters.found = [letter(0)]
    outside = {"id": "prod:a:b", "version": "", "superseded_at": None, "s3_path": "file:///etc/passwd"}
    row = {
        "id": examples.ID, "version": "20250120T143000Z", "sha256_hash": examples.SHA256, "superseded_at": None,
        "chunk_count": 1, "s3_path": None,
    }  # fmt: skip
    stand.index.documents.rows, stand.index.rows = [outside, row], [row]
    stand.index.documents.pieces = [{"chunk_index": 0, "content_summary": "text"}]
    stand.index.catalogue = Catalogue(now, (Feed("prod", "a", None, 1, 1, {}, now, None, now, None, None),))
    stand.index.fixed = [{"scraper_name": "nyiso_load_forecast", "error_type": "KeyError"}]
    stand.status = {"at": now.isoformat(), "health": "ok"}
    return stand.app()


async def call(
    app: Any, method: str, target: bytes, query: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> tuple[int, dict[str, str], bytes]:
    """One request as a server hands it over, whatever a client library would refuse to send."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": unquote(target.decode("latin-1"), errors="replace"), "raw_path": target, "query_string": query,
        "root_path": "", "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    sent: list[Any] = []
    pieces = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return pieces.pop() if pieces else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await asyncio.wait_for(app(scope, receive, send), END_S)
    found = {name.decode().lower(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


@st.composite
def requests(
    draw: Any, known: dict[tuple[str, str], Any]
) -> tuple[str, bytes, bytes, list[tuple[bytes, bytes]], bytes]:
    (method, path), operation = draw(st.sampled_from(sorted(known.items(), key=lambda one: one[0])))
    values = st.sampled_from(NASTY) | st.text(max_size=30)
    query: list[tuple[str, str]] = []
    for parameter in operation.get("parameters", ()):
        valid = [str(value) for value in parameter["schema"].get("examples") or ("1", "5", "prod", "scraper")]
        value = draw(st.sampled_from(valid) | values)
        if parameter["in"] == "path":
            path = path.replace(
                f"{{{parameter['name']}}}", quote(value, safe=draw(st.sampled_from(["", "/:%"])), errors="replace")
            )
        elif draw(st.booleans()):
            query.append((parameter["name"], value))
    if draw(st.integers(0, 4)) == 0:
        query.append((draw(values), draw(values)))
    content = operation.get("requestBody", {}).get("content", {})
    example = next((one["example"] for one in content.values()), {})
    body = draw(st.sampled_from(BODIES) | st.binary(max_size=60) | JSON.map(_dumped) | st.just(_dumped(example)))
    if isinstance(example, dict) and example and draw(st.booleans()):
        body = _dumped({**example, draw(st.sampled_from(sorted(example))): draw(JSON)})
    names = draw(st.lists(st.sampled_from(HEADERS), max_size=3, unique=True))
    headers = [(name.encode(), draw(values).encode("utf-8", "replace")[:300]) for name in names]
    if draw(st.booleans()):
        headers.append((b"content-type", b"application/json"))
    text = "&".join(f"{quote(name, errors='replace')}={quote(value, errors='replace')}" for name, value in query)
    asked = method.upper() if draw(st.integers(0, 5)) else draw(st.sampled_from(METHODS))
    return asked, path.encode("latin-1", "replace"), text.encode(), headers, body


def _dumped(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    try:
        return orjson.dumps(value)
    except (TypeError, ValueError):  # a lone surrogate, a number beyond 64 bits
        return str(value).encode("utf-8", "replace")


def check(method: str, answer: tuple[int, dict[str, str], bytes]) -> None:
    """What every answer is, whatever was sent."""
    status, headers, body = answer
    if status >= 500:
        # What the fakes lack is a 503; only what does not exist yet says 501.
        assert status in (501, 503, 504)
    if status >= 400 and method != "HEAD":
        assert headers["content-type"] == "application/problem+json"
        problem = orjson.loads(body)
        assert problem["type"].removeprefix("urn:shoal:problem:") in KINDS
        assert (problem["status"], problem["request_id"]) == (status, headers["x-request-id"])
    assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", headers["x-request-id"])
    assert "x-evil" not in headers
    assert b"root:x:" not in body


def test_nothing_that_is_sent_breaks_a_call(hostile: Any, runner: asyncio.Runner) -> None:
    known = operations(hostile.openapi())

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(requests(known))
    def holds(asked: Any) -> None:
        note(str(asked))
        check(asked[0], runner.run(call(hostile, *asked)))

    holds()


@pytest.mark.timeout(600)  # 2,847 requests, some 8 s of CPU
def test_no_value_of_any_parameter_breaks_its_call(hostile: Any, runner: asyncio.Runner) -> None:
    """One value that nobody should send, all others as in the examples: so each gets behind what checks the others."""

    async def every() -> int:
        asked = 0
        for (method, path), operation in operations(hostile.openapi()).items():
            parameters = operation.get("parameters", ())
            valid = {one["name"]: _valid(one) for one in parameters}
            content = operation.get("requestBody", {}).get("content", {})
            kind, body = next(((kind, one["example"]) for kind, one in content.items()), ("application/json", ""))
            headers = [(b"content-type", kind.encode())]
            for parameter in parameters:
                for value in NASTY:
                    values = {**valid, parameter["name"]: value}
                    target, query = path, []
                    for one in parameters:
                        text = quote(values[one["name"]] or "", safe=":", errors="replace")
                        if one["in"] == "path":
                            target = target.replace(f"{{{one['name']}}}", text)
                        elif one["in"] == "query" and values[one["name"]] is not None:
                            query.append(f"{one['name']}={text}")
                    more = (
                        [(b"idempotency-key", value.encode("utf-8", "replace"))] if parameter["in"] == "header" else []
                    )
                    sent = (target.encode(), "&".join(query).encode(), headers + more, _dumped(body))
                    answer = await call(hostile, method.upper(), *sent)
                    try:
                        check(method, answer)
                    except AssertionError as error:
                        raise AssertionError(f"{method} {path}, {parameter['name']}={value!r}: {error}") from error
                    asked += 1
        return asked

    assert runner.run(every()) > 1000


def _valid(parameter: dict[str, Any]) -> str | None:
    examples_of = parameter["schema"].get("examples") or parameter.get("examples")
    return str(examples_of[0]) if examples_of and parameter.get("required") else None


def test_a_caller_who_sends_nothing_more_gets_an_end(hostile: Any, runner: asyncio.Runner) -> None:
    """A half-open push: the headers came, the body never does."""

    async def asked() -> int:
        scope_headers = [(b"x-request-timeout", b"0.05"), (b"content-type", b"text/csv")]
        query = b"dataset=a&urn=b&data_source=c&data_type=d"
        started: list[int] = []

        async def never() -> Any:
            return await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                started.append(message["status"])

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/api/v1/collections/scraper/documents", "raw_path": b"/api/v1/collections/scraper/documents",
            "query_string": query, "root_path": "", "headers": scope_headers, "client": None, "server": None,
        }  # fmt: skip
        await asyncio.wait_for(hostile(scope, never, send), END_S)
        return started[0]

    assert runner.run(asked()) == 504

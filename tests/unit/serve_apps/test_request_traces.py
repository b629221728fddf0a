"""A request is a span of its caller's trace, handed on to what it asks for, and named in the log lines below it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.types import Receive, Scope, Send

from shoal import tracing
from shoal.log_format import JsonLines
from shoal.serve_apps.commands import Commands
from shoal.serve_apps.query_embedding import embed_through
from shoal.serve_apps.request_frame import RequestFrame
from shoal.settings import Settings
from shoal.sources.journal import Journal, JournalProducer

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
LINES: list[str] = []


async def app(scope: Scope, _: Receive, send: Send) -> None:
    LINES.append(JsonLines().format(logging.LogRecord("shoal", logging.INFO, "", 0, "at work", None, None)))
    with tracing.span("search"):
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    LINES.clear()
    found = InMemorySpanExporter()
    tracing.configure(Settings(), "test", found)
    yield found
    tracing.stop()


async def ask(path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(RequestFrame(app)), base_url="http://x") as client:
        return await client.get(path, headers=headers)


async def test_a_request_goes_on_with_its_callers_trace(exporter: InMemorySpanExporter) -> None:
    answer = await ask("/nowhere", **CALLER, **{"X-Request-Id": "mine"})
    tracing.stop()
    found = {span.name: span for span in exporter.get_finished_spans()}
    assert {f"{span.context.trace_id:032x}" for span in found.values()} == {TRACE}
    assert found["search"].parent.span_id == found["GET"].context.span_id
    # The answer names our span, for whoever looks for it.
    assert answer.headers["traceparent"] == f"00-{TRACE}-{found['GET'].context.span_id:016x}-01"
    attributes = dict(found["GET"].attributes or {})
    assert attributes["http.response.status_code"] == 404
    assert attributes["shoal.request"] == "mine"
    (line,) = map(json.loads, LINES)
    assert (line["request"], line["trace"]) == ("mine", TRACE)


async def test_probes_are_traced_only_when_the_caller_traces(exporter: InMemorySpanExporter) -> None:
    await ask("/healthz")
    tracing_answer = await ask("/healthz", **CALLER)
    tracing.stop()
    assert [span.name for span in exporter.get_finished_spans() if span.name == "GET"] == ["GET"]
    assert tracing_answer.headers["traceparent"].split("-")[1] == TRACE


async def test_without_tracing_a_callers_trace_is_still_answered_and_logged() -> None:
    LINES.clear()
    answer = await ask("/nowhere", **CALLER)
    assert answer.headers["traceparent"].split("-")[1] == TRACE
    assert "traceparent" not in (await ask("/nowhere")).headers
    assert [json.loads(line).get("trace") for line in LINES] == [TRACE, None]


async def test_a_question_is_embedded_with_the_trace_of_who_asks(exporter: InMemorySpanExporter) -> None:
    asked: list[tuple[str | None, ...]] = []

    class Method:
        async def remote(self, *arguments: str) -> str:
            asked.append(arguments)
            return "vector"

    class Handle:
        embed = Method()

    with tracing.span("GET", CALLER["traceparent"]) as span:
        await embed_through(Handle())("m", "question", "c")
    tracing.stop()
    await embed_through(Handle())("m", "question", "c")
    assert asked == [("m", "question", "c", span.header), ("m", "question", "c")]


async def test_what_a_request_changes_goes_into_the_log_with_its_trace(
    exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    commands = Commands(lambda: JournalProducer(journal), "commands")
    now = datetime.now(UTC)
    with tracing.span("POST", CALLER["traceparent"]):
        await commands.submit("1", "fix", "scraper", {}, actor="me", at=now)
        await commands.announce("in", b"prod:d:gone", None)
    await commands.announce("in", b"prod:d:of nobody", None)  # the thread keeps nothing of who asked before
    tracing.stop()
    await commands.announce("in", b"prod:d:untraced", None)
    commands.close()
    sent = [*journal.entries_between("commands", 0, 10), *journal.entries_between("in", 0, 10)]
    journal.close()
    post, *announced = sorted(exporter.get_finished_spans(), key=lambda span: (span.name, span.start_time))
    assert [span.name for span in announced] == ["announce"] * 3
    assert [span.parent.span_id if span.parent else None for span in announced] == [post.context.span_id] * 2 + [None]
    carried = [dict(entry.headers).get("traceparent", b"").decode().split("-")[1:3] for entry in sent]
    ids = [[f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"] for span in announced]
    assert carried == [*ids, []]
    assert [trace for trace, _ in ids[:2]] == [TRACE, TRACE]

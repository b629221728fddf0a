"""Traces: free while they are off, whole across processes while they are on, and never in the way."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shoal import tracing
from shoal.errors import TransientError
from shoal.settings import Settings
from shoal.sources.journal import Journal, JournalProducer

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    found = InMemorySpanExporter()
    tracing.configure(Settings(), "test", found)
    yield found
    tracing.stop()


def spans_of(exporter: InMemorySpanExporter) -> dict[str, Any]:
    tracing.stop()  # which sends what is left
    return {span.name: span for span in exporter.get_finished_spans()}


def test_off_is_one_shared_nothing() -> None:
    tracing.configure(Settings(), "test")
    assert tracing.span("a") is tracing.span("b", CALLER, links=[CALLER], shoal__x=1)
    with tracing.span("a") as span:
        span.set(shoal__x=1)
        assert (span.header, tracing.header()) == (None, None)
    assert tracing.carried([("a", b"1")]) == [("a", b"1")]
    tracing.record("a", CALLER, 1.0)


def test_a_trace_goes_on_where_the_header_says(exporter: InMemorySpanExporter) -> None:
    # 1. a message's header; 2. what a stage hands to the next process; 3. the next stage's own children
    with tracing.span("process", CALLER.encode(), shoal__document="a") as process:
        handed = pickle.loads(pickle.dumps(process.header))
    with tracing.span("fetch", handed), tracing.span("download"):
        pass
    found = spans_of(exporter)
    assert {f"{span.context.trace_id:032x}" for span in found.values()} == {TRACE}
    assert found["fetch"].parent.span_id == found["process"].context.span_id
    assert found["download"].parent.span_id == found["fetch"].context.span_id
    assert found["process"].attributes == {"shoal.document": "a"}


@pytest.mark.parametrize(
    "odd", ["", "x", b"\xff\x00", f"00-{'0' * 32}-b7ad6b7169203331-01", f"ff-{TRACE}-b7ad6b7169203331-01", "0" * 99_999]
)
def test_what_is_no_traceparent_begins_a_trace_of_its_own(exporter: InMemorySpanExporter, odd: str | bytes) -> None:
    with tracing.span("process", odd, links=[None, odd if isinstance(odd, str) else None]):
        pass
    span = spans_of(exporter)["process"]
    assert span.parent is None
    assert span.links == ()


def test_a_batch_is_linked_to_each_and_stands_in_the_trace_of_each(exporter: InMemorySpanExporter) -> None:
    with tracing.span("write", CALLER) as write:
        header = write.header
    with tracing.span("group commit", links=[header, None]) as commit:
        pass
    tracing.record("commit", header, 0.5, [commit.header])
    found = spans_of(exporter)
    assert f"{found['group commit'].links[0].context.trace_id:032x}" == TRACE
    assert found["commit"].parent.span_id == found["write"].context.span_id
    assert found["commit"].links[0].context.span_id == found["group commit"].context.span_id
    assert found["commit"].end_time - found["commit"].start_time == pytest.approx(5e8, abs=1e3)


def test_a_trace_that_is_not_sampled_stays_so_in_every_process(exporter: InMemorySpanExporter) -> None:
    with tracing.span("process", CALLER[:-2] + "00") as process:
        header = process.header
    assert header is not None
    assert header.endswith("-00")
    with tracing.span("fetch", header):
        pass
    assert spans_of(exporter) == {}


def test_an_error_is_noted_and_goes_on(exporter: InMemorySpanExporter) -> None:
    with pytest.raises(TransientError), tracing.span("fetch", CALLER):
        raise TransientError("away")
    assert not spans_of(exporter)["fetch"].status.is_ok


def test_a_message_carries_the_current_trace_unless_it_has_one(exporter: InMemorySpanExporter) -> None:
    with tracing.span("announce") as announce:
        assert announce.header is not None
        assert tracing.carried([]) == [("traceparent", announce.header.encode())]
        assert tracing.carried([("traceparent", b"mine")]) == [("traceparent", b"mine")]
    assert spans_of(exporter)["announce"].parent is None


class _Collector(BaseHTTPRequestHandler):
    bodies: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        self.bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_spans_leave_as_otlp_and_a_collector_that_is_away_costs_only_spans(caplog: pytest.LogCaptureFixture) -> None:
    handler = type("Handler", (_Collector,), {"bodies": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    tracing.configure(Settings(otlp_endpoint=url), "shoal-ingest")
    with tracing.span("fetch", CALLER):
        pass
    tracing.stop()
    server.shutdown()
    server.server_close()
    ((path, body),) = handler.bodies
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    assert resource.scope_spans[0].spans[0].trace_id.hex() == TRACE
    names = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
    assert names["service.name"] == "shoal-ingest"
    exporter = tracing.OtlpExporter(url)
    caplog.set_level(logging.INFO, "shoal.tracing")
    for _ in range(2):
        assert exporter.export([]) is SpanExportResult.FAILURE
    assert len([record for record in caplog.records if "could not be sent" in record.message]) == 1


def test_the_embedded_brokers_journal_carries_the_trace_too(exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    producer = JournalProducer(journal)
    with tracing.span("announce") as announce:
        producer.send("t", b"k", b"v", [("a", b"1")])
    producer.flush(1.0)
    assert announce.header is not None
    (entry,) = journal.entries_between("t", 0, 10)
    journal.close()
    assert tuple(entry.headers) == (("a", b"1"), ("traceparent", announce.header.encode()))

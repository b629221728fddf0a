"""Traces: one for a document from its announcement to its commit, one for a question from HTTP to its answer.

Off, and free, unless `SHOAL_OTLP_ENDPOINT` is set: `span` is then one shared context that does nothing. Context goes
from process to process as a W3C `traceparent`: in the header of a Kafka message, with the announcement from stage to
stage, in the header of a request. Spans leave by OTLP over HTTP in a thread of their own, in batches, with bounded
patience: a collector that is away costs spans, never work. Whoever is killed loses its last seconds of them.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from shoal.errors import ConfigurationError
from shoal.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Link, Tracer

HEADER = "traceparent"
EXPORT_S = 5.0  # patience with the collector; a batch that is late is dropped
INTERVAL_MS = 1000  # a killed process loses at most so much
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.{0,200})?")

log = logging.getLogger("shoal.tracing")


class NoSpan:
    """What stands for a span where nobody traces."""

    def set(self, **attributes: Any) -> None:
        """Nothing."""

    @property
    def header(self) -> str | None:
        """None: whoever comes next has no parent."""
        return None


class LiveSpan:
    """A span that is being recorded, or, where its trace is not sampled, only handed on."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def set(self, **attributes: Any) -> None:
        """Attributes by name; `a__b` is `a.b`. What is None is left out."""
        self._span.set_attributes(_named(attributes))

    @property
    def header(self) -> str | None:
        """The `traceparent` by which another process goes on with this trace below this span."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


Span = NoSpan | LiveSpan
_NO_SPAN: AbstractContextManager[Span] = contextlib.nullcontext(NoSpan())
_provider: TracerProvider | None = None
_tracer: Tracer | None = None


def configure(settings: Settings, service: str, exporter: SpanExporter | None = None) -> None:
    """Trace from now on in this process, as `service` (shoal-ingest, shoal-query, ...); again it does nothing.

    `exporter`: instead of OTLP, for tests. Raises ConfigurationError where the endpoint can't be used.
    """
    global _provider, _tracer  # one per process, like logging
    if _tracer is not None or (exporter is None and not settings.otlp_endpoint):
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    from shoal import __version__

    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.trace_share)),
        resource=Resource.create({"service.name": service, "service.version": __version__}),
    )
    exporter = exporter or OtlpExporter(settings.otlp_endpoint)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=INTERVAL_MS))
    _provider, _tracer = provider, provider.get_tracer("shoal", __version__)


def stop() -> None:
    """Send what is left and trace no more."""
    global _provider, _tracer
    provider, _provider, _tracer = _provider, None, None
    if provider is not None:
        provider.shutdown()


def span(
    name: str, parent: str | bytes | None = None, links: Sequence[str | None] = (), **attributes: Any
) -> AbstractContextManager[Span]:
    """A span around a `with` block; an error that leaves it is noted in it.

    `parent`: a traceparent; None: the span that is current here, else a trace of its own. What is no traceparent counts
    as none. `links`: traceparents of other traces that this belongs to.
    """
    if _tracer is None:
        return _NO_SPAN
    return _live(_tracer, name, parent, links, attributes)


def header() -> str | None:
    """The traceparent of the span that is current here; None where there is none, or nobody traces."""
    if _tracer is None:
        return None
    from opentelemetry import trace

    current = trace.get_current_span()
    return LiveSpan(current).header if current.get_span_context().is_valid else None


def trace_id(traceparent: str | None) -> str | None:
    """Of a traceparent, for log lines; None where there is none."""
    return traceparent.split("-")[1] if traceparent else None


def carried(headers: Sequence[tuple[str, bytes | None]]) -> list[tuple[str, bytes | None]]:
    """`headers` of a message with the current trace, unless they have one."""
    traceparent = header()
    if traceparent is None or any(name == HEADER for name, _ in headers):
        return list(headers)
    return [*headers, (HEADER, traceparent.encode())]


def record(name: str, parent: str | None, took_s: float, links: Sequence[str | None] = ()) -> None:
    """A span that ends now, of what was done for several together: one in the trace of each. Without a parent none."""
    if _tracer is None or (context := _context(parent)) is None:
        return
    now_ns = time.time_ns()
    found = [link for text in links if (link := _link(text)) is not None]
    _tracer.start_span(name, context, links=found, start_time=now_ns - int(1e9 * took_s)).end(now_ns)


@contextlib.contextmanager
def _live(
    tracer: Tracer, name: str, parent: str | bytes | None, links: Sequence[str | None], attributes: dict[str, Any]
) -> Iterator[Span]:
    context = _context(parent)
    found = [link for text in links if (link := _link(text)) is not None]
    with tracer.start_as_current_span(name, context, attributes=_named(attributes), links=found) as current:
        yield LiveSpan(current)


def _context(parent: str | bytes | None) -> Context | None:
    text = parent.decode("ascii", "replace") if isinstance(parent, bytes) else parent
    if text is None or _TRACEPARENT.fullmatch(text) is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({HEADER: text})


def _link(traceparent: str | None) -> Link | None:
    from opentelemetry import trace

    context = _context(traceparent)
    if context is None:
        return None
    of = trace.get_current_span(context).get_span_context()
    return trace.Link(of) if of.is_valid else None


def _named(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in attributes.items() if value is not None}


def OtlpExporter(endpoint: str) -> SpanExporter:
    """Sends spans to `{endpoint}/v1/traces` as OTLP's protobuf over HTTP. Raises ConfigurationError."""
    try:
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    except ImportError:
        raise ConfigurationError(
            "SHOAL_OTLP_ENDPOINT is set, but opentelemetry-exporter-otlp-proto-common is not installed: "
            "install from the lock file, or unset it"
        ) from None
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    url = endpoint.rstrip("/") + "/v1/traces"

    class Exporter(SpanExporter):
        def __init__(self) -> None:
            self._was_well = True

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            body = encode_spans(spans).SerializeToString()
            request = urllib.request.Request(  # noqa: S310 - the setting admits http and https only
                url, body, {"Content-Type": "application/x-protobuf"}
            )
            try:
                with urllib.request.urlopen(request, timeout=EXPORT_S) as answer:  # noqa: S310
                    answer.read(1024)
            except (urllib.error.URLError, OSError) as error:
                if self._was_well:  # once in a row: a collector that is away must not fill the log
                    log.warning("%d spans could not be sent to %s: %s", len(spans), url, error)
                self._was_well = False
                return SpanExportResult.FAILURE
            self._was_well = True
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            return

    return Exporter()

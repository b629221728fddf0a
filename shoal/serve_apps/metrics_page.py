"""`/metrics` in Prometheus' text format: what this replica answered, and what the supervisor last published.

Request counts are those of the replica that happens to answer, each a series of its own by the label `replica`: behind
several replicas a scrape sees one of them, so sum `rate()` over a window of several scrapes, or scrape the replicas
themselves. The gauges of the flow are the same whoever answers; `shoal_status_age_seconds` says how old they are.
Labels are bounded: routes are templates, and of anything that could be many only the first `SERIES_MAX` are shown.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from shoal.serve_apps import flow
from shoal.serve_apps.request_frame import Answered

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SERIES_MAX = 500
"""Of one metric: partitions and actors are tens; more would be somebody's mistake that a scraper pays for."""
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """One per process, used from its event loop."""

    def __init__(self, replica: str | None = None) -> None:
        self._replica = replica or f"{socket.gethostname()}:{os.getpid()}"
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "shoal_http_requests", "Requests answered by this replica.", ("method", "route", "status", "replica"),
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "shoal_http_request_seconds", "Seconds until the last byte of the answer.",
            ("method", "route", "status", "replica"), buckets=_BUCKETS_S, registry=self._registry,
        )  # fmt: skip
        started = Gauge(
            "shoal_http_replica_started_seconds", "When this replica began, in seconds since 1970.", ("replica",),
            registry=self._registry,
        )  # fmt: skip
        started.labels(self._replica).set_to_current_time()

    def observe(self, answered: Answered) -> None:
        labels = (answered.method, answered.route, str(answered.status), self._replica)
        self._requests.labels(*labels).inc()
        self._seconds.labels(*labels).observe(answered.took_s)

    def page(self, status: Any, now: datetime) -> bytes:
        """The whole page; `status` as published, None where nothing is."""
        published = CollectorRegistry(auto_describe=False)
        published.register(_Published(status, now))
        return generate_latest(self._registry) + generate_latest(published)


class _Published:
    """status.json as metrics; what is missing or no number is left out."""

    def __init__(self, status: Any, now: datetime) -> None:
        self._status = status if isinstance(status, Mapping) else {}
        self._age_s = flow.age_s(status, now)
        self._health = flow.judged(status, self._age_s)["health"]

    def collect(self) -> Iterable[Metric]:
        health = GaugeMetricFamily("shoal_health", "1 for the health that is so now.", labels=("health",))
        for name in ("ok", "degraded", "down", "unknown"):
            health.add_metric((name,), float(self._health == name))
        yield health
        yield from self._gauges()
        yield from self._labelled()

    def _gauges(self) -> Iterator[Metric]:
        totals, writer, embedder = (_part(self._status, name) for name in ("totals", "writer", "embedder"))
        recall, spend = _part(self._status, "recall"), _part(embedder, "spend")
        for name, text, value in (
            ("status_age_seconds", "Age of what the supervisor published.", self._age_s),
            ("lag_records", "Messages that are not done.", totals.get("lag_records")),
            ("lag_seconds", "Age of the oldest message that is not done.", totals.get("lag_s")),
            ("in_flight_items", "Documents in flight.", totals.get("in_flight_items")),
            ("in_flight_bytes", "Bytes in flight.", totals.get("in_flight_bytes")),
            ("oldest_item_seconds", "Age of the oldest document in flight.", totals.get("oldest_item_s")),
            ("last_commit_age_seconds", "Since the last commit.", self._status.get("last_commit_age_s")),
            ("documents", "Current documents in the tables.", writer.get("documents")),
            ("chunks", "Chunks in the tables.", writer.get("chunks")),
            ("unindexed_rows", "Chunks that the full-text index lacks.", writer.get("unindexed_rows")),
            ("commit_sequence", "Number of the last commit.", writer.get("commit_sequence")),
            ("embedder_queued_texts", "Texts that wait for the embedder.", embedder.get("queued_texts")),
            ("embedder_unwell_seconds", "Since when every request has failed.", embedder.get("unwell_s")),
            ("spent_day_usd", "Spent today, US dollars.", spend.get("spent_day_usd")),
            ("spent_month_usd", "Spent this month, US dollars.", spend.get("spent_month_usd")),
            ("recall", "Recall as last measured.", recall.get("recall")),
        ):
            if (number := _number(value)) is not None:
                yield GaugeMetricFamily(f"shoal_{name}", text, value=number)
        for name, text, value in (
            ("messages_ended", "Messages that came to their end.", totals.get("ended")),
            ("retries", "Retries.", totals.get("retries")),
        ):
            if (number := _number(value)) is not None:
                yield CounterMetricFamily(f"shoal_{name}", text, value=number)

    def _labelled(self) -> Iterator[Metric]:
        totals = _part(self._status, "totals")
        partitions = [entry for entry in self._status.get("partitions") or () if isinstance(entry, Mapping)]
        named = [((str(entry.get("topic")), str(entry.get("partition"))), entry) for entry in partitions]
        for name, text, field in (
            ("partition_lag_records", "Messages of the partition that are not done.", "lag_records"),
            ("partition_lag_seconds", "Age of its oldest message that is not done.", "lag_s"),
        ):
            gauge = GaugeMetricFamily(f"shoal_{name}", text, labels=("topic", "partition"))
            _fill(gauge, ((labels, entry.get(field)) for labels, entry in named))
            yield gauge
        for name, text, label, values in (
            ("outcomes", "Documents by what became of them.", "outcome", _part(totals, "outcomes")),
            ("dead_letters", "Dead letters by reason.", "reason", _part(totals, "dead_letters")),
        ):
            counter = CounterMetricFamily(f"shoal_{name}", text, labels=(label,))
            _fill(counter, (((str(key),), value) for key, value in values.items()))
            yield counter
        actors = _part(self._status, "actors")
        for name, text, field in (
            ("actor_restarts", "How often it was started again.", "restarts"),
            ("actor_stalled_seconds", "How long its own loop stands still.", "stalled_s"),
        ):
            gauge = GaugeMetricFamily(f"shoal_{name}", text, labels=("actor",))
            _fill(gauge, (((str(actor),), _part(actors, actor).get(field)) for actor in actors))
            yield gauge


def _fill(family: Any, samples: Iterable[tuple[tuple[str, ...], Any]]) -> None:
    shown = 0
    for labels, value in samples:
        if (number := _number(value)) is None:
            continue
        family.add_metric([label[:100] for label in labels], number)
        shown += 1
        if shown == SERIES_MAX:
            return


def _part(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = status.get(name)
    return found if isinstance(found, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

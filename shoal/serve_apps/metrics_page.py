"""`/metrics` in Prometheus' text format: what this replica answered, and what the supervisor last published.

Request counts are those of the replica that happens to answer, each a series of its own by the label `replica`: behind
several replicas a scrape sees one of them, so sum `rate()` over a window of several scrapes, or scrape Ray's own port,
where every replica shows its own (ray_mirror.py). The gauges of the flow are the same whoever answers;
`shoal_status_age_seconds` says how old they are. Names and labels are those of shoal/metric_table.py: routes are
templates, and of anything that could be many only the first `SERIES_MAX` are shown.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from shoal.histograms import Durations, read
from shoal.serve_apps import flow_metrics
from shoal.serve_apps.flow_metrics import Samples
from shoal.serve_apps.request_frame import Answered

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def replica_name() -> str:
    """Of this process: unlike that of any other, here or on another node."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Metrics:
    """What one process answered. One per process, used from its event loop."""

    def __init__(self, replica: str | None = None) -> None:
        self._replica = replica or replica_name()
        self._started_s = time.time()
        self._requests, self._stages = Durations(), Durations()
        self._labels: dict[str, tuple[str, ...]] = {}

    def observe(self, answered: Answered) -> None:
        self._observe(self._requests, answered.took_s, answered.method, answered.route, str(answered.status))
        for stage, spent_s in answered.stages_s.items():
            self._observe(self._stages, spent_s, answered.route, stage)

    def _observe(self, durations: Durations, seconds: float, *labels: str) -> None:
        name = " ".join(labels)
        self._labels[name] = labels
        durations.observe(name, seconds)

    def families(self) -> Iterator[Metric]:
        """This replica's own."""
        found = Samples()
        for name, reading in read(self._requests.counts()).items():
            labels = (*self._labels[name], self._replica)
            found.put("http_requests_total", reading.count, *labels)
            found.put("http_request_seconds", reading, *labels)
        for name, reading in read(self._stages.counts()).items():
            found.put("http_stage_seconds", reading, *self._labels[name], self._replica)
        found.put("http_start_time_seconds", self._started_s, self._replica)
        return found.families()

    def page(
        self, status: Any, now: datetime, *, feeds: Any = None, indexes: Iterable[Mapping[str, Any]] = ()
    ) -> bytes:
        """The whole page; `status`, `feeds` and `indexes` as flow_metrics takes them."""
        flow = flow_metrics.families(status, now)
        return text([*self.families(), *flow, *flow_metrics.of_tables(feeds, indexes)])


def text(families: Iterable[Metric]) -> bytes:
    """Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Gathered(list(families)))
    return generate_latest(registry)


class _Gathered:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families

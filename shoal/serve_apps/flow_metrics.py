"""The flow as metrics: what the supervisor published, and what the query side sees, as rows of the table of metrics.

Pure. What is missing, or is no number, is left out: a gap in a graph is true, a made-up 0 is not. Of anything that
could be many only the first SERIES_MAX are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from shoal.errors import DeadReason
from shoal.histograms import Reading, read
from shoal.metric_table import FAILURES, TABLE
from shoal.records import Outcome
from shoal.serve_apps import flow

SERIES_MAX = 500
"""Of one metric: partitions and actors are tens; more would be somebody's mistake that a scraper pays for."""
_LABEL_CHARS_MAX = 100

Json = Mapping[str, Any]


class Samples:
    """Values gathered for rows of the table, and the families made of them."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[tuple[str, ...], float | Reading]]] = {}

    def put(self, name: str, value: Any, *labels: Any) -> None:
        """`name` without `shoal_`. Raises KeyError, ValueError where the table has no such row or labels."""
        row = TABLE[f"shoal_{name}"]
        if len(labels) != len(row.labels):
            raise ValueError(f"{row.name} has the labels {row.labels}, not {labels}")
        known = value if isinstance(value, Reading) else number(value)
        of = self._found.setdefault(row.name, [])
        if known is not None and len(of) < SERIES_MAX:
            of.append((tuple(str(label)[:_LABEL_CHARS_MAX] for label in labels), known))

    def families(self) -> Iterator[Metric]:
        """In the order of the table."""
        for name, row in TABLE.items():
            found = self._found.get(name)
            if not found:
                continue
            make = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
            family = make[row.kind](name, row.meaning, labels=row.labels)
            for labels, value in found:
                if isinstance(value, Reading):
                    family.add_metric(labels, buckets=list(value.buckets), sum_value=value.sum_s)
                else:
                    family.add_metric(labels, value)
            yield family


def families(status: Any, now: datetime) -> Iterator[Metric]:
    """`status` as published, None where nothing is."""
    found = Samples()
    known: Json = status if isinstance(status, Mapping) else {}
    age_s = flow.age_s(status, now)
    judged = flow.judged(status, age_s)
    for health in ("ok", "degraded", "down", "unknown"):
        found.put("health", float(judged["health"] == health), health)
    found.put("status_age_seconds", age_s)
    for severity in ("degraded", "down"):
        found.put("reasons", sum(_of(reason, "severity") == severity for reason in judged["reasons"]), severity)
    if known:
        _actors(found, known)
        _ingest(found, known)
        _partitions(found, known)
        _embedder(found, known)
        _store(found, known)
        _cost(found, known)
    return found.families()


def of_tables(feeds: Any, indexes: Iterable[Json]) -> Iterator[Metric]:
    """What only the query side knows. `feeds` as `flow.feeds_of` shows them, None where not known; `indexes`: rows of
    `shoal.store.index_report`."""
    found = Samples()
    if isinstance(feeds, Mapping):
        total, overdue, unknown = (number(feeds.get(name)) or 0.0 for name in ("total", "overdue", "unknown"))
        for state, count in (("overdue", overdue), ("on_time", total - overdue - unknown), ("unknown", unknown)):
            found.put("feeds", count, state)
    for row in indexes:
        where = row.get("table"), row.get("column")
        found.put("index_unindexed_rows", row.get("unindexed"), *where)
        found.put("index_failures", row.get("failures"), *where)
        found.put("index_size_bytes", row.get("size_bytes"), *where)
    return found.families()


def _actors(found: Samples, status: Json) -> None:
    for name, actor in part(status, "actors").items():
        if _of(actor, "state") != "pending":
            found.put("actor_running", float(_of(actor, "state") in ("running", "leaving")), name)
        found.put("actor_restarts_total", _of(actor, "restarts"), name)
        found.put("actor_stalled_seconds", _of(actor, "stalled_s"), name)
    paused = [entry for entry in _list(status, "paused") if isinstance(entry, Mapping)]
    for kind in ("partition", "reader", "dependency"):
        found.put("paused", sum(entry.get("kind") == kind for entry in paused), kind)
    for entry in paused:
        if entry.get("kind") == "dependency":
            found.put("dependency_unwell", 1, entry.get("what"))
    for pool, scaled in part(status, "scaling").items():
        found.put("pool_wanted", _of(scaled, "wanted"), pool)
        found.put("pool_working", _of(scaled, "working"), pool)
        found.put("pool_max", _of(scaled, "max"), pool)
    disk = part(status, "disk")
    found.put("disk_free_bytes", disk.get("free_bytes"))
    found.put("disk_size_bytes", disk.get("size_bytes"))


def _ingest(found: Samples, status: Json) -> None:
    totals = part(status, "totals")
    for name, key in (
        ("lag_records", "lag_records"), ("lag_seconds", "lag_s"), ("lag_unknown_partitions", "lag_unknown_partitions"),
        ("in_flight_items", "in_flight_items"), ("in_flight_bytes", "in_flight_bytes"), ("held_bytes", "held_bytes"),
        ("held_max_bytes", "held_bytes_max"), ("oldest_item_seconds", "oldest_item_s"),
        ("messages_ended_total", "ended"), ("broker_unreachable_seconds", "broker_unreachable_s"),
    ):  # fmt: skip
        found.put(name, totals.get(key))
    counted = part(totals, "counted")
    for name, key in (
        ("messages_total", "messages"), ("message_bytes_total", "message_bytes"),
        ("offset_commits_total", "offset_commits"), ("offset_commits_refused_total", "offset_commits_refused"),
        ("rebalances_total", "rebalances"), ("fetched_total", "fetched"), ("fetched_bytes_total", "fetched_bytes"),
        ("fetches_failed_total", "failed"), ("extraction_kills_total", "extraction_kills"),
        ("embedder_texts_total", "texts"), ("embedder_cache_hits_total", "cache_hits"),
        ("embedder_reused_total", "reused"), ("embedder_requests_total", "requests"),
        ("embedder_tokens_total", "tokens"), ("commits_total", "commits"), ("failed_commits_total", "failed_commits"),
        ("committed_documents_total", "committed_documents"), ("failed_upkeep_total", "failed_upkeep"),
    ):  # fmt: skip
        found.put(name, counted.get(key))
    closed: tuple[tuple[str, str, Iterable[str]], ...] = (
        ("outcomes_total", "outcomes", Outcome), ("dead_letters_total", "dead_letters", DeadReason),
        ("retries_total", "retried", ()), ("embedder_failed_requests_total", "request_failures", FAILURES),
    )  # fmt: skip
    for name, key, known in closed if totals else ():
        # Of a closed list all, from 0 on: a counter that appears as 5 has not grown, for Prometheus.
        for label, count in (dict.fromkeys(map(str, known), 0) | dict(part(totals, key))).items():
            found.put(name, count, label)
    counts = {str(name): count for name, count in part(totals, "durations").items() if isinstance(count, int)}
    for name, reading in read(counts).items():
        if name.startswith("stage."):
            found.put("stage_seconds", reading, name.removeprefix("stage."))
        elif name in ("message", "announced"):
            found.put(f"{name}_seconds", reading)
    fetchers = [fetcher for fetcher in _list(status, "fetchers") if isinstance(fetcher, Mapping)]
    if fetchers:
        found.put("fetcher_in_flight_items", sum(number(of.get("in_flight")) or 0 for of in fetchers))
        found.put("fetcher_held_bytes", sum(number(of.get("held_bytes")) or 0 for of in fetchers))


def _partitions(found: Samples, status: Json) -> None:
    for entry in _list(status, "partitions"):
        if isinstance(entry, Mapping):
            where = entry.get("topic"), entry.get("partition")
            found.put("partition_lag_records", entry.get("lag_records"), *where)
            found.put("partition_lag_seconds", entry.get("lag_s"), *where)
            found.put("partition_unowned_seconds", entry.get("unowned_s"), *where)
            found.put("partition_stuck_seconds", entry.get("stuck_s"), *where)


def _embedder(found: Samples, status: Json) -> None:
    embedder = part(status, "embedder")
    for name, key in (
        ("embedder_queued_bytes", "queued_bytes"), ("embedder_running_requests", "running"),
        ("embedder_running_max_requests", "running_max"), ("embedder_unwell_seconds", "unwell_s"),
    ):  # fmt: skip
        found.put(name, embedder.get(key))
    for lane, texts in part(embedder, "queued_by_lane").items():
        found.put("embedder_queued_texts", texts, lane)


def _store(found: Samples, status: Json) -> None:
    writer = part(status, "writer")
    for name, key in (
        ("writer_epoch", "epoch"), ("commit_sequence", "commit_sequence"), ("writer_queued_items", "queued"),
        ("writer_queued_bytes", "queued_bytes"), ("documents", "documents"), ("chunks", "chunks"),
        ("unindexed_rows", "unindexed_rows"),
    ):  # fmt: skip
        found.put(name, writer.get(key))
    if writer:
        found.put("writer_ended", float(writer.get("ended") is not None))
    chunks, unindexed = number(writer.get("chunks")), number(writer.get("unindexed_rows"))
    if chunks is not None and unindexed is not None:
        found.put("index_coverage_ratio", 1 - min(1.0, unindexed / chunks) if chunks else 1.0)
    found.put("last_commit_age_seconds", status.get("last_commit_age_s"))
    recall = part(status, "recall")
    found.put("recall_ratio", recall.get("recall"))
    found.put("recall_target_ratio", recall.get("target"))


def _cost(found: Samples, status: Json) -> None:
    spend = part(part(status, "embedder"), "spend")
    for name in ("spent_day_usd", "spent_month_usd", "limit_day_usd", "limit_month_usd"):
        found.put(name, spend.get(name))
    if spend:
        found.put("budget_exhausted", float(spend.get("level") == "exhausted"))
    half_price = part(part(status, "embedder"), "half_price")
    found.put("half_price_unfinished_jobs", half_price.get("unfinished"))
    found.put("half_price_missing_texts", half_price.get("missing_texts"))


def part(of: Json, name: str) -> Json:
    """The mapping of that name; {} where there is none."""
    found = of.get(name)
    return found if isinstance(found, Mapping) else {}


def number(value: Any) -> float | None:
    """`value` as a number, None where it is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _list(of: Json, name: str) -> list[Any]:
    found = of.get(name)
    return list(found) if isinstance(found, list | tuple) else []


def _of(entry: Any, name: str) -> Any:
    return entry.get(name) if isinstance(entry, Mapping) else None

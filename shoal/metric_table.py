"""Every metric of Shoal: name, kind, labels, meaning. One table, so that no name is invented where it is set.

Pure. `shoal.serve_apps.flow_metrics` and `.metrics_page` fill it and refuse what is not in it; docs/metrics.md is made
from it; the dashboards and alert rules in kuberay/ are held against it. Names follow Prometheus' conventions: base
units, `_total` for counters, the unit last. Labels are bounded: no document, user or question is ever one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Where = Literal["flow", "replica", "query_embedder"]

STAGES = (
    ("wait_for_room", "waiting until the reader's bounds admit one more document"),
    ("resolve", "finding the document of an S3 event"),
    ("fetch", "the fetch worker's whole answer: download, checks, extraction, waiting there"),
    ("download", "of that, the object store"),
    ("extract", "of that, text, schema and chunks, in a child"),
    ("embed", "the embedder's whole answer: cache, queue, provider, retries"),
    ("provider_request", "of that, one request to the model"),
    ("write", "the writer's whole answer: gathering, commit"),
    ("commit", "of that, one commit, of many documents"),
    ("dead_letter", "delivering a dead letter"),
    ("settle", "recording what became of a replayed dead letter"),
    ("report", "telling who waits for the outcome"),
    ("upkeep", "one step of maintenance between two commits"),
)
"""Values of the label `stage`, and what each is."""


FAILURES = ("throttled", "quota", "unwell", "misconfigured", "refused_text")
"""Values of the label `cause`: why a request to a model failed (shoal/embeddings/calling.py)."""


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One row. `name` as Prometheus shows it; a histogram's is without `_bucket`, `_sum` and `_count`.

    `where` it is set: the flow's by the supervisor (on every page), a replica's by itself (label `replica`), the query
    embedder's by its replicas (at Ray's port only)."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    where: Where = "flow"

    @property
    def unit(self) -> str:
        """seconds, bytes, usd, ratio; else what is counted."""
        last = self.name.removesuffix("_total").rpartition("_")[2]
        return last if last in ("seconds", "bytes", "usd", "ratio") else "count"

    @property
    def series(self) -> tuple[str, ...]:
        """The names that a query may ask for."""
        if self.kind != "histogram":
            return (self.name,)
        return tuple(self.name + suffix for suffix in ("_bucket", "_sum", "_count"))


def _rows(where: Where, *rows: tuple[str, Kind, str] | tuple[str, Kind, str, tuple[str, ...]]) -> tuple[MetricRow, ...]:
    own = ("replica",) if where != "flow" else ()
    return tuple(
        MetricRow(f"shoal_{row[0]}", row[1], row[2], (*(row[3] if len(row) > 3 else ()), *own), where) for row in rows
    )


SECTIONS: dict[str, tuple[MetricRow, ...]] = {
    "The whole": _rows(
        "flow",
        ("health", "gauge", "1 for the health that is so now: ok, degraded, down or unknown.", ("health",)),
        ("status_age_seconds", "gauge", "Age of what the supervisor published; all else of the flow is as old."),
        ("reasons", "gauge", "Why it is not well: reasons of the status, by severity.", ("severity",)),
        ("paused", "gauge", "What stands still on purpose: partitions, readers, dependencies.", ("kind",)),
        ("dependency_unwell", "gauge", "1 for a dependency that nothing is asked of now: it fails for all.",
         ("dependency",)),
        ("actor_running", "gauge", "1 while the actor runs, 0 while it does not.", ("actor",)),
        ("actor_restarts_total", "counter", "How often it was started again.", ("actor",)),
        ("actor_stalled_seconds", "gauge", "How long its own loop stands still.", ("actor",)),
        ("pool_wanted", "gauge", "Readers and fetch workers that the load wants.", ("pool",)),
        ("pool_working", "gauge", "Those at work. Fewer for long: no node has room for the others.", ("pool",)),
        ("pool_max", "gauge", "The most that there may be.", ("pool",)),
        ("disk_free_bytes", "gauge", "Free on the disk of the data directory, where the supervisor runs."),
        ("disk_size_bytes", "gauge", "Size of that disk."),
    ),
    "Ingest": _rows(
        "flow",
        ("lag_records", "gauge", "Messages that are not done."),
        ("lag_seconds", "gauge", "Age of the oldest message in hand that is not done."),
        ("lag_unknown_partitions", "gauge", "Partitions whose end the brokers did not tell."),
        ("partition_lag_records", "gauge", "Messages of the partition that are not done.", ("topic", "partition")),
        ("partition_lag_seconds", "gauge", "Age of its oldest message in hand.", ("topic", "partition")),
        ("partition_unowned_seconds", "gauge", "How long no reader has had it.", ("topic", "partition")),
        ("partition_stuck_seconds", "gauge", "How long there was work and no offset was committed.",
         ("topic", "partition")),
        ("broker_unreachable_seconds", "gauge", "How long a reader has not reached its brokers; the longest."),
        ("messages_total", "counter", "Messages polled; redelivered ones count again."),
        ("message_bytes_total", "counter", "Bytes of their values."),
        ("messages_ended_total", "counter", "Messages that came to their end."),
        ("outcomes_total", "counter", "Documents by what became of them.", ("outcome",)),
        ("dead_letters_total", "counter", "Dead letters by reason.", ("reason",)),
        ("retries_total", "counter", "Calls made again because a system was unwell.", ("stage",)),
        ("offset_commits_total", "counter", "Offsets that the brokers acknowledged, one per partition and commit."),
        ("offset_commits_refused_total", "counter", "Offsets that they did not; they are sent again."),
        ("rebalances_total", "counter", "Assignments that the readers got."),
        ("in_flight_items", "gauge", "Messages in flight."),
        ("in_flight_bytes", "gauge", "Bytes of them."),
        ("held_bytes", "gauge", "Memory for documents in work: messages, texts and vectors."),
        ("held_max_bytes", "gauge", "Its bound; at it partitions pause."),
        ("oldest_item_seconds", "gauge", "How long the oldest message in flight has been so."),
        ("stage_seconds", "histogram", "One call of a stage, whatever became of it.", ("stage",)),
        ("message_seconds", "histogram", "From the poll of a message to its end."),
        ("announced_seconds", "histogram", "From Kafka's timestamp of a message to its end: how fresh searches are."),
        ("fetched_total", "counter", "Documents that fetch workers answered for."),
        ("fetched_bytes_total", "counter", "Bytes of their objects."),
        ("fetches_failed_total", "counter", "Of those, bad documents."),
        ("extraction_kills_total", "counter", "Extractions ended by force: too long, or too much memory."),
        ("fetcher_in_flight_items", "gauge", "Documents with the fetch workers: their queue, and in work."),
        ("fetcher_held_bytes", "gauge", "Bytes of the objects in their memory."),
        ("feeds", "gauge", "Datasets by state: overdue, on_time, unknown (too few arrivals yet). Of the query side.",
         ("state",)),
    ),
    "Embedder": _rows(
        "flow",
        ("embedder_texts_total", "counter", "Texts asked for."),
        ("embedder_cache_hits_total", "counter", "Of those, answered by the cache."),
        ("embedder_reused_total", "counter", "Of those, answered by the tables."),
        ("embedder_requests_total", "counter", "Requests to the model, failed ones included."),
        ("embedder_failed_requests_total", "counter", "Requests that failed: throttled, quota (the account is empty), "
         "unwell, misconfigured, refused_text.", ("cause",)),
        ("embedder_tokens_total", "counter", "Tokens sent, with failed requests."),
        ("embedder_queued_texts", "gauge", "Texts that wait for the model or for room.", ("lane",)),
        ("embedder_queued_bytes", "gauge", "Bytes of them."),
        ("embedder_running_requests", "gauge", "Requests under way."),
        ("embedder_running_max_requests", "gauge", "How many may be, as the provider's answers allow."),
        ("embedder_unwell_seconds", "gauge", "Since when every request has failed."),
    ),
    "Store": _rows(
        "flow",
        ("writer_epoch", "gauge", "The fence's epoch that the writer holds; it grows with each writer."),
        ("writer_ended", "gauge", "1 where the writer gave up: fenced, or it can't use its tables."),
        ("commit_sequence", "gauge", "Number of the last commit."),
        ("commits_total", "counter", "Commits."),
        ("failed_commits_total", "counter", "Commits that failed; what was in them comes again."),
        ("committed_documents_total", "counter", "Documents, deletions and commands that were acknowledged."),
        ("failed_upkeep_total", "counter", "Steps of maintenance that failed; they come again."),
        ("last_commit_age_seconds", "gauge", "Since the last commit."),
        ("writer_queued_items", "gauge", "What waits for a commit."),
        ("writer_queued_bytes", "gauge", "Bytes of it."),
        ("documents", "gauge", "Current documents in the tables."),
        ("chunks", "gauge", "Chunks in the tables."),
        ("unindexed_rows", "gauge", "Chunks that the full-text index lacks; searches scan them."),
        ("index_coverage_ratio", "gauge", "Share of the chunks that the full-text index has."),
        ("index_unindexed_rows", "gauge", "Rows outside of one index. Of the query side.", ("table", "column")),
        ("index_failures", "gauge", "Builds of it that failed since the last good one. Of the query side.",
         ("table", "column")),
        ("index_size_bytes", "gauge", "Its size. Of the query side.", ("table", "column")),
        ("recall_ratio", "gauge", "Share of the exact nearest chunks that searches find, as last measured."),
        ("recall_target_ratio", "gauge", "What it should be."),
    ),
    "Cost": _rows(
        "flow",
        ("spent_day_usd", "gauge", "Spent today (UTC), US dollars."),
        ("spent_month_usd", "gauge", "Spent this month."),
        ("limit_day_usd", "gauge", "The day's budget; 0: none."),
        ("limit_month_usd", "gauge", "The month's."),
        ("budget_exhausted", "gauge", "1 while nothing may be embedded because a budget is used up."),
        ("half_price_unfinished_jobs", "gauge", "Jobs at half price that are under way."),
        ("half_price_missing_texts", "gauge", "Texts of them that are left to the full price."),
    ),
    "Queries": _rows(
        "replica",
        ("http_requests_total", "counter", "Requests answered. `route` is a template.", ("method", "route", "status")),
        ("http_request_seconds", "histogram", "Until the last byte of the answer.", ("method", "route", "status")),
        ("http_stage_seconds", "histogram",
         "A stage of a request, up to the first byte of the answer: accept (who asks, routing, checks), embed (the "
         "question's vector), queue (waiting for the search core), search, compose (the answer and its JSON), send.",
         ("route", "stage")),
        ("http_start_time_seconds", "gauge", "When this replica began, in seconds since 1970."),
    ) + _rows(
        "query_embedder",
        ("query_embedder_texts_total", "counter", "Questions to embed."),
        ("query_embedder_cache_hits_total", "counter", "Of those, answered by its cache."),
        ("query_embedder_requests_total", "counter", "Requests to the model, failed ones included."),
        ("query_embedder_failed_requests_total", "counter", "Requests that failed, by cause.", ("cause",)),
        ("query_embedder_tokens_total", "counter", "Tokens sent."),
        ("query_embedder_queued_texts", "gauge", "Questions that wait for the model."),
        ("query_embedder_unwell_seconds", "gauge", "Since when every request has failed: searches go by keywords."),
        ("query_embedder_request_seconds", "histogram", "One request to the model."),
    ),
}  # fmt: skip

TABLE: dict[str, MetricRow] = {row.name: row for rows in SECTIONS.values() for row in rows}

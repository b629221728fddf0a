"""Writes the Grafana dashboards beside this file: `python kuberay/dashboards/render.py`. A test compares them.

Import the JSON files into any Grafana from 9 on (Dashboards, New, Import), or let its sidecar find them in a ConfigMap.
Two variables: the data source, and the namespace, where one Prometheus watches several Shoals. The flow's series may be
there more than once (docs/metrics.md), so its queries take `max by` first; those of replicas are summed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLACE = Path(__file__).parent
HERE = 'namespace=~"$namespace"'
COLUMNS = 24


@dataclass(frozen=True, slots=True)
class Panel:
    """`queries`: (expression, legend) each. `width` of 24 columns, `height` in rows of 30 pixels. `levels`: from which
    values on it is orange and red."""

    title: str
    about: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    levels: tuple[float, float] | None = None
    stack: bool = False
    max: float | None = None


def now(name: str, *by: str, more: str = "") -> str:
    """A gauge of the flow."""
    return f"max by ({', '.join(by)}) (shoal_{name}{{{HERE}{more}}})"


def rate(name: str, *by: str, more: str = "") -> str:
    """A counter of the flow, a second."""
    return f"max by ({', '.join(by)}) (rate(shoal_{name}{{{HERE}{more}}}[$__rate_interval]))"


def replicas(name: str, *by: str, more: str = "") -> str:
    """A counter of replicas, a second, over all of them."""
    kept = ", ".join(dict.fromkeys([*by, "replica", "method", "route", "status", "cause", "le"]))
    inner = f"max by ({kept}) (rate(shoal_{name}{{{HERE}{more}}}[$__rate_interval]))"
    return f"sum by ({', '.join(by)}) ({inner})"


def quantile(share: float, name: str, *by: str, of_replicas: bool = False, more: str = "") -> str:
    """Of a histogram, in seconds."""
    buckets = (replicas if of_replicas else rate)(f"{name}_bucket", *by, "le", more=more)
    return f"histogram_quantile({share:g}, {buckets})"


def quantiles(name: str, **more: Any) -> tuple[tuple[str, str], ...]:
    return tuple((quantile(share, name, **more), f"p{100 * share:g}") for share in (0.5, 0.95, 0.99))


def ratio(part: str, whole: str) -> str:
    """0 where the whole is 0: nothing went wrong of nothing."""
    return f"({part}) / clamp_min({whole}, 1e-9)"


ERRORS = replicas("http_requests_total", more=',status=~"5..",status!="501"')
REQUESTS = replicas("http_requests_total")
STAGE_MEAN = ratio(rate("stage_seconds_sum", "stage"), rate("stage_seconds_count", "stage"))
STAT: dict[str, Any] = {"kind": "stat", "width": 4, "height": 4}

DASHBOARDS: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "overview": ("Shoal: overview", (
        Panel("Health", "What holds now. Why, and what to do: `shoal status`.",
              ((now("health", "health") + " == 1", "{{health}}"),), **STAT),
        Panel("Status age", "Above 15 s the supervisor is gone, or can't write beside the tables.",
              ((now("status_age_seconds"), "age"),), "s", levels=(10, 15), **STAT),
        Panel("Lag", "Messages that are not done.", ((now("lag_records"), "messages"),), **STAT),
        Panel("Documents", "Current ones in the tables.", ((now("documents"), "documents"),), **STAT),
        Panel("Feeds overdue", "Datasets silent for longer than is usual for them.",
              ((now("feeds", "state", more=',state="overdue"'), "overdue"),), levels=(1, 5), **STAT),
        Panel("Spent today", "US dollars, UTC day.", ((now("spent_day_usd"), "today"),), "currencyUSD", **STAT),
        Panel("Messages ended", "By what became of their documents, a second.",
              ((rate("outcomes_total", "outcome"), "{{outcome}}"),), "ops", stack=True),
        Panel("Freshness", "From Kafka's timestamp to searchable (or dead).", quantiles("announced_seconds"), "s"),
        Panel("Lag in time", "Age of the oldest message in hand.", ((now("lag_seconds"), "oldest"),), "s"),
        Panel("Dead letters", "A second, by reason: `shoal dlq list`.",
              ((rate("dead_letters_total", "reason"), "{{reason}}"),), "ops", stack=True),
        Panel("Requests", "REST and MCP, a second.", ((replicas("http_requests_total", "status"), "{{status}}"),),
              "reqps", stack=True),
        Panel("Time of an answer", "REST and MCP.", quantiles("http_request_seconds", of_replicas=True), "s"),
        Panel("Actors that do not run", "0 is right; a restart takes seconds.",
              ((f"1 - {now('actor_running', 'actor')}", "{{actor}}"),), levels=(1, 1)),
        Panel("Reasons", "Why it is not well, by severity, and dependencies that fail for all: `shoal status`.",
              ((now("reasons", "severity"), "{{severity}}"),
               (now("dependency_unwell", "dependency"), "unwell: {{dependency}}")), levels=(1, 1)),
        Panel("Stalled", "Seconds for which an actor's own loop has not turned.",
              ((now("actor_stalled_seconds", "actor") + " > 1", "{{actor}}"),), "s", levels=(10, 60)),
        Panel("Restarts", "Of actors, an hour.",
              ((f"max by (actor) (increase(shoal_actor_restarts_total{{{HERE}}}[1h]))", "{{actor}}"),)),
        Panel("Disk used", "Of the data directory's disk.",
              ((f"1 - {ratio(now('disk_free_bytes'), now('disk_size_bytes'))}", "used"),), "percentunit",
              levels=(0.8, 0.9), max=1),
    )),
    "ingest": ("Shoal: ingest", (
        Panel("Messages", "Polled and ended, a second. Polled above ended for long: redelivery, or lag in work.",
              ((rate("messages_total"), "polled"), (rate("messages_ended_total"), "ended")), "ops"),
        Panel("Bytes", "Of messages and of fetched objects, a second.",
              ((rate("message_bytes_total"), "messages"), (rate("fetched_bytes_total"), "objects")), "Bps"),
        Panel("Lag", "Messages, by partition.",
              ((now("partition_lag_records", "topic", "partition"), "{{topic}}/{{partition}}"),), stack=True),
        Panel("Lag in time", "Age of the oldest message in hand, by partition.",
              ((now("partition_lag_seconds", "topic", "partition"), "{{topic}}/{{partition}}"),), "s"),
        Panel("Mean time of a stage", "One call. fetch holds download and extract; write holds commit.",
              ((STAGE_MEAN, "{{stage}}"),), "s"),
        Panel("p95 of a stage", "One call.", ((quantile(0.95, "stage_seconds", "stage"), "{{stage}}"),), "s"),
        Panel("Message, poll to end", "All stages, waiting and retries.", quantiles("message_seconds"), "s"),
        Panel("Retries", "A second, by stage: a system was unwell.",
              ((rate("retries_total", "stage"), "{{stage}}"),), "ops", stack=True),
        Panel("In flight", "Messages with the readers, documents with the fetch workers.",
              ((now("in_flight_items"), "messages"), (now("fetcher_in_flight_items"), "with fetchers"))),
        Panel("Memory for documents in work", "At the bound partitions pause; that is meant.",
              ((now("held_bytes"), "held"), (now("held_max_bytes"), "bound"), (now("in_flight_bytes"), "messages"),
               (now("fetcher_held_bytes"), "objects with fetchers")), "bytes"),
        Panel("Oldest in flight", "What it waits for: `shoal status`.", ((now("oldest_item_seconds"), "oldest"),), "s"),
        Panel("Standing still", "Paused partitions and readers; dependencies that fail for all.",
              ((now("paused", "kind"), "{{kind}}"),)),
        Panel("Readers and fetch workers", "Wanted above working for long: no node has room. docs/elasticity.md.",
              ((now("pool_wanted", "pool"), "{{pool}} wanted"), (now("pool_working", "pool"), "{{pool}} working"),
               (now("pool_max", "pool"), "{{pool}} at most"))),
        Panel("Unowned or stuck partitions", "Seconds without a reader; with work and no commit of offsets.",
              ((now("partition_unowned_seconds", "topic", "partition") + " > 0", "unowned {{topic}}/{{partition}}"),
               (now("partition_stuck_seconds", "topic", "partition") + " > 10", "stuck {{topic}}/{{partition}}")),
              "s", levels=(15, 120)),
        Panel("Offsets", "Commits to Kafka, a second; assignments.",
              ((rate("offset_commits_total"), "committed"), (rate("offset_commits_refused_total"), "refused"),
               (rate("rebalances_total"), "rebalances")), "ops"),
        Panel("Brokers unreachable", "The longest of any reader; partitions whose end is not known.",
              ((now("broker_unreachable_seconds"), "unreachable"),
               (now("lag_unknown_partitions"), "partitions unknown")), "s"),
        Panel("Fetched", "A second; bad documents and killed extractions.",
              ((rate("fetched_total"), "fetched"), (rate("fetches_failed_total"), "bad"),
               (rate("extraction_kills_total"), "killed")), "ops"),
        Panel("Feeds", "Datasets by state.", ((now("feeds", "state"), "{{state}}"),), stack=True),
    )),
    "embedder": ("Shoal: embedder", (
        Panel("Texts", "A second, by who answered.",
              ((rate("embedder_cache_hits_total"), "cache"), (rate("embedder_reused_total"), "tables"),
               (f"{rate('embedder_texts_total')} - {rate('embedder_cache_hits_total')} - "
                f"{rate('embedder_reused_total')}", "model")), "ops", stack=True),
        Panel("Share that costs nothing", "Cache and tables. Low on unchanged data: a larger cache.",
              ((ratio(f"{rate('embedder_cache_hits_total')} + {rate('embedder_reused_total')}",
                      rate("embedder_texts_total")), "free"),), "percentunit", max=1),
        Panel("Tokens", "Sent a minute: hold it against the provider's limit.",
              ((f"60 * {rate('embedder_tokens_total')}", "tokens/min"),)),
        Panel("Requests", "To the model, a second.", ((rate("embedder_requests_total"), "requests"),), "reqps"),
        Panel("Failed requests", "A second, by cause. quota: somebody must pay.",
              ((rate("embedder_failed_requests_total", "cause"), "{{cause}}"),), "reqps", stack=True),
        Panel("Under way", "Requests, and how many may be: it shrinks while the provider throttles.",
              ((now("embedder_running_requests"), "under way"), (now("embedder_running_max_requests"), "may be"))),
        Panel("Queue", "Texts, by lane.", ((now("embedder_queued_texts", "lane"), "{{lane}}"),), stack=True),
        Panel("Queue in bytes", "", ((now("embedder_queued_bytes"), "bytes"),), "bytes"),
        Panel("Unwell", "Since when every request has failed.", ((now("embedder_unwell_seconds"), "ingest"),
              (f"max by (replica) (shoal_query_embedder_unwell_seconds{{{HERE}}})", "queries {{replica}}")), "s",
              levels=(30, 120)),
        Panel("One request of ingest", "To the model.",
              quantiles("stage_seconds", more=',stage="provider_request"'), "s"),
        Panel("Questions", "A second, and those from the cache.",
              ((replicas("query_embedder_texts_total"), "questions"),
               (replicas("query_embedder_cache_hits_total"), "from the cache"),
               (replicas("query_embedder_requests_total"), "requests to the model")), "reqps"),
        Panel("One request for questions", "To the model.",
              quantiles("query_embedder_request_seconds", of_replicas=True), "s"),
    )),
    "store": ("Shoal: store", (
        Panel("Fence epoch", "It grows with each writer. Growing without a restart: two writers.",
              ((now("writer_epoch"), "epoch"),), **STAT),
        Panel("Writer gave up", "1: fenced, or it can't use its tables.", ((now("writer_ended"), "ended"),),
              levels=(1, 1), **STAT),
        Panel("Since the last commit", "Grows while nothing is announced, too.",
              ((now("last_commit_age_seconds"), "age"),), "s", **STAT),
        Panel("Index coverage", "Share of the chunks that the full-text index has.",
              ((now("index_coverage_ratio"), "covered"),), "percentunit", **STAT),
        Panel("Recall", "Share of the exact nearest chunks that searches find.",
              ((now("recall_ratio"), "recall"),), "percentunit", **STAT),
        Panel("Chunks", "In the tables.", ((now("chunks"), "chunks"),), **STAT),
        Panel("Commits", "A second.", ((rate("commits_total"), "commits"), (rate("failed_commits_total"), "failed")),
              "ops"),
        Panel("Documents a commit", "Small commits on large tables are what is dear.",
              ((ratio(rate("committed_documents_total"), rate("commits_total")), "documents"),)),
        Panel("Time of commits and upkeep", "p95 of one.",
              tuple((quantile(0.95, "stage_seconds", more=f',stage="{stage}"'), stage)
                    for stage in ("commit", "upkeep")), "s"),
        Panel("Queue", "What waits for a commit.", ((now("writer_queued_items"), "documents"),)),
        Panel("Queue in bytes", "", ((now("writer_queued_bytes"), "bytes"),), "bytes"),
        Panel("Commits so far", "Sequence number.", ((now("commit_sequence"), "sequence"),)),
        Panel("Rows outside of indexes", "Searches scan them.",
              ((now("unindexed_rows"), "full text"),
               (now("index_unindexed_rows", "table", "column"), "{{table}}.{{column}}"))),
        Panel("Failed builds and upkeep", "`shoal index status` says why.",
              ((now("index_failures", "table", "column"), "{{table}}.{{column}}"),
               (rate("failed_upkeep_total"), "upkeep, a second"))),
        Panel("Size of indexes", "", ((now("index_size_bytes", "table", "column"), "{{table}}.{{column}}"),), "bytes",
              stack=True),
        Panel("Recall and its target", "", ((now("recall_ratio"), "recall"), (now("recall_target_ratio"), "target")),
              "percentunit", max=1),
        Panel("Rows", "", ((now("documents"), "documents"), (now("chunks"), "chunks"))),
        Panel("Disk", "Of the data directory.",
              ((now("disk_free_bytes"), "free"), (now("disk_size_bytes"), "size")), "bytes"),
    )),
    "queries": ("Shoal: queries", (
        Panel("Requests", "A second, by route.", ((replicas("http_requests_total", "route"), "{{route}}"),), "reqps",
              width=12, stack=True),
        Panel("p95", "By route.",
              ((quantile(0.95, "http_request_seconds", "route", of_replicas=True), "{{route}}"),), "s", width=12),
        Panel("Stages of an answer", "Up to its first byte. Queue is waiting for the search core.",
              ((quantile(0.95, "http_stage_seconds", "stage", of_replicas=True), "{{stage}}"),), "s"),
        Panel("Time of an answer", "All routes.", quantiles("http_request_seconds", of_replicas=True), "s"),
        Panel("Errors of ours", "Share of the answers with 5xx (501 is what is not made yet).",
              ((ratio(ERRORS, REQUESTS), "5xx"),), "percentunit", levels=(0.01, 0.05)),
        Panel("By status", "A second.", ((replicas("http_requests_total", "status"), "{{status}}"),), "reqps",
              stack=True),
        Panel("Told to come back", "429 and 503, a second: too many at a time, or no tables yet.",
              ((replicas("http_requests_total", "status", more=',status=~"429|503"'), "{{status}}"),), "reqps"),
        Panel("Replicas", "That answered lately.",
              ((f"count(max by (replica) (shoal_http_start_time_seconds{{{HERE}}}))", "replicas"),)),
        Panel("Questions that can't be embedded", "Seconds; above 0 searches go by keywords.",
              ((f"max by (replica) (shoal_query_embedder_unwell_seconds{{{HERE}}})", "{{replica}}"),), "s",
              levels=(30, 120)),
        Panel("Questions that wait for the model", "",
              ((f"sum(max by (replica) (shoal_query_embedder_queued_texts{{{HERE}}}))", "waiting"),)),
        Panel("Failed requests to the model", "A second, by cause.",
              ((replicas("query_embedder_failed_requests_total", "cause"), "{{cause}}"),), "reqps", stack=True),
        Panel("How old answers may be", "From announcement to searchable, p95; age of the oldest in hand.",
              ((quantile(0.95, "announced_seconds"), "p95"), (now("lag_seconds"), "oldest in hand")), "s"),
    )),
    "cost": ("Shoal: cost", (
        Panel("Today", "US dollars, UTC day.", ((now("spent_day_usd"), "today"),), "currencyUSD", **STAT),
        Panel("This month", "", ((now("spent_month_usd"), "month"),), "currencyUSD", **STAT),
        Panel("Of the day's budget", "At 100 % documents wait.",
              ((f"{now('spent_day_usd')} / ({now('limit_day_usd')} > 0)", "used"),), "percentunit", levels=(0.8, 1),
              **STAT),
        Panel("Of the month's budget", "", ((f"{now('spent_month_usd')} / ({now('limit_month_usd')} > 0)", "used"),),
              "percentunit", levels=(0.8, 1), **STAT),
        Panel("Budget exhausted", "1: nothing is embedded.", ((now("budget_exhausted"), "exhausted"),), levels=(1, 1),
              **STAT),
        Panel("Jobs at half price", "Under way.", ((now("half_price_unfinished_jobs"), "jobs"),), **STAT),
        Panel("Spent", "US dollars of the day and the month, as they grow.",
              ((now("spent_day_usd"), "day"), (now("spent_month_usd"), "month")), "currencyUSD", width=12),
        Panel("Spent an hour", "Over the last hour; the turn of the month shows as 0.",
              ((f"max(clamp_min(delta(shoal_spent_month_usd{{{HERE}}}[1h]), 0))", "an hour"),), "currencyUSD",
              width=12),
        Panel("Tokens", "A minute, of ingest and of questions.",
              ((f"60 * {rate('embedder_tokens_total')}", "ingest"),
               (f"60 * {replicas('query_embedder_tokens_total')}", "questions"))),
        Panel("Paid texts", "A second; the others came from the cache or the tables.",
              ((f"{rate('embedder_texts_total')} - {rate('embedder_cache_hits_total')} - "
                f"{rate('embedder_reused_total')}", "paid"),), "ops"),
        Panel("Left to the full price", "Texts that a job at half price did not bring.",
              ((now("half_price_missing_texts"), "texts"),)),
    )),
}  # fmt: skip


def dashboard(name: str) -> dict[str, Any]:
    """One dashboard as Grafana's JSON (schema version 39: Grafana 11; older ones read it, newer ones migrate it)."""
    title, panels = DASHBOARDS[name]
    places: list[dict[str, Any]] = []
    x = y = row_height = 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > COLUMNS:
            x, y, row_height = 0, y + row_height, 0
        places.append(_panel(panel, number, x, y))
        x, row_height = x + panel.width, max(row_height, panel.height)
    return {
        "uid": f"shoal-{name}",
        "title": title,
        "description": "Made by kuberay/dashboards/render.py: edit that one.",
        "tags": ["shoal"],
        "schemaVersion": 39,
        "version": 1,
        "id": None,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "utc",
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timepicker": {},
        "annotations": {"list": []},
        "links": [{"type": "dashboards", "title": "Shoal", "tags": ["shoal"], "asDropdown": True,
                   "includeVars": True, "keepTime": True}],
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
            {"name": "namespace", "type": "query", "label": "Namespace", "datasource": _SOURCE, "refresh": 2,
             "query": {"query": "label_values(shoal_status_age_seconds, namespace)", "refId": "namespaces"},
             "definition": "label_values(shoal_status_age_seconds, namespace)", "includeAll": True, "allValue": ".*",
             "multi": False, "current": {"text": "All", "value": "$__all"}},
        ]},
        "panels": places,
    }  # fmt: skip


_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.levels is not None:
        steps += [{"color": color, "value": at} for color, at in zip(("orange", "red"), panel.levels, strict=True)]
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}, "min": 0}
    if panel.max is not None:
        defaults["max"] = panel.max
    legend = {"displayMode": "list", "placement": "bottom"}
    options: dict[str, Any] = {"legend": legend, "tooltip": {"mode": "multi"}}
    if panel.kind == "stat":
        by_name = "health" in panel.queries[0][0]
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "name" if by_name else "auto"}
    else:
        shown = {"fillOpacity": 20 if panel.stack else 5, "stacking": {"mode": "normal" if panel.stack else "none"}}
        defaults["custom"] = shown | {"lineWidth": 1, "showPoints": "never"}
    return {
        "id": number,
        "title": panel.title,
        "description": panel.about,
        "type": panel.kind,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + i), "expr": expression, "legendFormat": legend, "datasource": _SOURCE}
            for i, (expression, legend) in enumerate(panel.queries)
        ],
    }


def text_of(name: str) -> str:
    """The file's text."""
    return json.dumps(dashboard(name), indent=1) + "\n"


if __name__ == "__main__":
    for each in DASHBOARDS:
        (PLACE / f"{each}.json").write_text(text_of(each))

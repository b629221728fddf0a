"""What the query embedder did, as rows of the table of metrics. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import Metric

from shoal.histograms import Reading, read
from shoal.metric_table import FAILURES
from shoal.metrics import EmbedderStatistics
from shoal.serve_apps.flow_metrics import Samples


def families(models: Iterable[EmbedderStatistics], replica: str) -> Iterator[Metric]:
    """Of all models that a replica holds, together. One that leaves takes its counts with it, as a restart does."""
    known = list(models)
    found = Samples()
    for name, count in (
        ("texts_total", sum(of.texts for of in known)),
        ("cache_hits_total", sum(of.cache_hits for of in known)),
        ("requests_total", sum(of.requests for of in known)),
        ("tokens_total", sum(of.tokens for of in known)),
        ("queued_texts", sum(of.queued_texts for of in known)),
    ):
        found.put(f"query_embedder_{name}", count, replica)
    found.put("query_embedder_unwell_seconds", max((of.unwell_s for of in known), default=0.0), replica)
    failures = dict.fromkeys(FAILURES, 0)
    durations: dict[str, int] = {}
    for of in known:
        for counts, sums in ((of.request_failures, failures), (of.durations, durations)):
            for name, count in counts.items():
                sums[name] = sums.get(name, 0) + count
    for cause, count in sorted(failures.items()):
        found.put("query_embedder_failed_requests_total", count, cause, replica)
    reading = read(durations).get("stage.provider_request")
    if isinstance(reading, Reading):
        found.put("query_embedder_request_seconds", reading, replica)
    return found.families()

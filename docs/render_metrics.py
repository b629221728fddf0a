"""Writes docs/metrics.md from the table of metrics: `python docs/render_metrics.py`. A test compares the two."""

from __future__ import annotations

from pathlib import Path

from shoal.histograms import BOUNDS_S
from shoal.metric_table import SECTIONS, STAGES

ROOT = Path(__file__).resolve().parents[1]
INTRODUCTION = """\
# Metrics

Everything that Shoal measures has a name in shoal/metric_table.py and a row below; nothing else is exported. Graphs of
them are in kuberay/dashboards, alerts in kuberay/alerts ([alerts.md](alerts.md)); what to do is in
[runbooks.md](runbooks.md).

## Where to scrape

| page | what is there | how |
|---|---|---|
| `/metrics` of REST (port 8000) | the flow as the supervisor last published it, indexes and feeds, requests of the replica that answers | text format; see below for who may |
| Ray's port of each node (8080 on KubeRay, `SHOAL_METRICS_PORT` on a laptop) | the same and the query embedder, each from the process that knows it, as `ray_shoal_…`, beside Ray's own | no key: close it to all but the scraper (kuberay/ does) |

**On a laptop** callers on this machine need no key, so this is all:

```yaml
scrape_configs:
  - job_name: shoal
    scrape_interval: 15s
    static_configs: [{targets: ["127.0.0.1:8000"]}]
```

Elsewhere `/metrics` needs a key that may read all (`shoal keys create --name prometheus --scope read`), sent as a bearer token:
`authorization: {credentials_file: /etc/prometheus/shoal-key}`.

**On a cluster** scrape Ray's port of every pod, head and workers, of both clusters (container port name `metrics`), and
take off the prefix, so that the names are those of the table:

```yaml
metric_relabel_configs:
  - {source_labels: [__name__], regex: "ray_(shoal_.+)", target_label: __name__, replacement: "$1"}
```

At Ray's port all of ours have the type gauge, counters and buckets too: they count as they should (Shoal sums them over
the deaths of who counts), only the type is lost. Ray forgets a gauge 20 s after it was set; ours are set every few
seconds, so a series that ends is a process that ended.

Where both pages are scraped, or several replicas show the same flow, a series is there more than once: the dashboards
and alerts take `max by (…)` of the flow first. Requests and the query embedder have the label `replica`, which tells
the processes apart: sum over it.

## Labels

All are bounded: partitions, actors, datasets by state only, routes as templates, reasons and outcomes of closed lists;
of any metric at most 500 series. No document, question or key is ever a label: for one document see its row
(`shoal search --hash`), the dead letters and the logs.

`stage` is one of:

"""  # noqa: E501
HISTOGRAMS = """
Histograms have the buckets {bounds} seconds.
"""


def metrics_page() -> str:
    """docs/metrics.md."""
    parts = [INTRODUCTION, "| stage | what |\n|---|---|\n"]
    parts += [f"| `{stage}` | {meaning} |\n" for stage, meaning in STAGES]
    parts.append(HISTOGRAMS.format(bounds=", ".join(f"{bound:g}" for bound in BOUNDS_S)))
    for heading, rows in SECTIONS.items():
        parts.append(f"\n## {heading}\n\n| name | kind | labels | unit | meaning |\n|---|---|---|---|---|\n")
        for row in rows:
            labels = ", ".join(f"`{label}`" for label in row.labels)
            parts.append(f"| `{row.name}` | {row.kind} | {labels} | {row.unit} | {row.meaning} |\n")
    return "".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "metrics.md").write_text(metrics_page())

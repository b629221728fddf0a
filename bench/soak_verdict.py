"""Whether a soak held: its figures against what is promised. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

RECALL_MIN = 0.95
DISK_FACTOR_MAX = 12.0
DISK_JUDGED_MIB = 128.0  # below, it is the manifests and the index heads that each version has
RSS_GROWTH_MAX = 1.5
RSS_SLACK_MIB = 64.0  # below, growth is the allocator's
COMMITS_JUDGED = 5_000  # fewer say nothing about growth: caches are still filling


def judge(figures: dict[str, Any]) -> list[str]:
    """What did not hold, in words."""
    broken = []
    if figures["query_errors"]:
        broken.append(f"{figures['query_errors']} questions failed or showed a torn document")
    if not figures["queries"]:
        broken.append("nothing was asked")
    if figures["coverage"] < 1.0:
        broken.append(f"coverage is {figures['coverage']:.4f}: chunks are in no index after upkeep came to its end")
    if figures["recall@10"] < RECALL_MIN:
        broken.append(f"recall@10 is {figures['recall@10']:.3f}, below {RECALL_MIN}")
    if figures["disk_factor"] > DISK_FACTOR_MAX and figures["disk_peak_mb"] > DISK_JUDGED_MIB:
        broken.append(f"the disk holds {figures['disk_factor']:.1f} times the data, more than {DISK_FACTOR_MAX:g}")
    for who in ("writer", "asker"):
        if figures["commits"] >= COMMITS_JUDGED and (figures[f"rss_growth_{who}"] or 0) > RSS_GROWTH_MAX:
            broken.append(f"memory of the {who} grew by {figures[f'rss_growth_{who}']:.2f}, more than {RSS_GROWTH_MAX}")
    if figures["findings"]:
        broken.append(f"{figures['findings']} findings in the tables")
    if figures["deaths"]:
        broken.append(f"a process died {figures['deaths']} times by itself")
    return broken


def growth(series: Sequence[float]) -> float | None:
    """The last quarter of a memory series over its second quarter (the first is warming up), medians; None where there
    are fewer than eight samples. Growth by less than RSS_SLACK_MIB is none."""
    alive = [one for one in series if one]
    if len(alive) < 8:
        return None
    quarter = len(alive) // 4
    before, after = median(alive[quarter : 2 * quarter]), median(alive[-quarter:])
    return after / before if after - before > RSS_SLACK_MIB else min(1.0, after / before)


def closing(figures: dict[str, Any]) -> str:
    """The line that says it all."""
    return (
        f"commits={figures['commits']} query_errors={figures['query_errors']} coverage={figures['coverage']:.4g} "
        f"recall@10={figures['recall@10']:.3f} disk_factor={figures['disk_factor']:.1f} "
        f"rss_max_mb={figures['rss_max_mb']:.0f} findings={figures['findings']}"
    )

"""How long things take, as counts: histograms that can be summed over actors, and over the lives of one.

Pure. An actor observes; its statistics carry `counts()`, a flat mapping of whole numbers, which the supervisor tallies
like any other count (shoal.cluster.tallies), so that a histogram never falls because an actor restarted. `read` makes
of the sums what Prometheus shows. Names are few and fixed (shoal/metric_table.py), buckets are the same everywhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""Upper bounds of the buckets in seconds: from a lookup in a cache to a message that waited out an outage."""
_SUM = "us"  # microseconds: sums stay whole numbers, and a tally of a century fits


@dataclass(frozen=True, slots=True)
class Reading:
    """One histogram. `buckets`: (upper bound as Prometheus writes it, how many were at most that long)."""

    buckets: tuple[tuple[str, int], ...]
    sum_s: float

    @property
    def count(self) -> int:
        return self.buckets[-1][1]


class Durations:
    """Histograms by name. One thread observes; any may ask for the counts."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def observe(self, name: str, seconds: float) -> None:
        """`name` has no `|` in it. A clock that went back counts as no time."""
        seconds = max(0.0, seconds)
        self._add(f"{name}|{bisect_left(BOUNDS_S, seconds)}", 1)
        self._add(f"{name}|{_SUM}", round(1e6 * seconds))

    def counts(self) -> dict[str, int]:
        """{name|bucket: how many, name|us: microseconds in all}; buckets without any are left out."""
        return self._counts.copy()

    def _add(self, key: str, count: int) -> None:
        self._counts[key] = self._counts.get(key, 0) + count


def read(counts: Mapping[str, int]) -> dict[str, Reading]:
    """The histograms of summed counts, by name. What is no count of ours is left out."""
    buckets: dict[str, list[int]] = {}
    sums: dict[str, float] = {}
    for key, count in counts.items():
        name, _, bucket = key.rpartition("|")
        of = buckets.setdefault(name, [0] * (len(BOUNDS_S) + 1))
        if bucket == _SUM:
            sums[name] = count / 1e6
        elif bucket.isdigit() and int(bucket) < len(of):
            of[int(bucket)] += count
    return {name: Reading(_cumulated(of), sums.get(name, 0.0)) for name, of in sorted(buckets.items()) if name}


def _cumulated(counts: list[int]) -> tuple[tuple[str, int], ...]:
    found, total = [], 0
    for bound, count in zip([*map(str, BOUNDS_S), "+Inf"], counts, strict=True):
        total += count
        found.append((bound, total))
    return tuple(found)

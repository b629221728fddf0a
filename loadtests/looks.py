"""What a look saw: Locust's figures, the stages that the service told, and the processor time of each process. Pure but
for reading Locust's files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ALL = "Aggregated"
OUTSIDE = "outside"
"""Of a question's time what the service did not count: the load generator, HAProxy, sockets, a replica's event loop
that was busy before it took the request up."""

Figures = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Look:
    """`rows`: Locust's statistics by name of the question (and `ALL`). `stages_ms`: by name of the question the mean of
    each stage. `cpu_s`: by role of a process what it took meanwhile. `took_s`: by the clock."""

    rows: Mapping[str, Mapping[str, str]]
    stages_ms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    took_s: float = 0.0

    def of(self, name: str, column: str) -> float | None:
        """One of Locust's figures; None where there is none."""
        row = self.rows.get(name)
        return float(row[column]) if row is not None and row.get(column) not in (None, "", "N/A") else None

    def figures(self, prefix: str) -> Figures:
        """Failures, rate and times of all; and the worst p95 among the kinds of questions whose text (if they have one)
        was known to the cache, and among those whose text was new to it."""
        found: Figures = {
            f"{prefix}.failed": self.of(ALL, "Failure Count"),
            f"{prefix}.qps": self.of(ALL, "Requests/s"),
            f"{prefix}.p50_ms": self.of(ALL, "50%"),
            f"{prefix}.p95_ms": self.of(ALL, "95%"),
        }
        kinds = [name for name in self.rows if name != ALL]
        new = [name for name in kinds if name.endswith("new text")]
        found[f"{prefix}.known_p95_ms"] = self._worst(name for name in kinds if name not in new)
        found[f"{prefix}.new_text_p95_ms"] = self._worst(new)
        return found

    def _worst(self, names: Iterable[str]) -> float | None:
        times = (self.of(name, "95%") for name in names)
        return max((time for time in times if time is not None), default=None)

    def lines(self) -> list[str]:
        """The look as a table, with where the time went."""
        stages = list(dict.fromkeys(stage for spent in self.stages_ms.values() for stage in spent))
        heads = ("requests", "failed", "p50", "p95", "mean", *stages)
        lines = [f"{'milliseconds':28}" + "".join(f"{head:>9}" for head in heads)]
        for name in self.rows:
            columns = ("Request Count", "Failure Count", "50%", "95%", "Average Response Time")
            values = [self.of(name, column) for column in columns]
            values += [self.stages_ms.get(name, {}).get(stage) for stage in stages]
            lines.append(f"{name:28}" + "".join(f"{'-' if value is None else f'{value:.4g}':>9}" for value in values))
        if self.took_s:
            spent = sorted(self.cpu_s.items(), key=lambda each: -each[1])
            shown = ", ".join(f"{name} {used / self.took_s:.2f}" for name, used in spent if used >= 0.01 * self.took_s)
            lines.append(f"cores in use: {sum(self.cpu_s.values()) / self.took_s:.2f} ({shown})")
        return lines


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    """Locust's `..._stats.csv` by name of the question."""
    with path.open(newline="") as lines:
        return {row["Name"]: row for row in csv.DictReader(lines)}


def read_stages(path: Path) -> dict[str, dict[str, float]]:
    """What `users` wrote: by name of the question the mean milliseconds of each stage, `OUTSIDE` the last; of all of
    them under `ALL`."""
    sums: dict[str, dict[str, float]] = json.loads(path.read_text())
    whole: dict[str, float] = {}
    for spent in sums.values():
        for stage, value in spent.items():
            whole[stage] = whole.get(stage, 0.0) + value
    return {name: _means(spent) for name, spent in {**sums, ALL: whole}.items() if spent.get("count")}


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    count, took = sums["count"], sums["took"]
    means = {stage: value / count for stage, value in sums.items() if stage not in ("count", "took")}
    return {**means, OUTSIDE: took / count - sum(means.values())}


def server_timing(header: str) -> dict[str, float]:
    """Milliseconds by stage, of a `Server-Timing` as the service writes it; what is not so is left out."""
    found: dict[str, float] = {}
    for part in header.split(","):
        name, _, duration = part.strip().partition(";dur=")
        try:
            found[name] = float(duration)
        except ValueError:
            continue
    return found


def wrong(body: dict[str, Any]) -> str | None:
    """Why an answer of status 200 is none."""
    result = body.get("result", body)
    if "error" in body or result.get("isError"):
        return f"refused: {str(body)[:200]}"
    told = result.get("structuredContent", result)
    if degraded := [each for each in told.get("warnings", ()) if "keyword" in each or "words in common" in each]:
        return f"degraded: {degraded[0][:200]}"
    found = told.get("results", told.get("similar_apis", told.get("exists")))
    return None if found else f"found nothing: {str(body)[:200]}"


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Processor seconds between two readings; processes that ended between them may take some with them."""
    return {name: max(0.0, value - before.get(name, 0.0)) for name, value in after.items()}

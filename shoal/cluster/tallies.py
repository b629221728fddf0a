"""Tallies: counters that outlive the actors which count, and rates of them.

Pure. An actor counts from zero each time it starts; here the differences between its reports are summed, and a new
process (another pid, a shorter life, a lower number) counts whole. So a tally never falls, through restarts of
actors and, as it travels in the status file, of the supervisor. What an actor counted after its last report and
before its death is not known: a tally is a lower bound, by at most two seconds of one actor's work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.metrics import EmbedderStatistics, FetcherStatistics, ReaderStatistics, WriterStatistics

Report = ReaderStatistics | FetcherStatistics | EmbedderStatistics | WriterStatistics

WINDOW_S = 60.0  # rates are over the last minute: shorter ones jump with each group commit
SAMPLE_S = 5.0  # a sample this often; a rate over less says nothing
_COUNTED: Mapping[type, tuple[str, ...]] = {
    ReaderStatistics: (
        "outcomes", "dead_letters", "retries", "retried", "ended", "messages", "message_bytes", "offset_commits",
        "offset_commits_refused", "rebalances", "durations",
    ),
    FetcherStatistics: ("fetched", "fetched_bytes", "failed", "extraction_kills", "durations"),
    EmbedderStatistics: (
        "texts", "cache_hits", "reused", "requests", "failed_requests", "request_failures", "tokens", "durations",
    ),
    WriterStatistics: ("commits", "failed_commits", "committed_documents", "failed_upkeep", "durations"),
}  # fmt: skip
OUTCOME, DEAD_LETTER = "outcomes.", "dead_letters."
RETRIED, REQUEST_FAILURE, DURATION = "retried.", "request_failures.", "durations."
"""Prefixes of tallies that are kept by name."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one actor's process last reported."""

    pid: int
    uptime_s: float
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class Tallies:
    """Sums since `since_s`, and samples of them (times are seconds since 1970)."""

    since_s: float
    sums: dict[str, int] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)
    samples: tuple[tuple[float, dict[str, int]], ...] = ()

    def named(self, prefix: str) -> dict[str, int]:
        """The tallies under `prefix`, by name."""
        return {name.removeprefix(prefix): n for name, n in sorted(self.sums.items()) if name.startswith(prefix)}

    def plain(self) -> dict[str, int]:
        """The tallies that are kept by no name."""
        return {name: n for name, n in sorted(self.sums.items()) if "." not in name}

    def to_json(self) -> dict[str, Any]:
        return {
            "since_s": self.since_s,
            "sums": self.sums,
            "seen": {name: dataclasses.asdict(seen) for name, seen in self.seen.items()},
            "samples": [[at_s, sums] for at_s, sums in self.samples],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tallies:
        """Raises KeyError | TypeError | ValueError | AttributeError where `value` was not made by `to_json`."""
        return cls(
            float(value["since_s"]),
            _counts(value["sums"]),
            {
                name: Seen(int(seen["pid"]), float(seen["uptime_s"]), _counts(seen["counters"]))
                for name, seen in value["seen"].items()
            },
            tuple((float(at_s), _counts(sums)) for at_s, sums in value["samples"]),
        )


def tally(before: Tallies, reports: Mapping[str, Report], now_s: float) -> Tallies:
    """`before` and what `reports` (by actor's name) counted since."""
    sums, seen = dict(before.sums), dict(before.seen)
    for name, report in reports.items():
        counters = _counters(report)
        last = seen.get(name)
        for counter, count in counters.items():
            known = last.counters.get(counter, 0) if last is not None and _same_life(last, report, counters) else 0
            sums[counter] = sums.get(counter, 0) + count - known
        seen[name] = Seen(report.pid, report.uptime_s, counters)
    samples = [(at_s, of) for at_s, of in before.samples if now_s - WINDOW_S - SAMPLE_S <= at_s <= now_s]
    if not samples or now_s - samples[-1][0] >= SAMPLE_S:
        samples.append((now_s, {name: sums[name] for name in sums if name == "ended" or name.startswith(OUTCOME)}))
    return Tallies(before.since_s, sums, seen, tuple(samples))


def rates(tallies: Tallies, now_s: float) -> dict[str, Any]:
    """{window_s, ended_per_min, per_min: {outcome: ...}}: messages that came to their end. None where less than
    `SAMPLE_S` of history is known."""
    at_s, then = tallies.samples[0] if tallies.samples else (now_s, {})
    window_s = now_s - at_s
    if window_s < SAMPLE_S:
        return {"window_s": 0.0, "ended_per_min": None, "per_min": {}}

    def per_min(name: str) -> float:
        return round(60 * (tallies.sums.get(name, 0) - then.get(name, 0)) / window_s, 1)

    of = {name: per_min(OUTCOME + name) for name in tallies.named(OUTCOME)}
    return {"window_s": round(window_s, 1), "ended_per_min": per_min("ended"), "per_min": of}


def _same_life(last: Seen, report: Report, counters: Mapping[str, int]) -> bool:
    """Whether both reports are of one process. A pid alone is not enough: other nodes have the same ones."""
    lower = any(counters.get(name, 0) < count for name, count in last.counters.items())
    return last.pid == report.pid and last.uptime_s <= report.uptime_s and not lower


def _counters(report: Report) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in _COUNTED[type(report)]:
        value = getattr(report, name)
        if isinstance(value, Mapping):
            found |= {f"{name}.{key!s}": int(count) for key, count in value.items()}
        else:
            found[name] = int(value)
    return found


def _counts(value: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): int(count) for name, count in value.items()}

"""Names of what Shoal measures: one list for the status file, Prometheus and the docs.

Statistics are plain dataclasses that every actor returns from `statistics()`; the supervisor gathers them
into `status.json`. Names end in their unit.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PartitionStatistics:
    """One assigned partition as its reader sees it. Lag is log end minus what is done; None before it is known."""

    cluster: str
    topic: str
    partition: int
    next_offset: int | None
    committed_offset: int | None
    end_offset: int | None
    lag_records: int | None
    lag_s: float | None
    in_flight: int
    paused_because: str | None


@dataclass(frozen=True, slots=True)
class ReaderStatistics:
    """One reader: its partitions, what it holds, what it finished since it started."""

    name: str
    pid: int
    uptime_s: float
    partitions: tuple[PartitionStatistics, ...]
    in_flight_items: int
    in_flight_bytes: int
    oldest_item_s: float | None
    oldest_item_stage: str | None
    outcomes: dict[str, int] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class FetcherStatistics:
    """One fetch worker."""

    name: str
    pid: int
    uptime_s: float
    in_flight: int
    fetched: int
    fetched_bytes: int
    failed: int
    extraction_kills: int


@dataclass(frozen=True, slots=True)
class EmbedderStatistics:
    """The embedder: what it was asked for, what the cache answered, what the provider was sent."""

    model: str
    width: int
    pid: int
    uptime_s: float
    texts: int
    cache_hits: int
    requests: int
    tokens: int
    queued_texts: int
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class WriterStatistics:
    """The table writer. Counts are of the tables, `commits` since it started."""

    pid: int
    uptime_s: float
    epoch: int
    commit_sequence: int
    commits: int
    last_commit_at: str | None
    queued: int
    documents: int
    chunks: int
    unindexed_rows: int
    maintenance: str
    ended: str | None = None
    last_error: str | None = None

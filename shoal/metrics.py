"""Names of what Shoal measures: one list for the status file, Prometheus and the docs.

Statistics are plain dataclasses that every actor returns from `statistics()`; the supervisor gathers them
into `status.json`. Names end in their unit. `stalled_s` is how long an actor's own loop or thread has not turned:
0 while it works or idles, however slow its systems are. `durations`: histograms (shoal/histograms.py), by the stages of
shoal/metric_table.py.
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
    oldest_item_stage: str | None  # what the oldest waits for
    oldest_item_position: str | None = None  # topic/partition@offset of the oldest
    cluster: str = ""  # the Kafka cluster it is a client of
    held_bytes: int = 0  # in flight: messages, and what was extracted and embedded of them (G6)
    held_bytes_max: int = 0
    paused_because: str | None = None
    breakers: dict[str, str] = field(default_factory=dict)  # dependency -> why nothing is asked of it now
    ended: int = 0  # messages that came to their end
    stalled_s: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    retried: dict[str, int] = field(default_factory=dict)  # the same by stage
    messages: int = 0  # polled
    message_bytes: int = 0
    offset_commits: int = 0  # acknowledged by the brokers
    offset_commits_refused: int = 0
    rebalances: int = 0
    broker_unreachable_s: float = 0.0  # since its client lost them all; 0 where it reaches one
    durations: dict[str, int] = field(default_factory=dict)
    last_error: str | None = None
    is_leaving: bool = False  # for good: it was told to, and takes nothing new


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
    held_bytes: int = 0
    stalled_s: float = 0.0
    durations: dict[str, int] = field(default_factory=dict)
    slots: int = 0  # documents that can be in work at once; the others in flight wait


@dataclass(frozen=True, slots=True)
class SpendStatistics:
    """What was spent, as the process that spends knows it (docs/cost.md). A limit of 0 is none; without any limit only
    what this process itself spent since it started is counted here. `is_told`: the log holds all of it."""

    level: str  # ok | warned | exhausted
    message: str
    day: str
    spent_day_usd: float
    spent_month_usd: float
    limit_day_usd: float
    limit_month_usd: float
    unpriced_models: tuple[str, ...] = ()
    is_told: bool = True
    told_at: str | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Jobs at half price (docs/cost.md): those that lie beside the tables, ended ones until their command goes on.
    `parts`: how many are in which phase; `missing_texts`: left to the full price; `saved_usd`: of what is embedded."""

    jobs: int
    unfinished: int
    texts: int
    embedded_texts: int
    tokens: int
    embedded_tokens: int
    missing_texts: int
    saved_usd: float | None
    parts: dict[str, int]
    oldest_since: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EmbedderStatistics:
    """The embedder: what it was asked for, what the cache answered, what the provider was sent.

    `reused`: texts whose vectors the tables gave, after the cache was lost. `unwell_s`: since when every request has
    failed, 0 where the last one was answered."""

    model: str
    width: int
    pid: int
    uptime_s: float
    texts: int
    cache_hits: int
    requests: int
    tokens: int
    queued_texts: int
    stalled_s: float = 0.0
    last_error: str | None = None
    reused: int = 0
    failed_requests: int = 0
    queued_by_lane: dict[str, int] = field(default_factory=dict)
    unwell_s: float = 0.0
    running: int = 0
    running_max: int = 0
    spend: SpendStatistics | None = None
    half_price: BatchStatistics | None = None
    queued_bytes: int = 0
    request_failures: dict[str, int] = field(default_factory=dict)  # by cause: shoal/embeddings/calling.py
    durations: dict[str, int] = field(default_factory=dict)


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
    stalled_s: float = 0.0
    ended: str | None = None
    last_error: str | None = None
    queued_bytes: int = 0
    failed_commits: int = 0
    committed_documents: int = 0  # and deletions and commands: what was acknowledged
    failed_upkeep: int = 0
    durations: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecallStatistics:
    """How much of the exact answer searches by vector find, as last measured (docs/recall.md). `nprobes` None: every
    partition; `refine` None: there is no index, every search is exact. `alarm`: why it is too low, None where not."""

    at: str
    recall: float
    target: float
    k: int
    nprobes: int | None
    refine: int | None
    queries_real: int
    queries_made: int
    alarm: str | None

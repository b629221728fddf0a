"""Feeds: per (environment, dataset) what there is, when it last arrived, and whether it has gone quiet.

Role: one pass over scalar columns of the metadata table, folded batch by batch on a thread, so that memory is
bounded by the datasets and not by the rows. The result is kept; while it is older than a minute (or than fifty
times what a pass costs, so that passes take at most 2 % of the time) the next question starts one pass, waits for
it a moment, and else gets the older result. What is judged overdue is judged at the time of asking.

An arrival is a message's Kafka timestamp; where that is no time, when the row was indexed. Files collected long
before they were announced are history that somebody loads: they say nothing of how the feed arrives.
Fails as `Tables` does.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shoal.errors import ShoalError
from shoal.store.cadence import ARRIVALS_MAX, Cadence, Rhythm, arrivals_of, judged, rhythm
from shoal.store.reading import Tables
from shoal.store.schemas import IS_DOCUMENT

REFRESH_S = 60.0
COST_FACTOR = 50.0
RETRY_S = 1.0
WAIT_S = 2.0  # whoever asks for the status wants it now, with older figures if need be
HISTORY_S = 2 * 86_400.0
AHEAD_S = 300.0  # clocks differ; what claims to come from later than this is no time
EPOCH_MIN_S = 946_684_800.0  # 2000-01-01: earlier Kafka timestamps are none
_MINUTES_MAX = 2 * ARRIVALS_MAX  # a burst may lie in two minutes
_PENDING_ROWS = 500_000  # some 20 MB
_SEPARATOR = "\x1f"  # in no environment
_COLUMNS = (
    "environment", "dataset", "data_source", "file_format", "kafka_timestamp_ms", "collected_at", "indexed_at",
    "superseded_at",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Feed:
    """One dataset. `versions` are all its rows, `documents` the current ones; times in UTC, None where no row
    tells one."""

    environment: str
    dataset: str
    data_source: str | None
    documents: int
    versions: int
    formats: Mapping[str, int]
    first_seen_at: datetime | None
    last_seen_at: datetime | None
    last_collected_at: datetime | None
    rhythm: Rhythm | None
    last_arrival_s: float | None

    def at(self, now: datetime) -> Cadence:
        """Its cadence at `now`: whether it is overdue."""
        return judged(self.rhythm, self.last_arrival_s, now.timestamp())


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every feed, as the tables were at `at`."""

    at: datetime
    feeds: tuple[Feed, ...]


@dataclass(slots=True)
class _Tally:
    environment: str
    dataset: str
    data_source: str | None = None
    documents: int = 0
    versions: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    first_s: float = float("nan")
    last_s: float = float("nan")
    collected_s: float = float("nan")
    arrivals_s: Any = field(default_factory=lambda: np.empty(0))  # the last one of each minute, ascending

    def feed(self) -> Feed:
        arrivals = arrivals_of(self.arrivals_s.tolist())
        return Feed(
            environment=self.environment,
            dataset=self.dataset,
            data_source=self.data_source,
            documents=self.documents,
            versions=self.versions,
            formats=dict(sorted(self.formats.items())),
            first_seen_at=_moment(self.first_s),
            last_seen_at=_moment(self.last_s),
            last_collected_at=_moment(self.collected_s),
            rhythm=rhythm(arrivals),
            last_arrival_s=arrivals[-1] if arrivals else None,
        )


class Fold:
    """Batches of metadata rows in, feeds out. `now`: what claims to be later is no time.

    Rows are kept as a few numbers each until there are `_PENDING_ROWS`, and then counted together: Lance's batches
    are small, and counting costs per dataset.
    """

    def __init__(self, now: datetime) -> None:
        self._until_s = now.timestamp() + AHEAD_S
        self._tallies: list[_Tally] = []
        self._numbers: dict[str, int] = {}  # environment and dataset -> place among the tallies
        self._formats: dict[str, int] = {}
        self._pending: list[tuple[Any, ...]] = []
        self._pending_rows = 0

    def take(self, batch: pa.RecordBatch) -> None:
        """Counts the rows of `batch`, which has the columns of `feeds`."""
        if not batch.num_rows:
            return
        names = (pc.fill_null(batch[column], "") for column in ("environment", "dataset"))
        keys = pc.dictionary_encode(pc.binary_join_element_wise(*names, _SEPARATOR))
        fresh = len(self._numbers)
        codes = _numbered(keys, self._numbers)
        if len(self._numbers) > fresh:
            self._introduce(fresh, codes, batch["data_source"])
        indexed, collected = _seconds(batch["indexed_at"]), _seconds(batch["collected_at"])
        sent = pc.fill_null(batch["kafka_timestamp_ms"], 0).to_numpy(zero_copy_only=False) / 1000
        arrived = np.where((sent >= EPOCH_MIN_S) & (sent <= self._until_s), sent, indexed)
        arrived = np.where(arrived <= self._until_s, arrived, np.nan)
        formats = _numbered(pc.dictionary_encode(pc.fill_null(batch["file_format"], "UNKNOWN")), self._formats)
        current = pc.is_null(batch["superseded_at"]).to_numpy(zero_copy_only=False)
        self._pending.append((codes, arrived, collected, formats, current))
        self._pending_rows += batch.num_rows
        if self._pending_rows >= _PENDING_ROWS:
            self._count()

    def feeds(self) -> tuple[Feed, ...]:
        """By environment and dataset."""
        self._count()
        return tuple(tally.feed() for tally in sorted(self._tallies, key=lambda t: (t.environment, t.dataset)))

    def _introduce(self, fresh: int, codes: Any, sources: pa.Array) -> None:
        for key in list(self._numbers)[fresh:]:
            environment, _, dataset = key.partition(_SEPARATOR)
            self._tallies.append(_Tally(environment, dataset))
        for code, row in zip(*np.unique(codes, return_index=True), strict=True):
            if code >= fresh:
                self._tallies[code].data_source = sources[int(row)].as_py()

    def _count(self) -> None:
        if not self._pending:
            return
        codes, arrived, collected, formats, current = map(np.concatenate, zip(*self._pending, strict=True))
        self._pending, self._pending_rows = [], 0
        # By dataset, and within it by time (no time last): each dataset is one slice, its minutes are runs.
        order = np.lexsort((arrived, codes))
        codes, arrived, collected, current = codes[order], arrived[order], collected[order], current[order]
        known, starts = np.unique(codes, return_index=True)
        sizes = np.diff(np.append(starts, len(codes)))
        first, last = np.fmin.reduceat(arrived, starts), np.fmax.reduceat(arrived, starts)
        newest = np.fmax.reduceat(collected, starts)
        documents = np.add.reduceat(current.astype(np.int64), starts)
        width = len(self._formats)
        of_format = np.bincount(codes * width + formats[order], minlength=(int(known[-1]) + 1) * width)
        of_format = of_format.reshape(-1, width)
        live = ~np.isnan(arrived) & ~(arrived - collected > HISTORY_S)
        codes, arrived = codes[live], arrived[live]
        minutes = arrived // 60
        ends = np.append((minutes[1:] != minutes[:-1]) | (codes[1:] != codes[:-1]), len(codes) > 0)[: len(codes)]
        codes, arrived = codes[ends], arrived[ends]
        lows, highs = np.searchsorted(codes, known, "left"), np.searchsorted(codes, known, "right")
        names = list(self._formats)
        for place, code in enumerate(known):
            tally = self._tallies[code]
            tally.versions += int(sizes[place])
            tally.documents += int(documents[place])
            tally.first_s = float(np.fmin(tally.first_s, first[place]))
            tally.last_s = float(np.fmax(tally.last_s, last[place]))
            tally.collected_s = float(np.fmax(tally.collected_s, newest[place]))
            for number in np.flatnonzero(of_format[code]):
                tally.formats[names[number]] += int(of_format[code, number])
            tally.arrivals_s = _by_minute(tally.arrivals_s, arrived[lows[place] : highs[place]])


class FeedReader:
    """Keeps the catalogue of one collection; one per process, used from its event loop."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._latest: Catalogue | None = None
        self._due_at = 0.0
        self._pass: asyncio.Task[Catalogue] | None = None

    async def catalogue(self, wait_s: float = WAIT_S) -> Catalogue | None:
        """The catalogue, at most about a minute old; an older one, or None, where a pass takes longer than `wait_s`.
        Raises ShoalError, as `Tables` does, where the pass failed and nothing older is known."""
        if self._pass is None and time.monotonic() >= self._due_at:
            self._pass = asyncio.get_running_loop().create_task(self._read())
        looking = self._pass
        if looking is not None:
            await asyncio.wait([looking], timeout=wait_s if self._latest is None else wait_s / 4)
            if looking.done() and self._pass is looking:  # of several who waited, the first takes it
                self._pass = None
                self._take(looking)
        return self._latest

    async def close(self) -> None:
        """Ends a pass that is under way."""
        looking, self._pass = self._pass, None
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def _take(self, looked: asyncio.Task[Catalogue]) -> None:
        try:
            self._latest = looked.result()
        except ShoalError:
            self._due_at = time.monotonic() + RETRY_S
            if self._latest is None:
                raise

    async def _read(self) -> Catalogue:
        began = time.monotonic()
        now = datetime.now(UTC)
        await self._tables.view()
        fold = await self._tables.folded("metadata", IS_DOCUMENT, _COLUMNS, lambda: Fold(now))
        feeds = await asyncio.to_thread(fold.feeds)
        cost_s = time.monotonic() - began
        self._due_at = time.monotonic() + max(REFRESH_S, COST_FACTOR * cost_s)
        return Catalogue(now, feeds)


def _by_minute(known: Any, times: Any) -> Any:
    """The last time of each minute of both (as each is already by itself), ascending, the newest `_MINUTES_MAX`."""
    if not len(times):
        return known
    if not len(known):
        return times[-_MINUTES_MAX:]
    both = np.sort(np.concatenate([known, times]))
    minutes = both // 60
    return both[np.append(minutes[1:] != minutes[:-1], True)][-_MINUTES_MAX:]


def _numbered(encoded: pa.DictionaryArray, numbers: dict[str, int]) -> Any:
    """The values of `encoded` as numbers that are the same in every batch; new values get the next ones."""
    mine = np.array([numbers.setdefault(name, len(numbers)) for name in encoded.dictionary.to_pylist()], np.int64)
    return mine[encoded.indices.to_numpy(zero_copy_only=False)]


def _seconds(column: pa.Array) -> Any:
    """A time column as seconds since 1970, NaN for null."""
    micros = pc.cast(column, pa.int64())
    return pc.cast(micros, pa.float64(), safe=False).to_numpy(zero_copy_only=False) / 1_000_000


def _moment(at_s: float) -> datetime | None:
    return datetime.fromtimestamp(at_s, UTC) if np.isfinite(at_s) else None

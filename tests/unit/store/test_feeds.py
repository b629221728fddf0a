"""Feeds read from real metadata tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pytest
import pytest_asyncio

from shoal.errors import TransientError
from shoal.records import FENCE_ID
from shoal.store import feeds
from shoal.store.feeds import Feed, FeedReader, Fold
from shoal.store.fence import Fence
from shoal.store.reading import Tables
from shoal.store.schemas import LAYOUT_VERSION, CollectionFacts, metadata_table, table_schema, vectors_table

FACTS = CollectionFacts(model="hash:8", width=8)
NOW = datetime.now(UTC)


def row(number: int, dataset: str = "load", at: datetime = NOW, **columns: Any) -> dict[str, Any]:
    return {
        "revision": f"{dataset} {number}",
        "environment": "prod",
        "dataset": dataset,
        "data_source": "NYISO",
        "file_format": "JSON",
        "kafka_timestamp_ms": int(at.timestamp() * 1000),
        "collected_at": at,
        "indexed_at": at,
    } | columns


def found(*rows: dict[str, Any], batch: int = 2) -> dict[str, Feed]:
    """By dataset, folded in batches of `batch` rows."""
    fold = Fold(NOW)
    whole = pa.Table.from_pylist(list(rows), schema=table_schema("metadata", FACTS)).select(feeds._COLUMNS)
    for piece in whole.to_batches(max_chunksize=batch):
        fold.take(piece)
    return {feed.dataset: feed for feed in fold.feeds()}


def hourly(dataset: str = "load", count: int = 10, last: datetime = NOW, **columns: Any) -> list[dict[str, Any]]:
    return [row(n, dataset, last - timedelta(hours=count - 1 - n), **columns) for n in range(count)]


@pytest.mark.parametrize("batch", [1, 3, 1000])
@pytest.mark.parametrize("pending", [1, 5, 1000])
def test_a_feed_is_the_same_however_its_rows_come_in_batches(
    batch: int, pending: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*hourly("a"), *hourly("b", 7), row(99, "a", NOW - timedelta(hours=3), file_format="CSV", superseded_at=NOW)]
    whole = found(*reversed(rows))
    monkeypatch.setattr(feeds, "_PENDING_ROWS", pending)
    assert found(*rows, batch=batch) == whole
    one = found(*rows, batch=batch)["a"]
    assert (one.documents, one.versions, one.formats) == (10, 11, {"CSV": 1, "JSON": 10})
    assert one.first_seen_at == NOW.replace(microsecond=NOW.microsecond // 1000 * 1000) - timedelta(hours=9)
    assert one.rhythm is not None
    assert one.rhythm.median_gap_s == 3600


def test_environments_are_feeds_of_their_own() -> None:
    fold = Fold(NOW)
    rows = [row(1), row(2, environment="dev"), row(3, environment=None, dataset=None)]
    fold.take(pa.RecordBatch.from_pylist(rows, schema=table_schema("metadata", FACTS)))
    assert [(feed.environment, feed.dataset) for feed in fold.feeds()] == [("", ""), ("dev", "load"), ("prod", "load")]


def test_a_quiet_feed_is_overdue_and_a_prompt_one_is_not() -> None:
    feeds_of = found(*hourly("quiet", last=NOW - timedelta(hours=9)), *hourly("prompt"))
    assert feeds_of["quiet"].at(NOW).overdue
    assert not feeds_of["prompt"].at(NOW).overdue
    assert feeds_of["prompt"].at(NOW + timedelta(days=1)).overdue, "judged when it is asked for, not when it was read"


@pytest.mark.parametrize("claimed", [None, -1, 0, 10**15])
def test_where_kafka_names_no_time_the_row_s_own_counts(claimed: int | None) -> None:
    one = found(*hourly(kafka_timestamp_ms=claimed))["load"]
    assert one.last_seen_at == NOW
    assert one.rhythm is not None


def test_history_that_is_loaded_says_nothing_of_how_a_feed_arrives() -> None:
    """A month of daily files, announced a minute apart just now, beside a feed that comes each hour."""
    loaded = [row(100 + n, at=NOW - timedelta(minutes=n), collected_at=NOW - timedelta(days=3 + n)) for n in range(30)]
    alone = found(*loaded)["load"]
    assert (alone.rhythm, alone.at(NOW).overdue) == (None, None)
    assert alone.last_seen_at is not None
    beside = found(*loaded, *hourly())["load"]
    assert beside.rhythm == found(*hourly())["load"].rhythm


# --- on tables --------------------------------------------------------------------------------


def add(table: Any, rows: list[dict[str, Any]]) -> None:
    table.add(pa.Table.from_pylist(rows, schema=table_schema("metadata", FACTS)))


@pytest_asyncio.fixture
async def place(tmp_path: Path) -> AsyncIterator[tuple[Any, Tables]]:
    connection = lancedb.connect(tmp_path)
    fence = {"fence": Fence(1, 1, NOW, "hash:8", 8, LAYOUT_VERSION).to_json()}
    metadata = connection.create_table(metadata_table("scraper"), schema=table_schema("metadata", FACTS))
    add(metadata, [{"revision": FENCE_ID, **fence}])
    vectors = table_schema("vectors", FACTS)
    first = pa.Table.from_pylist([{"id": FENCE_ID, **fence}], schema=vectors)
    connection.create_table(vectors_table("scraper"), first, schema=vectors)
    tables = await Tables.open(str(tmp_path), {}, "scraper", 0.0)
    yield metadata, tables
    await tables.close()


async def test_the_fence_and_tombstones_are_no_feed(place: tuple[Any, Tables]) -> None:
    metadata, tables = place
    add(metadata, [*hourly(), {"revision": "gone", "dataset": "gone", "fence": "deleted"}])
    reader = FeedReader(tables)
    catalogue = await reader.catalogue(wait_s=60)
    assert catalogue is not None
    assert [(feed.dataset, feed.documents) for feed in catalogue.feeds] == [("load", 10)]


async def test_a_young_catalogue_is_not_read_again_and_an_old_one_is(
    place: tuple[Any, Tables], monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata, tables = place
    add(metadata, hourly())
    reader = FeedReader(tables)
    first = await reader.catalogue(wait_s=60)
    add(metadata, hourly("new"))
    assert await reader.catalogue(wait_s=60) is first
    reader._due_at = 0.0
    second = await reader.catalogue(wait_s=600)
    assert second is not None
    assert {feed.dataset for feed in second.feeds} == {"load", "new"}


class SlowTables:
    """A pass that ends when it is told to."""

    def __init__(self, fold: Fold) -> None:
        self.go = asyncio.Event()
        self.fold = fold
        self.error: Exception | None = None
        self.passes = 0

    async def view(self) -> None:
        return None

    async def folded(self, *_: Any) -> Fold:
        self.passes += 1
        await self.go.wait()
        if self.error:
            raise self.error
        return self.fold


async def test_a_slow_pass_holds_nobody_up_and_runs_once() -> None:
    tables: Any = SlowTables(Fold(NOW))
    reader = FeedReader(tables)
    assert await asyncio.gather(reader.catalogue(0.01), reader.catalogue(0.01)) == [None, None]
    tables.go.set()
    done = await asyncio.gather(reader.catalogue(60), reader.catalogue(60))
    assert done[0] is done[1] is not None
    assert tables.passes == 1
    await reader.close()


async def test_an_older_catalogue_outlives_a_pass_that_fails() -> None:
    tables: Any = SlowTables(Fold(NOW))
    tables.go.set()
    tables.error = TransientError("the store is down")
    reader = FeedReader(tables)
    with pytest.raises(TransientError):
        await reader.catalogue(60)
    tables.error, reader._due_at = None, 0.0
    known = await reader.catalogue(60)
    assert known is not None
    tables.error, reader._due_at = TransientError("again"), 0.0
    assert await reader.catalogue(60) is known
    await reader.close()


async def test_closing_ends_a_pass_that_is_under_way() -> None:
    tables: Any = SlowTables(Fold(NOW))
    reader = FeedReader(tables)
    assert await reader.catalogue(0.01) is None
    await reader.close()
    assert tables.passes == 1
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

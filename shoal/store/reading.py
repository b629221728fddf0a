"""The reading adapter: one connection and one handle per table, held on a consistent pair of versions.

Role: the only place where reads meet lancedb; it turns its tables into plain Python rows and its errors into
ours. Guarantee: between two refreshes a handle never moves, and a refresh leaves the pair (metadata, chunks)
where all chunks have their metadata, since it waits out a commit that has written one table and not yet the
other (or says after `_SETTLE_S` that it could not: the join on versions then hides such documents). A version
whose files were cleaned away is reopened and read once more (G7). It writes nothing and ranks nothing.

Fails with TransientError while the tables don't exist or the storage is down, PermanentError where Lance
refuses the query itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeVar

import lancedb
import pyarrow as pa
from lancedb.query import BooleanQuery, ColumnOrdering, MatchQuery, Occur, PhraseQuery

from shoal.errors import PermanentError, TransientError
from shoal.records import Vector
from shoal.settings import Settings
from shoal.store.conditions import among
from shoal.store.fence import Fence
from shoal.store.gathering import Gathering
from shoal.store.keywords import Keywords
from shoal.store.migrations import Lacking
from shoal.store.row_cache import ADDRESS, RowCache
from shoal.store.schemas import (
    FENCE_PREDICATES,
    FIXES_TABLE,
    JOBS_TABLE,
    VECTOR_COLUMNS,
    CollectionFacts,
    TableKind,
    collection_facts,
    metadata_table,
    vectors_table,
)
from shoal.store.tuning import Tunings, with_setting

BYPASS_ROWS = 2_000  # below this many filtered rows an exact scan beats the index, which may return too few
_SETTLE_S = 0.25  # how long a refresh waits for the second commit of a batch: several local ones, one on S3
_SETTLE_POLL_S = 0.01
_INDEX_LOOK_S = 10.0  # age of what is known of the vector index; it only steers how it is searched

LEGS: Mapping[TableKind, Mapping[str, str]] = {
    "vectors": {"content_embedding": "vector", "content_summary": "keyword"},
    "metadata": {"schema_embedding": "schema", "sha256_hash": "hash"},
    "fixes": {"error_embedding": "error"},
}
"""By table, the columns that searches go by, and what answers call them."""

_REFUSALS = ("invalid user input", "schema error", "not supported sql", "sql parser", "error during planning")

_MATCH: Any = MatchQuery  # type checkers don't see the defaults of pydantic's dataclasses
_PHRASE: Any = PhraseQuery

Row = dict[str, Any]
T = TypeVar("T")


class Folding(Protocol):
    """What takes the batches of a pass."""

    def take(self, batch: pa.RecordBatch) -> None: ...


F = TypeVar("F", bound=Folding)


@dataclass(frozen=True, slots=True)
class Freshness:
    """How far the tables are: the writer's commit sequence and time, and per (cluster, topic, partition) the
    offset below which everything is in them."""

    commit_sequence: int
    committed_at: datetime | None
    positions: Mapping[tuple[str, str, int], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class View:
    """The versions that reads see now."""

    freshness: Freshness
    metadata: int
    vectors: int


class Tables:
    """Handles on a collection's tables, for one event loop."""

    def __init__(self, connection: Any, uri: str, collection: str, refresh_interval_s: float) -> None:
        self._connection = connection
        self._uri = uri
        self._collection = collection
        self._names: dict[TableKind, str] = {
            "metadata": metadata_table(collection),
            "vectors": vectors_table(collection),
            "fixes": FIXES_TABLE,
            "jobs": JOBS_TABLE,
        }
        self.refresh_interval_s = refresh_interval_s
        self._handles: dict[TableKind, Any] = {}
        self._versions: dict[TableKind, int] = {}
        self._lacking = Lacking()
        self._lock = asyncio.Lock()
        self._view: View | None = None
        self._viewed_at = 0.0
        self._fresh_handles = 0  # opened so far: the tables of a new one may be others
        self._turn = 0
        self.is_left = False  # the collection was moved to other tables: generations.py
        self._torn_at = -1  # the chunk table's sequence whose other half was waited for in vain
        self._index_rows: dict[TableKind, tuple[float, int]] = {}  # when looked at, rows in the vector index
        self.tunings = Tunings(lambda: None)
        self._coverage: dict[TableKind, tuple[float, dict[str, int | None]]] = {}  # when looked at, rows by leg
        self.facts: CollectionFacts
        self.gathering = Gathering(self._keyed)
        self.kept = RowCache(self.gathering)
        self._epochs: dict[TableKind, int] = {}

    @classmethod
    async def open(
        cls,
        uri: str,
        storage_options: Mapping[str, str],
        collection: str,
        refresh_interval_s: float,
        *,
        settings: Settings | None = None,
        turn: int = 0,
    ) -> Tables:
        """Opens the metadata and chunk tables. `settings`: for the bounds of the caches. `turn`: in which the
        collection came to these tables. Raises TransientError while
        the tables don't exist."""
        session = session_of(settings or Settings.model_construct())
        options = dict(storage_options) or None
        connection = await _guarded(
            lambda where: lancedb.connect_async(where, storage_options=options, session=session), uri
        )
        tables = cls(connection, uri, collection, refresh_interval_s)
        tables._turn = turn
        await tables.handle("vectors")
        schema = await (await tables.handle("metadata")).schema()
        tables.facts = collection_facts(schema)
        await tables.view()
        return tables

    async def close(self) -> None:
        self.tunings.close()
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()
        self._connection.close()

    # --- versions -----------------------------------------------------------------------------

    @property
    def turn(self) -> int:
        """In which the collection came to these tables (generations.py)."""
        return self._turn

    async def view(self, max_age_s: float | None = None) -> View:
        """The versions to read, refreshed where older than `max_age_s` (default: the refresh interval)."""
        age_s = self.refresh_interval_s if max_age_s is None else max_age_s
        async with self._lock:
            if self._view is None or time.monotonic() - self._viewed_at > age_s:
                self._view = await self._refresh()
                self._viewed_at = time.monotonic()
            return self._view

    async def _refresh(self) -> View:
        deadline = time.monotonic() + _SETTLE_S
        while True:
            # Chunks are committed before their metadata. So where the chunk table, looked at last, is not
            # ahead of the metadata table, nothing of one batch is in the first and missing in the second.
            metadata = await self._latest("metadata")
            self.is_left = bool(metadata.moved_to) and metadata.turn > self._turn
            vectors = await self._latest("vectors")
            settled = vectors.commit_sequence <= metadata.commit_sequence
            if settled or vectors.commit_sequence == self._torn_at:
                break
            if time.monotonic() > deadline:
                self._torn_at = vectors.commit_sequence  # its writer is dead or slow: wait for it only once
                break
            await asyncio.sleep(_SETTLE_POLL_S)
        freshness = Freshness(metadata.commit_sequence, metadata.committed_at, metadata.positions())
        return View(freshness, self._versions["metadata"], self._versions["vectors"])

    async def _latest(self, kind: TableKind) -> Fence:
        async def advance(table: Any) -> Fence:
            before = await table.version()
            await table.checkout_latest()
            self._versions[kind] = await table.version()
            await self._look_at_layout(kind, table)
            fence = await _fence_of(kind, table)
            if fence is None:
                raise TransientError(f"no tables yet: {self._names[kind]} at {self._uri} holds no fence")
            if self._versions[kind] < before or fence.epoch < self._epochs.get(kind, 0):
                self.kept.clear(kind)  # a table of that name was made anew
            self._epochs[kind] = fence.epoch
            return fence

        return await self._read(kind, advance)

    async def fence(self, kind: TableKind) -> Fence | None:
        """The fence of the version that reads see."""
        return await self._read(kind, lambda table: _fence_of(kind, table))

    async def latest(self, kind: TableKind) -> None:
        """Moves a table that has no partner (fixes, jobs) to its newest version."""

        async def advance(table: Any) -> None:
            await table.checkout_latest()
            await self._look_at_layout(kind, table)

        await self._read(kind, advance)

    async def _look_at_layout(self, kind: TableKind, table: Any) -> None:
        """Of an older layout, what it lacks; it may be migrated meanwhile."""
        if self._lacking.concerns(kind):
            self._lacking.look(kind, await table.schema())
            self.kept.clear(kind)

    async def handle(self, kind: TableKind) -> Any:
        """The handle of a table, opened at first use."""
        if kind not in self._handles:
            name = self._names[kind]
            try:
                opened = await _guarded(self._connection.open_table, name)
                schema = await _guarded(lambda table: table.schema(), opened)
            except _VanishedError as error:
                self.is_left = True  # dropped, perhaps: whoever looks for the collection again finds out
                raise TransientError(f"no tables yet: {name} does not exist at {self._uri}", 1.0) from error
            if kind in self._handles:  # somebody else opened it meanwhile: keep one handle per table
                opened.close()
            else:
                self._handles[kind] = opened
                self._lacking.look(kind, schema)
                self.kept.clear(kind)
                self._fresh_handles += 1
        return self._handles[kind]

    async def _read(self, kind: TableKind, read: Callable[[Any], Awaitable[T]]) -> T:
        table = await self.handle(kind)
        try:
            return await _guarded(read, table)
        except _VanishedError:
            pass
        except PermanentError as error:
            if self._lacking.concerns(kind) and "no field named" in str(error).lower():
                raise PermanentError(
                    f"{self._names[kind]} is of an older layout, without what the query asks about: start a writer of "
                    f"this Shoal (shoal up), which migrates it ({error})"
                ) from error
            raise
        # The version's files are gone (cleanup, or the table was made anew): only a new handle is sure to
        # forget them. Whoever comes second finds the handle already replaced.
        if self._handles.get(kind) is table:
            del self._handles[kind]
            self._view = None
        table = await self.handle(kind)
        if kind == "metadata":
            self.facts = collection_facts(await _guarded(lambda new: new.schema(), table))
        return await _guarded(read, table)

    async def unindexed_rows(self, kind: TableKind) -> dict[str, int | None]:
        """By leg (LEGS), rows that its index does not cover (the fence row counts too), some seconds old; None: it has
        none."""
        looked_at, known = self._coverage.get(kind, (float("-inf"), {}))
        if time.monotonic() - looked_at <= _INDEX_LOOK_S:
            return known
        self._coverage[kind] = (time.monotonic(), known)
        legs = LEGS.get(kind, {})

        async def read(table: Any) -> dict[str, int | None]:
            found: dict[str, int | None] = dict.fromkeys(legs.values())
            for index in await table.list_indices():
                if leg := legs.get(index.columns[0]):
                    found[leg] = (found[leg] or 0) + (index.num_unindexed_rows or 0)
            return found

        found = await self._read(kind, read)
        self._coverage[kind] = (time.monotonic(), found)
        return found

    # --- reads --------------------------------------------------------------------------------

    async def count(self, kind: TableKind, where: str) -> int:
        return int(await self._read(kind, lambda table: table.count_rows(where)))

    async def rows(
        self,
        kind: TableKind,
        where: str,
        columns: Sequence[str],
        limit: int | None,
        order: Sequence[tuple[str, bool]] = (),
    ) -> list[Row]:
        """Rows that match, all where `limit` is None. `order`: (column, ascending), nulls last; its columns must
        be among `columns`."""

        async def read(table: Any) -> list[Row]:
            query = table.query().where(where).select(self._lacking.there(kind, columns))
            if limit is not None:
                query = query.limit(limit)
            if order:
                query = query.order_by(
                    [ColumnOrdering(column_name=name, ascending=up, nulls_first=False) for name, up in order]
                )
            return self._lacking.filled(kind, _plain(await query.to_arrow()), columns)

        return await self._read(kind, read)

    async def _keyed(
        self,
        kind: TableKind,
        column: str,
        keys: Collection[Any],
        columns: Sequence[str],
        condition: str,
        most: int | None,
    ) -> list[Row]:
        if column == ADDRESS:
            return await self._at(kind, keys, columns)
        named = among(column, sorted(keys))
        return await self.rows(kind, f"{named} and {condition}" if condition else named, columns, most)

    async def _at(self, kind: TableKind, addresses: Collection[int], columns: Sequence[str]) -> list[Row]:
        async def read(table: Any) -> list[Row]:
            # Our tables have no stable row ids: a row's id is its address.
            query = table.take_row_ids(list(addresses)).with_row_id().select(self._lacking.there(kind, columns))
            return self._lacking.filled(kind, _plain(await query.to_arrow()), columns)

        return [row | {ADDRESS: row.pop("_rowid")} for row in await self._read(kind, read)]

    async def folded(
        self, kind: TableKind, where: str, columns: Sequence[str], start: Callable[[], F], limit: int | None = None
    ) -> F:
        """All rows that match (or any `limit` of them), batch by batch through `start().take`, on a thread: a pass over
        a large table holds neither its memory nor the event loop. Begun anew where the version vanishes on the way."""

        async def read(table: Any) -> F:
            fold = start()
            query = table.query().where(where).select(self._lacking.there(kind, columns))
            async for batch in await (query if limit is None else query.limit(limit)).to_batches():
                await asyncio.to_thread(fold.take, self._lacking.filled_batch(kind, batch, columns))
            return fold

        return await self._read(kind, read)

    async def nearest(
        self, kind: TableKind, vector: Vector, where: str, columns: Sequence[str], limit: int, *, narrow: bool
    ) -> list[Row]:
        """The nearest rows by cosine distance, nearest first, with `_distance`; rows without a vector are not found.
        `where` may be '': all. `narrow`: it may leave few rows, so count them first and search those exactly."""

        async def read(table: Any) -> list[Row]:
            there = [*self._lacking.there(kind, columns), "_distance"]
            query, is_partial = await self._nearest(table, kind, vector, where, limit, narrow=narrow)
            rows = self._lacking.filled(kind, _plain(await query.select(there).to_arrow()), columns)
            if is_partial and len(rows) < limit:  # few rows in these partitions say nothing of the others
                query, _ = await self._nearest(table, kind, vector, where, limit, narrow=narrow, everywhere=True)
                rows = self._lacking.filled(kind, _plain(await query.select(there).to_arrow()), columns)
            return [row for row in rows if row["_distance"] is not None and row["_distance"] == row["_distance"]]

        return await self._read(kind, read)

    async def nearest_plan(self, kind: TableKind, vector: Vector, where: str, limit: int, *, narrow: bool) -> str:
        """How `nearest` would be run, in Lance's words."""

        async def read(table: Any) -> str:
            query, _ = await self._nearest(table, kind, vector, where, limit, narrow=narrow)
            return str(await query.explain_plan())

        return await self._read(kind, read)

    async def _nearest(
        self,
        table: Any,
        kind: TableKind,
        vector: Vector,
        where: str,
        limit: int,
        *,
        narrow: bool,
        everywhere: bool = False,
    ) -> tuple[Any, bool]:
        """The query, and whether it looks into some partitions of the index only."""
        # The metric is stated each time: without it an unindexed search would use l2.
        query = table.query().nearest_to(vector).column(VECTOR_COLUMNS[kind]).distance_type("cosine")
        query = (query.where(where) if where else query).limit(limit)
        indexed = await self._indexed_rows(table, kind)
        if not indexed:
            return query, False
        if narrow and where and await table.count_rows(where) <= BYPASS_ROWS:
            return query.bypass_vector_index(), False
        # Distances of quantised codes are estimates: refined, they are exact. What was measured was measured on the
        # chunks and without a filter.
        filtered = everywhere or bool(where) or kind != "vectors"
        nprobes, refine = self.tunings.for_search(indexed, limit, filtered=filtered)
        return with_setting(query, nprobes, refine), nprobes is not None

    async def _indexed_rows(self, table: Any, kind: TableKind) -> int:
        looked_at, rows = self._index_rows.get(kind, (float("-inf"), 0))
        if time.monotonic() - looked_at > _INDEX_LOOK_S:
            mine = [index for index in await table.list_indices() if VECTOR_COLUMNS[kind] in index.columns]
            rows = sum(index.num_indexed_rows or 0 for index in mine)
            self._index_rows[kind] = (time.monotonic(), rows)
        return rows

    async def matching(
        self, kind: TableKind, text: Keywords, column: str, where: str, columns: Sequence[str], limit: int
    ) -> list[Row]:
        """Rows whose `column` holds the keywords, best first by BM25, with `_score`. `where` may be '': all."""

        async def read(table: Any) -> list[Row]:
            query = table.query().nearest_to_text(_text_query(text, column))
            query = query.where(where) if where else query
            there = [*self._lacking.there(kind, columns), "_score"]
            return self._lacking.filled(kind, _plain(await query.select(there).limit(limit).to_arrow()), columns)

        return await self._read(kind, read) if text else []


async def _fence_of(kind: TableKind, table: Any) -> Fence | None:
    rows = (await table.query().where(FENCE_PREDICATES[kind]).select(["fence"]).limit(1).to_arrow()).to_pylist()
    return Fence.from_json(rows[0]["fence"]) if rows else None


def _text_query(text: Keywords, column: str) -> Any:
    words = [(Occur.SHOULD, _MATCH(text.words, column))] if text.words else []
    phrases = [(Occur.MUST, _PHRASE(phrase, column)) for phrase in text.phrases]
    clauses = [*phrases, *words]
    return clauses[0][1] if len(clauses) == 1 else BooleanQuery(clauses)


def session_of(settings: Settings) -> Any:
    """Lance's caches for one process, bounded: without, its memory grew for ever (lance #6219). Beyond the first bound
    parts of indexes are read per query; 512 MiB hold those of two million chunks."""
    return lancedb.Session(
        index_cache_size_bytes=settings.index_cache_bytes, metadata_cache_size_bytes=settings.metadata_cache_bytes
    )


def _plain(table: pa.Table) -> list[Row]:
    rows: list[Row] = table.to_pylist()
    return rows


class _VanishedError(TransientError):
    """Files of the version that a handle holds are gone."""


async def _guarded(read: Callable[[Any], Awaitable[T]], handle: Any) -> T:
    """`read(handle)`, with lancedb's errors as ours. Its classes say little (an unreachable store is a
    ValueError), so this goes by their words."""
    try:
        return await read(handle)
    except (RuntimeError, ValueError, OSError) as error:
        text = " ".join(str(error).split())[:300]
        if "not found" in text.lower() or "no longer exists" in text.lower():
            raise _VanishedError(f"a version of the tables vanished while it was read: {text}", 1.0) from error
        if any(words in text.lower() for words in _REFUSALS):
            raise PermanentError(f"Lance refused the query: {text}") from error
        raise TransientError(f"the tables can't be read now: {text}", 1.0) from error
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # a bug in Rust comes from outside the Exception tree
            raise TransientError(f"Lance failed: {' '.join(str(error).split())[:300]}", 1.0) from error
        raise


guarded, VanishedError = _guarded, _VanishedError  # for the store's other readers

"""Measuring recall on the tables as they are: real questions, the index against the truth.

Read-only, on one version of the chunk table from start to end. The truth comes from one pass over all vectors, which
is what it costs: 6 GB and some ten seconds of one core per million chunks of 1536 numbers. The searches are those that
search replicas run. It may take up to the floor of the cleanup age (600 s): beyond that its version's files may go.

Fails with TransientError while the tables don't exist, the storage is down, or a version vanished twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import lance
import lancedb
import numpy as np
import pyarrow as pa

from shoal.errors import TransientError
from shoal.records import SCRAPER_COLLECTION, Vector
from shoal.settings import Settings
from shoal.store import recall
from shoal.store.fence import Fence
from shoal.store.index_views import training_name
from shoal.store.query_sample import FILE_PREFIX, gathered, is_stale, vectors_of
from shoal.store.ranked import DEPTHS
from shoal.store.reading import VanishedError, guarded, session_of
from shoal.store.recall import Floats, IndexMark, Measurement, Rung, Setting
from shoal.store.schemas import FENCE_PREDICATES, VECTOR_COLUMNS, table_uri, vectors_table
from shoal.store.state_files import list_states, read_state, remove_state
from shoal.store.tuning import with_setting
from shoal.store.writing import storage_options

QUERIES = 64
"""Questions of one measuring. Each setting tried asks them all: about a second of one core."""
FILES_MAX = 64
_BATCH_ROWS = 4096  # 25 MB of vectors at 1536 numbers
_COLUMN = str(VECTOR_COLUMNS["vectors"])


class RecallTable:
    """The chunk table on one version. `open` it, use it, `close` it."""

    def __init__(self, settings: Settings, connection: Any, table: Any) -> None:
        self._settings, self._connection, self._table = settings, connection, table

    @classmethod
    async def open(cls, settings: Settings, collection: str = SCRAPER_COLLECTION) -> RecallTable:
        """Raises TransientError while there is no table."""
        options = storage_options(settings) or None
        connection = await guarded(
            lambda uri: lancedb.connect_async(uri, storage_options=options, session=session_of(settings)),
            settings.tables_uri,
        )
        name = vectors_table(collection)
        try:
            table = await guarded(connection.open_table, name)
        except VanishedError:
            connection.close()  # type: ignore[no-untyped-call]
            raise TransientError(f"no tables yet: {name} does not exist at {settings.tables_uri}", 1.0) from None
        return cls(settings, connection, table)

    def close(self) -> None:
        self._table.close()
        self._connection.close()

    async def width(self) -> tuple[int, bool]:
        """Of the vectors, and whether they are of half precision."""
        kind = (await self._table.schema()).field(_COLUMN).type
        return kind.list_size, kind.value_type == pa.float16()

    async def commit_sequence(self) -> int:
        rows = await self._table.query().where(FENCE_PREDICATES["vectors"]).select(["fence"]).limit(1).to_list()
        return Fence.from_json(rows[0]["fence"]).commit_sequence if rows else 0

    async def mark(self) -> IndexMark | None:
        """The vector index; None where there is none that holds rows."""
        mine = [index for index in await self._table.list_indices() if _COLUMN in index.columns]
        rows = sum(index.num_indexed_rows or 0 for index in mine)
        if not rows:
            return None
        partitions, training = await asyncio.to_thread(self._training, str(mine[0].name), await self._table.version())
        return IndexMark(str(mine[0].index_type), partitions, training or str(mine[0].index_uuid), rows)

    def _training(self, name: str, version: int) -> tuple[int | None, str]:
        """Partitions and a hash of the centroids; (None, '') of an index that has none to show."""
        place = table_uri(self._settings.tables_uri, self._table.name)
        dataset = lance.dataset(place, version=version, storage_options=storage_options(self._settings) or None)
        try:
            centroids = dataset.get_ivf_model(name).centroids
        except (ValueError, RuntimeError, AttributeError, OSError):
            return None, ""
        return len(centroids), training_name(centroids)

    async def rows(self) -> int:
        return int(await self._table.count_rows())

    async def some_vectors(self, count: int, rng: np.random.Generator) -> Floats:
        """Up to `count` stored vectors, anywhere in the table."""
        rows = await self.rows()
        offsets = sorted(rng.choice(rows, min(rows, count), replace=False).tolist())
        taken = await self._table.take_offsets(offsets).select([_COLUMN]).to_arrow()
        return _vectors(taken.column(_COLUMN).combine_chunks()) if len(taken) else np.zeros((0, 1), np.float32)

    async def exact(self, queries: Floats, k: int) -> Floats:
        """Per query the k smallest distances of all."""
        nearest = recall.NearestDistances(queries, k)
        async for batch in await self._table.query().select([_COLUMN]).to_batches(max_batch_length=_BATCH_ROWS):
            await asyncio.to_thread(nearest.take, _vectors(batch.column(_COLUMN)))
        return nearest.distances()

    async def approximate(self, query: Vector, setting: Setting, depth: int) -> list[float]:
        """Distances of what a search finds, best first."""
        asked = self._table.query().nearest_to(query).column(_COLUMN).distance_type("cosine").limit(depth)
        found = await with_setting(asked, setting.nprobes, setting.refine).select(["_distance"]).to_arrow()
        distances = found.column("_distance").to_numpy(zero_copy_only=False)
        return sorted(float(distance) for distance in distances if np.isfinite(distance))


def _vectors(column: Any) -> Floats:
    """Rows without a vector (the fence) left out."""
    present = column.drop_null()
    flat = present.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(len(present), column.type.list_size)


def real_queries(settings: Settings, width: int, size: int, now: datetime, *, sweep: bool = False) -> list[Vector]:
    """What search replicas were asked lately, the newest first. `sweep`: remove the files of dead replicas. Raises
    TransientError."""
    samples = []
    for name in list_states(settings, FILE_PREFIX)[:FILES_MAX]:
        value = read_state(settings, name)
        if sweep and is_stale(value, now):
            remove_state(settings, name)
        samples.append(vectors_of(value, width, now))
    return gathered(samples, size)


async def measure(
    settings: Settings, now: datetime, *, queries: int = QUERIES, k: int = recall.K, sweep: bool = False
) -> Measurement:
    """Measure with the setting in force, then find the cheapest that holds the target. Raises TransientError."""
    for attempt in (1, 2):
        table = await RecallTable.open(settings)
        try:
            return await guarded(lambda it: _measured(settings, it, now, queries, k, sweep=sweep), table)
        except VanishedError:  # cleaned away under us: begin anew on what is there now
            if attempt == 2:
                raise
        finally:
            table.close()
    raise AssertionError("unreachable")


async def _measured(
    settings: Settings, table: RecallTable, now: datetime, queries: int, k: int, *, sweep: bool
) -> Measurement:
    began = time.monotonic()
    mark, sequence = await table.mark(), await table.commit_sequence()
    width, is_half = await table.width()
    real = await asyncio.to_thread(real_queries, settings, width, queries, now, sweep=sweep)
    depth = max(DEPTHS[0], k)
    target = settings.recall_target
    if mark is None:
        return Measurement(now, sequence, None, target, k, depth, len(real), 0, None, None)
    rng = np.random.default_rng(sequence)
    stored = await table.some_vectors(queries - len(real), rng)
    made = recall.made_queries(stored, rng) if len(stored) else stored
    sample: Sequence[Vector] = [*real, *made]
    asked = np.stack(sample) if sample else np.zeros((0, width), np.float32)
    exact = await table.exact(asked, k)
    tolerance = recall.TOLERANCE_HALF if is_half else recall.TOLERANCE
    ladder = recall.Ladder(mark.indexed_rows, mark.partitions, depth)
    tuning = recall.tuning_of(await asyncio.to_thread(read_state, settings, recall.FILE))
    in_force = tuning.setting if tuning is not None and tuning.fits(mark.indexed_rows, now) else recall.DEFAULT
    rungs: dict[Setting, Rung] = {}
    wanted: Setting | None = in_force
    while wanted is not None:
        found, times = [], []
        for query in sample:
            start = time.perf_counter()
            found.append(await table.approximate(query, wanted, depth))
            times.append(time.perf_counter() - start)
        ms_p50 = recall.median_ms(times) if times else 0.0
        rungs[wanted] = Rung(wanted, round(recall.recall(found, exact, tolerance), 4), ms_p50)
        known = {setting: rung.recall for setting, rung in rungs.items()}
        wanted = ladder.next(known, recall.goal_of(target))
    return Measurement(
        at=now,
        commit_sequence=sequence,
        index=mark,
        target=target,
        k=k,
        depth=depth,
        real=len(real),
        made=len(made),
        before=rungs[in_force],
        chosen=rungs[ladder.choose(known, target)],
        rungs=tuple(sorted(rungs.values(), key=lambda rung: ladder.cost(rung.setting))),
        took_s=round(time.monotonic() - began, 2),
    )

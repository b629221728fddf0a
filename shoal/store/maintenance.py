"""Upkeep of the tables between commits: indexes, compaction, cleanup; one bounded step at a time.

It runs in the writer's thread while nothing is staged, so it never competes with our own commits (facts 3.2);
a conflict with anybody else's leaves the step for later. After each step the table is read anew, fence and
all, so that no upkeep carries the writer past another's epoch. A compaction rewrites the fence row as well and so
is refused to a zombie like any commit; an index that a zombie still builds lands, and is right.

What is here is right but simple: everything is due by count or by age. A search is right without any of it,
only slower: unindexed rows are scanned, and exactly.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from operator import methodcaller
from typing import Any

from lance.optimize import Compaction, CompactionOptions, CompactionTask

from shoal.errors import TransientError
from shoal.faults import reach
from shoal.settings import Settings
from shoal.store.orphans import fileless_indexes, sweep, sweep_state
from shoal.store.purging import Purger
from shoal.store.schemas import VECTOR_COLUMNS, TableKind
from shoal.store.snapshots import Keeping, SnapshotKeeper
from shoal.store.tables import FencedTable, lance_errors

FRAGMENT_BYTES = 64 * 1024 * 1024
"""Size up to which compaction joins fragments. Every compaction rewrites the unfinished last one: much above,
that stalls the writer for seconds; much below, a big table has thousands of files to open."""
COMPACTION_BYTES_MAX = 4 * FRAGMENT_BYTES
"""What one step rewrites at most (seconds of work); the next step goes on from there."""
FOLD_ROWS = 1_500
"""Chunks written that make folding them into the indexes due: keyword search costs 23 us for each that is not."""
TRAINING_SAMPLE_RATE = 64
"""Vectors sampled per centroid: Lance's own 256 takes twice the time, and the writer waits for it."""
_ROW_TEXT_BYTES = 1024  # of a row beside its vector, by rule of thumb

BTREE, BITMAP, FTS = "BTREE", "BITMAP", "INVERTED"
AT_ONCE: dict[TableKind, dict[str, str]] = {
    "metadata": {"revision": BTREE, "id": BTREE},
    "vectors": {"id": BTREE, "content_summary": FTS},  # keyword search fails where there is no index
    "fixes": {},
    "jobs": {"command_id": BTREE},
}
LATER: dict[TableKind, dict[str, str]] = {
    "metadata": {
        "sha256_hash": BTREE, "s3_path": BTREE, "collected_at": BTREE, "data_source": BITMAP, "data_type": BITMAP,
        "dataset": BITMAP, "environment": BITMAP, "file_format": BITMAP, "scraper_name": BITMAP,
    },
    "vectors": {
        "metadata_id": BTREE, "collected_at": BTREE, "data_source": BITMAP, "data_type": BITMAP, "dataset": BITMAP,
        "environment": BITMAP, "file_format": BITMAP, "scraper_name": BITMAP,
    },
    "fixes": {},
    "jobs": {},
}  # fmt: skip
"""Scalar indexes made once a table has SCALAR_ROWS_MIN rows."""
SCALAR_ROWS_MIN = 1_000
_WITH_VECTORS: tuple[TableKind, ...] = ("vectors", "metadata")
FTS_OPTIONS: dict[str, Any] = {
    "with_position": True, "language": "English", "stem": True, "remove_stop_words": True, "ascii_folding": True,
}  # fmt: skip

Step = Callable[[int], str | None]


def index_name(column: str) -> str:
    """lancedb's name of a column's index."""
    return f"{column}_idx"


def partitions(rows: int) -> int:
    """IVF partitions for this many vectors (facts 2.5): sqrt(rows), between 16 and 256 rows each."""
    wanted = round(rows**0.5) if rows <= 1_000_000 else rows // 4096
    return max(1, min(max(16, wanted), rows // 256))


def sub_vectors(width: int) -> int:
    """PQ sub-vectors: width/16, or the nearest below that divides the width."""
    return next(count for count in range(max(1, width // 16), 0, -1) if width % count == 0)


class Maintenance:
    """What is due on the tables of one writer. `committed` and `reopened` tell it what the writer did."""

    def __init__(self, tables: dict[TableKind, FencedTable], settings: Settings) -> None:
        self._tables = tables
        self._uri = tables["metadata"].uri.rpartition("/")[0]
        self._compact_commits = settings.compact_commits
        self._cleanup_age = timedelta(seconds=settings.cleanup_age_s)
        self._index_rows_min = settings.index_rows_min
        self._steps: deque[Step] = deque()
        self._commits = 0
        self._rows_since_fold = 0
        self._cleaned_at: datetime | None = None
        self._snapshots = SnapshotKeeper(tables["metadata"], tables["vectors"], Keeping.of(settings))
        self._snapshots_at: datetime | None = None
        self._purger = Purger(
            settings, {"metadata": tables["metadata"], "vectors": tables["vectors"]}, self._snapshots, self._compact,
            self._rebuild_scalar,
        )  # fmt: skip
        self.unindexed_rows = 0
        self.last = "none yet"

    def committed(self, chunks: int) -> None:
        """A batch was written."""
        self._commits += 1
        self._rows_since_fold += chunks
        self.unindexed_rows += chunks

    def reopened(self) -> None:
        """The tables were opened: what indexes they need and lack is looked for in the next steps."""
        self._steps.clear()
        self._steps.extend(self._index_steps(AT_ONCE))
        self._count_unindexed()

    @property
    def is_pending(self) -> bool:
        """Whether steps are queued; after `reopened`, the ones that readers wait for."""
        return bool(self._steps)

    def step(self, epoch: int, now: datetime) -> str | None:
        """Do the next due thing and say what it was. Raises FencedError, TransientError; then the table is
        as fresh as could be had, and the step is dropped until it is due again."""
        if not self._steps:
            self._gather(now)
        while self._steps:
            done = self._steps.popleft()(epoch)
            if done is not None:
                self.last = f"{done} at {now:%Y-%m-%dT%H:%M:%SZ}"
                return self.last
        return None

    def _gather(self, now: datetime) -> None:
        """Queue what is due."""
        if self._commits >= self._compact_commits:
            self._commits = 0
            for kind in self._tables:
                self._steps.append(partial(self._compact, kind))
            self._steps.extend(self._index_steps(AT_ONCE))  # a step that failed is tried again
            self._steps.extend(self._index_steps(LATER))
            for kind in _WITH_VECTORS:
                self._steps.append(partial(self._vector_index, kind))
            self._rows_since_fold = FOLD_ROWS
        if self._rows_since_fold >= FOLD_ROWS:
            self._rows_since_fold = 0
            for kind in self._tables:
                self._steps.append(partial(self._fold, kind))
        if self._snapshots_at is None or now - self._snapshots_at >= self._snapshots.interval:
            self._snapshots_at = now
            self._steps.append(partial(self._keep_snapshots, now))  # before what they keep is cleaned away
        if (request := self._purger.due(now)) is not None:
            self._steps.append(partial(self._purger.step, request, now))
        if self._cleaned_at is None or now - self._cleaned_at >= self._cleanup_age / 2:
            self._cleaned_at = now  # at the start too: the writer before us may have been killed
            for kind in self._tables:
                self._steps.append(partial(self._clean, kind))

    def _index_steps(self, wanted: dict[TableKind, dict[str, str]]) -> list[Step]:
        return [
            partial(self._scalar_index, kind, column, sort)
            for kind, columns in wanted.items()
            for column, sort in columns.items()
        ]

    def _on(self, kind: TableKind, epoch: int, doing: str, operation: Callable[[Any], Any]) -> Any:
        """Run `operation` on the latest version of a table, then hold the version after it."""
        table = self._tables[kind]
        table.settle(epoch)
        if "index" in doing:
            reach("writer.indexing")
        try:
            with lance_errors(f"{doing} {table.uri}"):
                return operation(table.dataset)
        except (ValueError, TypeError) as error:
            raise TransientError(f"{doing} {table.uri}: {error}") from error
        finally:
            table.settle(epoch)

    def _scalar_index(self, kind: TableKind, column: str, sort: str, epoch: int) -> str | None:
        table = self._tables[kind]
        if index_name(column) in self._indexed(kind):
            return None
        if column not in AT_ONCE[kind] and table.count() < SCALAR_ROWS_MIN:
            return None
        options = FTS_OPTIONS if sort == FTS else {}
        self._on(
            kind, epoch, f"indexing {column} of",
            lambda dataset: dataset.create_scalar_index(column, sort, name=index_name(column), **options),
        )  # fmt: skip
        self._count_unindexed()
        return f"indexed {column} of {kind}"

    def _vector_index(self, kind: TableKind, epoch: int) -> str | None:
        """Train the vector index when it is worth it, and again when the rows have doubled: new rows are only
        assigned to the partitions of the first training."""
        table = self._tables[kind]
        column = str(VECTOR_COLUMNS[kind])
        rows = table.count(f"{column} IS NOT NULL")
        if rows < self._index_rows_min:
            return None
        with lance_errors(f"looking at the indexes of {table.uri}"):
            if index_name(column) in self._indexed(kind) and partitions(rows // 2) < len(
                table.dataset.get_ivf_model(index_name(column)).centroids
            ):
                return None
        count = partitions(rows)
        self._on(
            kind, epoch, f"indexing {column} of",
            lambda dataset: dataset.create_index(
                column, "IVF_PQ", name=index_name(column), metric="cosine", num_partitions=count,
                num_sub_vectors=sub_vectors(table.facts.width), sample_rate=TRAINING_SAMPLE_RATE, replace=True,
            ),
        )  # fmt: skip
        return f"trained the vector index of {kind} on {rows} rows, {count} partitions"

    def _compact(self, kind: TableKind, epoch: int) -> str | None:
        table = self._tables[kind]
        target = FRAGMENT_BYTES // (4 * table.facts.width + _ROW_TEXT_BYTES)
        options: CompactionOptions = {"target_rows_per_fragment": target, "max_source_bytes": COMPACTION_BYTES_MAX}
        if self._purger.is_thorough:
            options["materialize_deletions_threshold"] = 0.0
        from_json: Any = CompactionTask.from_json  # type: ignore[attr-defined]

        def compact(dataset: Any) -> Any:
            tasks: list[Any] = list(Compaction.plan(dataset, options).tasks)
            if not tasks:
                return None
            fence = table.fence_fragment()
            if not any(fragment.id == fence for task in tasks for fragment in task.fragments):
                # Its own task. The fence's fragment is the last batch's: the least of what is rewritten here.
                alone = json.loads(tasks[0].json())
                alone["task"]["fragments"] = [dataset.get_fragment(fence).metadata.to_json()]
                tasks.append(from_json(json.dumps(alone)))
            rewritten = [task.execute(dataset) for task in tasks]
            reach("writer.compacting")
            return Compaction.commit(dataset, rewritten, options)

        metrics = self._on(kind, epoch, "compacting", compact)
        if metrics is None or not metrics.fragments_removed:
            return None
        return f"compacted {kind}: {metrics.fragments_removed} fragments into {metrics.fragments_added}"

    def _fold(self, kind: TableKind, epoch: int) -> str | None:
        """Take the rows written since into the table's indexes."""
        names = set(self._indexed(kind))
        if not names:
            return None
        vector = index_name(str(VECTOR_COLUMNS[kind]))

        def fold(dataset: Any) -> None:
            if scalar := sorted(names - {vector}):
                dataset.optimize.optimize_indices(index_names=scalar)
            if vector in names:
                # Without a number it is retrained with Lance's own choice of partitions: one, below 8192 rows.
                dataset.optimize.optimize_indices(index_names=[vector], num_indices_to_merge=1)

        self._on(kind, epoch, "folding rows into the indexes of", fold)
        self._count_unindexed()
        return f"folded new rows into the indexes of {kind}"

    def _rebuild_scalar(self, kind: TableKind, epoch: int) -> None:
        """Make the scalar and full-text indexes of a table anew: a fold leaves what deleted rows said in them."""
        held = self._indexed(kind)
        for column, sort in (AT_ONCE[kind] | LATER[kind]).items():
            if index_name(column) in held:
                options = FTS_OPTIONS if sort == FTS else {}
                rebuild = methodcaller(
                    "create_scalar_index", column, sort, name=index_name(column), replace=True, **options
                )
                self._on(kind, epoch, f"indexing {column} of", rebuild)

    def _keep_snapshots(self, now: datetime, epoch: int) -> str | None:
        """Tag the state as it is now where one is due, and drop what has outlived its time (snapshots.py)."""
        for kind in ("metadata", "vectors"):
            self._tables[kind].settle(epoch)
        return self._snapshots.keep(now)

    def _clean(self, kind: TableKind, epoch: int) -> str | None:
        """Remove versions older than the age, and their files, but for those that are kept as snapshots. Never a lower
        age: readers still hold them (facts 4).
        Then what killed writers left that is as old, and the indexes that lack their files."""
        table = self._tables[kind]

        def clean(dataset: Any) -> Any:
            stats = dataset.cleanup_old_versions(self._cleanup_age, error_if_tagged_old_versions=False)
            reach("writer.cleaning")
            return stats

        stats = self._on(kind, epoch, "cleaning", clean)
        swept = sweep(table, self._cleanup_age)
        if kind == "metadata":
            sweep_state(self._uri, self._cleanup_age)
        for name in fileless_indexes(table):
            self._on(kind, epoch, f"dropping {name} of", methodcaller("drop_index", name))
            self._steps.extend(self._index_steps(AT_ONCE))
            self._commits = self._compact_commits  # the others come with the next round
        return (
            f"removed {stats.old_versions} old versions of {kind}, {stats.bytes_removed} bytes, and "
            f"{swept.files} orphans, {swept.size_bytes} bytes"
        )

    def _indexed(self, kind: TableKind) -> dict[str, int]:
        """Index name -> rows it holds."""
        table = self._tables[kind]
        with lance_errors(f"looking at the indexes of {table.uri}"):
            return {index.name: int(index.num_rows_indexed) for index in table.dataset.describe_indices()}

    def _count_unindexed(self) -> None:
        held = self._indexed("vectors").get(index_name("content_summary"), 0)
        self.unindexed_rows = max(0, self._tables["vectors"].count() - 1 - held)  # the fence row is none

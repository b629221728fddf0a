"""Upkeep of the tables between commits: indexes, compaction, cleanup; one bounded step at a time.

It runs in the writer's thread while nothing is staged, so it never competes with our own commits (facts 3.2);
a conflict with anybody else's leaves the step for later. After each step the table is read anew, fence and
all, so that no upkeep carries the writer past another's epoch. A compaction rewrites the fence row as well and so
is refused to a zombie like any commit; an index that a zombie still builds lands, and is right.

What takes long, training and rebuilding, is done by a child beside the writer (index_keeping.py). While it builds,
its table is not compacted: the build would be refused in its last step and all its work lost (facts 3.2). Nothing
is cleaned either, so that no build outlives the versions it reads. Both come as soon as it has ended.

Each step is verified after it ran (verification.py). A search is right without any of it, only slower: unindexed
rows are scanned, and exactly.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import methodcaller
from typing import Any

from lance.optimize import Compaction, CompactionOptions, CompactionTask

from shoal.errors import FencedError, TransientError
from shoal.faults import reach
from shoal.settings import Settings
from shoal.store.compaction import FAN_IN, Fragment, left_alone
from shoal.store.index_keeping import FTS, FTS_OPTIONS, IndexKeeper
from shoal.store.index_policy import Counts, Kind, folds_in_place, text_merges
from shoal.store.index_views import index_name, views
from shoal.store.orphans import fileless_indexes, sweep, sweep_state
from shoal.store.purging import Purger
from shoal.store.remaking import Remakes
from shoal.store.schemas import VECTOR_COLUMNS, TableKind
from shoal.store.scrubbing import Scrubber
from shoal.store.snapshots import Keeping, SnapshotKeeper
from shoal.store.tables import CommitRefused, FencedTable, lance_errors
from shoal.store.verification import rows_changed

FRAGMENT_BYTES = 64 * 1024 * 1024
"""Size up to which compaction joins fragments (compaction.py: which of them). Much above, one join stalls the writer
for seconds; much below, a big table has thousands of files to open."""
COMPACTION_BYTES_MAX = 4 * FRAGMENT_BYTES
"""What one step rewrites at most (seconds of work); the next step goes on from there."""
FOLD_AGAIN = timedelta(seconds=60)
"""After a fold of one index failed: the storage may have been unwell. Failing again it is the index that is."""
FOLD_ROWS = 1_500
"""Chunks written that make folding them into all indexes due. That writes each scalar index anew, whole."""
DELTA_ROWS, DELTA_AGE = 100, timedelta(seconds=5)
"""Chunks written, and time passed, that make folding them into the two indexes that rank due: as deltas
(index_policy.py), which took 0.4 CPU-seconds, canaries included, on 100,000 chunks. Each chunk in neither costs a
keyword search 23 to 40 us."""
FOLD_SHARE = 1 / 20
"""Of a small table's chunks, when it is compacted: a fold writes its indexes anew, however few rows it takes in."""
FOLD_AGE = timedelta(seconds=60)
"""So long new rows stay outside the indexes at most, however few they are."""
ROW_TEXT_BYTES = 1024  # of a row beside its vector, by rule of thumb

BTREE, BITMAP = "BTREE", "BITMAP"
AT_ONCE: dict[TableKind, dict[str, str]] = {
    "metadata": {"revision": BTREE, "id": BTREE},
    "vectors": {"id": BTREE, "content_summary": FTS},  # keyword search fails where there is no index
    "fixes": {},
    "jobs": {"command_id": BTREE},
    "spend": {},  # a row per key and day: thousands in a year, which a scan reads in milliseconds
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
    "spend": {},
}  # fmt: skip
"""Scalar indexes made once a table has SCALAR_ROWS_MIN rows."""
SCALAR_ROWS_MIN = 1_000

Step = Callable[[int], str | None]

log = logging.getLogger("shoal.store")


class Maintenance:
    """What is due on the tables of one writer. `committed` and `reopened` tell it what the writer did."""

    def __init__(self, tables: dict[TableKind, FencedTable], settings: Settings, *, keeps_states: bool = True) -> None:
        """`keeps_states`: for `as_of`; those of a copy were never the collection's."""
        self._tables = tables
        self._keeps_states = keeps_states
        self._uri = tables["metadata"].uri.rpartition("/")[0]
        self._compact_commits = settings.compact_commits
        self._cleanup_age = timedelta(seconds=settings.cleanup_age_s)
        settings = settings.model_copy(update={"lancedb_path": self._uri})  # what is asked beside *these* tables
        self._keeper = IndexKeeper(tables, settings, self._uri)
        self._steps: deque[Step] = deque()
        self._commits = 0
        self._rows_since_fold = 0
        self._rows_since_delta = 0
        self._folded_at: datetime | None = None
        self._delta_at = datetime.min.replace(tzinfo=UTC)
        self._cleaned_at: datetime | None = None
        self._held_back: set[TableKind] = set()  # tables whose compaction and fold wait for a build
        self._unfolded: dict[tuple[TableKind, str], int] = {}  # index -> its folds in a row that failed
        self._fold_again_at: datetime | None = None
        self._remakes = Remakes()
        self._now = datetime.min
        self._snapshots = SnapshotKeeper(tables["metadata"], tables["vectors"], Keeping.of(settings))
        self._snapshots_at: datetime | None = None
        self._purger = Purger(
            settings, {"metadata": tables["metadata"], "vectors": tables["vectors"]}, self._snapshots, self._compact,
            self._rebuild_scalar,
        )  # fmt: skip
        text = index_name("content_summary")
        self._scrubber = Scrubber(
            settings, {"metadata": tables["metadata"], "vectors": tables["vectors"]}, self._snapshots, self._compact,
            partial(self._rebuild_scalar, but=FTS), lambda: self._keeper.doubt("vectors", text),
            lambda: self._keeper.is_doubted("vectors", text),
        )  # fmt: skip
        self.unindexed_rows = 0
        self.last = "none yet"

    def committed(self, chunks: int) -> None:
        """A batch was written."""
        self._commits += 1
        self._rows_since_fold += max(1, chunks)  # without chunks a commit wrote metadata
        self._rows_since_delta += chunks
        self.unindexed_rows += chunks

    def reopened(self) -> None:
        """The tables were opened: what indexes they need and lack is looked for in the next steps."""
        self._steps.clear()
        self._steps.extend(self._index_steps(AT_ONCE))
        self._keeper.reopened()
        self._count_unindexed()
        self._rows_since_fold = max(1, self.unindexed_rows)  # what the writer before us left may be in no index

    def asked(self) -> None:
        """A command was applied; it may be one about indexes."""
        self._keeper.asked()

    def close(self) -> None:
        """End what goes on beside the writer."""
        self._keeper.stop()

    @property
    def is_building(self) -> bool:
        """Whether a build goes on beside the writer: its end is worth a look every second."""
        return self._keeper.building is not None

    def rebuild(self, kind: TableKind, name: str) -> None:
        """Queue: make an index that is damaged anew. Searches use it till then: without one they would find by other
        words, silently."""
        if not self._keeper.doubt(kind, name):
            self._steps.append(partial(self._replace, kind, name))
        self._steps.extend(self._index_steps(AT_ONCE))
        self._commits = self._compact_commits  # the others come with the next round

    def _replace(self, kind: TableKind, name: str, epoch: int) -> str | None:
        if name not in self._indexed(kind):
            return None
        for column, sort in (AT_ONCE[kind] | LATER[kind]).items():
            if index_name(column) == name:
                self._remake(kind, column, sort, epoch)
                return f"indexed {column} of {kind} anew"
        self._on(kind, epoch, f"dropping {name} of", methodcaller("drop_index", name))
        return f"dropped {name} of {kind}: no search needs it"

    @property
    def is_pending(self) -> bool:
        """Whether steps are queued; after `reopened`, the ones that readers wait for."""
        return bool(self._steps)

    def step(self, epoch: int, now: datetime) -> str | None:
        """Do the next due thing and say what it was. Raises FencedError, TransientError; then the table is
        as fresh as could be had, and the step is dropped until it is due again."""
        self._now = now
        try:
            if not self._steps:
                self._gather(now)
            while self._steps:
                done = self._steps.popleft()(epoch)
                if done is not None:
                    return self._did(done)
            done = self._keeper.step(epoch, now)
        except FencedError:
            self._keeper.stop()
            raise
        return self._did(done) if done is not None else None

    def _did(self, done: str) -> str:
        self.last = f"{done} at {self._now:%Y-%m-%dT%H:%M:%SZ}{self._remakes.told(self._now)}"
        return self.last

    def _gather(self, now: datetime) -> None:
        """Queue what is due."""
        building = self._keeper.building
        if building is None:
            for kind in sorted(self._held_back):
                self._steps.append(partial(self._compact, kind))
                self._steps.append(partial(self._fold, kind))
            self._held_back.clear()
        if self._folded_at is None:
            self._folded_at = now
        is_asked = self._keeper.new_optimize()
        if is_asked or self._commits >= self._compact_commits:
            self._commits = 0
            for kind in self._tables:
                if kind == building:
                    self._held_back.add(kind)
                else:
                    self._steps.append(partial(self._compact, kind, everything=is_asked))
            self._steps.extend(self._index_steps(AT_ONCE))  # a step that failed is tried again
            self._steps.extend(self._index_steps(LATER))
            self._keeper.changed()
            if is_asked or self._rows_since_fold >= FOLD_SHARE * self._tables["vectors"].count():
                self._rows_since_fold = FOLD_ROWS
        is_old = self._rows_since_fold > 0 and now - self._folded_at >= FOLD_AGE
        is_again = self._fold_again_at is not None and now >= self._fold_again_at
        if self._rows_since_fold >= FOLD_ROWS or is_old or is_again:
            self._rows_since_fold, self._fold_again_at, self._folded_at = 0, None, now
            self._rows_since_delta, self._delta_at = 0, now
            for kind in self._tables:
                self._steps.append(partial(self._fold, kind))
                if kind == building:  # what the build holds back of it
                    self._held_back.add(kind)
        elif self._rows_since_delta >= DELTA_ROWS and now - self._delta_at >= DELTA_AGE and building != "vectors":
            self._rows_since_delta, self._delta_at = 0, now
            self._steps.append(partial(self._fold, "vectors", ranking_only=True))
        if self._keeps_states and (
            self._snapshots_at is None
            or self._snapshots.is_learning
            or now - self._snapshots_at >= self._snapshots.interval
        ):
            self._snapshots_at = now
            self._steps.append(partial(self._keep_snapshots, now))  # before what they keep is cleaned away
        if building is None and (request := self._purger.due(now)) is not None:
            self._steps.append(partial(self._purger.step, request, now))
        if building is None and self._scrubber.due(now):
            self._steps.append(partial(self._scrubber.step, now))
        if building is None and (self._cleaned_at is None or now - self._cleaned_at >= self._cleanup_age / 2):
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
        before = table.count()
        if doing.startswith("indexing"):
            reach("writer.indexing")
        elif doing.startswith("folding"):
            reach("writer.folding")
        try:
            with lance_errors(f"{doing} {table.uri}"):
                result = operation(table.dataset)
        except (ValueError, TypeError) as error:
            raise TransientError(f"{doing} {table.uri}: {error}") from error
        finally:
            table.settle(epoch)
        wrong = rows_changed(before, table.count())
        if wrong is not None:  # nothing here may: we alone write rows
            raise TransientError(f"{doing} {table.uri}: {wrong}: run `shoal verify`")
        return result

    def _verify(self, kind: TableKind, after: str, epoch: int, whole: frozenset[str] = frozenset()) -> None:
        """Hold the table's indexes against its rows; a scalar index that is wrong is made anew, the others by
        the keeper."""
        for name in self._keeper.verify(kind, after, self._now, whole=whole):
            if not self._remakes.may(kind, name, self._now):  # that it is wrong was logged
                continue
            self._on(kind, epoch, f"dropping {name} of", methodcaller("drop_index", name))
            self._steps.extend(self._index_steps(AT_ONCE))
            self._steps.extend(self._index_steps(LATER))

    def _scalar_index(self, kind: TableKind, column: str, sort: str, epoch: int) -> str | None:
        table = self._tables[kind]
        if index_name(column) in self._indexed(kind):
            return None
        if column not in AT_ONCE[kind] and table.count() < SCALAR_ROWS_MIN:
            return None
        self._remake(kind, column, sort, epoch)
        self._count_unindexed()
        self._verify(kind, f"indexing {column}", epoch, frozenset({index_name(column)}))
        return f"indexed {column} of {kind}"

    def _compact(self, kind: TableKind, epoch: int, everything: bool = False) -> str | None:
        """Join small fragments, those that are due or `everything`, and rewrite those worn by deletions."""
        table = self._tables[kind]
        target = FRAGMENT_BYTES // (table.facts.vector_bytes + ROW_TEXT_BYTES)
        options: CompactionOptions = {"target_rows_per_fragment": target, "max_source_bytes": COMPACTION_BYTES_MAX}
        is_thorough = self._purger.is_thorough or self._scrubber.is_thorough
        if is_thorough:
            options["materialize_deletions_threshold"] = 0.0
        from_json: Any = CompactionTask.from_json  # type: ignore[attr-defined]

        def compact(dataset: Any) -> Any:
            if not everything and not is_thorough:
                found = [
                    Fragment(one.fragment_id, one.physical_rows, one.num_deletions) for one in dataset.get_fragments()
                ]
                options["excluded_fragment_ids"] = left_alone(found, min(FAN_IN, max(2, self._compact_commits)))
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
        self._verify(kind, "compaction", epoch)
        return f"compacted {kind}: {metrics.fragments_removed} fragments into {metrics.fragments_added}"

    def _fold(self, kind: TableKind, epoch: int, ranking_only: bool = False) -> str | None:
        """Take the rows written since into the table's indexes, or into those alone that rank; the vector index where
        that is quickly done."""
        found = views(self._tables[kind])
        vector, text = index_name(str(VECTOR_COLUMNS[kind])), index_name("content_summary")
        folded = [] if ranking_only else sorted(found.keys() - {vector, text})
        if folded:
            self._on(
                kind, epoch, "folding rows into the indexes of",
                lambda dataset: dataset.optimize.optimize_indices(index_names=folded),
            )  # fmt: skip
        if self._keeper.building != kind:  # a build replaces its index, with these rows or without
            if text in found and found[text].unindexed:
                merges = text_merges(found[text].segments, found[text].unindexed)
                if self._fold_alone(kind, text, merges, epoch):
                    folded.append(text)
            # A graph is built anew by each merge, so its deltas are few and large.
            if vector in found and not (ranking_only and found[vector].kind is Kind.IVF_HNSW_SQ):
                view = found[vector]
                deltas = folds_in_place(Counts(view.rows, view.segments, view.unindexed, kind=view.kind))
                if deltas is not None and self._fold_alone(kind, vector, deltas, epoch):
                    folded.append(vector)
                self._keeper.changed()
        if not folded:
            return None
        self._count_unindexed()
        self._verify(kind, "folding", epoch, frozenset(folded))
        return f"folded new rows into the indexes of {kind}"

    def _fold_alone(self, kind: TableKind, name: str, merges: int, epoch: int) -> bool:
        """Fold one index by itself: a damaged one fails every fold (also facts, lance #8310), and would take the
        others with it. Whether it must cover every row now: it was folded, or failed again, of which verification
        tells, and it is built anew. Without `merges`, a number of deltas, Lance
        would train a vector index anew, with its own choice of partitions, one below 8192 rows."""
        try:
            self._on(
                kind, epoch, f"folding rows into {name} of",
                lambda dataset: dataset.optimize.optimize_indices(index_names=[name], num_indices_to_merge=merges),
            )  # fmt: skip
        except CommitRefused:
            raise
        except TransientError as error:
            log.warning("%s", error)
            self._unfolded[kind, name] = failures = self._unfolded.get((kind, name), 0) + 1
            self._fold_again_at = self._now + FOLD_AGAIN
            return failures > 1
        self._unfolded.pop((kind, name), None)
        return True

    def _rebuild_scalar(self, kind: TableKind, epoch: int, but: str = "") -> None:
        """Make the scalar and full-text indexes of a table anew, but for those of one type: a fold leaves what deleted
        rows said in them."""
        held = self._indexed(kind)
        for column, sort in (AT_ONCE[kind] | LATER[kind]).items():
            if index_name(column) in held and sort != but:
                self._remake(kind, column, sort, epoch)

    def _remake(self, kind: TableKind, column: str, sort: str, epoch: int) -> None:
        """Make a scalar or full-text index (anew), in one commit: searches have the old one till then."""
        options = FTS_OPTIONS if sort == FTS else {}
        make = methodcaller("create_scalar_index", column, sort, name=index_name(column), replace=True, **options)
        self._on(kind, epoch, f"indexing {column} of", make)

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
            if not self._remakes.may(kind, name, self._now):
                log.error("%s of %s lacks its files again", name, kind)
                continue
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

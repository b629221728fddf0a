"""The writing stage: the real group commit, and the writer's one thread with modelled commits and upkeep.

What is due when is decided by the store's own rules: `compaction.left_alone` on the fragments that the commits made,
`index_policy.decide` on the rows and segments, and maintenance's constants. What each step takes is of figures.toml.
Not modelled: deletions (so nothing is worn), cleaning, kept states, purges, checks, and the deltas of the two indexes
that rank: the folds' costs are of the time before those, when each wrote the full-text index whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.flow.deployment import Deployment
from bench.flow.engine import Cores, Engine, Level, Station
from bench.flow.figures import Figures
from shoal.actors.group_commit import GroupCommit
from shoal.settings import Settings
from shoal.store.compaction import FAN_IN, Fragment, left_alone
from shoal.store.index_keeping import LOOK_AGAIN_S
from shoal.store.index_policy import Act, Counts, Kind, Limits, Past, decide, fold_merges, folds_in_place, threads
from shoal.store.maintenance import (
    COMPACTION_BYTES_MAX,
    FOLD_AGE,
    FOLD_ROWS,
    FOLD_SHARE,
    FRAGMENT_BYTES,
    ROW_TEXT_BYTES,
)

WIDTH_OPENAI, WIDTH_LOCAL = 1536, 384
FOLDED_TABLES = 3  # metadata, chunks, jobs: those that have indexes to fold rows into
_SETTINGS = Settings.model_fields
INDEX = Limits(
    Kind(_SETTINGS["index_kind"].default),
    _SETTINGS["index_rows_min"].default,
    _SETTINGS["index_interval_s"].default,
)
CORES_SHARE = _SETTINGS["index_cores_share"].default


@dataclass(slots=True)
class _Entry:
    chunks: int
    done: Callable[[], None]


class Table:
    """The chunk table as upkeep sees it: fragments, what is in the indexes, and what is due."""

    def __init__(self, rows: int, width: int) -> None:
        self.rows = self.trained_rows = rows
        self.row_bytes = 4 * width + ROW_TEXT_BYTES
        self.fragment_rows = FRAGMENT_BYTES // self.row_bytes
        whole, rest = divmod(rows, self.fragment_rows)
        self.fragments = [Fragment(i, self.fragment_rows, 0) for i in range(whole)]
        if rest:
            self.fragments.append(Fragment(whole, rest, 0))
        self._ids = whole + 1
        self.segments = [rows] if rows >= INDEX.rows_min else []
        self.unindexed = 0 if self.segments else rows
        self.rewritten = 0

    def written(self, rows: int) -> None:
        self._ids += 1
        self.fragments.append(Fragment(self._ids, rows, 0))
        self.rows += rows
        self.unindexed += rows

    def compact(self) -> int:
        """Join what is due, within the bound of one step; the rows that were rewritten."""
        alone = set(left_alone(self.fragments, FAN_IN))
        joined: list[Fragment] = []
        taken = 0
        for one in self.fragments:
            is_due = one.id not in alone and one.rows < self.fragment_rows
            if is_due and (taken + one.rows) * self.row_bytes <= COMPACTION_BYTES_MAX:
                joined.append(one)
                taken += one.rows
        if len(joined) < 2:
            return 0
        gone = {one.id for one in joined}
        self.fragments = [one for one in self.fragments if one.id not in gone]
        left = taken
        while left > 0:
            self._ids += 1
            self.fragments.append(Fragment(self._ids, min(left, self.fragment_rows), 0))
            left -= self.fragment_rows
        self.rewritten += taken
        return taken

    def counts(self) -> Counts:
        return Counts(
            self.rows,
            tuple(self.segments),
            self.unindexed,
            self.trained_rows,
            INDEX.kind if self.segments else None,
        )

    def fold(self) -> None:
        """New rows into the newest delta, or a new one, where the writer may by itself."""
        if folds_in_place(self.counts()) is not None:
            self._take_in()

    def built(self, act: Act, rows: int) -> None:
        """A build that began at so many rows has ended."""
        if act is Act.FOLD:
            self._take_in()
        else:
            self.segments, self.unindexed = [rows], self.rows - rows
            if act is Act.TRAIN:
                self.trained_rows = rows

    def _take_in(self) -> None:
        if fold_merges(self.counts()):
            self.segments[-1] += self.unindexed
        else:
            self.segments.append(self.unindexed)
        self.unindexed = 0


class ModelledWriter:
    """One writer and its pair of tables."""

    def __init__(self, engine: Engine, figures: Figures, deployment: Deployment, cores: Cores) -> None:
        self.engine, self.figures, self.deployment = engine, figures, deployment
        self.group: GroupCommit[_Entry] = GroupCommit(
            deployment.commit_rows_max, deployment.commit_bytes_max, deployment.linger_s
        )
        self.table = Table(deployment.table_rows, WIDTH_OPENAI if deployment.tier else WIDTH_LOCAL)
        self.cores = cores
        self.thread = Station(engine, "writer", 1, cores)
        self.builder = Station(engine, "index build", cores.servers, cores)
        self.queue = Level()  # documents, from `add` to their commit
        self.committing, self.upkeep = Level(), Level()  # what the thread is at
        self.commits = self.documents = self.builds = 0
        self._is_busy = False
        self._commits = self._rows_since_fold = 0
        self._folded_at = engine.now
        self._building: Act | None = None
        self._ended_at: float | None = None
        self._took_s = 0.0
        self._looked_at = -LOOK_AGAIN_S
        self._steps: list[Callable[[], float]] = []
        storage = figures.seconds("s3_commit_wait_ms") if deployment.storage == "s3" else 0.0
        self._storage_s = storage
        self._step_storage_s = storage / 2  # one table, not two

    def add(self, chunks: int, size_bytes: int, done: Callable[[], None]) -> None:
        """A document of so many chunks; `done` once it is durable."""
        self.queue.add(1, self.engine.now)
        self.group.add(_Entry(chunks, done), 1 + chunks, size_bytes, self.engine.now)
        self._turn()

    def utilisation(self) -> float:
        now = self.engine.now
        return self.committing.mean(now) + self.upkeep.mean(now)

    def restart(self) -> None:
        self.thread.restart()
        self.builder.restart()
        for level in (self.queue, self.committing, self.upkeep):
            level.restart(self.engine.now)
        self.commits = self.documents = 0

    # --- the loop of the writer actor ---------------------------------------------------------

    def _turn(self) -> None:
        if self._is_busy:
            return
        due_s = self.group.due_in(self.engine.now)
        if due_s is None:
            self._maintain()
        elif due_s > 1e-9:
            self.engine.after(due_s, self._turn)
        else:
            self._commit(self.group.take(self.engine.now))

    def _commit(self, batch: list[_Entry]) -> None:
        chunks = sum(one.chunks for one in batch)
        cost_s = self.figures.seconds(f"commit_cpu_{self.deployment.storage}_ms")
        cost_s += self.figures.seconds("commit_cpu_row_ms") * (len(batch) + chunks)

        def committed() -> None:
            self._is_busy = False
            self.queue.add(-len(batch), self.engine.now)
            self.commits += 1
            self.documents += len(batch)
            self._commits += 1
            self._rows_since_fold += max(1, chunks)
            self.table.written(chunks)
            for one in batch:
                one.done()
            if not self._maintain():
                self._turn()

        self._work(self.committing, cost_s, self._storage_s, committed)

    def _maintain(self) -> bool:
        """Begin one step of upkeep, where one is due."""
        if not self._steps:
            self._gather()
        while self._steps:
            cost_s = self._steps.pop(0)()
            if cost_s:

                def ended() -> None:
                    self._is_busy = False
                    self._turn()

                self._work(self.upkeep, cost_s, self._step_storage_s, ended)
                return True
        self._look()
        return False

    def _work(self, level: Level, cost_s: float, storage_s: float, then: Callable[[], None]) -> None:
        """The thread is busy with it: processor time, then waiting for the storage."""
        self._is_busy = True
        level.add(1, self.engine.now)

        def ended() -> None:
            level.add(-1, self.engine.now)
            then()

        self.thread.submit(cost_s, lambda: self.engine.after(storage_s, ended))

    # --- upkeep -------------------------------------------------------------------------------

    def _gather(self) -> None:
        """What maintenance would queue: each step is of one table."""
        now = self.engine.now
        if self._commits >= self.deployment.compact_commits:
            self._commits = 0
            self._steps += [self._compact_metadata] if self._building else [self._compact_metadata, self._compact]
            if self._rows_since_fold >= FOLD_SHARE * self.table.rows:
                self._rows_since_fold = FOLD_ROWS
        is_old = self._rows_since_fold > 0 and now - self._folded_at >= FOLD_AGE.total_seconds()
        if self._rows_since_fold >= FOLD_ROWS or is_old:
            self._steps += [self._fold_cost_s] * (FOLDED_TABLES - 1) + [self._fold]
            self._rows_since_fold, self._folded_at = 0, now

    def _compact_metadata(self) -> float:
        return self.figures.laws["compaction_cpu_ms"].at(self.table.rows) / 1000

    def _compact(self) -> float:
        rewritten = self.table.compact()
        if not rewritten:
            return 0.0
        return self._compact_metadata() + self.figures.seconds("compaction_cpu_row_ms") * rewritten

    def _fold(self) -> float:
        if self._building is None:
            self.table.fold()
        return self._fold_cost_s()

    def _fold_cost_s(self) -> float:
        """Of one table's indexes: what was measured is the mean of a round's steps."""
        return self.figures.laws["fold_cpu_ms"].at(self.table.rows) / 1000

    def _look(self) -> None:
        """What index_policy says, as often as the keeper asks it; a build takes its cores beside the writer."""
        now = self.engine.now
        if self._building is not None or now - self._looked_at < LOOK_AGAIN_S:
            return
        self._looked_at = now
        past = Past(None if self._ended_at is None else now - self._ended_at, self._took_s)
        act = decide(self.table.counts(), past, INDEX).act
        if act in (Act.TRAIN, Act.MERGE, Act.FOLD):
            self._build(act)

    def _build(self, act: Act) -> None:
        rows, count = self.table.rows, threads(self.cores.servers, CORES_SHARE)
        cost_s = self.figures.laws["training_cpu_s"].at(rows)
        if act is not Act.TRAIN:
            cost_s *= self.figures.value("merge_share_of_training")
        self._building, left, began = act, count, self.engine.now

        def part() -> None:
            nonlocal left
            left -= 1
            if left:
                return
            self.table.built(act, rows)
            self.builds += 1
            self._building, self._ended_at, self._took_s = None, self.engine.now, self.engine.now - began

        # In slices, so that a core changes hands as a scheduler would have it, not once in an hour.
        for _ in range(count):
            self._slices(cost_s / count, part)

    def _slices(self, left_s: float, done: Callable[[], None], slice_s: float = 0.05) -> None:
        if left_s <= 0:
            done()
        else:
            self.builder.submit(min(slice_s, left_s), lambda: self._slices(left_s - slice_s, done, slice_s))

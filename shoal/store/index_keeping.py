"""Keeps the vector and full-text indexes right: looks, asks the policy, builds beside the writer, verifies, says so.

The shell around index_policy.py, for the writer's thread: every call is short, the long work is a child's (builds.py).
One build at a time, never of a table that is being compacted: maintenance.py asks `building` first. A build that
failed, was killed, or made what verification refuses is tried again, ever more rarely. Raises TransientError and
FencedError as a commit does; whatever was going on is then looked at again in the next step.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from shoal.errors import TransientError
from shoal.faults import reach
from shoal.settings import Settings
from shoal.store import index_policy as policy
from shoal.store import index_requests as requests
from shoal.store import recall
from shoal.store.building import Job, Report
from shoal.store.builds import NICENESS, Build
from shoal.store.index_policy import Act, Counts, Decision, Past
from shoal.store.index_requests import Request
from shoal.store.index_state import IndexRecord, IndexState, moment, stamp
from shoal.store.index_views import IndexView, index_name, training_of, views
from shoal.store.schemas import IS_CURRENT, TableKind
from shoal.store.state_files import read_state
from shoal.store.tables import FencedTable, lance_errors
from shoal.store.verification import coverage, rows_changed, text_canary, vector_canary

FTS_OPTIONS: dict[str, Any] = {
    "with_position": True, "language": "English", "stem": True, "remove_stop_words": True, "ascii_folding": True,
    # Words as in prose, and identifiers both whole and by their parts: `getUserName` is found by "user name" too.
    "analyzer": "code", "split_identifiers": True, "preserve_original": True, "split_on_numerics": False,
}  # fmt: skip
FTS = "INVERTED"
LOOK_AGAIN_S = 30.0
"""Between two looks at what waits. Looking costs a few milliseconds on disk, a few requests on S3."""
LOOK_ANYWAY_S = 300.0
"""Between two looks where nothing was written: recall may have been measured."""
_FTS_DETAILS = {"base_tokenizer" if name == "analyzer" else name: value for name, value in FTS_OPTIONS.items()}
"""How Lance tells these options of an index that has them."""
ASKED_TRIES_MAX = 3
"""Failures after which a request counts as failed. The policy goes on trying what it finds due itself."""
STAGE_S = 10.0
"""Between two writes of how far a build is: each is a request on S3, in the writer's thread."""
_RECOUNT = 1.1

log = logging.getLogger("shoal.store")


@dataclass(slots=True)
class _Index:
    """One that is kept. `base` and `training` of it were read last; `counted`: (rows that may have a vector,
    rows that had) of the last exact count."""

    kind: TableKind
    column: str
    ended_at: datetime | None = None
    took_s: float = 0.0
    failures: int = 0
    defect: str | None = None
    is_doubted: bool = False  # until it is built anew: verification, which a repair knows better than, doesn't end it
    is_stale: bool = True  # whether it must be looked at
    looked_at: datetime | None = None
    is_waiting: bool = False
    base: str = ""
    training: tuple[str, int] = ("", 0)
    counted: tuple[int, int] = (0, 0)
    is_made: bool = False  # the full-text index by this writer: other options are not ours to change then

    @property
    def is_text(self) -> bool:
        return self.column == "content_summary"

    @property
    def name(self) -> str:
        return index_name(self.column)


class IndexKeeper:
    """The indexes of one writer's tables."""

    def __init__(self, tables: dict[TableKind, FencedTable], settings: Settings, uri: str) -> None:
        self._tables = tables
        self._limits = policy.Limits(
            policy.Kind(settings.index_kind), settings.index_rows_min, settings.index_interval_s
        )
        self._threads = policy.threads(_cores(), settings.index_cores_share)
        self._indexes = (
            _Index("vectors", "content_embedding"), _Index("metadata", "schema_embedding"),
            _Index("vectors", "content_summary"),
        )  # fmt: skip
        self._state = IndexState(settings.model_copy(update={"lancedb_path": uri}))
        self._is_restored = False
        self._build: Build | None = None
        self._built: tuple[_Index, Act, int] | None = None  # what the build is of; vectors when it began
        self._staged_at = datetime.min.replace(tzinfo=UTC)
        self._report: Report | None = None  # of a build that ended and was not looked at yet
        self._requests: list[Request] = []
        self._is_asked = True  # whether the tables may hold requests that are not known yet

    @property
    def building(self) -> TableKind | None:
        """The table that a build is under way on."""
        return self._built[0].kind if self._built else None

    def changed(self) -> None:
        """Enough was written that it is worth a look."""
        for index in self._indexes:
            index.is_stale = True

    def doubt(self, kind: TableKind, name: str) -> bool:
        """Build an index anew beside the writer, as a repair asks; whether it is one that is kept here. Searches use
        what there is till then."""
        for index in self._indexes:
            if (index.kind, index.name) == (kind, name):
                index.is_doubted = index.is_stale = True
                return True
        return False

    def is_doubted(self, kind: TableKind, name: str) -> bool:
        """Whether what `doubt` asked for is still to be done."""
        return any(index.is_doubted for index in self._indexes if (index.kind, index.name) == (kind, name))

    def reopened(self) -> None:
        """The tables were opened: what they owe is read from them."""
        self._is_asked = True
        if not self._is_restored:
            self._is_restored = True
            self._restore()
        self.changed()

    def _restore(self) -> None:
        """Rests and failures outlive a writer: else one that dies of its builds would begin with the next at once."""
        self._state.restore()
        interrupted, self._state.build = self._state.build or {}, None
        for index in self._indexes:
            record = self._state.record(index.kind, index.column)
            if interrupted.get("column") == index.column:
                record.last_build = {
                    "what": interrupted.get("what"), "at": interrupted.get("at"), "took_s": 0.0, "cpu_s": 0.0,
                    "outcome": "the writer ended while it built",
                }  # fmt: skip
                record.failures = int(_number(record.failures)) + 1
            last = record.last_build if isinstance(record.last_build, dict) else {}
            index.ended_at, index.took_s = moment(last.get("at")), float(_number(last.get("took_s")))
            index.failures = int(_number(record.failures)) if index.ended_at else 0

    def asked(self) -> None:
        """A command was applied. It may be one about indexes."""
        self._is_asked = True

    def stop(self) -> None:
        """Another writer has the tables: what is under way here is its affair."""
        if self._build is not None:
            self._build.kill()
        self._build = self._built = self._report = None

    def new_optimize(self) -> bool:
        """Read what operators ask, where that may have changed; whether compaction is wanted of it now."""
        if not self._is_asked:
            return False
        found = requests.unfinished(self._tables["jobs"])
        self._is_asked = False
        # What is done of a request stands in no table until all of it is: forgotten, it would begin anew.
        known = {request.id: request for request in self._requests}
        new = [request for request in found if request.id not in known]
        self._requests = [known.get(request.id, request) for request in found]
        for request in new:
            if request.id not in self._state.requests:
                self._state.requests[request.id] = {"state": "waiting", "detail": ""}
        if new:
            self.changed()
        return any(request.kind == requests.OPTIMIZE for request in new)

    def step(self, epoch: int, now: datetime) -> str | None:
        """Do one short thing and say what it was; None where there is nothing to do or a build goes on."""
        try:
            return self._step(epoch, now)
        finally:
            self._state.publish(now)

    def _step(self, epoch: int, now: datetime) -> str | None:
        if self._built is not None:
            if self._report is None and self._build is not None:
                self._report = self._build.poll()
            if self._report is None:
                if (now - self._staged_at).total_seconds() >= STAGE_S:
                    self._show_build(now)
                return None
            return self._finish(self._report, epoch, now)
        for index in self._indexes:
            waited_s = (now - index.looked_at).total_seconds() if index.looked_at else 0.0
            again_s = LOOK_AGAIN_S if index.is_waiting else LOOK_ANYWAY_S
            if index.is_stale or waited_s >= again_s:
                done = self._look(index, epoch, now)
                if done is not None:
                    return done
        return self._end_request(epoch, now)

    # --- looking ------------------------------------------------------------------------------

    def _look(self, index: _Index, epoch: int, now: datetime) -> str | None:
        table = self._tables[index.kind]
        table.settle(epoch)
        view = views(table).get(index.name)
        past = Past(
            ended_s=(now - index.ended_at).total_seconds() if index.ended_at else None, took_s=index.took_s,
            failures=index.failures, asked=self._asked(index),
            defect=index.defect or ("a repair asks for it anew" if index.is_doubted else None),
        )  # fmt: skip
        counts = self._counts(index, table, view)
        if not index.is_text:
            past = replace(past, **self._alarm(index, now))
        decision = policy.decide_text(counts, past) if index.is_text else policy.decide(counts, past, self._limits)
        index.is_stale, index.looked_at = False, now
        index.is_waiting = decision.act is not decision.due
        self._show(index, view, counts, decision)
        if decision.due is Act.NOTHING:
            self._answer(index, f"nothing to do: {decision.why}")
        if decision.act is Act.NOTHING:
            return None
        if decision.act is Act.DROP:
            with lance_errors(f"dropping {index.name} of {table.uri}"):
                table.dataset.drop_index(index.name)
            table.settle(epoch)
            index.is_stale = True
            return f"dropped the vector index of {index.kind}: {decision.why}"
        return self._begin(index, decision, counts, now)

    def _alarm(self, index: _Index, now: datetime) -> dict[str, Any]:
        """What measuring recall says of this training, for the policy."""
        if index.column != "content_embedding":
            return {}
        known = self._state.record(index.kind, index.column)
        try:
            alarm = recall.alarm_of(read_state(self._state.settings, recall.FILE), known.training)
        except (TransientError, OSError):  # the next look sees it
            return {}
        at = datetime.fromisoformat(known.trained_at) if known.trained_at else None
        return {"alarm": alarm, "trained_s": (now - at).total_seconds() if at else None}

    def _counts(self, index: _Index, table: FencedTable, view: IndexView | None) -> Counts:
        if index.is_text:
            rows = table.count() - 1
            if view is None:
                return Counts(rows, unindexed=rows)
            other = any(view.details.get(name, value) != value for name, value in _FTS_DETAILS.items())
            return Counts(rows, view.segments, view.unindexed, is_other=other and not index.is_made)
        rows = self._vectors(index, table, view)
        if view is None:
            return Counts(rows, unindexed=rows)
        known = self._state.record(index.kind, index.column)
        if index.base != view.base:
            try:
                index.training, index.base = training_of(table, index.name), view.base
            except (TransientError, ValueError) as error:  # its files are gone, or the store is unwell
                index.defect = index.defect or f"{index.name} can't be read: {error}"[:300]
        name, partitions = index.training
        if known.training != name or known.trained_rows is None:
            # Not ours, or nobody remembers. A graph's few partitions tell nothing: take it as trained on what is there.
            is_graph = view.kind is policy.Kind.IVF_HNSW_SQ
            known.training, known.trained_at = name, None
            known.trained_rows = rows if is_graph else min(rows, policy.rows_of(partitions))
        known.partitions = partitions
        return Counts(rows, view.segments, view.unindexed, known.trained_rows, view.kind)

    def _vectors(self, index: _Index, table: FencedTable, view: IndexView | None) -> int:
        """Rows with a vector. Counting them exactly reads every vector, so it is done only where an index may be
        due, and again when there may be a tenth more, or less."""
        if index.kind == "vectors":
            return table.count() - 1
        bound = table.count(f"validation_status = 'indexed' AND {IS_CURRENT}")
        if view is None and bound < self._limits.rows_min:
            return bound
        counted_of, counted = index.counted
        if not counted_of or not counted_of / _RECOUNT <= bound <= counted_of * _RECOUNT:
            counted = table.count(f"{index.column} IS NOT NULL")
            index.counted = (bound, counted)
        return counted

    # --- building -----------------------------------------------------------------------------

    def _begin(self, index: _Index, decision: Decision, counts: Counts, now: datetime) -> str | None:
        table, act = self._tables[index.kind], decision.act
        common: dict[str, Any] = {
            "uri": table.uri, "column": index.column, "name": index.name, "options": table.options,
            "niceness": NICENESS,
        }  # fmt: skip
        if index.is_text and act is Act.TRAIN:
            job = Job(how="scalar", sort=FTS, parameters=FTS_OPTIONS, **common)
        elif index.is_text:
            job = Job(how="merge", merges=len(counts.segments), **common)
        elif act is Act.TRAIN:
            kind = self._limits.kind
            parameters = policy.training(kind, counts.rows, table.facts.width)
            job = Job(how="train", sort=policy.LANCE_TYPES[kind], parameters=parameters, **common)
        else:
            merges = len(counts.segments) if act is Act.MERGE else policy.fold_merges(counts)
            job = Job(how="merge", merges=merges, **common)
        try:
            self._build = Build(job, self._threads)
        except OSError as error:
            self._ended(index, now, Report(0.0, 0.0, error=f"no process for it: {error}"), str(act), str(error))
            return None
        self._built = (index, act, counts.rows)
        for request in self._asking(index):
            self._state.requests[request.id] = {"state": "building", "detail": index.column}
        self._state.build = {"at": stamp(now)}
        self._show_build(now)
        log.info("building: %s %s of %s (%s)", act, index.column, index.kind, decision.why)
        return f"began to {act} the index of {index.column} beside the writer: {decision.why}"

    def _finish(self, report: Report, epoch: int, now: datetime) -> str:
        assert self._built is not None
        index, act, rows = self._built
        table = self._tables[index.kind]
        table.settle(epoch)  # failing here, the report is looked at in the next step
        outcome = report.error
        if outcome is None:
            index.defect = outcome = rows_changed(report.rows_before, report.rows_after) or self._defect(index, table)
            index.base = ""
            if outcome is None and act is Act.TRAIN:
                index.is_made = True
                if not index.is_text:
                    self._trained(index, table, rows, now)
            self._verified(index, f"{act}", outcome, now)
        self._build = self._built = self._report = None
        return self._ended(index, now, report, str(act), outcome)

    def _ended(self, index: _Index, now: datetime, report: Report, what: str, problem: str | None) -> str:
        """Keep how a build ended, and tell who asked for it."""
        index.ended_at, index.took_s, index.is_stale = now, report.took_s, True
        index.failures = index.failures + 1 if problem else 0
        index.is_doubted &= problem is not None or what != Act.TRAIN
        record = self._state.record(index.kind, index.column)
        record.failures = index.failures
        record.last_build = {
            "what": what, "at": stamp(now), "took_s": round(report.took_s, 2), "cpu_s": round(report.cpu_s, 2),
            "outcome": problem or "verified",
        }  # fmt: skip
        self._state.build = None
        if problem is None:
            self._answer(index, f"{what} took {report.took_s:.1f} s, verified")
            return f"{what} of {index.column} took {report.took_s:.1f} s ({report.cpu_s:.1f} CPU-s), verified"
        log.warning("%s of %s failed, attempt %d: %s", what, index.column, index.failures, problem)
        if index.failures >= ASKED_TRIES_MAX:
            self._answer(index, problem, failed=True)
        return f"{what} of {index.column} failed: {problem}"

    def _trained(self, index: _Index, table: FencedTable, rows: int, now: datetime) -> None:
        record = self._state.record(index.kind, index.column)
        name, partitions = training_of(table, index.name)
        record.training, record.partitions = name, partitions
        record.trained_rows, record.trained_at = rows, stamp(now)

    # --- verifying ----------------------------------------------------------------------------

    def verify(self, kind: TableKind, after: str, now: datetime, *, whole: frozenset[str] = frozenset()) -> list[str]:
        """The defects of a table's indexes after a step, `whole` naming those that must cover every row now. Those
        kept here are built anew by themselves; the names of the others are returned."""
        table, others = self._tables[kind], []
        kept = {index.name: index for index in self._indexes if index.kind == kind}
        for name, view in views(table).items():
            index = kept.get(name)
            found = coverage(view, whole=name in whole)
            if index is not None:
                found = found or self._canary(index, table, view)
                index.defect = found
                index.is_stale |= found is not None
                self._verified(index, after, found, now)
            if found is not None:
                log.error("after %s of %s: %s", after, kind, found)
                if index is None:
                    others.append(name)
        return others

    def _defect(self, index: _Index, table: FencedTable) -> str | None:
        view = views(table).get(index.name)
        if view is None:
            return f"{index.name} is not there after it was built"
        return coverage(view) or self._canary(index, table, view)

    def _canary(self, index: _Index, table: FencedTable, view: IndexView) -> str | None:
        return (text_canary if index.is_text else vector_canary)(table, index.column, view)

    def _verified(self, index: _Index, after: str, defect: str | None, now: datetime) -> None:
        self._state.record(index.kind, index.column).verified = {
            "after": after, "at": stamp(now), "outcome": defect or "ok",
        }  # fmt: skip

    # --- requests and state -------------------------------------------------------------------

    def _asking(self, index: _Index) -> list[Request]:
        return [request for request in self._requests if index.column in request.left]

    def _asked(self, index: _Index) -> Act | None:
        return next((request.act for request in self._asking(index)), None)

    def _answer(self, index: _Index, outcome: str, *, failed: bool = False) -> None:
        """The first of those who asked for this index has its answer."""
        for request in self._asking(index)[:1]:
            request.end(index.column, outcome, failed=failed)
            self._state.requests[request.id] = {"state": "waiting", "detail": request.detail}
            index.is_stale |= bool(self._asking(index))

    def _end_request(self, epoch: int, now: datetime) -> str | None:
        for request in self._requests:
            if request.left:
                continue
            jobs = self._tables["jobs"]
            jobs.settle(epoch)
            reach("writer.answering")
            requests.record(jobs, request, now)
            self._requests = [other for other in self._requests if other is not request]
            self._state.finish(request.id, "failed" if request.is_failed else "done", request.detail, now)
            return f"{request.kind} {request.id} is {'failed' if request.is_failed else 'done'}"
        return None

    def _show(self, index: _Index, view: IndexView | None, counts: Counts, decision: Decision) -> None:
        record: IndexRecord = self._state.record(index.kind, index.column)
        record.kind = view.sort if view else None
        record.rows, record.unindexed = counts.rows, counts.unindexed
        record.indexed, record.deltas = (view.indexed, len(view.segments)) if view else (0, 0)
        record.size_bytes = view.size_bytes if view else 0
        record.due, record.why = str(decision.due), decision.why
        if view is None:
            record.partitions = record.training = record.trained_rows = record.trained_at = None

    def _show_build(self, now: datetime) -> None:
        self._staged_at = now
        if self._build is not None and self._built is not None:
            index, act, _ = self._built
            stage: Mapping[str, Any] = self._build.stage
            at = (self._state.build or {}).get("at")
            self._state.build = {"at": at, "table": index.kind, "column": index.column, "what": str(act), **stage}


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0


def _cores() -> int:
    """Those that this process may use: fewer than the machine has, in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

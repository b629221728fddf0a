"""The table writer: the one actor that commits, many documents at a time.

Calls gather in a group commit; one thread owns the tables, so commits and maintenance never overlap. A call
returns only after its rows are durable. A writer that meets a higher epoch ends as FENCED: it answers every
call with `FencedError` and commits nothing more (G3). It rebuilds from the tables alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import ray

from shoal import tracing
from shoal.actors.group_commit import GroupCommit
from shoal.actors.lease import LeaseKeeper
from shoal.actors.logs import configure_logging
from shoal.actors.pulse import Pulse
from shoal.errors import DeadReason, FencedError, ShoalError, TransientError
from shoal.faults import reach
from shoal.histograms import Durations
from shoal.metrics import WriterStatistics
from shoal.records import Ack, Deletion, Embedded, Failure, Outcome, Progress, Writable
from shoal.settings import Settings
from shoal.store.generations import MovedError
from shoal.store.place import generation_to_open
from shoal.store.schemas import CollectionFacts
from shoal.store.writing import TableWriter, storage_options

Result = TypeVar("Result")

COMMIT_S = 120.0
"""A commit takes milliseconds on disk, seconds on S3; Lance gives up a silent store by itself before this."""
IDLE_UPKEEP_S = 60.0
LINKS_MAX = 100  # of a span: OpenTelemetry keeps 128
BUILD_LOOK_S = 1.0  # while an index is built beside the writer
UPKEEP_S = 3600.0
"""A vector index of millions of rows trains for many minutes, and is no stall."""

log = logging.getLogger("shoal.writer")


@dataclass(slots=True)
class _Call:
    writable: Writable
    ack: asyncio.Future[Ack]
    trace: str | None = None


def _weight(writable: Writable) -> tuple[int, int]:
    """Rows and bytes that a writable adds to a commit."""
    if not isinstance(writable, Embedded) or writable.vectors is None:
        return 1, 2_000
    extraction = writable.fetched.extraction
    text_bytes = sum(len(chunk.text) for chunk in extraction.chunks) if extraction else 0
    return 1 + len(writable.vectors), int(writable.vectors.nbytes) + text_bytes + 4_000


def _trace_of(writable: Writable) -> str | None:
    """The traceparent of the message that asked for it."""
    if isinstance(writable, Embedded):
        return writable.fetched.announcement.trace
    return writable.trace if isinstance(writable, Deletion) else writable.command.trace


class Writer:
    """Plain class; `WriterActor` is its Ray shell. `start()` must be awaited once, it may be again."""

    def __init__(self, settings: Settings, model: str, width: int) -> None:
        self._settings, self._model, self._width = settings, model, width
        configure_logging(settings)
        self._started = time.monotonic()
        self._lease = LeaseKeeper("writer", settings.lease_s)
        self._tables: TableWriter | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tables")  # the only user of the tables
        self._group: GroupCommit[_Call] = GroupCommit(
            settings.commit_rows_max, settings.commit_bytes_max, settings.commit_linger_s
        )
        self._progress: dict[tuple[str, str, int], Progress] = {}
        self._arrived = asyncio.Event()
        self._opening: asyncio.Task[None] | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._ended: str | None = None
        self._last_error: str | None = None
        self._maintenance = "none yet"
        self._failed_commits = self._failed_upkeep = self._committed = 0
        self._durations = Durations()
        self._pulse = Pulse()
        self._step_until: float | None = None  # when what the tables' thread does now has taken too long

    async def start(self) -> None:
        """Open the tables and take the next epoch. Raises ConfigurationError where they can't be used."""
        self._pulse.follow_loop()
        if self._loop_task is not None or self._ended:
            return
        # Many calls meet a restarted actor at once: one opening, so one epoch or one refusal, for all of them.
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._begin())
        await asyncio.shield(self._opening)

    async def _begin(self) -> None:
        try:
            await self._open()
            self._loop_task = asyncio.get_running_loop().create_task(self._run())
        finally:
            self._opening = None

    async def write(self, writable: Writable, progress: Sequence[Progress] = ()) -> Ack:
        """Durable when it returns. Raises TransientError, or FencedError for ever after a higher epoch."""
        await self.start()  # a restarted actor is called before the supervisor sees it
        if self._ended:
            raise FencedError(f"this writer has ended: {self._ended}")
        for mark in progress:
            key = (mark.cluster, mark.topic, mark.partition)
            if key not in self._progress or self._progress[key].next_offset < mark.next_offset:
                self._progress[key] = mark
        rows, size_bytes = _weight(writable)
        trace = _trace_of(writable)
        call = _Call(writable, asyncio.get_running_loop().create_future(), trace)
        self._group.add(call, rows, size_bytes, time.monotonic())
        self._arrived.set()
        with tracing.span("write", trace) if trace else contextlib.nullcontext():
            call.trace = tracing.header() if trace else None
            return await call.ack

    async def resolve(self, s3_path: str) -> str | None:
        """The id of the current document stored at `s3_path`."""
        tables = await self._opened()
        loop = asyncio.get_running_loop()
        found: dict[str, str] = await loop.run_in_executor(self._thread, tables.resolve_paths, [s3_path])
        return found.get(s3_path)

    @ray.method(concurrency_group="health")
    async def statistics(self) -> WriterStatistics:
        self._lease.renew()
        tables = self._tables.statistics() if self._tables else None
        return WriterStatistics(
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._started,
            epoch=tables.epoch if tables else 0,
            commit_sequence=tables.commit_sequence if tables else 0,
            commits=tables.commits if tables else 0,
            last_commit_at=tables.last_commit_at.isoformat() if tables and tables.last_commit_at else None,
            queued=len(self._group),
            documents=tables.documents if tables else 0,
            chunks=tables.chunks if tables else 0,
            unindexed_rows=tables.unindexed_rows if tables else 0,
            maintenance=self._maintenance,
            stalled_s=max(self._pulse.stalled_s(), self._overdue_s()),
            ended=self._ended,
            last_error=self._last_error,
            queued_bytes=self._group.size_bytes,
            failed_commits=self._failed_commits,
            committed_documents=self._committed,
            failed_upkeep=self._failed_upkeep,
            durations=self._durations.counts(),
        )

    def _overdue_s(self) -> float:
        until = self._step_until
        return 0.0 if until is None else max(0.0, time.monotonic() - until)

    async def _on_tables(self, step: Callable[[], Result], at_most_s: float, stage: str = "") -> Result:
        """Run `step` in the tables' thread; what takes longer than `at_most_s` shows as a stall. It is measured as
        `stage`."""
        began = time.monotonic()
        self._step_until = began + at_most_s
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, step)
        finally:
            self._step_until = None
            if stage:
                self._durations.observe(f"stage.{stage}", time.monotonic() - began)

    async def _open(self) -> None:
        settings = self._settings

        def open_tables() -> TableWriter:
            place = generation_to_open(settings, CollectionFacts(self._model, self._width))
            if place.facts.model != self._model and place.turn:
                raise TransientError(
                    f"the collection has moved to {place.facts.model}: the supervisor starts ingest anew with it"
                )
            return TableWriter.open(
                place.uri,
                storage_options(settings),
                self._model,
                self._width,
                settings=settings,
                now=datetime.now(UTC),
                role=place.role,
            )

        self._tables = await self._on_tables(open_tables, UPKEEP_S)  # opening may build indexes

    async def _opened(self) -> TableWriter:
        await self.start()
        assert self._tables is not None
        return self._tables

    async def _run(self) -> None:
        batch: list[_Call] = []
        try:
            while not self._ended:
                due_s = self._group.due_in(time.monotonic())
                if due_s is None:
                    if await self._maintain():
                        continue  # one step at a time: whatever arrives meanwhile goes first
                    self._arrived.clear()
                    if not len(self._group):
                        await self._idle()
                elif due_s > 0:
                    await asyncio.sleep(due_s if due_s < 0.02 else 0.02)
                else:
                    batch = self._group.take(time.monotonic())
                    await self._commit(batch)
                    await self._maintain()
        except BaseException as error:  # a bug of ours, or a panic in native code, which is no Exception
            log.exception("the writer's loop failed; the next call opens the tables anew")
            tables, self._loop_task, self._tables = self._tables, None, None
            self._fail([*batch, *self._left()], TransientError(f"the writer failed: {type(error).__name__}: {error}"))
            if tables is not None:
                tables.close()

    async def _commit(self, calls: list[_Call]) -> None:
        assert self._tables is not None
        tables, progress = self._tables, tuple(self._progress.values())
        batch = [call.writable for call in calls]
        traces, began = [call.trace for call in calls if call.trace], time.monotonic()
        try:
            with tracing.span("group commit", links=traces[:LINKS_MAX], shoal__documents=len(calls)) as commit:
                acks = await self._on_tables(
                    lambda: tables.apply(batch, progress, datetime.now(UTC)), COMMIT_S, "commit"
                )
        except MovedError as error:
            self._failed_commits += 1
            self._fail(calls, error)
            raise  # the next call looks where the collection is: perhaps it came back, with the same model
        except ShoalError as error:  # the tables' state, whoever is in the batch
            self._failed_commits += 1
            self._fail(calls, error)
            return
        except Exception as error:  # a row that Arrow or Lance won't take, or a bug that it meets: find the culprit
            self._failed_commits += 1
            self._last_error = f"{type(error).__name__}: {error}"[:500]
            if len(calls) > 1:
                await self._commit(calls[: len(calls) // 2])
                await self._commit(calls[len(calls) // 2 :])
            elif not isinstance(error, (ValueError, TypeError)):
                self._fail(calls, error)
            elif not calls[0].ack.done():
                failure = Failure(DeadReason.WRITE_REJECTED, self._last_error, "write")
                calls[0].ack.set_result(Ack(Outcome.DEAD_LETTERED, failure))
            return
        self._last_error = None
        self._committed += len(calls)
        for trace in traces:
            tracing.record("commit", trace, time.monotonic() - began, [commit.header])
        reach("writer.before_ack")
        for call, ack in zip(calls, acks, strict=True):
            if not call.ack.done():
                call.ack.set_result(ack)

    def _fail(self, calls: Sequence[_Call], error: Exception) -> None:
        self._last_error = f"{type(error).__name__}: {error}"[:500]
        if isinstance(error, FencedError):
            self._ended = f"FENCED: {error}"
            calls = [*calls, *self._left()]
        for call in calls:
            if not call.ack.done():
                call.ack.set_exception(error)
        if self._ended and self._tables is not None:
            self._tables.close()

    def _left(self) -> list[_Call]:
        """Everyone who still waits for a commit."""
        calls: list[_Call] = []
        while len(self._group):
            calls += self._group.take(time.monotonic())
        return calls

    async def _idle(self) -> None:
        """Until something arrives, or upkeep may be due by its age."""
        is_building = self._tables is not None and self._tables.is_building
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), BUILD_LOOK_S if is_building else IDLE_UPKEEP_S)

    async def _maintain(self) -> bool:
        """One bounded step of maintenance between commits, while no commit is staged; whether there may be more."""
        if self._tables is None or self._ended:
            return False
        tables = self._tables
        began, did = time.monotonic(), None
        try:
            did = await self._on_tables(lambda: tables.maintain(datetime.now(UTC)), UPKEEP_S)
        except FencedError as error:
            self._fail((), error)
        except Exception as error:  # upkeep must never stop the writing
            self._failed_upkeep += 1
            self._last_error = f"maintenance: {error}"[:500]
        else:
            self._maintenance = did or self._maintenance
        if did is not None:
            self._durations.observe("stage.upkeep", time.monotonic() - began)
        return did is not None


# "health" has an event loop of its own: statistics answer while work blocks.
WriterActor = ray.remote(concurrency_groups={"health": 2})(Writer)  # type: ignore[call-overload]

"""Guarantees broken on purpose, one at a time: a simulation that can't fail proves nothing.

Each takes away one line of defence from the real code. The tests hold that the simulation notices every one of them
within a few dozen seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shoal.actors import pipeline, reader, stages
from shoal.actors.offsets import OffsetTracker
from shoal.errors import TransientError
from shoal.records import Ack, Outcome
from shoal.store import planning
from shoal.store.tables import CommitRefused, FencedTable
from shoal.store.writing import TableWriter
from tests.simulation.tables import SimulatedTable


def commit_too_early() -> None:
    """An offset counts as done when a later one is."""
    real = OffsetTracker.finish

    def finish(self: OffsetTracker, partition: Any, epoch: int, offset: int) -> bool:
        moved = real(self, partition, epoch, offset)
        state = self._partitions.get(partition)
        if moved and state is not None:
            state.next_offset = max(state.next_offset or 0, offset + 1)
        return moved

    OffsetTracker.finish = finish  # type: ignore[method-assign]


def commit_unanswered() -> None:
    """A commit counts before the broker said so."""
    real = OffsetTracker.answered
    OffsetTracker.answered = lambda self, key, offset, ok: real(self, key, offset, True)  # type: ignore


def stale_assignment() -> None:
    """A completion of an older assignment counts for the present one; what went is not abandoned."""
    real = OffsetTracker.finish
    OffsetTracker.finish = lambda self, key, epoch, offset: real(  # type: ignore[method-assign]
        self, key, self.epoch(key) or 0, offset
    )
    real_commit = reader.Reader._on_lost

    def on_lost(self: Any, consumer: Any, partitions: Any) -> None:
        self._commit(consumer, wait=True)
        real_commit(self, consumer, partitions)

    reader.Reader._on_lost = on_lost  # type: ignore[method-assign]


def no_epoch_check() -> None:
    """A writer that opens a table anew does not look whose it is."""
    FencedTable.check_epoch = lambda self, epoch: None  # type: ignore[method-assign]


def no_undo() -> None:
    """The chunks of half a batch stay."""
    SimulatedTable.undo = lambda self, sequence, fence: self.commit((), fence)  # type: ignore[method-assign]


def metadata_not_fenced() -> None:
    """After an error the tables are read anew, but a commit still on its way may land."""
    real = SimulatedTable.commit

    def commit(self: SimulatedTable, rows: Any, fence: Any, delete: str | None = None) -> None:
        if self.kind == "metadata" and not rows and fence.commit_sequence == self.held.fence.commit_sequence:
            return
        real(self, rows, fence, delete)

    SimulatedTable.commit = commit  # type: ignore[method-assign]


def unknown_is_landed() -> None:
    """A commit whose answer was lost is taken for durable."""
    real = SimulatedTable.commit

    def commit(self: SimulatedTable, rows: Any, fence: Any, delete: str | None = None) -> None:
        try:
            real(self, rows, fence, delete)
        except CommitRefused:
            raise
        except TransientError:
            self.refresh()

    SimulatedTable.commit = commit  # type: ignore[method-assign]


def ack_before_durable() -> None:
    """A document is acked when the tables fail."""
    real = TableWriter.apply

    def apply(self: TableWriter, batch: Any, progress: Any, now: Any) -> list[Ack]:
        try:
            return real(self, batch, progress, now)
        except TransientError:
            return [Ack(Outcome.INDEXED) for _ in batch]

    TableWriter.apply = apply  # type: ignore[method-assign]


def no_turns() -> None:
    """Works of one document run at the same time."""

    async def in_turn(self: Any, item: Any, work: Any, slots: Any) -> Any:
        return await self._to_the_end(item, work)

    pipeline.Pipeline._in_turn = in_turn  # type: ignore[method-assign]


def dead_letter_not_awaited() -> None:
    """A dead letter is sent, and nobody waits for its delivery."""
    stages._send = lambda producer, topic, key, value, headers: producer.send(topic, key, value, headers)


def tombstones_forgotten() -> None:
    """What comes late raises a deleted document from the dead."""
    real = planning._insert

    def insert(version: Any, documents: Any, failure: Any) -> Any:
        document = documents.get(version.document_id)
        if document is None or document.tombstone is None:
            return real(version, documents, failure)
        kept, document.tombstone = document.tombstone, None
        try:
            return real(version, documents, failure)
        finally:
            document.tombstone = kept

    planning._insert = insert


BREAKAGES: dict[str, Callable[[], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        commit_too_early, commit_unanswered, stale_assignment, no_epoch_check, no_undo, metadata_not_fenced,
        unknown_is_landed, ack_before_durable, no_turns, dead_letter_not_awaited, tombstones_forgotten,
    )
}  # fmt: skip


def break_one(name: str | None) -> None:
    """Take away the defence called `name`, for the rest of this process; None takes nothing."""
    if name is not None:
        BREAKAGES[name]()

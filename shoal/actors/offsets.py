"""Offset tracking: which offset of each partition may be committed.

Pure core (no Kafka, no clock). Documents finish out of order; Kafka wants one number per partition, below
which everything is done. The tracker keeps, per partition and assignment, the offsets in flight in log order
and the low-water mark. The mark is order-based, not arithmetic: offsets have gaps (compaction, transaction
markers). It defends G1: an offset counts as committed only when the broker said so, and a completion of an
older assignment is discarded, since somebody else may own the partition by now.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

TopicPartition = tuple[str, int]


@dataclass(slots=True)
class _Partition:
    epoch: int
    in_flight: OrderedDict[int, bool] = field(default_factory=OrderedDict)  # offset -> done, in log order
    first_offset: int | None = None  # the first delivered: where the group stood when the assignment began
    next_offset: int | None = None  # everything below is done; None until something was seen
    sent: int | None = None  # asked of the broker, not yet answered
    committed: int | None = None  # confirmed by the broker


class OffsetTracker:
    """The partitions a reader owns and how far each is done."""

    def __init__(self) -> None:
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._epoch = 0

    def assign(self, partitions: Iterable[TopicPartition]) -> int:
        """Take over `partitions`; returns the new assignment epoch that their work must carry."""
        self._epoch += 1
        for key in partitions:
            self._partitions[key] = _Partition(self._epoch)
        return self._epoch

    def release(self, partitions: Iterable[TopicPartition]) -> None:
        """Forget `partitions` (revoked or lost); later completions of theirs are discarded."""
        for key in partitions:
            self._partitions.pop(key, None)

    def owned(self) -> tuple[TopicPartition, ...]:
        return tuple(self._partitions)

    def epoch(self, partition: TopicPartition) -> int | None:
        """The assignment epoch of `partition`, or None where it isn't owned."""
        state = self._partitions.get(partition)
        return state.epoch if state else None

    def start(self, partition: TopicPartition, offset: int) -> None:
        """`offset` was delivered and is in flight."""
        state = self._partitions[partition]
        state.in_flight[offset] = False
        if state.next_offset is None:
            state.first_offset = state.next_offset = offset

    def finish(self, partition: TopicPartition, epoch: int, offset: int) -> bool:
        """`offset` is done for good. False where the completion is stale (another assignment)."""
        state = self._partitions.get(partition)
        if state is None or state.epoch != epoch or offset not in state.in_flight:
            return False
        state.in_flight[offset] = True
        while state.in_flight:
            first = next(iter(state.in_flight))
            if not state.in_flight[first]:
                break
            del state.in_flight[first]
            state.next_offset = first + 1
        return True

    def in_flight(self, partition: TopicPartition) -> int:
        state = self._partitions.get(partition)
        return sum(not done for done in state.in_flight.values()) if state else 0

    def next_offset(self, partition: TopicPartition) -> int | None:
        """Everything below is done; None before the first delivery."""
        state = self._partitions.get(partition)
        return state.next_offset if state else None

    def committed_offset(self, partition: TopicPartition) -> int | None:
        """What the broker confirmed in this assignment."""
        state = self._partitions.get(partition)
        return state.committed if state else None

    def to_commit(self, partitions: Iterable[TopicPartition] | None = None) -> dict[TopicPartition, int]:
        """Marks worth a commit now: moved past what is confirmed, with no commit under way."""
        wanted = self._partitions if partitions is None else partitions
        due = {}
        for key in wanted:
            state = self._partitions.get(key)
            if state is None or state.next_offset is None or state.sent is not None:
                continue
            # Before the first confirmation the mark stands at the first delivered offset: nothing is done yet.
            confirmed = state.first_offset if state.committed is None else state.committed
            if state.next_offset != confirmed:
                due[key] = state.next_offset
        return due

    def sent(self, offsets: dict[TopicPartition, int]) -> None:
        """A commit of `offsets` was handed to the client."""
        for key, offset in offsets.items():
            if key in self._partitions:
                self._partitions[key].sent = offset

    def answered(self, partition: TopicPartition, offset: int, ok: bool) -> None:
        """The broker answered a commit; only a good answer counts."""
        state = self._partitions.get(partition)
        if state is None:
            return
        state.sent = None
        if ok:
            state.committed = offset

    def check_invariants(self) -> None:
        """What must hold after every step (called by tests)."""
        for state in self._partitions.values():
            offsets = list(state.in_flight)
            assert offsets == sorted(offsets), "log order"
            if offsets:
                assert state.next_offset is not None, "a mark"
                assert state.next_offset <= offsets[0], "nothing in flight lies below the mark"
                assert not state.in_flight[offsets[0]], "the head is not done"

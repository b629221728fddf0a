"""The intake: what a reader owns between poll and commit.

Pure core (no Kafka, no clock, no event loop). It joins the offsets of each partition and assignment with the
items that are in flight and the credits they hold, so that each event of a reader's life is one call: partitions
come and go, messages are delivered, items end, the broker answers commits. It defends three things at once:

* an offset is committed only when everything below it ended in this assignment (G1);
* an item of a partition that went is handed back to be abandoned, and its late end moves nothing (G2);
* credits are taken and given exactly once per item, whatever became of its partition (G6).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from shoal.actors.backpressure import Credits
from shoal.actors.offsets import OffsetTracker, TopicPartition

What = TypeVar("What")


@dataclass(slots=True, eq=False)
class Held(Generic[What]):
    """One message in flight. `epoch` is the assignment it came with."""

    what: What
    key: TopicPartition
    offset: int
    epoch: int
    size_bytes: int
    is_ended: bool = False


class Intake(Generic[What]):
    """Everything one reader holds. One thread at a time."""

    def __init__(self, credits: Credits) -> None:
        self.offsets = OffsetTracker()
        self.credits = credits
        self._held: dict[tuple[TopicPartition, int], Held[What]] = {}

    def assign(self, keys: Iterable[TopicPartition]) -> None:
        """`keys` are ours from now on; what was in flight of an earlier assignment of theirs is not."""
        self.offsets.assign(keys)

    def release(self, keys: Sequence[TopicPartition]) -> list[Held[What]]:
        """`keys` went (revoked or lost): returns what is in flight of them. Their next owner does it again."""
        self.offsets.release(keys)
        gone = [held for held in self._held.values() if held.key in keys]
        for held in gone:
            del self._held[held.key, held.offset]
        return gone

    def deliver(self, key: TopicPartition, offset: int, size_bytes: int, what: What) -> Held[What] | None:
        """A message arrived; None where its partition is not ours (revoked between fetch and delivery)."""
        epoch = self.offsets.epoch(key)
        if epoch is None:
            return None
        self.offsets.start(key, offset)
        self.credits.take(size_bytes)
        held = Held(what, key, offset, epoch, size_bytes)
        self._held[key, offset] = held
        return held

    def end(self, held: Held[What]) -> bool:
        """`held` came to its end, or was abandoned. True where its partition's mark may have moved."""
        assert not held.is_ended, "an item ends once"
        held.is_ended = True
        self.credits.give(held.size_bytes)
        if self._held.get((held.key, held.offset)) is held:
            del self._held[held.key, held.offset]
        return self.offsets.finish(held.key, held.epoch, held.offset)

    def in_flight(self) -> list[Held[What]]:
        """What is held of partitions that are ours, in the order of delivery."""
        return list(self._held.values())

    def marks(self) -> dict[TopicPartition, int]:
        """Per partition of ours the offset below which all is done, where anything was delivered."""
        found = ((key, self.offsets.next_offset(key)) for key in self.offsets.owned())
        return {key: mark for key, mark in found if mark is not None}

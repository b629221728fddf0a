"""The feed: journal entries into the embedded broker, never more than it can hold, until they are committed.

Pure core: no Kafka client, no clock, no thread; `step` does what is due. Per partition, entries go in the
order of the journal. Entries of a work topic count as outstanding until the readers' group has committed past
them, and at most OUTSTANDING_BYTES_MAX are (or one that alone is larger): the broker drops its oldest batches
beyond 5 MiB per partition, and those must be committed ones. All other topics (dead letters) are done once
the broker has them.

A delivery that fails ends the broker's process: its next life announces again what is not done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

from shoal.sources.journal import Entry, Journal

# Under half of what the mock keeps per partition: batches are dropped whole, and sizes are estimates.
OUTSTANDING_BYTES_MAX = 2 * 1024 * 1024
# Entries per partition and step: the others get their turn, and commits are looked at in between.
STEP_ITEMS_MAX = 1_000

PartitionKey = tuple[str, int]


class FedLog(Protocol):
    """The broker, as the feed sees it."""

    def produce(self, entry: Entry, partition: int, delivered: Callable[[int], None]) -> None:
        """Send; `delivered(offset)` is called later, in order per partition, from within `poll` of the caller."""

    def committed(self, keys: Collection[PartitionKey]) -> Mapping[PartitionKey, int]:
        """The group's committed next offset of those partitions that have one."""


@dataclass(slots=True)
class _Sent:
    seq: int
    size_bytes: int
    offset: int | None = None


@dataclass(slots=True)
class _Lane:
    """One partition: how far it was fed, and what is outstanding, oldest first."""

    cursor: int = 0
    more: bool = True  # entries may be waiting in the journal
    sent: deque[_Sent] = field(default_factory=deque)
    outstanding_bytes: int = 0


class JournalFeed:
    """Feeds every partition of every topic with open entries. One thread."""

    def __init__(
        self,
        journal: Journal,
        log: FedLog,
        work_topics: Collection[str],
        partitions: int,
        single: Collection[str] = (),
    ) -> None:
        """`single`: topics of one partition; all others have `partitions`."""
        self._journal, self._log, self._single = journal, log, frozenset(single)
        self._work_topics, self._partitions = frozenset(work_topics), partitions
        self._lanes: dict[PartitionKey, _Lane] = {}
        self._version: int | None = None

    def step(self) -> None:
        """Feed what there is and what has room. Raises TransientError, ConfigurationError (the journal's)."""
        version = self._journal.version()
        if version != self._version:
            self._version = version
            for topic in self._journal.open_topics():
                for partition in range(self._partitions_of(topic)):
                    self._lanes.setdefault((topic, partition), _Lane()).more = True
        for key, lane in self._lanes.items():
            if lane.more and (not lane.sent or lane.outstanding_bytes <= OUTSTANDING_BYTES_MAX // 2):
                self._feed(key, lane)

    def settle(self, now_ms: int) -> int:
        """Mark done what is; returns how many entries are outstanding."""
        working = [key for key, lane in self._lanes.items() if key[0] in self._work_topics and lane.sent]
        committed = self._log.committed(working) if working else {}
        done: list[int] = []
        for key, lane in self._lanes.items():
            bound = committed.get(key, 0) if key[0] in self._work_topics else 2**63
            while lane.sent and (offset := lane.sent[0].offset) is not None and offset < bound:
                sent = lane.sent.popleft()
                lane.outstanding_bytes -= sent.size_bytes
                done.append(sent.seq)
        if done:
            self._journal.finish(done, now_ms)
        return sum(len(lane.sent) for lane in self._lanes.values())

    def _partitions_of(self, topic: str) -> int:
        return 1 if topic in self._single else self._partitions

    def _feed(self, key: PartitionKey, lane: _Lane) -> None:
        topic, partition = key
        newest = self._journal.last_seq()
        with closing(self._journal.open_entries(topic, partition, self._partitions_of(topic), lane.cursor)) as entries:
            for taken, entry in enumerate(entries):
                room = not lane.sent or lane.outstanding_bytes + entry.size_bytes <= OUTSTANDING_BYTES_MAX
                if not room or taken == STEP_ITEMS_MAX:
                    return
                sent = _Sent(entry.seq, entry.size_bytes)
                lane.sent.append(sent)
                lane.outstanding_bytes += entry.size_bytes
                lane.cursor = entry.seq
                self._log.produce(entry, partition, _delivery_to(sent))
        lane.cursor = max(lane.cursor, newest)
        lane.more = False


def _delivery_to(sent: _Sent) -> Callable[[int], None]:
    def delivered(offset: int) -> None:
        sent.offset = offset

    return delivered

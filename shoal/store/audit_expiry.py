"""What retention may have taken of what the log says, so that the audit does not call it missing.

The rules are those of retention.py, as of one moment, held against the log: the tables keep no list of what went.
Each is decided so that nothing lost by mistake hides behind it:
- `keep_days` goes by the announcement's own time.
- `keep_versions`: a version is explained only by so many rows of its document that outlived it, the current one among
  them. Of a document that is gone nothing is explained.
- History and the memory of deletions go by when they were written, which the log does not know. It knows the earliest
  moment: that of the message by which a version became history, or of the deletion. Only what is older than that by the
  whole limit is explained; what was written so much later that it should still be there is not told apart.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

from shoal.records import Announcement, Position
from shoal.store.planning import Version

CLOCKS = timedelta(minutes=10)
"""By how much a producer's clock may be ahead of the writer's."""

Rank = tuple[bool, str, int, str, str, int, int]
"""The order of a document's versions (`Version.rank`), as far as the log tells it."""


def said_rank(version: str, at: Position) -> Rank:
    """Of an announcement that was indexed."""
    return (True, version, at.timestamp_ms, at.cluster, at.topic, at.partition, at.offset)


def row_rank(row: Version) -> Rank:
    """Of a row."""
    return (row.is_good, *said_rank(row.version, row.position)[1:])


@dataclass(frozen=True, slots=True)
class Expiry:
    """The rules at one moment (`Retention.expiry`). `versions`: how many of a document are kept; the times in ms, None:
    for ever."""

    has_expired: Callable[[Announcement], bool] = lambda _: False
    versions: Callable[[Announcement], int | None] = lambda _: None
    history_before_ms: float | None = None
    deletions_before_ms: float | None = None

    def took_history(self, at: Position, successors: Iterable[Position]) -> bool:
        """Whether a version of `at`, which the first of `successors` made history, has outlived its time."""
        first = min((successor.timestamp_ms for successor in successors), default=None)
        if self.history_before_ms is None or first is None:
            return False
        return max(at.timestamp_ms, first) < self.history_before_ms

    def took_memory(self, deletion: Position) -> bool:
        """Whether nothing need remember this deletion any more."""
        return self.deletions_before_ms is not None and deletion.timestamp_ms < self.deletions_before_ms


NOTHING_EXPIRES = Expiry()


def is_beyond(rank: Rank, keeps: int | None, rows: Iterable[Version]) -> bool:
    """Whether so many `rows` of its document as are kept come before a version of `rank`: the current one, and those
    that are greater."""
    return keeps is not None and sum(row.is_current or row_rank(row) > rank for row in rows) >= keeps

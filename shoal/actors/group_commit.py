"""Group commit: when the writer closes a batch.

Pure core. Rows, bytes or age close a batch, whichever comes first: on a local disk a commit costs ~5 ms and
~50 µs a row, on S3 100-300 ms, so that many documents must share one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

Entry = TypeVar("Entry")


@dataclass(slots=True)
class GroupCommit(Generic[Entry]):
    """Entries waiting for a commit, in arrival order."""

    rows_max: int
    bytes_max: int
    linger_s: float
    _entries: list[tuple[Entry, int, int]] = field(default_factory=list)
    _opened_at: float | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Of all that waits."""
        return sum(entry[2] for entry in self._entries)

    def add(self, entry: Entry, rows: int, size_bytes: int, now: float) -> None:
        """`now`: seconds of any monotonic clock."""
        if self._opened_at is None:
            self._opened_at = now
        self._entries.append((entry, rows, size_bytes))

    def due_in(self, now: float) -> float | None:
        """Seconds until the batch must close; 0 when it is due, None when there is nothing."""
        if self._opened_at is None:
            return None
        rows = sum(entry[1] for entry in self._entries)
        if rows >= self.rows_max or self.size_bytes >= self.bytes_max:
            return 0.0
        return max(0.0, self._opened_at + self.linger_s - now)

    def take(self, now: float) -> list[Entry]:
        """The next batch: up to the bounds (at least one entry), the rest stays, its age from now."""
        rows = size_bytes = count = 0
        for _, entry_rows, entry_bytes in self._entries:
            if count and (rows + entry_rows > self.rows_max or size_bytes + entry_bytes > self.bytes_max):
                break
            rows, size_bytes, count = rows + entry_rows, size_bytes + entry_bytes, count + 1
        batch, self._entries = [entry[0] for entry in self._entries[:count]], self._entries[count:]
        self._opened_at = now if self._entries else None
        return batch

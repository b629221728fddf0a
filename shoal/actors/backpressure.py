"""Credits: how much a reader may hold (G6).

Pure core. A reader holds every document from poll to commit; when items or bytes pass the bound its
partitions are paused, and resumed at half of it, so that a partition doesn't flap at the edge.
"""

from __future__ import annotations


class Credits:
    """Items and bytes in flight against their bounds.

    `items_max` below ~50 starves the embedder's batches; far above 1,000 only a restart's redelivery grows.
    """

    def __init__(self, items_max: int, bytes_max: int) -> None:
        self.items_max, self.bytes_max = items_max, bytes_max
        self.items = self.bytes = 0
        self._paused = False

    def take(self, size_bytes: int) -> None:
        """A message of `size_bytes` is in flight."""
        self.items += 1
        self.bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """It ended."""
        self.items -= 1
        self.bytes -= size_bytes
        assert self.items >= 0
        assert self.bytes >= 0

    def should_pause(self) -> bool:
        """Whether to hold back; has hysteresis, so ask once per turn."""
        if self._paused:
            self._paused = self.items * 2 > self.items_max or self.bytes * 2 > self.bytes_max
        else:
            self._paused = self.items >= self.items_max or self.bytes >= self.bytes_max
        return self._paused

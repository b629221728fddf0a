"""Credits: how much a reader may hold (G6).

Pure core. A reader holds every document from poll to commit, as a message first and, once it was fetched, also as
its extracted text and its vectors: the payload. Two rules keep both within one bound:

* when items or bytes reach the bound the partitions are paused, and resumed at half of it, so that they don't flap;
* a document is fetched only while there is room for the largest payload it may become; where nothing is past its
  fetch one always goes, so that no bound can stop the flow.

So what is held is at most `bytes_max`, plus the messages of one poll, plus one payload. Each counter has one
writing thread (the consumer's for messages, the event loop's for payloads); reading both is safe.
"""

from __future__ import annotations


class Credits:
    """Items and bytes in flight against their bounds.

    `items_max` below ~50 starves the embedder's batches; far above 1,000 only a restart's redelivery grows.
    """

    def __init__(self, items_max: int, bytes_max: int) -> None:
        self.items_max, self.bytes_max = items_max, bytes_max
        self.items = self.message_bytes = 0
        self.payloads = self.payload_bytes = 0
        self._paused = False

    @property
    def held_bytes(self) -> int:
        """Messages and payloads in flight, with what is reserved for fetches under way."""
        return self.message_bytes + self.payload_bytes

    def take(self, size_bytes: int) -> None:
        """A message of `size_bytes` is in flight."""
        self.items += 1
        self.message_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """It ended."""
        self.items -= 1
        self.message_bytes -= size_bytes
        assert self.items >= 0
        assert self.message_bytes >= 0

    def admit(self, reserve_bytes: int) -> bool:
        """Whether a payload of up to `reserve_bytes` may be made now; if so they are reserved."""
        if self.payloads and self.held_bytes + reserve_bytes > self.bytes_max:
            return False
        self.payloads += 1
        self.payload_bytes += reserve_bytes
        return True

    def resize(self, from_bytes: int, to_bytes: int) -> None:
        """A payload that held `from_bytes` turned out to be of `to_bytes`."""
        self.payload_bytes += to_bytes - from_bytes
        assert self.payload_bytes >= 0

    def drop(self, size_bytes: int) -> None:
        """A payload of `size_bytes` is gone."""
        self.payloads -= 1
        self.payload_bytes -= size_bytes
        assert self.payloads >= 0
        assert self.payload_bytes >= 0

    def why_full(self) -> str | None:
        """Which bound is reached, as the status shows it."""
        if self.items >= self.items_max:
            return f"{self.items} documents in flight (in_flight_items_max)"
        if self.held_bytes >= self.bytes_max:
            return f"{self.held_bytes} bytes in flight (in_flight_bytes_max)"
        return None

    def should_pause(self) -> bool:
        """Whether to hold back; has hysteresis, so ask once per turn."""
        if self._paused:
            self._paused = self.items * 2 > self.items_max or self.held_bytes * 2 > self.bytes_max
        else:
            self._paused = self.why_full() is not None
        return self._paused

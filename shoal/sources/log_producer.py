"""What everyone who writes to the log needs of it: `LogProducer`, whatever stands behind it.

Senders share one producer from many threads: each sends, then flushes. `FailureMarks` makes that safe: a
failure is told to every thread that had sent before it happened, not only to the first that flushes. Told
too often costs a duplicate, which idempotence absorbs; told too seldom would be a lost message.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

Headers = Sequence[tuple[str, bytes | None]]


class LogProducer(Protocol):
    """Thread-safe. A message is durable only once a `flush` after its `send` has returned."""

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        """Take a message on its way. Raises TransientError where the log takes no more now, PermanentError
        where it will never take this message."""

    def flush(self, timeout_s: float) -> None:
        """Return once every message sent so far by this thread is durable.

        Raises TransientError (or PermanentError) unless it is so: then send what was not yet flushed again.
        """


class FailureMarks:
    """Which failures the calling thread has yet to be told of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._last: Exception | None = None
        self._told = 0  # for threads that flush what others sent
        self._local = threading.local()

    def sending(self) -> None:
        """Before a message is taken: failures from now on concern this thread."""
        if getattr(self._local, "mark", None) is None:
            with self._lock:
                self._local.mark = self._failures

    def failed(self, error: Exception) -> None:
        """A message, whosever, was lost on its way because of `error`."""
        with self._lock:
            self._failures += 1
            self._last = error

    def raise_failures(self) -> None:
        """Raise the last failure that concerns the calling thread; afterwards it has been told."""
        with self._lock:
            mark: int | None = getattr(self._local, "mark", None)
            concerned = self._failures > (self._told if mark is None else mark)
            self._told = self._failures
            error = self._last
        self._local.mark = None
        if concerned and error is not None:
            raise error

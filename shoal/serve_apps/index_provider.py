"""Hands out the open index: opens it at first use, again after a failure, once at a time.

While the tables don't exist it says so at once, and looks again at most every `RETRY_S`: a query side that
starts before ingest must neither hang nor hammer the store. An open index looks after its own freshness.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from shoal.errors import TransientError

RETRY_S = 0.5
"""The tables appear once; a start should not wait longer for having asked too early."""

T = TypeVar("T")


class IndexProvider(Generic[T]):
    """One per process, used from its event loop."""

    def __init__(self, open_index: Callable[[], Awaitable[T]], clock: Callable[[], float] = time.monotonic) -> None:
        self._open = open_index
        self._clock = clock
        self._lock = asyncio.Lock()
        self._index: T | None = None
        self._failure: TransientError | None = None
        self._failed_at = 0.0

    async def __call__(self) -> T:
        """The open index. Raises TransientError while there are no tables, ConfigurationError where they are
        not ours to read."""
        if self._index is not None:
            return self._index
        async with self._lock:
            if self._index is None:
                if self._failure is not None and self._clock() - self._failed_at < RETRY_S:
                    raise TransientError(str(self._failure), self._failure.retry_after_s)
                try:
                    self._index = await self._open()
                except TransientError as error:
                    self._failure, self._failed_at = error, self._clock()
                    raise
            return self._index

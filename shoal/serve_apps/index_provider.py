"""Hands out the open index: opens it at first use, again after a failure, once at a time.

While the tables don't exist it says so at once, and looks again at most every `RETRY_S`: a query side that
starts before ingest must neither hang nor hammer the store. An open index looks after its own freshness.

Where the collection has moved to other tables (a change of the model), the index that is open answers on until the
one of those tables is open and warm. A question uses one index from beginning to end, so its vector and the tables
that it is asked of are always of one model.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from shoal.errors import ShoalError, TransientError

RETRY_S = 0.5
"""The tables appear once; a start should not wait longer for having asked too early."""

RETIRE_S = 60.0
"""How long an index that was left stays open: longer than any question takes."""

log = logging.getLogger("shoal.search")


class Closing(Protocol):
    """What is provided."""

    @property
    def is_left(self) -> bool: ...
    async def close(self) -> None: ...


T = TypeVar("T", bound=Closing)


async def _at_once(_: object) -> None:
    return None


class IndexProvider(Generic[T]):
    """One per process, used from its event loop."""

    def __init__(
        self,
        open_index: Callable[[], Awaitable[T]],
        clock: Callable[[], float] = time.monotonic,
        *,
        warm: Callable[[T], Awaitable[object]] = _at_once,
    ) -> None:
        """`warm`: done with an index that takes another's place, before it does."""
        self._open = open_index
        self._clock = clock
        self._warm = warm
        self._moving: asyncio.Task[None] | None = None
        self._moved_at = float("-inf")
        self._retired: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()
        self._index: T | None = None
        self._failure: TransientError | None = None
        self._failed_at = 0.0

    async def __call__(self) -> T:
        """The open index. Raises TransientError while there are no tables, ConfigurationError where they are
        not ours to read."""
        if self._index is not None:
            if self._index.is_left and self._moving is None and self._clock() - self._moved_at >= RETRY_S:
                self._moving = asyncio.get_running_loop().create_task(self._move())
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

    async def _move(self) -> None:
        """Open the index of the tables that the collection is in now, and let it take the place of the one that is."""
        try:
            with contextlib.suppress(ShoalError):  # it is said where it matters: when a question is asked
                index = await self._open()
                if index.is_left:
                    await index.close()
                    return
                await self._warm(index)
                old, self._index = self._index, index
                log.info("the collection has moved to other tables: questions are asked there now")
                if old is not None:
                    retired = asyncio.get_running_loop().create_task(self._retire(old))
                    self._retired.add(retired)
                    retired.add_done_callback(self._retired.discard)
        finally:
            self._moving, self._moved_at = None, self._clock()

    @staticmethod
    async def _retire(index: T) -> None:
        await asyncio.sleep(RETIRE_S)
        await index.close()

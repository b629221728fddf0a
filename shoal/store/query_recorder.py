"""Writes a replica's sample of questions beside the tables, at most every `WRITE_S`, and only where it changed.

A search only adds a vector in memory. What was asked since the last write is lost with its process: it is a sample.
The file has a name of its own for each life of a replica, and goes with it; of one that was killed it goes by age
(sweep_state, recall_check).
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from shoal.errors import TransientError
from shoal.records import Vector
from shoal.store.query_sample import FILE_PREFIX, QuerySample

WRITE_S = 60.0

log = logging.getLogger("shoal.store")


class QueryRecorder:
    """One per replica, for one event loop. `write` takes a state file's name and value, `remove` its name; both
    block."""

    def __init__(
        self, size: int, width: int, write: Callable[[str, Any], None], remove: Callable[[str], None],
        *, write_s: float = WRITE_S,
    ) -> None:  # fmt: skip
        self._sample, self._width, self._write_s = QuerySample(size), width, write_s
        self._write, self._remove = write, remove
        self._name = f"{FILE_PREFIX}{uuid.uuid4().hex[:16]}.json"
        self._due: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def note(self, vector: Vector) -> None:
        """A question was asked."""
        if self._sample.note(vector) and self._due is None:
            self._due = asyncio.get_running_loop().call_later(self._write_s, self._start)

    async def close(self) -> None:
        """Remove the file. No question may be noted any more."""
        if self._due is not None:
            self._due.cancel()
        if self._task is None:
            return  # nothing was written
        await asyncio.wait([self._task])  # a write that is under way would come after the removal
        try:
            await asyncio.to_thread(self._remove, self._name)
        except (TransientError, OSError) as error:  # it goes by age
            log.warning("the sample of questions could not be removed: %s", error)

    def _start(self) -> None:
        self._due = None
        self._task = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        value = self._sample.to_json(datetime.now(UTC), self._width)
        try:
            await asyncio.to_thread(self._write, self._name, value)
        except (TransientError, OSError) as error:  # read-only tables, a full disk: searches go on
            log.warning("the sample of questions could not be written: %s", error)

"""Writes a replica's sample of questions beside the tables, at most every `WRITE_S`, and only where it changed.

A search only adds a vector in memory. What was asked since the last write is lost with its process: it is a sample.
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
    """One per replica, for one event loop. `write` (blocking) takes a state file's name and value."""

    def __init__(self, size: int, width: int, write: Callable[[str, Any], None], *, write_s: float = WRITE_S) -> None:
        self._sample, self._width, self._write, self._write_s = QuerySample(size), width, write, write_s
        self._name = f"{FILE_PREFIX}{uuid.uuid4().hex[:16]}.json"
        self._due: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def note(self, vector: Vector) -> None:
        """A question was asked."""
        if self._sample.note(vector) and self._due is None:
            self._due = asyncio.get_running_loop().call_later(self._write_s, self._start)

    def close(self) -> None:
        if self._due is not None:
            self._due.cancel()
        if self._task is not None:
            self._task.cancel()

    def _start(self) -> None:
        self._due = None
        self._task = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        value = self._sample.to_json(datetime.now(UTC), self._width)
        try:
            await asyncio.to_thread(self._write, self._name, value)
        except (TransientError, OSError) as error:  # read-only tables, a full disk: searches go on
            log.warning("the sample of questions could not be written: %s", error)

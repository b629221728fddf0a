"""How a search replica comes to its search settings: `recall.json`, read now and then, beside the searches.

A search never waits for it: it takes what was read last, and where that is older than `LOOK_S` a task reads it anew. A
tuning that is stale, damaged or of an index of another size is none, and every partition is looked into.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from shoal.errors import TransientError
from shoal.store.recall import Tuning, for_limit, tuning_of

LOOK_S = 30.0
_MINIMUM = 20

log = logging.getLogger("shoal.store")


class Tunings:
    """The tuning in force, for one event loop. `read` (blocking) returns what `recall.json` holds."""

    def __init__(self, read: Callable[[], Any], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self._clock = read, clock
        self._tuning: Tuning | None = None
        self._looked_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def for_search(self, indexed_rows: int, limit: int, *, filtered: bool) -> tuple[int | None, int]:
        """(nprobes, refine factor) for a search for `limit` rows; nprobes None: every partition."""
        if self._clock() - self._looked_at > LOOK_S and (self._task is None or self._task.done()):
            self._looked_at = self._clock()
            self._task = asyncio.get_running_loop().create_task(self.look())
        tuning = self._tuning
        if tuning is not None and not tuning.fits(indexed_rows, datetime.now(UTC)):
            tuning = None
        return for_limit(tuning, limit, filtered=filtered)

    async def look(self) -> None:
        """Read it now."""
        try:
            self._tuning = tuning_of(await asyncio.to_thread(self._read))
        except (TransientError, OSError) as error:  # what was read last goes on, until it is too old
            log.warning("search settings could not be read: %s", error)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()


def with_setting(query: Any, nprobes: int | None, refine: int) -> Any:
    """A vector query of lancedb with these settings. Where the maximum is above the minimum, Lance probes up to the
    maximum whether or not it has found enough, so `maximum_nprobes(0)`, no bound, means every partition."""
    if nprobes is None:
        return query.minimum_nprobes(_MINIMUM).maximum_nprobes(0).refine_factor(refine)
    return query.nprobes(nprobes).refine_factor(refine)

"""The pulse: when a loop or thread of an actor last turned.

An actor that is slow because its systems are slow still turns; one that is stopped, deadlocked or stuck in native
code does not, and the supervisor replaces it after a while. The statistics carry `stalled_s` for that, and are
answered from an event loop of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

BEAT_S = 0.5
GRACE_S = 3.0
"""A turn may take so long on a busy machine before it counts as a stall at all."""


class Pulse:
    """One loop's or thread's last turn. Thread-safe: one writes, any may read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at: float | None = None
        self._task: asyncio.Task[None] | None = None

    def beat(self) -> None:
        """It turned just now."""
        self._at = self._clock()

    def stop(self) -> None:
        """It is not meant to turn any more."""
        self._at = None

    def stalled_s(self) -> float:
        """How long it has not turned, 0 within the grace or before its first turn."""
        at = self._at
        age_s = 0.0 if at is None else self._clock() - at
        return age_s if age_s > GRACE_S else 0.0

    def follow_loop(self) -> None:
        """Beat from the running event loop, for as long as that turns. May be called again."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            self.beat()
            await asyncio.sleep(BEAT_S)

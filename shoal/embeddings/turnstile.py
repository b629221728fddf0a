"""The way to the provider: requests pass one after the other, as its limits allow and in the order of the lanes.

Guarantee: whoever is next by `FairShares` is asked for first, so a query never waits for room in the limits that a
batch of documents is saving up for, and a large batch is never starved by small ones. A pause beyond `patience_s` is
not slept but told: TransientError. For one event loop; without a limiter everybody passes at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from shoal.embeddings.lanes import LANES, FairShares
from shoal.embeddings.limiter import RateLimiter
from shoal.embeddings.purposes import Lane
from shoal.errors import TransientError


class Turnstile:
    """One per service."""

    def __init__(
        self,
        limiter: RateLimiter | None,
        shares: FairShares,
        patience_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._limiter, self._shares, self._patience_s = limiter, shares, patience_s
        self._clock, self._sleep = clock, sleep
        self._lines: dict[Lane, deque[object]] = {lane: deque() for lane in LANES}
        self._moved = asyncio.Event()

    async def passed(self, lane: Lane, tokens: int) -> None:
        """Returns when one request of `tokens` may be sent. Raises TransientError where that is too far away."""
        me, line = object(), self._lines[lane]
        if not line:
            self._shares.began(lane)
        line.append(me)
        try:
            while True:
                moved = self._moved
                if line[0] is not me or lane != self._shares.first([each for each in LANES if self._lines[each]]):
                    await moved.wait()
                elif not (wait := self._wait_s(lane, tokens)):
                    self._shares.served(lane, tokens)
                    return
                elif wait > self._patience_s:
                    raise TransientError(f"the provider asked for a pause of {wait:.0f} s", wait)
                else:
                    # Nothing is held meanwhile: who comes and is next passes all the same.
                    await self._sleep(wait)
                    self._wake()  # the turn may have become another's
        finally:
            line.remove(me)
            self._wake()

    def _wake(self) -> None:
        self._moved, moved = asyncio.Event(), self._moved
        moved.set()

    def _wait_s(self, lane: Lane, tokens: int) -> float:
        if self._limiter is None:
            return 0.0
        return self._limiter.acquire(tokens, self._clock(), is_urgent=lane == "query")

"""The entrance of a lane: bounded room for texts that wait, first come, first served.

Guarantee: within there are never more than `texts_max` texts, nor more than `bytes_max` bytes unless one text alone
takes more; who waits for room gets it in the order of coming, and a cancelled one leaves the others theirs. Each lane
has its own, so no lane's backlog stands in another's way. For one event loop. It holds no texts, only their count.
"""

from __future__ import annotations

import asyncio

from shoal.errors import TransientError


class Entrance:
    """Room for texts; `texts` and `size_bytes` are what is within."""

    def __init__(self, texts_max: int, bytes_max: int) -> None:
        self._texts_max, self._bytes_max = texts_max, bytes_max
        self.texts = self.size_bytes = 0
        self._line, self._left = asyncio.Lock(), asyncio.Event()
        self._is_closed = False

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for room."""
        return self._line.locked()

    async def enter(self, size_bytes: int) -> None:
        """Returns once there is room, which is then taken. Raises TransientError once it is closed."""
        async with self._line:  # a lock is fair
            while self.texts and (self.texts >= self._texts_max or self.size_bytes + size_bytes > self._bytes_max):
                if self._is_closed:
                    break
                self._left.clear()
                await self._left.wait()
            if self._is_closed:
                raise TransientError("the embedder is shutting down")
            self.texts += 1
            self.size_bytes += size_bytes

    def leave(self, size_bytes: int) -> None:
        """One text is done."""
        self.texts -= 1
        self.size_bytes -= size_bytes
        self._left.set()

    def close(self) -> None:
        """Nobody enters any more; who waits is told so."""
        self._is_closed = True
        self._left.set()

"""The text of a question as a vector, within a deadline, with a small memory in front.

Whoever embeds (a Serve deployment, a fake) is given as `Embed`. A question asked again costs nothing; one that
is being embedded already is waited for, not sent twice. Late or failed: `TransientError`, and `last_error` says
so until the next success, for `/readyz`. It decides nothing about what to do without a vector.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from shoal.errors import ShoalError, TransientError
from shoal.records import SCRAPER_COLLECTION, Vector
from shoal.serve_apps.deadlines import left_s
from shoal.serve_apps.stages import ended

Embed = Callable[[str, str, str], Awaitable[Vector]]
"""(name of the collection's model, text, the collection that pays) -> unit vector of that model. May raise anything."""

REMEMBERED_MAX = 1024
"""Vectors kept: 6 MB at 1536 floats. Fewer forget the questions of one page of tests, more are never asked again."""

PENDING_MAX = 256
"""Questions being embedded at once; a hung provider must not collect them. Serve admits fewer requests than this."""

DEADLINE_S = 3.0
"""A person waits this long; a cold local model answers in 1 s, a throttled provider not at all."""


class QueryVectors:
    """One per process, used from its event loop."""

    def __init__(self, embed: Embed, deadline_s: float = DEADLINE_S) -> None:
        self._embed = embed
        self._deadline_s = deadline_s
        self._known: OrderedDict[tuple[str, str], Vector] = OrderedDict()
        self._pending: dict[tuple[str, str], asyncio.Task[Vector]] = {}
        self.last_error: str | None = None

    async def of(self, model: str, text: str, collection: str = SCRAPER_COLLECTION) -> Vector:
        """The vector of `text`, paid by the `collection` that asks first. Raises TransientError where there is none in
        time, ShoalError where the text or the settings are to blame."""
        ended("accept")
        try:
            return await self._of((model, text), collection)
        finally:
            ended("embed")

    async def _of(self, key: tuple[str, str], collection: str) -> Vector:
        if (vector := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            return vector
        task = self._pending.get(key)
        if task is None:
            if len(self._pending) >= PENDING_MAX:
                raise TransientError(f"the query embedder has {PENDING_MAX} questions waiting", 2.0)
            task = self._pending[key] = asyncio.ensure_future(self._ask(key, collection))
            task.add_done_callback(lambda done: self._finish(key, done))
        wait_s = min(self._deadline_s, left_s() / 2)  # the answer by words needs the rest of the request's time
        try:
            # Shielded: one caller's deadline or disconnect must not take the vector from the others.
            return await asyncio.wait_for(asyncio.shield(task), wait_s)
        except TimeoutError:
            self.last_error = f"no answer within {wait_s:g} s"
        except ShoalError as error:
            self.last_error = str(error)
            raise
        except Exception as error:  # Ray's own errors: a dead replica, a full queue, no deployment
            self.last_error = f"{type(error).__name__}"
        raise TransientError(f"the query embedder does not answer ({self.last_error})", 2.0) from None

    async def answers(self, model: str, deadline_s: float = 1.0) -> bool:
        """Whether the embedder answers now: asks it, past the memory."""
        try:
            await asyncio.wait_for(self._embed(model, "is anybody there", ""), deadline_s)
        except Exception as error:
            self.last_error = str(error) or type(error).__name__
            return False
        self.last_error = None
        return True

    async def _ask(self, key: tuple[str, str], collection: str) -> Vector:
        # Bounded although callers give up earlier: a task that never ends would be kept for ever.
        return await asyncio.wait_for(self._embed(*key, collection), 10 * self._deadline_s)

    def _finish(self, key: tuple[str, str], task: asyncio.Task[Vector]) -> None:
        self._pending.pop(key, None)
        if task.cancelled() or task.exception() is not None:
            return
        self.last_error = None
        self._known[key] = task.result()
        if len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)

"""Commands from REST and MCP into the command topic: the only way the query side changes anything.

A command is durable in the log when `submit` returns; the writer applies it once, by its id. Nothing here
touches a table. The producer blocks, so it lives on one thread of its own, opened at the first command. The message
carries the trace of the request that it comes from. Fails with TransientError where the log can't be reached; after
that the producer is opened anew.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

from shoal import tracing
from shoal.errors import FullError, ShoalError
from shoal.sources.commands import command_message
from shoal.sources.log_producer import LogProducer

FLUSH_TIMEOUT_S = 5.0
"""A healthy broker answers in milliseconds; a caller should hear of a sick one before its own timeout."""

WAITING_MAX = 64
"""Commands that wait for the one thread; more means that the log is down, and callers are told so at once."""


class Commands:
    """One per process."""

    def __init__(self, open_producer: Callable[[], LogProducer], topic: str) -> None:
        self._open_producer = open_producer
        self._topic = topic
        self._producer: LogProducer | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commands")
        self._waiting = 0

    async def submit(
        self, identity: str, kind: str, collection: str, body: Mapping[str, Any], *, actor: str, at: datetime
    ) -> None:
        """Returns when the command is durable in the log. Raises TransientError."""
        message = command_message(
            self._topic, command_id=identity, kind=kind, collection=collection, body=body, actor=actor, at=at
        )
        await self.announce(*message)

    async def announce(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        """The same for a message of any kind: an announcement, a tombstone. Raises TransientError."""
        if self._waiting >= WAITING_MAX:
            raise FullError("the log does not take what is sent to it right now", 5.0)
        self._waiting += 1
        try:
            with tracing.span("announce", messaging__system="kafka", messaging__destination__name=topic):
                here = contextvars.copy_context()  # the current span is in it; the thread has one of its own
                await asyncio.get_running_loop().run_in_executor(self._thread, here.run, self._send, topic, key, value)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Lets the thread end; what was submitted is durable already."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _send(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        try:
            if self._producer is None:
                self._producer = self._open_producer()
            self._producer.send(topic, key, value)
            self._producer.flush(FLUSH_TIMEOUT_S)
        except ShoalError:
            self._producer = None
            raise

"""Commands from whoever produces them by itself, without a caller that waits: blocking, for one thread.

A command is durable in the log when `send` returns. The producer is opened at the first command, and anew after a
failure. Raises TransientError where the log can't be reached, ConfigurationError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from shoal.errors import ShoalError
from shoal.sources.commands import command_id, command_message
from shoal.sources.log_producer import LogProducer

FLUSH_TIMEOUT_S = 10.0


class CommandSender:
    """One per process and purpose."""

    def __init__(self, open_producer: Callable[[], LogProducer], topic: str) -> None:
        self._open_producer, self._topic = open_producer, topic
        self._producer: LogProducer | None = None

    def send(self, kind: str, collection: str, body: Mapping[str, Any], *, actor: str) -> None:
        """A new command, with an id of its own."""
        message = command_message(
            self._topic, command_id=command_id(), kind=kind, collection=collection, body=body, actor=actor,
            at=datetime.now(UTC),
        )  # fmt: skip
        try:
            if self._producer is None:
                self._producer = self._open_producer()
            self._producer.send(*message)
            self._producer.flush(FLUSH_TIMEOUT_S)
        except ShoalError:
            self._producer = None
            raise

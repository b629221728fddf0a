"""Where the time of a request goes: one stage after the other, each ending where the next begins.

Whoever finishes a stage says so (`ended`), and what passed since the last such word is that stage's, so the stages of a
request add up to the whole of it. The frame begins and closes, shows them to the caller (`Server-Timing`) and counts
them for `/metrics`. Outside of a request nothing is counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

HEADER = "Server-Timing"
"""https://www.w3.org/TR/server-timing/: browsers show it beside the request."""

STAGES = ("accept", "embed", "queue", "search", "compose", "send")
"""accept: who asks, routing, parsing and checking; embed: the question's vector; queue: waiting for a place in the
search core; search: in it; compose: the answer and its JSON; send: from there to the first byte, compression
included. A call that says nothing of itself is `accept` until its JSON is made."""


class Stages:
    """Seconds by stage of one request."""

    __slots__ = ("_since", "spent_s")

    def __init__(self, now: float) -> None:
        self._since = now
        self.spent_s: dict[str, float] = {}

    def end(self, name: str, now: float) -> None:
        """The stage `name` took what passed since the last one ended; of several of one name the sum is kept."""
        self.spent_s[name] = self.spent_s.get(name, 0.0) + now - self._since
        self._since = now

    def move(self, from_: str, to: str, seconds: float) -> None:
        """So much of `from_` was `to`, as the part that did it says; never more than there was."""
        moved = min(seconds, self.spent_s.get(from_, 0.0))
        self.spent_s[from_] = self.spent_s.get(from_, 0.0) - moved
        self.spent_s[to] = self.spent_s.get(to, 0.0) + moved

    def header(self) -> str:
        """As `Server-Timing` says it, in milliseconds."""
        return ", ".join(f"{name};dur={1000 * spent:.2f}" for name, spent in self.spent_s.items())


_stages: ContextVar[Stages | None] = ContextVar("request_stages", default=None)


@contextmanager
def counting() -> Iterator[Stages]:
    """The stages of the request that is answered within."""
    stages = Stages(time.perf_counter())
    token = _stages.set(stages)
    try:
        yield stages
    finally:
        _stages.reset(token)


def ended(name: str) -> None:
    """The request that is being answered comes out of `name` now."""
    if (stages := _stages.get()) is not None:
        stages.end(name, time.perf_counter())


def searched(queued_ms: float) -> None:
    """It comes out of the search core now, where it waited for its turn so long."""
    if (stages := _stages.get()) is not None:
        stages.end("search", time.perf_counter())
        stages.move("search", "queue", queued_ms / 1000)

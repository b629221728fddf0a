"""A member of the crew: one post, whoever holds it now, and the calls to it that are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from shoal.cluster.topology import Post
from shoal.cluster.watching import State, Streak, Watched


@dataclass(slots=True)
class Member:
    """One post, and whoever holds it now."""

    post: Post
    watched: Watched
    handle: Any = None
    creating: asyncio.Future[Any] | None = None
    starting: asyncio.Task[Any] | None = None
    moving: asyncio.Task[Any] | None = None  # a reader that finishes what it has, before its node goes
    node: str | None = None
    leaving: asyncio.Task[Any] | None = None  # a reader or fetch worker that is wanted no longer
    leaves_by: float | None = None
    done_at: float = float("inf")  # with what it had, on its way out
    routing: asyncio.Task[Any] | None = None
    route: tuple[str, ...] | None = None  # the fetch workers that it was told of
    asking: asyncio.Task[Any] | None = None
    asked_at: float = 0.0
    report: Any = None
    reported_at: float = float("-inf")
    is_started: bool = False
    start_due_at: float = 0.0
    start_streak: Streak = field(default_factory=lambda: Streak(free=2))
    restarts_shown: int = 0
    last_restart_at: str | None = None

    @property
    def name(self) -> str:
        return self.post.name

    @property
    def is_pending(self) -> bool:
        """Created, and nothing was heard of it yet: it starts, or waits until some node has room for it."""
        return self.watched.state is State.STARTING and not self.watched.has_run

    def forget(self) -> None:
        """Nobody holds the post now."""
        for task in (self.starting, self.asking, self.leaving, self.routing, self.moving):
            if task is not None:
                task.add_done_callback(retrieve)
        self.handle = self.starting = self.asking = self.leaving = self.routing = None
        self.leaves_by = self.route = self.moving = self.node = None
        self.done_at = float("inf")
        self.is_started, self.start_due_at, self.reported_at = False, 0.0, float("-inf")


def called(handle: Any, method: str, *args: Any) -> asyncio.Task[Any]:
    """A call, under way."""

    async def call() -> Any:
        return await getattr(handle, method).remote(*args)

    coroutine: Coroutine[Any, Any, Any] = call()
    return asyncio.get_running_loop().create_task(coroutine)


def error_of(task: asyncio.Task[Any]) -> BaseException | None:
    """Of a task that is done."""
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def retrieve(task: asyncio.Task[Any]) -> None:
    """A late answer: nobody waits for it, and asyncio wants its error looked at."""
    if not task.cancelled():
        task.exception()

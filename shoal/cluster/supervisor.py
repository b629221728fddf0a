"""The supervisor: starts the ingest side, keeps it running, and publishes the truth about it.

A Serve application without a route, so that one Serve configuration owns ingest and queries alike. Every
second it makes sure that each actor exists and has started; every two seconds it writes what they report to
`{tables}/_shoal/status.json`, from which the query side reads (it may live in another cluster). An actor
that answers late is not dead: only Ray's word is. Deleting the application drains and dismisses the crew.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError

from shoal.actors.logs import configure_logging
from shoal.actors.names import EMBEDDER, WRITER
from shoal.cluster.topology import Crew, dismiss, ensure_crew
from shoal.errors import ConfigurationError, ShoalError, TransientError
from shoal.settings import Settings
from shoal.sources.kafka import Connection
from shoal.store.state_files import write_state

TICK_S = 1.0
STATUS_INTERVAL_S = 2.0
ANSWER_S = 5.0
DRAIN_S = 10.0

log = logging.getLogger("shoal.supervisor")


class Supervisor:
    """One replica; `user_config` starts it."""

    def __init__(self, settings: Settings, connection: Connection, model: str, width: int, ingress: str) -> None:
        configure_logging(settings)
        self._settings, self._connection = settings, connection
        self._model, self._width, self._ingress = model, width, ingress
        self._started_at = datetime.now(UTC)
        self._is_draining = False
        self._crew: Crew | None = None
        self._task: asyncio.Task[None] | None = None
        self._problems: dict[str, str] = {}
        self._refusals: dict[str, str] = {}  # those of the problems that a person must mend
        self._creating: asyncio.Future[Crew] | None = None

    async def reconfigure(self, _: dict[str, Any]) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._supervise())

    async def check_health(self) -> None:
        if self._task is not None and self._task.done() and not self._is_draining:
            raise RuntimeError("the supervisor's loop has ended")

    async def drain(self) -> None:
        """Finish what is in flight, in the order of the flow, then dismiss the crew."""
        self._is_draining = True
        if self._task is not None:
            self._task.cancel()
        if self._creating is not None:  # a thread can't be cancelled: what it still creates must go too
            await asyncio.wait([self._creating])
            if self._creating.exception() is None:
                self._crew = self._creating.result()
            self._creating = None
        if self._crew is None:
            return
        crew, self._crew = self._crew, None
        drains = [asyncio.ensure_future(_awaited(reader.drain.remote(DRAIN_S))) for reader in crew.readers.values()]
        await asyncio.wait(drains, timeout=DRAIN_S + 1)
        for drain in drains:
            drain.add_done_callback(_retrieve)
        await asyncio.to_thread(dismiss, crew)

    async def __del__(self) -> None:
        await self.drain()

    async def _supervise(self) -> None:
        written_at = 0.0
        while True:
            began = time.monotonic()
            await self._guarded("start", self._start)
            if began - written_at >= STATUS_INTERVAL_S:
                written_at = began
                await self._guarded("status", self._report)
            await asyncio.sleep(max(0.0, TICK_S - (time.monotonic() - began)))

    async def _guarded(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        """One step of a turn; the loop must outlive whatever it meets, and say so."""
        try:
            await step()
        except Exception as error:
            log.exception("supervisor: %s failed this turn", what)
            self._problems[f"supervisor {what}"] = f"{type(error).__name__}: {error}"[:300]
        else:
            self._problems.pop(f"supervisor {what}", None)

    async def _start(self) -> None:
        """`start()` is idempotent, and a restarted process needs it again."""
        create = asyncio.to_thread(ensure_crew, self._settings, self._connection, self._model, self._width)
        self._creating = asyncio.ensure_future(create)
        self._crew = crew = await asyncio.shield(self._creating)
        await self._ask("start", {WRITER: crew.writer.start.remote()})
        await self._ask("start", {name: reader.start.remote() for name, reader in crew.readers.items()})

    async def _ask(self, what: str, calls: dict[str, Any]) -> dict[str, Any]:
        """Answers by name; who doesn't answer is a problem in the status, not a death."""
        if not calls:  # no crew yet: the status is written all the same, and says why
            return {}
        tasks = {name: asyncio.ensure_future(_awaited(call)) for name, call in calls.items()}
        # Not `wait_for`: it cancels, and waits for the cancellation of, a reference that may never be answered.
        await asyncio.wait(tasks.values(), timeout=ANSWER_S)
        good = {}
        for name, task in tasks.items():
            key = f"{name} {what}"
            if not task.done():
                task.add_done_callback(_retrieve)
                self._problems[key] = f"no answer within {ANSWER_S:g} s"
            elif task.cancelled():
                self._problems[key] = "the call was cancelled"
            elif (error := task.exception()) is not None:
                self._problems[key] = _problem(error)
                if (refusal := _refusal(error)) is not None:
                    self._refusals[key] = refusal
            else:
                self._problems.pop(key, None)
                self._refusals.pop(key, None)
                good[name] = task.result()
        return good

    async def _report(self) -> None:
        handles = self._crew.handles() if self._crew else {}
        answers = await self._ask("statistics", {name: handle.statistics.remote() for name, handle in handles.items()})
        reports = {name: dataclasses.asdict(answer) for name, answer in answers.items()}
        writer = reports.get(WRITER)
        self._problems.pop("writer ended", None)
        if writer and writer["ended"]:
            self._problems["writer ended"] = writer["ended"]
        status = {
            "at": datetime.now(UTC).isoformat(),
            "started_at": self._started_at.isoformat(),
            "health": "ok" if not self._problems else "degraded",
            "problems": dict(self._problems),
            "refusals": dict(self._refusals),
            "cluster": self._connection.cluster,
            "broker": "embedded" if self._settings.is_embedded else "kafka",
            "ingress": self._ingress,
            "model": self._model,
            "writer": writer,
            "embedder": reports.get(EMBEDDER),
            "fetchers": [report for name, report in reports.items() if name.startswith("fetcher")],
            "readers": [report for name, report in reports.items() if name.startswith("reader")],
        }
        try:
            await asyncio.to_thread(write_state, self._settings, "status.json", status)
        except (TransientError, OSError) as error:
            log.warning("status.json could not be written: %s", error)


async def _awaited(call: Any) -> Any:
    return await call


def _retrieve(task: asyncio.Task[Any]) -> None:
    """A late answer: nobody waits for it, and asyncio wants its error looked at."""
    if not task.cancelled():
        task.exception()


def _problem(error: BaseException) -> str:
    if (refusal := _refusal(error)) is not None:
        return refusal
    if isinstance(error, RayTaskError) and isinstance(error.cause, ShoalError):
        return str(error.cause)
    if isinstance(error, RayActorError):
        return "down, restarting"
    return f"{type(error).__name__}: {error}"[:300]


def _refusal(error: BaseException) -> str | None:
    """What a person must mend, where that is why a call failed or an actor could not be made."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, ConfigurationError):
        return str(error.cause)
    if isinstance(error, RayActorError) and error.actor_init_failed:  # the class survives only in the text
        name, _, message = str(error).strip().rpartition("\n")[2].partition(": ")
        if name.endswith(ConfigurationError.__name__):
            return message
    return None


def ingest_app(settings: Settings, connection: Connection, model: str, width: int, ingress: str) -> serve.Application:
    """The ingest side as a Serve application (route None)."""
    deployment = serve.deployment(
        name="Supervisor",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=10,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.2,
        user_config={"started": True},
    )(Supervisor)
    return deployment.bind(settings, connection, model, width, ingress)

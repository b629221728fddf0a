"""The supervisor: starts the ingest side, keeps it running, and publishes the truth about it.

A Serve application without a route, so that one Serve configuration owns ingest and queries alike. Every second it
turns the crew (shoal.cluster.crew): who is missing is created, who hangs is replaced, who keeps dying waits. Every
two seconds it writes what they report to `{tables}/_shoal/status.json`, from which the query side reads (it may live
in another cluster), and looks there for a request to drain. Deleting the application drains and dismisses the crew;
where the supervisor is killed instead, its successor adopts the crew, or, without one, their leases run out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import ray
from ray import serve

from shoal.actors.logs import configure_logging
from shoal.cluster.crew import Crew
from shoal.cluster.draining import Drain, wanted
from shoal.cluster.elasticity import Elasticity, Staff, flow_of
from shoal.cluster.ownership import Ownership
from shoal.cluster.placement import Placement, look, own_node
from shoal.cluster.recall_watch import RecallWatch
from shoal.cluster.status import WRITER, Facts, ModelChange, build_status
from shoal.cluster.topology import Post, pools, posts
from shoal.errors import TransientError
from shoal.metrics import RecallStatistics, WriterStatistics
from shoal.serve_apps import flow_metrics
from shoal.serve_apps.ray_mirror import RayMirror
from shoal.settings import Settings
from shoal.sources.kafka import Connection, connection
from shoal.store.place import at, current_generation
from shoal.store.state_files import read_state, write_state

TICK_S = 1.0
STATUS_INTERVAL_S = 2.0
LOOK_S = 1.0  # how long the rest of a round may wait for Ray's head

log = logging.getLogger("shoal.supervisor")


class Supervisor:
    """One replica; `user_config` starts it. `life`: of the service, across the supervisor's own restarts."""

    def __init__(
        self, settings: Settings, connection: Connection, model: str, width: int, ingress: str, life: str
    ) -> None:
        configure_logging(settings)
        self._settings, self._connection = settings, connection
        self._model, self._width = model, width
        self._ingress, self._life = ingress, life
        self._posts: tuple[Post, ...] = ()  # those that the crew is given, where the collection has moved
        self._change: ModelChange | None = None  # until the crew is whole with them
        self._session = f"{life}/{_ray_session()}"
        self._telling: asyncio.Task[None] | None = None
        self._started_at = datetime.now(UTC)
        self._crew = Crew(posts(settings, model, width), settings.hang_s, settings.start_s)
        self._ownership = Ownership()
        self._elasticity = Elasticity(
            pools(settings),
            lag_target_s=settings.lag_target_s,
            rows_max=settings.commit_rows_max,
            out_s=settings.scale_out_s,
            in_s=settings.scale_in_s,
        )
        self._task: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self._drain: Drain | None = None
        self._problems: dict[str, str] = {}  # of the supervisor itself
        self._previous: Any = None
        self._is_ending = False
        self._recall_place = settings.tables_uri
        self._recall_watch = RecallWatch(settings)
        self._recall: RecallStatistics | None = None
        self._mirror = RayMirror()
        self._looking: asyncio.Task[Placement] | None = None
        self._is_moving = False  # away from a node that is about to go

    async def reconfigure(self, _: dict[str, Any]) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._supervise())

    async def check_health(self) -> None:
        if self._task is not None and self._task.done() and not self._is_ending:
            raise RuntimeError("the supervisor's loop has ended")

    async def drain(self, timeout_s: float, request_id: str = "") -> None:
        """Finish what is in flight within `timeout_s`, and take nothing new from then on. Queries go on."""
        if self._draining is None:
            self._drain = Drain(request_id)
            self._draining = asyncio.get_running_loop().create_task(self._drained(self._drain, timeout_s))
        await asyncio.wait([self._draining], timeout=timeout_s + 10)

    async def _drained(self, drain: Drain, timeout_s: float) -> None:
        log.info("draining, for up to %g s", timeout_s)
        drain.left = await self._crew.drain(timeout_s)
        drain.state = "drained"
        log.info("drained; left unfinished: %s", drain.left or "nothing")

    async def __del__(self) -> None:
        """Serve awaits this where it ends the replica in order."""
        self._is_ending = True
        await asyncio.to_thread(self._recall_watch.end)
        if self._is_moving:
            # Serve ends this replica once another runs elsewhere, which leads the crew by now: to drain and dismiss it
            # here would stop all of ingest for one node. Was the application deleted just now, their leases run out.
            if self._task is not None:
                self._task.cancel()
            return
        await self.drain(self._settings.drain_s)  # writer and embedder are watched meanwhile: work needs them
        if self._task is not None:
            self._task.cancel()
        await self._crew.dismiss()

    async def _supervise(self) -> None:
        with contextlib.suppress(TransientError):
            self._previous = await asyncio.to_thread(read_state, self._settings, "status.json")
        # Actors of another Ray session have ended with it.
        same = isinstance(self._previous, dict) and self._previous.get("session") == self._session
        if isinstance(self._previous, dict):
            await self._guarded("generation", self._follow)
        if isinstance(self._previous, dict) and same:
            self._crew.remember(self._previous.get("actors") or {})
            self._elasticity.resume(self._previous.get("scaling"))
        written_at = 0.0
        while True:
            began = time.monotonic()
            await self._guarded("turn", self._turn)
            # Beside the watching: storage that does not answer must not keep it from renewing the actors' leases.
            if began - written_at >= STATUS_INTERVAL_S and (self._telling is None or self._telling.done()):
                written_at = began
                self._telling = asyncio.get_running_loop().create_task(self._tell())
            await asyncio.sleep(max(0.0, TICK_S - (time.monotonic() - began)))

    async def _tell(self) -> None:
        # First: who was left behind by a change of the model must not be told as an outage.
        await self._guarded("generation", self._look_at_generation)
        await self._guarded("status", self._report)
        await self._guarded("placement", self._look_at_nodes)
        await self._guarded("scaling", self._follow_load)
        await self._guarded("metrics", self._measure)
        await self._guarded("drain request", self._look_for_drain)
        await self._guarded("recall", self._look_at_recall)

    async def _guarded(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        """One step of a turn; the loop must outlive whatever it meets, and say so."""
        try:
            await step()
        except Exception as error:
            log.exception("supervisor: %s failed this turn", what)
            self._problems[f"supervisor {what}"] = f"{type(error).__name__}: {error}"[:300]
        else:
            self._problems.pop(f"supervisor {what}", None)

    async def _turn(self) -> None:
        if self._posts and self._crew.exchange(self._posts, f"the collection has moved to {self._model}"):
            self._posts = ()
        if self._settings.is_embedded:  # each of its lives has another address
            try:
                self._connection = connection(self._settings)
            except TransientError as error:
                self._problems["broker"] = str(error)
            else:
                self._problems.pop("broker", None)
        await self._crew.turn(self._connection)
        if self._change is not None and not self._posts and self._crew.is_whole:
            log.info("ingest is whole with %s", self._change.after)
            self._change = None

    async def _report(self) -> None:
        settings = self._settings
        facts = Facts(
            cluster=self._connection.cluster,
            broker="embedded" if settings.is_embedded else "kafka",
            ingress=self._ingress,
            model=self._model,
            topics=(*settings.kafka_topics, settings.command_topic),
        )
        status = build_status(
            now=datetime.now(UTC),
            started_at=self._started_at,
            facts=facts,
            reports=self._crew.reports(),
            problems=self._problems | self._crew.problems,
            refusals=self._crew.refusals,
            actors=self._crew.shown(),
            previous=self._previous,
            recall=self._recall,
            change=self._change,
            disk=await asyncio.to_thread(_disk, settings),
        )
        status |= {"life": self._life, "session": self._session, "drain": self._drain.shown() if self._drain else None}
        status |= {"scaling": self._elasticity.shown(self._staff())}
        self._previous = status
        if self._draining is None and (name := self._ownership.look(status, self._crew.readers, time.monotonic())):
            log.warning("partitions have no owner though every reader is well: %s joins the group anew", name)
            self._crew.rejoin(name)
        try:
            await asyncio.to_thread(write_state, settings, "status.json", status)
        except (TransientError, OSError) as error:
            log.warning("status.json could not be written: %s", error)

    async def _look_at_nodes(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(asyncio.to_thread(look, self._crew.handles))
        await asyncio.wait([self._looking], timeout=LOOK_S)
        if self._looking.done():
            looked, self._looking = self._looking, None
            placement = looked.result()
            self._is_moving = own_node() in placement.going
            self._crew.place(placement, self._settings.drain_s)

    def _staff(self) -> dict[str, Staff]:
        return {name: self._crew.staff(name) for name in self._elasticity.pools}

    async def _follow_load(self) -> None:
        """How many readers and fetch workers there are, by the status just made."""
        if self._draining is None:
            flow = flow_of(self._previous, self._settings.command_topic)
            for name, count in self._elasticity.look(flow, self._staff(), time.monotonic()).items():
                self._crew.resize(name, count)

    async def _measure(self) -> None:
        """At Ray's port: of an ingest cluster that no query side reads, the only page."""
        families = list(flow_metrics.families(self._previous, datetime.now(UTC)))
        await asyncio.to_thread(self._mirror.show, families)

    async def _look_at_recall(self) -> None:
        writer = self._crew.reports().get(WRITER)
        known = (writer.chunks, writer.commit_sequence) if isinstance(writer, WriterStatistics) else (None, 0)
        self._recall = await asyncio.to_thread(self._recall_watch.turn, *known)

    async def _look_at_generation(self) -> None:
        """Where the collection has moved to tables of another model, ingest goes on there. Queries see it by
        themselves."""
        used = await asyncio.to_thread(current_generation, self._settings)
        if used is None:
            return
        if used.uri != self._recall_place:
            self._recall_place = used.uri
            watch, self._recall_watch = self._recall_watch, RecallWatch(at(self._settings, used.uri))
            await asyncio.to_thread(watch.end)
        # One that never moved and has another model than this service was started for is the writer's to refuse.
        has_another = used.turn > 0 and (used.facts.model, used.facts.width) != (self._model, self._width)
        if has_another and self._draining is None:
            log.warning("the collection has moved from %s to %s: ingest starts anew", self._model, used.facts.model)
            self._change = ModelChange(self._model, used.facts.model, datetime.now(UTC))
            self._model, self._width = used.facts.model, used.facts.width
            self._posts = posts(self._settings, self._model, self._width)

    async def _follow(self) -> None:
        """Where the supervisor before this one had given every post away after a change of the model, that crew is the
        one to adopt: made for another model than this supervisor was started for, it would only be ended again."""
        used = await asyncio.to_thread(current_generation, self._settings)
        if used is None or used.facts.model == self._model or self._previous.get("changing_model") is not None:
            return
        if self._previous.get("model") == used.facts.model:
            self._model, self._width = used.facts.model, used.facts.width
            settings = self._settings
            self._crew = Crew(posts(settings, self._model, self._width), settings.hang_s, settings.start_s)

    async def _look_for_drain(self) -> None:
        if self._draining is not None:
            return
        try:
            request = await asyncio.to_thread(wanted, self._settings, self._life)
        except TransientError as error:
            log.warning("whether to drain could not be read: %s", error)
            return
        if request is not None:
            self._drain = Drain(request.id)
            self._draining = asyncio.get_running_loop().create_task(self._drained(self._drain, request.timeout_s))


def _disk(settings: Settings) -> dict[str, int] | None:
    try:
        usage = shutil.disk_usage(settings.home)
    except OSError:  # not made yet
        return None
    return {"free_bytes": usage.free, "size_bytes": usage.total}


def _ray_session() -> str:
    """Of the whole cluster: a supervisor's heir may run on another node."""
    return str(ray.get_runtime_context().get_session_name()) if ray.is_initialized() else ""


def ingest_app(
    settings: Settings, connection: Connection, model: str, width: int, ingress: str, life: str = ""
) -> serve.Application:
    """The ingest side as a Serve application (route None)."""
    deployment = serve.deployment(
        name="Supervisor",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=10,
        health_check_period_s=2,
        health_check_timeout_s=10,  # its loop answers at once, whatever hangs; one that is stopped is replaced
        graceful_shutdown_timeout_s=settings.drain_s + 20,
        graceful_shutdown_wait_loop_s=0.2,
        user_config={"started": True},
    )(Supervisor)
    return deployment.bind(settings, connection, model, width, ingress, life)

"""The crew: the ingest actors as the supervisor holds them. A thin shell around shoal.cluster.watching.

`turn` never waits for anybody: it looks at what has come in since the last one (a creation, an answer, a death),
tells the watcher, does what that decides, and asks again. So one actor that hangs, or a Ray that answers nothing,
keeps no other from being watched and no status from being written.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from shoal.cluster.actor_errors import is_death, never_lived, refusal, told
from shoal.cluster.elasticity import Staff
from shoal.cluster.member import Member, called, error_of, retrieve
from shoal.cluster.placement import Placement
from shoal.cluster.resizing import Resizing
from shoal.cluster.topology import Post
from shoal.cluster.topology import end as end_by_force
from shoal.cluster.watching import GAP_S, PENDING, Do, State, Streak, Watched
from shoal.sources.kafka import Connection

ANSWER_S = 5.0  # a later answer is shown as a problem; it is no death
SOON_S = 0.2  # what comes within a moment is dealt with in the same turn
REPORT_AGE_S_MAX = 5.0
LEAVE_S = 8.0  # to commit and leave the group after the time for what is in flight is over
NO_ROOM = (
    "no node of the cluster has room for it: it waits for one that has (CPUs, and SHOAL_CORE_RESOURCE where it is set)"
)
RAY_THREADS = 4  # calls to Ray's head, which block while it is gone


class Crew:
    """Every post. One event loop uses it."""

    def __init__(
        self,
        posts: Iterable[Post],
        hang_s: float,
        start_s: float,
        *,
        end: Callable[[Any], None] = end_by_force,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # An extra one may have to wait for a node until it starts, however long that takes.
        self._members = [Member(post, Watched(hang_s, math.inf if post.is_extra else start_s)) for post in posts]
        self._end, self._clock = end, clock
        self._resizing = Resizing(self._members, self._force, clock)
        for member in self._members:
            if member.post.is_extra:
                member.watched.left()
        self._threads = ThreadPoolExecutor(RAY_THREADS, thread_name_prefix="ray-calls")
        self._turned_at: float | None = None
        self._is_draining = self._is_dismissed = False
        self.problems: dict[str, str] = {}
        self.refusals: dict[str, str] = {}  # those of the problems that a person must mend

    def remember(self, actors: Mapping[str, Any]) -> None:
        """What the supervisor before this one showed: tallies go on, the living are adopted."""
        for member in self._members:
            known = actors.get(member.name)
            if isinstance(known, Mapping):
                ran = bool(known.get("has_run"))
                restarts = int(known.get("restarts") or 0)
                member.watched.remember(known.get("pid"), restarts, known.get("reason"), ran=ran)
                member.restarts_shown = member.watched.restarts
                member.last_restart_at = known.get("last_restart_at")
                if member.post.is_extra:  # it may live: whether it is wanted is said by the next `resize`
                    member.watched.hire(float("-inf"))

    async def turn(self, place: Connection) -> None:
        """Look at everyone once, and do what must be done now. `place`: where the readers must read."""
        now = self._clock()
        if self._turned_at is not None and now - self._turned_at > GAP_S:
            for member in self._members:
                member.watched.skip(now - self._turned_at)
        self._turned_at = now
        for member in self._members:
            self._ask(member)
        await self._moment(member.asking for member in self._members)
        for member in self._members:
            self._attend(member, place)
        await self._moment(member.creating for member in self._members)
        for member in self._members:
            self._attend(member, place)
        self._resizing.route()

    async def _moment(self, awaited: Iterable[asyncio.Future[Any] | None]) -> None:
        waiting = [one for one in awaited if one is not None and not one.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=SOON_S)

    # --- one member ---------------------------------------------------------------------------

    def _attend(self, member: Member, place: Connection) -> None:
        self._hear_creation(member)
        self._hear_start(member)
        self._hear_answer(member, place)
        if member.watched.state is State.LEAVING:
            self._resizing.see_off(member)
            return
        now = self._clock()
        decided = member.watched.decide(now)
        if decided is Do.END:
            self._force(member)
        elif decided is Do.CREATE and member.creating is None and not self._is_dismissed:
            loop = asyncio.get_running_loop()
            member.creating = loop.run_in_executor(self._threads, member.post.create, place)
        self._start(member, now)
        if member.watched.restarts != member.restarts_shown:
            member.restarts_shown = member.watched.restarts
            member.last_restart_at = datetime.now(UTC).isoformat()

    def _hear_creation(self, member: Member) -> None:
        if member.creating is None or not member.creating.done():
            return
        creating, member.creating = member.creating, None
        if (error := creating.exception()) is not None:
            self._failed(member, "create", error)
            member.watched.died(f"it can't be created: {told(error)}", self._clock(), hopeless=True)
            return
        self._mended(member, "create")
        member.handle = creating.result()
        if member.watched.state is State.OFF:  # not wanted any more
            self._force(member)
            return
        if member.watched.state is State.RETIRED:  # found after the drain began
            called(member.handle, "drain", 0.0).add_done_callback(retrieve)
        member.watched.created(self._clock())
        self._ask(member)

    def _start(self, member: Member, now: float) -> None:
        """`start()` once in each life, and again where it failed."""
        due = member.post.starts and not member.is_started and member.starting is None and now >= member.start_due_at
        if member.handle is None or not due or member.watched.state in (State.RETIRED, State.LEAVING):
            return
        member.starting = called(member.handle, "start")
        member.watched.start_called(now)

    def _hear_start(self, member: Member) -> None:
        if member.starting is None or not member.starting.done():
            return
        starting, member.starting = member.starting, None
        member.watched.start_returned()
        error = error_of(starting)
        if error is None:
            member.is_started, member.start_streak = True, Streak(free=2)
            self._mended(member, "start")
        elif is_death(error):
            self._dead(member, error)
        else:
            self._failed(member, "start", error)
            member.start_due_at = self._clock() + max(1.0, member.start_streak.ended(0.0))

    def _ask(self, member: Member) -> None:
        if member.handle is not None and member.asking is None:
            member.asking, member.asked_at = called(member.handle, "statistics"), self._clock()

    def _hear_answer(self, member: Member, place: Connection) -> None:
        if member.asking is None:
            return
        now = self._clock()
        if not member.asking.done():
            is_told = f"{member.name} room" in self.problems or (member.post.is_extra and member.is_pending)
            if now - member.asked_at >= ANSWER_S and not is_told:
                self.problems[f"{member.name} statistics"] = f"no answer for {now - member.asked_at:.0f} s"
            return
        asking, member.asking = member.asking, None
        error = error_of(asking)
        if error is None:
            self._mended(member, "statistics")
            member.report, member.reported_at = asking.result(), now
            report = member.report
            member.watched.answered(report.pid, report.uptime_s, report.stalled_s, now)
            if member.post.reads and member.watched.state is State.RUNNING:
                self._look_at_reader(member, place, now)
        elif is_death(error):
            self._dead(member, error)
        else:
            self._failed(member, "statistics", error)

    def _look_at_reader(self, member: Member, place: Connection, now: float) -> None:
        if member.report.cluster != place.cluster:
            member.watched.replace("it read from a broker that has ended", now)
            self._force(member)
        elif member.report.is_leaving:
            member.watched.replace("the supervisor before this one had it leave, and it is wanted again", now)
            self._force(member)

    def _dead(self, member: Member, error: BaseException) -> None:
        for what in ("statistics", "start"):
            self._mended(member, what)
        if never_lived(error):
            self._failed(member, "create", error)
        member.watched.died(told(error), self._clock(), hopeless=never_lived(error))
        member.forget()

    def _force(self, member: Member) -> None:
        if member.handle is not None:
            self._threads.submit(self._end, member.handle)
        member.forget()

    def _failed(self, member: Member, what: str, error: BaseException) -> None:
        key = f"{member.name} {what}"
        self.problems[key] = told(error)
        refused = refusal(error)
        if refused is not None:
            self.refusals[key] = refused
        else:
            self.refusals.pop(key, None)

    def _mended(self, member: Member, what: str) -> None:
        key = f"{member.name} {what}"
        self.problems.pop(key, None)
        self.refusals.pop(key, None)

    # --- all of them --------------------------------------------------------------------------

    def reports(self) -> dict[str, Any]:
        """The statistics of those that answered just now."""
        since = self._clock() - REPORT_AGE_S_MAX
        return {member.name: member.report for member in self._members if member.reported_at >= since}

    def shown(self) -> dict[str, dict[str, Any]]:
        """Each actor's state, for the status."""
        now = self._clock()
        return {
            member.name: member.watched.shown(now)
            | ({"state": PENDING} if member.post.is_extra and member.is_pending else {})
            | {"last_restart_at": member.last_restart_at, "node": member.node}
            for member in self._members
            if member.watched.state is not State.OFF
        }

    # --- the nodes that they are on -----------------------------------------------------------

    @property
    def handles(self) -> dict[str, Any]:
        """Who holds a post now."""
        return {member.name: member.handle for member in self._members if member.handle is not None}

    def place(self, placement: Placement, drain_s: float) -> None:
        """Take note of where everyone is. Who waits for room does not hang, and another life would not help it. Who is
        on a node that is about to go begins again elsewhere; a reader when it has finished what it holds, within
        `drain_s`."""
        for member in self._members:
            place = placement.places.get(member.name)
            if place is None or place.handle is not member.handle or place.node is not None:
                self._mended(member, "room")
            else:
                if not member.post.is_extra:  # which waits without a word: it is what the autoscaler sees
                    self.problems[f"{member.name} room"] = NO_ROOM
                member.watched.has_no_room(self._clock())
            if place is not None and place.handle is member.handle:
                member.node = place.node
                if place.node in placement.going and member.watched.state is State.RUNNING:
                    self._move(member, drain_s)

    def _move(self, member: Member, drain_s: float) -> None:
        if member.post.reads and member.moving is None:
            member.moving = called(member.handle, "drain", drain_s)
        if member.moving is None or member.moving.done():
            member.watched.replace("its node is about to go", self._clock())
            self._force(member)

    @property
    def readers(self) -> list[str]:
        """Who reads from the log, or is to soon; not one that still waits for a place."""
        return [
            member.name
            for member in self._members
            if member.post.reads
            and member.watched.state is not State.OFF
            and not (member.post.is_extra and member.is_pending)
        ]

    def resize(self, pool: str, count: int) -> None:
        """Have the first `count` of a pool (shoal.cluster.resizing). Once a drain has begun nobody comes or goes."""
        if not self._is_draining:
            self._resizing.resize(pool, count)

    def staff(self, pool: str) -> Staff:
        """Who of a pool is there."""
        return self._resizing.staff(pool)

    @property
    def is_whole(self) -> bool:
        """Whether everyone whose post is not given up runs, and has begun its work where it must be told to."""
        return all(
            member.post.is_extra
            or member.watched.state is State.RETIRED
            or (member.watched.state is State.RUNNING and member.is_started >= member.post.starts)
            for member in self._members
        )

    def exchange(self, posts: Iterable[Post], reason: str) -> bool:
        """Give every post to another, made otherwise; whether that is done for all. Whoever is only being created is
        given up when that has ended: call again each turn until it is done."""
        is_done = True
        for member, post in zip(self._members, posts, strict=True):
            if member.post is post or member.watched.state is State.RETIRED:
                continue
            if member.creating is not None:
                is_done = False
                continue
            member.post = post
            if member.handle is not None:
                self._force(member)
            if member.watched.state is State.LEAVING:
                member.watched.left()
            elif member.watched.state is not State.OFF:
                member.watched.replace(reason, self._clock())
        return is_done

    def rejoin(self, name: str) -> None:
        """Have a reader join its group anew; nobody waits for it."""
        for member in self._members:
            if member.name == name and member.handle is not None and member.watched.state is State.RUNNING:
                called(member.handle, "rejoin").add_done_callback(retrieve)

    async def drain(self, timeout_s: float) -> dict[str, int]:
        """Readers take nothing new, finish what is in flight, commit and leave the group; none is created again.

        Returns what each left unfinished after `timeout_s`; {} when everything ended. What is left is not lost: it
        is delivered again to the next start.
        """
        self._is_draining = True
        readers = [member for member in self._members if member.post.reads and member.watched.state is not State.OFF]
        creating = [member.creating for member in readers if member.creating is not None]
        if creating:  # one that lives already may only be being adopted: it has work to finish
            await asyncio.wait(creating, timeout=ANSWER_S)
        for member in readers:
            self._hear_creation(member)
        calls = {}
        for member in readers:
            # Created just now, it has taken nothing; dead, what it had is delivered again. Neither has work to finish.
            if member.post.is_extra and member.is_pending:  # it would answer nothing until it has a place
                self._force(member)
            member.watched.retire()
            if member.handle is not None:
                calls[member.name] = called(member.handle, "drain", timeout_s)
        if calls:
            await asyncio.wait(calls.values(), timeout=timeout_s + LEAVE_S)
        left: dict[str, int] = {}
        for member in readers:
            call = calls.get(member.name)
            if call is None:
                continue
            if call.done() and error_of(call) is None and call.result() is not None:
                count = int(call.result())
            else:  # it died or hangs: what it last said it had
                call.add_done_callback(retrieve)
                count = member.report.in_flight_items if member.report is not None else 0
            if count:
                left[member.name] = count
        return left

    async def dismiss(self) -> None:
        """End every actor and free its name, also those that are only being created."""
        self._is_dismissed = True
        creating = [member.creating for member in self._members if member.creating is not None]
        if creating:  # a thread can't be cancelled: what it still creates must go too
            await asyncio.wait(creating, timeout=ANSWER_S)
        for member in self._members:
            if member.creating is not None and member.creating.done() and member.creating.exception() is None:
                member.handle = member.creating.result()
            self._force(member)
        await asyncio.to_thread(self._threads.shutdown, wait=True)

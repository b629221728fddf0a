"""Resizing: the members of a pool that come and go. Part of the crew, and like it never waits for anybody.

Who comes is created as anybody else is; where no node has room its creation stays pending, which is the demand that
Ray's autoscaler sees, and everything else goes on. Who goes ends what it has first, for a bounded time: a reader takes
nothing new, commits, and leaves its group for good, so that the others have its partitions at once; of a fetch worker
the readers are told before, and its queue runs empty. What is not done by then is done again by others: nothing is
lost, whenever who is ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from shoal.cluster.elasticity import FETCHERS, Staff
from shoal.cluster.member import Member, called, error_of
from shoal.cluster.watching import State

LEAVING_S = 30.0
"""For what is in flight. A document may take minutes where a system is unwell: another then does it again. Shorter, and
slow ones are paid for twice; longer, and its partitions stand still for longer."""
LAST_WORD_S = 3.0  # longer than the supervisor takes from one status to the next
OVERTIME_S = 15.0  # to leave the group and to answer; then it is ended by force

log = logging.getLogger("shoal.supervisor")


class Resizing:
    """Of all pools. `end` ends a member's actor by force and forgets it."""

    def __init__(self, members: Sequence[Member], end: Callable[[Member], None], clock: Callable[[], float]) -> None:
        self._members, self._end, self._clock = members, end, clock
        self._is_elastic = any(member.post.is_extra and member.post.pool == FETCHERS for member in members)
        self._route: tuple[str, ...] = ()
        self._known_at = float("inf")  # since when every reader knows the route

    def resize(self, pool: str, count: int) -> None:
        """Have the first `count` of the pool. Call it again whenever the number is looked at: who is on the way out
        comes back only after that."""
        now = self._clock()
        for place, member in enumerate(member for member in self._members if member.post.pool == pool):
            watched = member.watched
            if watched.state is State.RETIRED or not member.post.is_extra:
                continue
            if place < count and watched.state is State.OFF:
                watched.hire(now)
            elif place >= count and watched.state not in (State.OFF, State.LEAVING):
                if member.creating is not None:
                    continue  # it may be one that lives and is only being adopted: next time it is known
                if member.handle is None or member.is_pending:
                    self._off(member)
                else:
                    watched.leave()

    def staff(self, pool: str) -> Staff:
        """Who of the pool is there."""
        states = [member.watched.state for member in self._members if member.post.pool == pool]
        pending = sum(state in (State.WAITING, State.STARTING) for state in states)
        return Staff(states.count(State.RUNNING), pending, states.count(State.LEAVING))

    def see_off(self, member: Member) -> None:
        """One that leaves: once it has nothing more, or its time is over, it is ended."""
        now = self._clock()
        if member.handle is None:  # it died
            self._off(member)
        elif member.leaves_by is None:
            member.leaves_by = now + LEAVING_S + OVERTIME_S
            if member.post.reads:
                member.leaving = called(member.handle, "leave", LEAVING_S)
        elif now >= member.leaves_by:
            self._off(member)
        elif self._has_nothing_left(member):
            member.done_at = min(now, member.done_at)
            # What it counted last must come into a status before it is gone.
            if member.reported_at > member.done_at and now >= member.done_at + LAST_WORD_S:
                self._off(member)

    def _has_nothing_left(self, member: Member) -> bool:
        if member.leaving is not None:
            return member.leaving.done()
        is_heard = member.reported_at > max(self._known_at, (member.leaves_by or 0.0) - LEAVING_S - OVERTIME_S)
        return is_heard and not member.report.in_flight

    def _off(self, member: Member) -> None:
        call = member.leaving
        if call is not None and call.done() and error_of(call) is None and (left := call.result()):
            log.warning("%s left %d messages unfinished: they are delivered again", member.name, left)
        self._end(member)
        member.watched.left()

    def route(self) -> None:
        """Tell the readers which fetch workers there are; those without a place must get no document."""
        if not self._is_elastic:
            return
        route = tuple(
            member.name
            for member in self._members
            if member.post.pool == FETCHERS and (not member.post.is_extra or member.watched.state is State.RUNNING)
        )
        if route != self._route:
            self._route, self._known_at = route, float("inf")
        readers = [
            member
            for member in self._members
            if member.post.reads
            and member.handle is not None
            and member.watched.state in (State.RUNNING, State.LEAVING)
        ]
        for member in readers:
            self._tell(member)
        if self._known_at == float("inf") and all(member.route == route for member in readers):
            self._known_at = self._clock()

    def _tell(self, member: Member) -> None:
        if member.routing is not None and member.routing.done():
            routing, member.routing = member.routing, None
            if error_of(routing) is None:
                member.route = routing.result()
        if member.route != self._route and member.routing is None:
            member.routing = called(member.handle, "route", self._route)

"""A discrete-event engine: virtual time, and stations where work queues for servers.

Pure: the same calls give the same run, to the last event; time passes only in `run`. A `Station` is the queue of the
textbooks: so many servers, first come first served, no work lost. A job may need one of a machine's `Cores` as well
while it is served (an actor is one process, and a process needs a core): it waits for its own server first, then for
that.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

Action = Callable[[], None]


class Engine:
    """The clock and what is to happen. Times are seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._due: list[tuple[float, int, Action]] = []
        self._number = 0

    def at(self, when: float, action: Action) -> None:
        """Do it then, or now where that is past; what is due at one moment is done in the order it was asked for."""
        self._number += 1
        heapq.heappush(self._due, (max(when, self.now), self._number, action))

    def after(self, seconds: float, action: Action) -> None:
        self.at(self.now + seconds, action)

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass to `until`, or to the event after which `done`."""
        while self._due and self._due[0][0] <= until:
            self.now, _, action = heapq.heappop(self._due)
            self.events += 1
            action()
            if done():
                return
        self.now = max(self.now, until)


@dataclass(slots=True)
class Level:
    """A number over time, and its integral since `restart`: of a queue, its mean length."""

    value: float = 0.0
    highest: float = 0.0
    _since: float = 0.0
    _changed: float = 0.0
    _area: float = 0.0

    def add(self, amount: float, now: float) -> None:
        self._area += self.value * (now - self._changed)
        self._changed = now
        self.value += amount
        self.highest = max(self.highest, self.value)

    def restart(self, now: float) -> None:
        """Forget what was: the mean and the highest are of what comes."""
        self.add(0.0, now)
        self._since, self._area, self.highest = now, 0.0, self.value

    def mean(self, now: float) -> float:
        """Since `restart`; 0 where no time has passed."""
        self.add(0.0, now)
        return self._area / (now - self._since) if now > self._since else 0.0


class Cores:
    """Servers that stations borrow, one for each job, first come first served: the processors of a machine."""

    def __init__(self, engine: Engine, name: str, servers: int) -> None:
        self.engine, self.name, self.servers = engine, name, servers
        self.queue, self.working = Level(), Level()
        self._held = 0
        self._waiting: deque[Action] = deque()

    def borrow(self, begin: Action) -> None:
        """`begin` once there is one; `give_back` ends it."""
        self.queue.add(1, self.engine.now)
        self._waiting.append(begin)
        self._next()

    def give_back(self) -> None:
        self.working.add(-1, self.engine.now)
        self._held -= 1
        self._next()

    def utilisation(self) -> float:
        """Share of the servers that were borrowed since `restart`."""
        return self.working.mean(self.engine.now) / self.servers

    def restart(self) -> None:
        """Measure from now on."""
        self.queue.restart(self.engine.now)
        self.working.restart(self.engine.now)

    def _next(self) -> None:
        while self._waiting and self._held < self.servers:
            self._held += 1
            self.queue.add(-1, self.engine.now)
            self.working.add(1, self.engine.now)
            self._waiting.popleft()()


@dataclass(slots=True)
class _Job:
    service_s: float
    done: Action
    arrived: float


class Station:
    """`servers` that serve one job each, first come first served. `cores`: what each also holds while it serves."""

    def __init__(self, engine: Engine, name: str, servers: int, cores: Cores | None = None) -> None:
        self.engine, self.name, self.servers, self.cores = engine, name, servers, cores
        self.queue, self.working = Level(), Level()  # waiting (for either), and being served
        self.arrived = self.served = 0
        self.sojourn_s = 0.0  # of those served since `restart`: waits and services
        self._held = 0
        self._waiting: deque[_Job] = deque()

    def submit(self, service_s: float, done: Action) -> None:
        """A job that needs a server for so long; then `done`."""
        self.arrived += 1
        self.queue.add(1, self.engine.now)
        self._waiting.append(_Job(service_s, done, self.engine.now))
        self._next()

    def utilisation(self) -> float:
        """Share of the servers that were at work since `restart`."""
        return self.working.mean(self.engine.now) / self.servers

    def restart(self) -> None:
        """Measure from now on; what is queued and served stays so."""
        self.arrived = self.served = 0
        self.sojourn_s = 0.0
        self.queue.restart(self.engine.now)
        self.working.restart(self.engine.now)

    def _next(self) -> None:
        while self._waiting and self._held < self.servers:
            self._held += 1
            job = self._waiting.popleft()
            if self.cores is None:
                self._begin(job)
            else:
                self.cores.borrow(lambda job=job: self._begin(job))  # type: ignore[misc]

    def _begin(self, job: _Job) -> None:
        self.queue.add(-1, self.engine.now)
        self.working.add(1, self.engine.now)
        self.engine.after(job.service_s, lambda: self._end(job))

    def _end(self, job: _Job) -> None:
        self.working.add(-1, self.engine.now)
        self.served += 1
        self.sojourn_s += self.engine.now - job.arrived
        self._held -= 1
        if self.cores is not None:
            self.cores.give_back()
        job.done()
        self._next()

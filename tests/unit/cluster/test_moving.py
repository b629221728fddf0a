"""The crew and the nodes that it is on: who waits for room is left in peace, who must leave begins again elsewhere."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from shoal.cluster import crew as crew_module
from shoal.cluster.crew import Crew
from shoal.cluster.placement import Place, Placement
from shoal.cluster.topology import Post
from shoal.metrics import ReaderStatistics
from shoal.sources.kafka import Connection

PLACE = Connection("127.0.0.1:1", "c")
START_S = 30.0


class Call:
    def __init__(self, answer: Callable[..., Any]) -> None:
        self.remote = answer


class Actor:
    """One life. `is_placed`: a call to one that is not yet is answered when it is."""

    def __init__(self, pid: int, *, is_placed: bool) -> None:
        self.pid, self.placed, self.ended = pid, asyncio.Event(), False
        self.drained: list[float] = []
        self.finishes = asyncio.Event()
        if is_placed:
            self.placed.set()
        self.statistics, self.start, self.drain = Call(self._statistics), Call(self._start), Call(self._drain)

    async def _alive(self) -> None:
        await self.placed.wait()
        if self.ended:
            raise ActorDiedError()

    async def _statistics(self) -> ReaderStatistics:
        await self._alive()
        return ReaderStatistics("it", self.pid, 1.0, (), 0, 0, None, None, cluster="c")

    async def _start(self) -> None:
        await self._alive()

    async def _drain(self, timeout_s: float) -> int:
        self.drained.append(timeout_s)
        await self.finishes.wait()
        return 0


class Stage:
    """A crew of one, a reader or not, on nodes."""

    def __init__(self, *, reads: bool, is_placed: bool = True) -> None:
        self.lives: list[Actor] = []
        self.loop, self.now, self._is_placed = asyncio.get_running_loop(), 0.0, is_placed
        post = Post("it", self._create, reads=reads, starts=reads)
        self.crew = Crew([post], 10.0, START_S, end=self._end, clock=lambda: self.now)

    def _create(self, _: Connection) -> Actor:
        self.lives.append(Actor(len(self.lives), is_placed=self._is_placed))
        return self.lives[-1]

    def _end(self, actor: Actor) -> None:
        actor.ended = True
        self.loop.call_soon_threadsafe(actor.placed.set)

    @property
    def shown(self) -> dict[str, Any]:
        return self.crew.shown()["it"]

    async def turn(self, node: str | None, *going: str) -> None:
        """A second, in which Ray's head says that the newest life is on `node`."""
        self.now += 1.0
        await self.crew.turn(PLACE)
        if self.lives:
            self.crew.place(Placement({"it": Place(self.lives[-1], node)}, frozenset(going)), 7.0)

    async def until(self, true: Callable[[], bool], node: str | None, *going: str) -> None:
        for _ in range(100):
            if true():
                return
            await self.turn(node, *going)
        raise AssertionError((self.shown, self.crew.problems))


@pytest.fixture(autouse=True)
def no_waiting_for_the_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "SOON_S", 0.02)


async def test_who_waits_for_room_is_told_and_not_taken_for_one_that_hangs() -> None:
    on = Stage(reads=False, is_placed=False)
    for _ in range(int(START_S) + 10):
        await on.turn(None)
    assert len(on.lives) == 1
    assert not on.lives[0].ended
    assert (on.shown["state"], on.shown["restarts"], on.shown["node"]) == ("starting", 0, None)
    assert "has room" in on.crew.problems["it room"]
    on.lives[0].placed.set()
    await on.until(lambda: on.shown["state"] == "running", "a node that came")
    assert on.shown["node"] == "a node that came"
    assert on.crew.problems == {}
    await on.crew.dismiss()


async def test_who_has_a_node_and_does_not_start_there_hangs() -> None:
    on = Stage(reads=False, is_placed=False)
    await on.until(lambda: bool(on.lives) and on.lives[0].ended, "a")
    assert on.shown["reason"].startswith("hung: not started after")
    await on.crew.dismiss()


async def test_a_reader_finishes_what_it_holds_before_it_leaves_a_node_that_is_about_to_go() -> None:
    on = Stage(reads=True)
    await on.until(lambda: on.shown["state"] == "running", "a")
    for _ in range(3):
        await on.turn("a", "a")
    assert on.lives[0].drained == [7.0], "once"
    assert not on.lives[0].ended
    on.lives[0].finishes.set()
    await on.until(lambda: len(on.lives) == 2, "a", "a")
    assert on.lives[0].ended
    await on.until(lambda: on.shown["state"] == "running", "b", "a")
    assert (on.shown["restarts"], on.shown["reason"], on.shown["node"]) == (1, "its node is about to go", "b")
    for _ in range(3):
        await on.turn("b", "a")
    assert on.lives[1].drained == []
    await on.crew.dismiss()


async def test_others_leave_at_once_since_their_calls_are_made_again() -> None:
    on = Stage(reads=False)
    await on.until(lambda: on.shown["state"] == "running", "a")
    await on.turn("a", "a", "another")
    await on.until(lambda: len(on.lives) == 2 and on.shown["state"] == "running", "b", "a", "another")
    assert on.lives[0].ended
    assert on.lives[0].drained == []
    await on.crew.dismiss()


async def test_who_is_drained_for_good_is_not_moved() -> None:
    on = Stage(reads=True)
    await on.until(lambda: on.shown["state"] == "running", "a")
    on.lives[0].finishes.set()
    assert await on.crew.drain(3.0) == {}
    for _ in range(3):
        await on.turn("a", "a")
    assert on.lives[0].drained == [3.0]
    assert len(on.lives) == 1
    await on.crew.dismiss()


# In a process of its own: importing Ray Serve leaves loops and warnings behind in whoever does it.
END = """
import asyncio, os, sys
from types import SimpleNamespace
from shoal.cluster import supervisor
from shoal.cluster.placement import Placement
from shoal.settings import load
from shoal.sources.kafka import Connection

async def end(going):
    settings = load(data_dir=sys.argv[1], kafka_brokers="127.0.0.1:1")
    supervising = supervisor.Supervisor(settings, Connection("127.0.0.1:1", "c"), "hash:8", 8, "proxy", "life-1")
    told = []
    async def drain(_):
        told.append("drain")
        return {}
    async def dismiss():
        told.append("dismiss")
    supervising._crew = SimpleNamespace(drain=drain, dismiss=dismiss, place=lambda *_: None, handles={})
    supervisor.own_node, supervisor.look = lambda: "mine", lambda _: Placement({}, frozenset(going))
    await supervising._look_at_nodes()
    await supervising.__del__()
    print(*told, flush=True)

async def main():
    await end([])
    await end(["mine", "another"])
    await end(["another"])
    os._exit(0)

asyncio.run(main())
"""


def test_a_supervisor_that_serve_moves_off_its_node_leaves_the_crew_to_its_heir(tmp_path: Path) -> None:
    """1. Its application is deleted; 2. its node is about to go; 3. another node is."""
    done = subprocess.run([sys.executable, "-c", END, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["drain dismiss", "", "drain dismiss"], done.stderr

"""Members that come and go, as a crew of scripted actors: who waits for a place, who is told what, who ends when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from shoal.cluster import crew as crew_module
from shoal.cluster.crew import Crew
from shoal.cluster.elasticity import FETCHERS, READERS, Staff
from shoal.cluster.resizing import LEAVING_S, OVERTIME_S
from shoal.cluster.topology import Post
from shoal.metrics import FetcherStatistics, ReaderStatistics
from shoal.sources.kafka import Connection

PLACE = Connection("127.0.0.1:1", "k")
BASE = ("fetcher-0",)


class Method:
    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.remote = call


@dataclass
class Actor:
    """One life. `has_place` is false while no node has room for it: then it answers nothing."""

    name: str
    has_place: asyncio.Event
    in_flight: int = 0
    is_leaving: bool = False
    error: BaseException | None = None
    may_leave: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[str] = field(default_factory=list)
    route_: tuple[str, ...] | None = None
    ended: int = 0

    def __getattr__(self, name: str) -> Method:
        if name not in ("statistics", "start", "leave", "drain", "route"):
            raise AttributeError(name)
        return Method(getattr(self, f"_{name}"))

    async def _answer(self) -> None:
        await self.has_place.wait()
        if self.error is not None:
            raise self.error

    async def _statistics(self) -> Any:
        await self._answer()
        if self.name.startswith("fetcher"):
            return FetcherStatistics(self.name, 7, 1.0, self.in_flight, 0, 0, 0, 0, slots=4)
        return ReaderStatistics(
            self.name, 7, 1.0, (), self.in_flight, 0, None, None, cluster="k", is_leaving=self.is_leaving
        )

    async def _start(self) -> None:
        await self._answer()
        self.calls.append("start")

    async def _leave(self, timeout_s: float) -> int:
        await self._answer()
        self.calls.append("leave")
        await self.may_leave.wait()
        return self.in_flight

    async def _drain(self, timeout_s: float) -> int:
        await self._answer()
        self.calls.append("drain")
        return 0

    async def _route(self, names: tuple[str, ...]) -> tuple[str, ...]:
        await self._answer()
        self.route_ = names
        return names


class Scene:
    """A reader and a fetch worker, and as many more as there may be, up to three."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lives: list[Actor] = []
        self.room = True
        posts = [self._post("fetcher", n) for n in range(3)] + [self._post("reader", n) for n in range(3)]
        self.crew = Crew(posts, 60.0, 300.0, end=self._end, clock=lambda: self.now)

    def _post(self, kind: str, number: int) -> Post:
        name, reads = f"{kind}-{number}", kind == "reader"

        def create(_: Connection) -> Actor:
            self.lives.append(Actor(name, asyncio.Event()))
            if self.room or not number:
                self.lives[-1].has_place.set()
            return self.lives[-1]

        return Post(name, create, reads=reads, starts=reads, pool=READERS if reads else FETCHERS, is_extra=number > 0)

    def _end(self, actor: Actor) -> None:
        actor.ended += 1
        actor.error = ActorDiedError()
        actor.may_leave.set()

    def make_room(self) -> None:
        self.room = True
        for actor in self.lives:
            actor.has_place.set()

    def actor(self, name: str) -> Actor:
        return [life for life in self.lives if life.name == name][-1]

    def shown(self) -> dict[str, Any]:
        return {name: shown["state"] for name, shown in self.crew.shown().items()}

    async def turns(self, count: int = 5, seconds: float = 1.0) -> None:
        for _ in range(count):
            self.now += seconds
            await self.crew.turn(PLACE)

    async def until(self, true: Callable[[], object]) -> None:
        for _ in range(200):
            if true():
                return
            await self.turns(1, 0.2)
        raise AssertionError((self.shown(), self.crew.problems, self.lives))

    async def with_all(self) -> None:
        self.crew.resize(READERS, 3)
        self.crew.resize(FETCHERS, 3)
        await self.until(lambda: self.crew.staff(READERS) == self.crew.staff(FETCHERS) == Staff(3))
        await self.until(lambda: self.actor("reader-0").route_ == ("fetcher-0", "fetcher-1", "fetcher-2"))


@pytest.fixture
async def on(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(crew_module, "SOON_S", 0.02)
    scene = Scene()
    await scene.until(lambda: scene.crew.staff(READERS) == scene.crew.staff(FETCHERS) == Staff(1))
    yield scene
    scene.make_room()
    for actor in scene.lives:
        actor.may_leave.set()
    await scene.crew.dismiss()


async def test_the_extra_ones_come_when_they_are_wanted_and_not_before(on: Scene) -> None:
    await on.turns()
    assert on.shown() == {"fetcher-0": "running", "reader-0": "running"}
    assert on.actor("reader-0").route_ == BASE
    await on.with_all()
    assert on.actor("reader-2").route_ == ("fetcher-0", "fetcher-1", "fetcher-2")
    assert on.crew.readers == ["reader-0", "reader-1", "reader-2"]


async def test_one_without_a_place_waits_for_it_however_long_and_the_others_go_on(on: Scene) -> None:
    on.room = False
    on.crew.resize(READERS, 2)
    on.crew.resize(FETCHERS, 2)
    await on.turns(30, 60.0)  # half an hour: ten times `start_s`
    assert on.shown()["reader-1"] == on.shown()["fetcher-1"] == "pending"
    assert [actor.name for actor in on.lives].count("reader-1") == 1, "the demand that the autoscaler sees stays"
    assert on.crew.problems == {}
    assert on.crew.staff(READERS) == on.crew.staff(FETCHERS) == Staff(1, pending=1)
    assert on.crew.readers == ["reader-0"], "it takes no partition, so nobody waits for it to take one"
    assert on.actor("reader-0").route_ == BASE, "a document that it were given would wait with it"
    assert on.crew.is_whole
    on.make_room()
    await on.until(lambda: on.crew.staff(READERS) == on.crew.staff(FETCHERS) == Staff(2))
    await on.until(lambda: on.actor("reader-0").route_ == ("fetcher-0", "fetcher-1"))


async def test_one_without_a_place_that_is_not_wanted_any_more_is_given_up_at_once(on: Scene) -> None:
    on.room = False
    on.crew.resize(READERS, 2)
    await on.until(lambda: on.crew.staff(READERS).pending and len(on.lives) == 3)
    await on.turns(2)
    on.crew.resize(READERS, 1)
    await on.until(lambda: on.actor("reader-1").ended == 1)
    assert on.shown() == {"fetcher-0": "running", "reader-0": "running"}


async def test_a_reader_is_ended_only_once_it_has_left_its_group(on: Scene) -> None:
    await on.with_all()
    on.crew.resize(READERS, 2)
    await on.until(lambda: on.actor("reader-2").calls == ["start", "leave"])
    await on.turns(20)
    assert on.shown()["reader-2"] == "leaving"
    assert on.actor("reader-2").ended == 0
    on.actor("reader-2").may_leave.set()
    await on.until(lambda: on.actor("reader-2").ended == 1)
    assert "reader-2" not in on.shown()
    assert on.actor("reader-1").calls == ["start"]


async def test_one_that_does_not_come_to_an_end_is_ended_by_force(on: Scene) -> None:
    await on.with_all()
    on.crew.resize(READERS, 2)
    await on.turns(3)
    await on.turns(1, LEAVING_S + OVERTIME_S - 5)
    assert on.actor("reader-2").ended == 0
    await on.turns(2, 4.0)
    await on.until(lambda: on.actor("reader-2").ended == 1)


async def test_one_that_dies_on_its_way_out_is_not_begun_again(on: Scene) -> None:
    await on.with_all()
    on.crew.resize(READERS, 2)
    await on.until(lambda: "leave" in on.actor("reader-2").calls)
    on.actor("reader-2").error = ActorDiedError()
    await on.turns(20)
    assert "reader-2" not in on.shown()
    assert [actor.name for actor in on.lives].count("reader-2") == 1


async def test_a_fetch_worker_ends_when_every_reader_knows_and_it_has_nothing_more(on: Scene) -> None:
    await on.with_all()
    deaf, last = on.actor("reader-1"), on.actor("fetcher-2")
    deaf.has_place = asyncio.Event()
    last.in_flight = 3
    on.crew.resize(FETCHERS, 2)
    await on.turns(10)
    assert on.actor("reader-0").route_ == ("fetcher-0", "fetcher-1"), "it gets nothing more from that one"
    assert last.ended == 0, "it has documents"
    last.in_flight = 0
    await on.turns(10)
    assert last.ended == 0, "the other reader may still give it some"
    deaf.has_place.set()
    await on.until(lambda: last.ended == 1)
    assert deaf.route_ == ("fetcher-0", "fetcher-1")


async def test_one_that_is_wanted_again_while_it_leaves_comes_back_as_another(on: Scene) -> None:
    await on.with_all()
    on.crew.resize(READERS, 2)
    await on.until(lambda: "leave" in on.actor("reader-2").calls)
    first = on.actor("reader-2")
    on.crew.resize(READERS, 3)
    await on.turns()
    assert on.shown()["reader-2"] == "leaving"
    first.may_leave.set()
    await on.until(lambda: "reader-2" not in on.shown())
    on.crew.resize(READERS, 3)
    await on.until(lambda: on.crew.staff(READERS) == Staff(3))
    assert on.actor("reader-2") is not first
    assert on.crew.shown()["reader-2"]["restarts"] == 0


async def test_a_reader_that_begins_again_is_told_of_the_fetch_workers_anew(on: Scene) -> None:
    await on.with_all()
    on.actor("reader-0").error = ActorDiedError()
    await on.until(lambda: [actor.name for actor in on.lives].count("reader-0") == 2)
    await on.until(lambda: on.actor("reader-0").route_ == ("fetcher-0", "fetcher-1", "fetcher-2"))


async def test_a_fetch_worker_that_died_gets_no_documents_until_it_is_back(on: Scene) -> None:
    await on.with_all()
    on.room = False
    on.actor("fetcher-1").error = ActorDiedError()
    await on.until(lambda: on.actor("reader-0").route_ == ("fetcher-0", "fetcher-2"))
    on.make_room()
    await on.until(lambda: on.actor("reader-0").route_ == ("fetcher-0", "fetcher-1", "fetcher-2"))


async def test_a_drain_waits_for_no_one_without_a_place_and_nobody_comes_after_it(on: Scene) -> None:
    on.room = False
    on.crew.resize(READERS, 2)
    await on.until(lambda: len(on.lives) == 3)
    await on.turns(2)
    assert await on.crew.drain(5.0) == {}
    await on.until(lambda: on.actor("reader-1").ended == 1)
    on.make_room()
    on.crew.resize(READERS, 3)
    await on.turns()
    assert "drain" in on.actor("reader-0").calls
    assert on.crew.staff(READERS) == Staff(0), "not even the third, which was never there"


async def test_another_supervisor_adopts_those_it_wants_and_has_the_others_leave(on: Scene) -> None:
    await on.with_all()
    lives = {actor.name: actor for actor in on.lives}
    heir = Scene()
    heir.now = on.now
    for member in heir.crew._members:
        name = member.name
        object.__setattr__(member.post, "create", lambda _, name=name: lives[name])  # get_if_exists
    heir.crew.remember(on.crew.shown())
    lives["reader-1"].is_leaving = True  # the one before had begun with that, and did not come to write it down
    await heir.turns(2)
    for _ in range(3):
        heir.crew.resize(READERS, 2)
        heir.crew.resize(FETCHERS, 3)
        await heir.turns(2)
    assert lives["fetcher-2"].ended == 0
    assert "leave" in lives["reader-2"].calls
    assert lives["reader-1"].ended >= 1, "it would read nothing"
    lives["reader-2"].may_leave.set()
    await heir.until(lambda: lives["reader-2"].ended == 1)
    await heir.crew.dismiss()

"""The crew against scripted actors: who is created, started, replaced, drained and dismissed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from shoal.cluster import crew as crew_module
from shoal.cluster.crew import Crew
from shoal.cluster.topology import Post
from shoal.errors import ConfigurationError
from shoal.metrics import FetcherStatistics, ReaderStatistics
from shoal.sources.kafka import Connection

PLACE = Connection("127.0.0.1:1", "first-life")


class Method:
    def __init__(self, answer: Callable[..., Awaitable[Any]]) -> None:
        self.remote = answer


@dataclass
class FakeActor:
    """One life of an actor."""

    pid: int
    place: Connection | None = None
    error: BaseException | None = None  # what every call ends with
    is_silent: bool = False
    start_error: BaseException | None = None
    left: int = 0
    started: int = 0
    ended: int = 0
    drained: list[float] = field(default_factory=list)
    rejoined: int = 0

    @property
    def statistics(self) -> Method:
        return Method(self._statistics)

    @property
    def start(self) -> Method:
        return Method(self._start)

    @property
    def drain(self) -> Method:
        return Method(self._drain)

    @property
    def rejoin(self) -> Method:
        return Method(self._rejoin)

    async def _rejoin(self) -> None:
        self.rejoined += 1
        await self._answer()

    async def _answer(self) -> None:
        if self.is_silent:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error

    async def _statistics(self) -> Any:
        await self._answer()
        if self.place is None:
            return FetcherStatistics("fetcher-0", self.pid, 1.0, 0, 0, 0, 0, 0)
        cluster = self.place.cluster
        return ReaderStatistics("reader-0", self.pid, 1.0, (), self.left, 0, None, None, cluster=cluster)

    async def _start(self) -> None:
        self.started += 1
        await self._answer()
        if self.start_error is not None:
            raise self.start_error

    async def _drain(self, timeout_s: float) -> int:
        self.drained.append(timeout_s)
        await self._answer()
        return self.left


@dataclass
class Cluster:
    """Makes actors as Ray would: a name has one holder until that has ended."""

    lives: list[FakeActor] = field(default_factory=list)
    next_error: BaseException | None = None
    gate: threading.Event | None = None

    def create(self, reads: bool) -> Callable[[Connection], FakeActor]:
        def create(place: Connection) -> FakeActor:
            if self.gate is not None:
                assert self.gate.wait(30)
            if self.next_error is not None:
                raise self.next_error
            self.lives.append(FakeActor(100 + len(self.lives), place if reads else None))
            return self.lives[-1]

        return create

    def end(self, actor: FakeActor) -> None:
        actor.ended += 1
        actor.error = ActorDiedError()


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Stage:
    cluster: Cluster
    clock: Clock
    crew: Crew

    async def turn(self, seconds: float = 1.0, place: Connection = PLACE) -> None:
        self.clock.now += seconds
        await self.crew.turn(place)

    @property
    def shown(self) -> dict[str, Any]:
        return next(iter(self.crew.shown().values()))


@pytest.fixture(autouse=True)
def no_waiting_for_the_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "SOON_S", 0.02)


def stage(*, reads: bool = True) -> Stage:
    cluster, clock = Cluster(), Clock()
    post = Post("reader-0" if reads else "fetcher-0", cluster.create(reads), reads=reads, starts=reads)
    return Stage(cluster, clock, Crew([post], 60.0, 300.0, end=cluster.end, clock=clock))


async def up(on: Stage) -> FakeActor:
    for _ in range(100):
        await on.turn(0.1)
        if on.shown["state"] == "running" and (on.cluster.lives[-1].started or on.cluster.lives[-1].place is None):
            return on.cluster.lives[-1]
    raise AssertionError(on.shown)


async def until(on: Stage, true: Callable[[], bool], place: Connection = PLACE) -> None:
    for _ in range(200):
        if true():
            return
        await on.turn(0.2, place)
    raise AssertionError((on.shown, on.crew.problems))


async def test_each_life_is_started_once() -> None:
    on = stage()
    first = await up(on)
    for _ in range(5):
        await on.turn()
    assert first.started == 1
    first.error = ActorDiedError()
    await until(on, lambda: len(on.cluster.lives) == 2 and on.cluster.lives[1].started == 1)
    await until(on, lambda: on.shown["state"] == "running")
    assert on.shown["restarts"] == 1
    assert on.shown["last_restart_at"] is not None
    await on.crew.dismiss()


async def test_a_start_that_is_refused_is_told_and_tried_again() -> None:
    on = stage()
    actor = await up(on)
    actor.error = ActorDiedError()
    refused = RayTaskError("start", "traceback", ConfigurationError("no such bucket"))
    await until(on, lambda: len(on.cluster.lives) == 2)
    second = on.cluster.lives[1]
    second.start_error = refused
    second.started = 0
    on.crew._members[0].is_started = False
    await until(on, lambda: bool(on.crew.refusals))
    assert on.crew.refusals == {"reader-0 start": "no such bucket"}
    second.start_error = None
    await until(on, lambda: not on.crew.refusals and not on.crew.problems)
    await on.crew.dismiss()


async def test_who_hangs_is_ended_by_force_and_replaced() -> None:
    on = stage(reads=False)
    actor = await up(on)
    actor.is_silent = True
    for _ in range(20):
        await on.turn(2.0)
    assert actor.ended == 0
    assert "no answer for" in on.crew.problems["fetcher-0 statistics"]
    for _ in range(20):
        await on.turn(2.0)
    await until(on, lambda: on.shown["state"] == "running")
    assert actor.ended == 1
    assert len(on.cluster.lives) == 2
    assert on.shown["reason"].startswith("hung: no answer for")
    await on.crew.dismiss()


async def test_one_who_can_not_be_created_waits_longer_each_time_and_says_why() -> None:
    on = stage(reads=False)
    on.cluster.next_error = RuntimeError("no node has room")
    await until(on, lambda: on.shown["backoff_s"] > 3)
    assert on.shown["state"] == "crash loop"
    assert on.crew.problems == {"fetcher-0 create": "RuntimeError: no node has room"}
    on.cluster.next_error = None
    await until(on, lambda: on.shown["state"] == "running")
    assert on.crew.problems == {}
    await on.crew.dismiss()


async def test_readers_of_a_broker_that_has_ended_are_replaced() -> None:
    on = stage()
    first = await up(on)
    second_life = Connection("127.0.0.1:2", "second-life")
    await until(on, lambda: len(on.cluster.lives) == 2 and on.shown["state"] == "running", second_life)
    assert first.ended == 1
    assert on.cluster.lives[1].place == second_life
    assert on.shown["reason"] == "it read from a broker that has ended"
    await on.crew.dismiss()


async def test_a_reader_is_asked_to_join_anew_only_while_it_runs() -> None:
    on = stage()
    assert on.crew.readers == ["reader-0"]
    on.crew.rejoin("reader-0")  # nobody is there yet
    reader = await up(on)
    on.crew.rejoin("reader-0")
    on.crew.rejoin("reader-1")
    await on.turn()
    assert reader.rejoined == 1
    await on.crew.dismiss()


async def test_a_drained_reader_is_not_begun_again_and_what_it_left_is_told() -> None:
    on = stage()
    reader = await up(on)
    reader.left = 3
    assert await on.crew.drain(1.0) == {"reader-0": 3}
    reader.error = ActorDiedError()
    for _ in range(10):
        await on.turn()
    assert len(on.cluster.lives) == 1
    assert on.shown["state"] == "drained"
    await on.crew.dismiss()


async def test_a_reader_that_dies_while_it_drains_leaves_what_it_last_had() -> None:
    on = stage()
    reader = await up(on)
    reader.left = 5
    await on.turn()
    reader.error = ActorDiedError()
    assert await on.crew.drain(1.0) == {"reader-0": 5}
    await on.crew.dismiss()


async def test_a_reader_that_hangs_holds_a_drain_no_longer_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "LEAVE_S", 0.05)
    on = stage()
    reader = await up(on)
    reader.left = 2
    await on.turn()
    reader.is_silent = True
    assert await asyncio.wait_for(on.crew.drain(0.05), 30) == {"reader-0": 2}
    await on.crew.dismiss()


async def test_an_actor_that_is_only_being_created_is_dismissed_too() -> None:
    # 1. a turn begins to create; 2. Ray takes its time; 3. the crew is dismissed; 4. Ray is done.
    on = stage()
    on.cluster.gate = threading.Event()
    await on.turn()
    assert not on.cluster.lives
    dismissing = asyncio.create_task(on.crew.dismiss())
    await asyncio.sleep(0)
    on.cluster.gate.set()
    await dismissing
    assert [actor.ended for actor in on.cluster.lives] == [1]
    await on.turn()
    assert len(on.cluster.lives) == 1, "nobody is created any more"


async def test_a_reader_that_is_only_being_created_takes_nothing_after_a_drain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crew_module, "ANSWER_S", 0.1)  # waited out, since nothing comes of the creation
    on = stage()
    on.cluster.gate = threading.Event()
    await on.turn()
    assert await on.crew.drain(1.0) == {}
    on.cluster.gate.set()
    await until(on, lambda: bool(on.cluster.lives))
    for _ in range(5):
        await on.turn()
    assert on.cluster.lives[0].started == 0
    await on.crew.dismiss()
    assert on.cluster.lives[0].ended == 1


async def test_a_reader_that_is_only_being_adopted_is_drained_too() -> None:
    """It lives already, and has work: that this supervisor has no handle of it yet must not hide it."""
    on = stage()
    on.cluster.gate = threading.Event()
    await on.turn()
    draining = asyncio.create_task(on.crew.drain(1.0))
    await asyncio.sleep(0)
    on.cluster.gate.set()
    await draining
    assert [actor.drained for actor in on.cluster.lives] == [[1.0]]
    await on.crew.dismiss()


async def test_a_ray_that_answers_nothing_holds_up_no_turn() -> None:
    on = stage()
    on.cluster.gate = threading.Event()
    for _ in range(5):
        await asyncio.wait_for(on.turn(), 30)
    assert on.shown["state"] == "waiting"
    on.cluster.gate.set()
    await on.crew.dismiss()


async def test_posts_are_exchanged_where_the_collection_has_moved() -> None:
    made: list[tuple[str, str]] = []
    ended: list[Any] = []
    now = 0.0

    def post(name: str, model: str) -> Post:
        def create(_: Connection) -> FakeActor:
            made.append((name, model))
            return FakeActor(pid=len(made))

        return Post(name, create)

    crew = Crew([post("writer", "old"), post("embedder", "old")], 30.0, 30.0, end=ended.append, clock=lambda: now)
    await crew.turn(PLACE)
    await crew.turn(PLACE)
    assert sorted(made) == [("embedder", "old"), ("writer", "old")]
    assert crew.is_whole
    others = [post("writer", "new"), post("embedder", "new")]
    assert crew.exchange(others, "the collection has moved")
    assert not crew.is_whole, "until each of them answers in its new life"
    now += 2.0
    await crew.turn(PLACE)
    await crew.turn(PLACE)
    assert crew.is_whole
    assert sorted(made)[::2] == [("embedder", "new"), ("writer", "new")]
    assert len(ended) == 2
    assert crew.exchange(others, "the collection has moved")  # nothing more to do
    now += 2.0
    await crew.turn(PLACE)
    assert len(made) == 4
    assert len(ended) == 2
    await crew.dismiss()

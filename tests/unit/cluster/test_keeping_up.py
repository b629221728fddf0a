"""`shoal up` keeps the broker and the cluster up: what dies is started again in place, and said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.cluster import runtime
from shoal.cluster.hosting import Plan
from shoal.cluster.runtime import PROBE_S, SILENT_S, Running
from shoal.errors import ConfigurationError, ShoalError, TransientError
from shoal.settings import load


@dataclass
class FakeHost:
    pid: int
    is_ready: bool = True
    failure: ShoalError | None = None
    ended: list[str] = field(default_factory=list)
    step: str = ""

    def listen(self) -> None: ...

    def trouble(self) -> ShoalError | None:
        return self.failure

    def kill(self) -> None:
        self.ended.append("killed")

    def stop(self) -> None:
        self.ended.append("stopped")


class FakeBroker:
    def __init__(self, pid: int) -> None:
        self.code: int | None = None
        self.stopped = 0
        self.process = SimpleNamespace(pid=pid, poll=lambda: self.code)

    def stop(self) -> None:
        self.stopped += 1


class World:
    """A service whose parts are fakes; `turn` is one look of `shoal up` a while later."""

    def __init__(self, directory: Path, brokers: str = "") -> None:
        self.now = 1000.0
        self.hosts: list[FakeHost] = []
        self.brokers: list[FakeBroker] = []
        self.broker_error: ShoalError | None = None
        self.starts_ready = True
        self.answers = True
        self.said: list[str] = []
        settings = load(data_dir=directory, kafka_brokers=brokers)
        claim = (directory / "claim").open("a")
        self.running = Running(Plan(settings, "hash:8", 8, "proxy", "http://127.0.0.1:9", "life"), claim)

    def host(self, _: Plan) -> FakeHost:
        self.hosts.append(FakeHost(100 + len(self.hosts), self.starts_ready))
        return self.hosts[-1]

    def broker(self, _: Any) -> FakeBroker:
        if self.broker_error is not None:
            raise self.broker_error
        self.brokers.append(FakeBroker(200 + len(self.brokers)))
        return self.brokers[-1]

    def begin(self) -> None:
        if self.running.settings.is_embedded:
            self.running.start_broker()
        self.running.start_host()
        self.running.became_ready()

    def turn(self, seconds: float = 0.5) -> None:
        self.now += seconds
        self.running.keep_up(self.said.append)
        if self.running._probe is not None:
            self.running._probe.exception()  # wait for it: its answer counts at the next turn


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    monkeypatch.setattr(runtime, "Host", made.host)
    monkeypatch.setattr(runtime, "start_broker", made.broker)
    monkeypatch.setattr(runtime, "_answers", lambda _: made.answers)
    monkeypatch.setattr(runtime, "time", SimpleNamespace(monotonic=lambda: made.now))
    yield made
    made.running.stop()


def test_what_runs_well_is_left_alone(world: World) -> None:
    world.begin()
    for _ in range(3000):
        world.turn()
    assert (len(world.hosts), len(world.brokers), world.said) == (1, 1, [])


def test_a_broker_that_ends_is_started_again_without_touching_the_cluster(world: World) -> None:
    world.begin()
    world.brokers[0].code = -9
    world.turn()
    assert len(world.brokers) == 2
    assert len(world.hosts) == 1
    assert world.said[0].startswith("the embedded broker has ended; nothing announced is lost")
    assert world.said[-1] == "the embedded broker is back"


def test_a_broker_that_can_not_start_is_tried_less_and_less_often(world: World) -> None:
    world.begin()
    world.brokers[0].code = 1
    world.broker_error = ConfigurationError("the journal can't be read")
    for _ in range(240):
        world.turn()
    tries = [line for line in world.said if line.startswith("the journal can't be read")]
    assert 5 <= len(tries) <= 9, "1, 2, 4, 8, ... s apart"
    world.broker_error = None
    for _ in range(130):
        world.turn()
    assert world.said[-1] == "the embedded broker is back"


def test_a_head_that_dies_is_started_again_with_all_that_hung_on_it(world: World) -> None:
    world.begin()
    world.hosts[0].failure = TransientError("Ray's head process has died")
    world.turn()
    assert world.hosts[0].ended == ["killed"]
    assert len(world.hosts) == 2
    world.turn()
    assert world.said[0] == "Ray's head process has died: Ray and Serve are started again"
    assert world.said[1].startswith("Shoal is back after")


def test_a_cluster_that_never_starts_backs_off_and_says_why_each_time(world: World) -> None:
    world.begin()
    world.starts_ready = False
    for _ in range(240):
        world.hosts[-1].failure = TransientError("Ray did not start: no memory")
        world.turn()
    whys = [line for line in world.said if line.startswith("Ray did not start: no memory")]
    pauses = [line.rpartition(" in ")[2] for line in whys[1:6]]
    assert pauses == ["2 s", "4 s", "8 s", "16 s", "32 s"]


def test_no_cluster_is_started_without_its_broker(world: World) -> None:
    world.begin()
    world.brokers[0].code = 1
    world.broker_error = TransientError("the embedded broker was not ready")
    world.hosts[0].failure = TransientError("Ray's head process has died")
    for _ in range(10):
        world.turn()
    assert len(world.hosts) == 1
    world.broker_error = None
    for _ in range(130):
        world.turn()
    assert len(world.hosts) == 2


def test_a_cluster_that_lives_but_answers_nothing_is_replaced_after_a_while(world: World) -> None:
    world.begin()
    for _ in range(100):
        world.turn()
    world.answers = False
    began = world.now
    while len(world.hosts) == 1 and world.now < began + 10 * SILENT_S:
        world.turn()
    assert SILENT_S - PROBE_S <= world.now - began <= SILENT_S + 2 * PROBE_S
    assert world.said[0].startswith("hung: no answer for")


def test_a_stop_ends_the_cluster_before_its_broker(world: World) -> None:
    order: list[str] = []
    world.begin()
    world.hosts[0].stop = lambda: order.append("cluster")  # type: ignore[method-assign]
    world.brokers[0].stop = lambda: order.append("broker")  # type: ignore[method-assign]
    world.running.stop()
    assert order == ["cluster", "broker"], "draining commits to it"

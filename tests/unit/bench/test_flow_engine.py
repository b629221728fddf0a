"""The simulation's engine against what queueing theory knows, and against itself."""

from __future__ import annotations

import math
import random

import pytest

from bench.flow.engine import Cores, Engine, Level, Station


def _busy(servers: int, load: float, seconds: float, seed: int = 1) -> tuple[Station, float]:
    """A station with Poisson arrivals and exponential services of mean 1; the offered load and what it did."""
    engine, rng = Engine(), random.Random(seed)
    station = Station(engine, "it", servers)

    def arrive() -> None:
        station.submit(rng.expovariate(1.0), lambda: None)
        engine.after(rng.expovariate(load), arrive)

    engine.at(0.0, arrive)
    engine.run(seconds / 10)
    station.restart()
    engine.run(seconds)
    return station, engine.now - seconds / 10


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_server_waits_as_m_m_1_does(load: float) -> None:
    station, _ = _busy(1, load, 40_000)
    assert station.utilisation() == pytest.approx(load, rel=0.03)
    assert station.queue.mean(station.engine.now) == pytest.approx(load**2 / (1 - load), rel=0.1)
    assert station.sojourn_s / station.served == pytest.approx(1 / (1 - load), rel=0.1)


def test_several_servers_wait_as_erlang_c_says() -> None:
    servers, load = 4, 3.0
    station, _ = _busy(servers, load, 15_000)
    tail = load**servers / math.factorial(servers) * servers / (servers - load)
    waits = tail / (sum(load**n / math.factorial(n) for n in range(servers)) + tail)
    assert station.queue.mean(station.engine.now) == pytest.approx(waits * load / (servers - load), rel=0.1)


def test_littles_law_holds_on_a_station() -> None:
    station, seconds = _busy(3, 2.4, 10_000)
    present = station.queue.mean(station.engine.now) + station.working.mean(station.engine.now)
    assert present == pytest.approx(station.served / seconds * station.sojourn_s / station.served, rel=0.01)


def test_stations_on_the_same_cores_do_no_more_than_these_can() -> None:
    engine = Engine()
    cores = Cores(engine, "two", 2)
    stations = [Station(engine, name, 2, cores) for name in "abc"]
    ended: list[float] = []
    for station in stations:
        for _ in range(2):
            station.submit(1.0, lambda: ended.append(engine.now))
    engine.run(10.0)
    assert ended == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert cores.utilisation() == pytest.approx(0.3)


def test_what_is_due_at_one_moment_happens_in_the_order_it_was_asked_for() -> None:
    engine, seen = Engine(), list[str]()
    engine.at(1.0, lambda: seen.append("first"))
    engine.at(1.0, lambda: seen.append("second"))
    engine.at(0.5, lambda: engine.at(0.0, lambda: seen.append("late is now")))
    engine.run(1.0)
    assert seen == ["late is now", "first", "second"]


def test_a_level_is_a_mean_over_time_and_forgets_at_a_restart() -> None:
    level = Level()
    level.add(2, 0.0)
    level.add(2, 1.0)
    assert level.mean(2.0) == 3.0
    level.restart(2.0)
    level.add(-4, 3.0)
    assert (level.mean(4.0), level.highest) == (2.0, 4.0)

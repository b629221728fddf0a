"""Supervision on the real thing: whatever is killed, stopped or lost under `shoal up`, indexing goes on.

One service for all of it, on the embedded defaults. Each test leaves it whole: the next one stands on it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from shoal.cluster.announcing import Announcer
from shoal.faults import DIRECTORY_VARIABLE
from shoal.settings import load
from shoal.sources.publishing import prepare
from tests.fixtures.stack import Stack

HANG_S, LEASE_S = 8, 10
GUARD_S = 240.0
"""A guard against hanging, not a measure of recovery: test machines are busy."""
pytestmark = pytest.mark.timeout(2 * GUARD_S)


class Service:
    """A running `shoal up` and what a person would ask it."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.published = 0
        self.faults = stack.directory / "faults"
        self.faults.mkdir(exist_ok=True)

    def status(self) -> dict[str, Any]:
        return dict(self.stack.get("/api/v1/ingest")["ingest"])

    def actors(self) -> dict[str, Any]:
        return dict(self.status()["actors"])

    def wait(self, true: Callable[[], Any]) -> None:
        """Until `true()`; that nothing answers meanwhile is part of it."""
        deadline, last = time.monotonic() + GUARD_S, None
        while time.monotonic() < deadline:
            try:
                if true():
                    return
            except (httpx.HTTPError, psutil.Error, KeyError) as error:
                last = error
            time.sleep(0.2)
        raise AssertionError(f"not within {GUARD_S} s ({last})\n{self.stack.log()}")

    def replaced(self, before: dict[str, Any], *names: str) -> None:
        """Until each of `names` runs as another process than `before`."""

        def true() -> bool:
            now = self.actors()
            return all(now[name]["state"] == "running" and now[name]["pid"] != before[name]["pid"] for name in names)

        self.wait(true)

    def indexes(self) -> None:
        """A document announced now is indexed."""
        self.published += 1
        place = self.stack.directory / f"in-{self.published}"
        place.mkdir()
        (place / f"{self.published}.json").write_text(json.dumps({"load_mw": self.published}))
        settings = load(data_dir=self.stack.directory / "data")
        with Announcer(settings, listen=True) as announcer:
            announcer.send(prepare([place], settings, source="x", dataset="d"))
            assert announcer.wait(GUARD_S), self.stack.log()
        assert announcer.tally.outcomes == {"indexed": 1}, announcer.tally

    def processes(self, part: str) -> list[psutil.Process]:
        """Of this service, by a part of their command line."""
        return [
            process
            for process in psutil.Process(self.stack.pid).children(recursive=True)
            if part in " ".join([process.name(), *process.cmdline()])
        ]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("supervision")
    environment = {
        DIRECTORY_VARIABLE: str(directory / "faults"),
        "SHOAL_EMBEDDING_PROVIDER": "hash",
        "SHOAL_HANG_S": str(HANG_S),
        "SHOAL_LEASE_S": str(LEASE_S),
    }
    with Stack(directory, environment) as stack:
        service = Service(stack)
        service.wait(lambda: all(actor["state"] == "running" for actor in service.actors().values()))
        yield service


def test_every_actor_that_is_killed_is_replaced_and_indexing_goes_on(service: Service) -> None:
    before = service.actors()
    for actor in before.values():
        os.kill(actor["pid"], signal.SIGKILL)
    service.replaced(before, *before)
    now = service.actors()
    assert all(now[name]["restarts"] == before[name]["restarts"] + 1 for name in before)
    assert {actor["reason"] for actor in now.values()} == {"its process ended"}
    service.indexes()


def test_actors_that_are_stopped_are_replaced_after_the_bound(service: Service) -> None:
    before = service.actors()
    stopped = ("writer", "reader-0")
    for name in stopped:
        os.kill(before[name]["pid"], signal.SIGSTOP)
    service.replaced(before, *stopped)
    now = service.actors()
    for name in stopped:
        assert now[name]["reason"].startswith("hung: no answer for")
    # A stopped process takes no SIGTERM: it must not be left behind, holding memory and its place in the group.
    service.wait(lambda: not any(_lives(before[name]["pid"]) for name in stopped))
    service.indexes()


def test_a_crash_loop_backs_off_is_shown_with_its_reason_and_ends_by_itself(service: Service) -> None:
    before = service.actors()
    armed = service.faults / "writer.opening"
    os.kill(before["writer"]["pid"], signal.SIGKILL)
    seen: list[dict[str, Any]] = []

    def backs_off() -> bool:
        armed.touch()  # each life claims it anew, and ends as it opens the tables
        actor = service.actors()["writer"]
        if actor["state"] == "crash loop":
            seen.append(actor)
        return any(actor["backoff_s"] > 1.0 for actor in seen)  # the first pause is of 1 s, the second of 2 s

    service.wait(backs_off)
    armed.unlink(missing_ok=True)
    assert seen[-1]["restarts"] > before["writer"]["restarts"]
    assert seen[-1]["reason"] == "its process ended"
    service.wait(lambda: service.actors()["writer"]["state"] == "running" and service.status()["writer"]["epoch"])
    service.indexes()


def test_a_supervisor_that_is_killed_is_replaced_and_adopts_the_actors(service: Service) -> None:
    before = service.status()
    for process in service.processes("ServeReplica:ingest:Supervisor"):
        process.kill()
    service.wait(lambda: service.status()["started_at"] != before["started_at"])
    service.wait(lambda: all(actor["state"] == "running" for actor in service.actors().values()))
    now = service.actors()
    for name, actor in before["actors"].items():
        assert (now[name]["pid"], now[name]["restarts"]) == (actor["pid"], actor["restarts"])
    service.indexes()


def test_actors_that_nobody_leads_end_themselves(service: Service) -> None:
    # 1. Serve can't restart anything; 2. the supervisor is killed, so nothing drains; 3. the leases run out.
    before = service.actors()
    (controller,) = service.processes("ServeController")
    controller.suspend()
    try:
        for process in service.processes("ServeReplica:ingest:Supervisor"):
            process.kill()
        service.wait(lambda: not any(_lives(actor["pid"]) for actor in before.values()))
    finally:
        controller.resume()
    service.replaced(before, *before)
    service.indexes()


def test_indexing_goes_on_after_the_embedded_broker_was_killed(service: Service) -> None:
    before = service.status()["cluster"]
    (broker,) = service.processes("shoal.cluster.embedded_broker")
    broker.kill()
    service.wait(lambda: service.status()["cluster"] != before)
    service.wait(lambda: all(reader["cluster"] != before for reader in service.status()["readers"]))
    service.indexes()
    assert "the embedded broker is back" in service.stack.log()


@pytest.mark.parametrize("victim", ["gcs_server", "raylet"])
def test_the_service_returns_after_its_head_was_killed(service: Service, victim: str) -> None:
    pid, before = service.stack.pid, service.status()["started_at"]
    (head,) = [process for process in service.processes(victim) if process.name() == victim]
    head.kill()
    service.wait(lambda: service.status()["started_at"] != before)
    service.wait(lambda: all(actor["state"] == "running" for actor in service.actors().values()))
    assert service.stack.pid == pid, "in place"
    service.indexes()


def test_a_drain_ends_what_is_in_flight_takes_nothing_new_and_queries_go_on(service: Service, tmp_path: Path) -> None:
    # Last: only a restart reads on.
    done = service.stack.run("drain", "--timeout", "60", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"state": "drained", "left": {}}
    (tmp_path / "late.json").write_text("{}")
    assert service.stack.run("publish", str(tmp_path), "--source", "x").returncode == 0
    assert service.stack.get("/api/v1/scrapes/search", dataset="d", limit=200)["count"] == service.published
    readers = [actor for name, actor in service.actors().items() if name.startswith("reader")]
    assert [actor["state"] for actor in readers] == ["drained"] * len(readers)


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False

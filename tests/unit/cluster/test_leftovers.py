"""Leftovers: only an orphaned HAProxy of this very stack is ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from shoal.cluster import leftovers
from shoal.cluster.ray_environment import haproxy_directory
from shoal.settings import Settings, load


@dataclass
class Process:
    """As psutil shows one."""

    pid: int
    called: str
    command: Sequence[str] = ()
    family: Sequence[Process] = ()
    is_stubborn: bool = False
    ended: list[str] = field(default_factory=list)

    @property
    def info(self) -> dict[str, Any]:
        return {"name": self.called, "cmdline": list(self.command)}

    def name(self) -> str:
        return self.called

    def parents(self) -> Sequence[Process]:
        return self.family

    def terminate(self) -> None:
        self.ended.append("TERM")

    def kill(self) -> None:
        self.ended.append("KILL")


class Gone(Process):
    def parents(self) -> Sequence[Process]:
        raise psutil.NoSuchProcess(self.pid)


class Fading(Process):
    def terminate(self) -> None:
        super().terminate()
        raise psutil.NoSuchProcess(self.pid)

    def kill(self) -> None:
        super().kill()
        raise psutil.NoSuchProcess(self.pid)


@pytest.fixture
def settings() -> Settings:
    return load(http_port=8123)


def ended(settings: Settings, process: Process, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def wait(processes: Sequence[Process], timeout: float) -> tuple[list[Process], list[Process]]:
        return [], [each for each in processes if each.is_stubborn]

    monkeypatch.setattr(leftovers.psutil, "process_iter", lambda _: [process])
    monkeypatch.setattr(leftovers.psutil, "wait_procs", wait)
    count = leftovers.end_leftovers(settings)
    assert count == bool(process.ended)
    return process.ended


def command(settings: Settings) -> list[str]:
    return ["/x/haproxy", "-f", str(haproxy_directory(settings) / "haproxy.cfg")]


INIT = Process(1, "init")


def test_a_proxy_of_ours_whose_ray_is_dead_is_ended(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(settings, Process(9, "haproxy", command(settings), [INIT]), monkeypatch) == ["TERM"]


def test_one_that_does_not_end_is_killed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = Process(9, "haproxy", command(settings), [INIT], is_stubborn=True)
    assert ended(settings, stubborn, monkeypatch) == ["TERM", "KILL"]


@pytest.mark.parametrize("owner", ["shoal", "python3.11"])
def test_the_proxy_of_a_service_that_runs_is_left_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    family = [Process(8, "ray::HAProxyManager"), Process(7, "raylet"), Process(6, owner), INIT]
    assert ended(settings, Process(9, "haproxy", command(settings), family), monkeypatch) == []


def test_the_proxy_of_a_raylet_without_its_service_is_ended(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = [Process(8, "ray::HAProxyManager"), Process(7, "raylet"), INIT]
    assert ended(settings, Process(9, "haproxy", command(settings), family), monkeypatch) == ["TERM"]


def test_other_proxies_and_other_programs_are_left_alone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    other = command(settings.model_copy(update={"http_port": 8124}))
    assert ended(settings, Process(9, "haproxy", other, [INIT]), monkeypatch) == []
    assert ended(settings, Process(9, "haproxy", ["haproxy", "-f", "/etc/haproxy.cfg"], [INIT]), monkeypatch) == []
    assert ended(settings, Process(9, "vim", command(settings), [INIT]), monkeypatch) == []


def test_one_that_ends_by_itself_meanwhile_is_no_error(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(settings, Gone(9, "haproxy", command(settings)), monkeypatch) == []


def test_one_that_is_gone_when_it_is_ended_is_no_error(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fading = Fading(9, "haproxy", command(settings), [INIT], is_stubborn=True)
    assert ended(settings, fading, monkeypatch) == ["TERM", "KILL"]

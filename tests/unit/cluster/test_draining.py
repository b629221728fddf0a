"""Drain on request: who asks is heard by the service that lives now, and is told what did not end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster.cli import main
from shoal.cluster.draining import JOIN_NOTICE_S, NOTICE_S, join_drain, request_drain, wanted
from shoal.cluster.living import SILENT_S
from shoal.cluster.output import Exit
from shoal.errors import TransientError
from shoal.settings import Settings, load
from shoal.store.state_files import write_state


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(data_dir=tmp_path)


class Supervisor:
    """Writes a status each time the asker pauses, as the real one does every 2 s."""

    def __init__(self, settings: Settings, *, turns: int = 2, left: dict[str, int] | None = None) -> None:
        self.settings, self.turns, self.left = settings, turns, left or {}
        self.now = 0.0
        self.life = "life-1"
        self.write(None)

    def write(self, drain: dict[str, Any] | None, *, age_s: float = 0.0) -> None:
        at = datetime.now(UTC) - timedelta(seconds=age_s)
        readers = [{"name": "reader-0", "in_flight_items": 4}, {"name": "reader-1", "in_flight_items": 0}]
        status = {"at": at.isoformat(), "life": self.life, "drain": drain, "readers": readers}
        write_state(self.settings, "status.json", status)

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.turns -= 1
        request = wanted(self.settings, self.life)
        if request is None:
            self.write(None)
        elif self.turns > 0:
            self.write({"id": request.id, "state": "draining", "left": {}})
        else:
            self.write({"id": request.id, "state": "drained", "left": self.left})

    def ask(self, timeout_s: float = 30.0) -> dict[str, Any]:
        return request_drain(self.settings, timeout_s, pause=self.pause, clock=lambda: self.now)


def test_a_drain_ends_when_the_supervisor_says_so(settings: Settings) -> None:
    assert Supervisor(settings).ask() == {"state": "drained", "left": {}}


def test_what_did_not_end_in_time_is_told(settings: Settings) -> None:
    assert Supervisor(settings, left={"reader-1": 2}).ask() == {"state": "drained", "left": {"reader-1": 2}}


def test_a_drain_that_is_never_done_is_given_up_after_the_timeout(settings: Settings) -> None:
    supervisor = Supervisor(settings, turns=10**9)
    assert supervisor.ask(timeout_s=5.0) == {"state": "draining", "left": {"reader-0": 4}}
    assert 5.0 + NOTICE_S <= supervisor.now <= 5.0 + NOTICE_S + 1


def test_who_asks_again_waits_for_the_same_drain(settings: Settings) -> None:
    supervisor = Supervisor(settings, turns=10**9)
    supervisor.ask(timeout_s=1.0)
    first = wanted(settings, "life-1")
    supervisor.turns = 2
    assert supervisor.ask() == {"state": "drained", "left": {}}
    assert wanted(settings, "life-1") == first


def test_a_request_does_not_outlive_the_service_that_it_was_for(settings: Settings) -> None:
    Supervisor(settings).ask()
    assert wanted(settings, "life-1") is not None
    assert wanted(settings, "life-2") is None


def test_a_service_that_is_restarted_meanwhile_is_not_taken_for_a_drained_one(settings: Settings) -> None:
    supervisor = Supervisor(settings, turns=10**9)

    def pause(seconds: float) -> None:
        supervisor.life = "life-2"
        supervisor.write(None)

    with pytest.raises(TransientError, match="restarted"):
        request_drain(settings, 5.0, pause=pause, clock=lambda: 0.0)


def test_where_nobody_indexes_there_is_nothing_to_drain(settings: Settings) -> None:
    with pytest.raises(TransientError, match="nothing to drain"):
        request_drain(settings, 5.0)
    Supervisor(settings).write(None, age_s=SILENT_S + 1)
    with pytest.raises(TransientError, match="its last status is"):
        request_drain(settings, 5.0)


def test_the_command_tells_a_service_that_is_not_there_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["shoal", "drain", "--data-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == Exit.UNREACHABLE
    assert "nothing to drain" in " ".join(capsys.readouterr().err.split())


def test_who_joins_a_drain_asks_for_none_and_waits_for_another(settings: Settings) -> None:
    supervisor = Supervisor(settings)

    def join() -> dict[str, Any]:
        return join_drain(settings, 30.0, pause=supervisor.pause, clock=lambda: supervisor.now)

    assert join() == {"state": "none", "left": {}}
    assert wanted(settings, supervisor.life) is None, "it asked"
    assert JOIN_NOTICE_S <= supervisor.now < JOIN_NOTICE_S + 1, "it went before the head could have asked"
    supervisor.turns = 4
    write_state(settings, "drain.json", {"id": "of-the-head", "life": supervisor.life, "timeout_s": 10})
    assert join() == {"state": "drained", "left": {}}


def test_who_joins_goes_when_a_new_service_has_begun(settings: Settings) -> None:
    supervisor = Supervisor(settings)

    def pause(seconds: float) -> None:
        supervisor.life = "life-2"
        supervisor.pause(seconds)

    assert join_drain(settings, 30.0, pause=pause, clock=lambda: supervisor.now)["state"] == "none"

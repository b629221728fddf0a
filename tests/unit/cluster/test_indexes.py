"""`shoal index`: what it shows of the state beside the tables, and how it asks and waits."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.cluster import indexes
from shoal.cluster.cli_index import index_app
from shoal.cluster.output import Exit, Format
from shoal.errors import ConfigurationError, TransientError
from shoal.settings import Settings
from shoal.store.index_state import STATE, IndexRecord, IndexState
from shoal.store.state_files import write_state

NOW = datetime(2025, 1, 20, 15, 0, tzinfo=UTC)


class Log:
    """A producer that keeps what it is given, and what the writer makes of it."""

    def __init__(self, settings: Settings, answers: list[dict[str, Any]]) -> None:
        self.sent: list[dict[str, Any]] = []
        self._settings, self._answers = settings, answers

    def send(self, topic: str, key: bytes, value: bytes) -> None:
        assert topic == self._settings.command_topic
        self.sent.append(json.loads(value))

    def flush(self, timeout_s: float) -> None:
        self.go_on()

    def go_on(self, _: float = 0.0) -> None:
        if self._answers:
            write_state(self._settings, STATE, {"requests": {self.sent[0]["command_id"]: self._answers.pop(0)}})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(lancedb_path=str(tmp_path / "tables"))


def alive(settings: Settings) -> None:
    write_state(settings, "status.json", {"at": datetime.now(UTC).isoformat()})


def state(settings: Settings, **record: Any) -> None:
    made = IndexState(
        settings, build={"what": "train", "column": "content_embedding", "stage": "shuffle", "completed": 5}
    )
    made.tables["vectors"] = {"content_embedding": IndexRecord(kind="IVF_PQ", rows=25_000, why="up to date", **record)}
    made.publish(NOW)


def test_the_state_is_shown_and_a_defect_makes_the_exit_code_say_no(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    state(settings, verified={"after": "folding", "at": "2025-01-20T15:00:00Z", "outcome": "ok"})
    assert indexes.show(settings, Format.table) == Exit.OK
    shown = capsys.readouterr()
    assert "25000" in shown.out
    assert "train content_embedding, shuffle 5" in shown.err
    state(settings, verified={"after": "folding", "at": "2025-01-20T15:00:00Z", "outcome": "a gap"})
    assert indexes.show(settings, Format.table) == Exit.FAILED
    assert "a gap" in capsys.readouterr().err
    state(settings, failures=1)
    assert indexes.show(settings, Format.json) == Exit.FAILED
    assert json.loads(capsys.readouterr().out)["tables"]["vectors"]["content_embedding"]["failures"] == 1


def test_tables_that_no_writer_described_are_an_error_that_says_what_to_do(settings: Settings) -> None:
    with pytest.raises(TransientError, match="shoal up"):
        indexes.show(settings, Format.table)


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ([{"state": "waiting", "detail": ""}, {"state": "done", "detail": "built"}], Exit.OK),
        ([{"state": "failed", "detail": "no"}], Exit.FAILED),
        ([{"state": "building", "detail": ""}], Exit.TIMEOUT),
        ([], Exit.TIMEOUT),
    ],
)
def test_a_wish_is_one_command_and_its_outcome_is_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    answers: list[dict[str, Any]], code: Exit,
) -> None:  # fmt: skip
    alive(settings)
    log, ticks = Log(settings, answers), iter(range(1_000))
    monkeypatch.setattr(indexes, "open_producer", lambda _: log)
    found = indexes.request(
        settings, "index_rebuild", ["content_embedding"], 20, Format.json, pause=log.go_on, clock=lambda: next(ticks)
    )
    assert found == code
    (sent,) = log.sent
    assert (sent["kind"], sent["collection"], sent["body"]) == (
        "index_rebuild", "scraper", {"columns": ["content_embedding"]},
    )  # fmt: skip
    assert json.loads(capsys.readouterr().out)["command_id"] == sent["command_id"]


def test_nothing_is_asked_where_nobody_would_do_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "open_producer", lambda _: pytest.fail("nothing may be sent"))
    with pytest.raises(TransientError, match="nothing to ask"):
        indexes.request(settings, "index_rebuild", [], 1, Format.table)
    with pytest.raises(ConfigurationError, match="content_summary"):
        indexes.request(settings, "index_rebuild", ["fence"], 1, Format.table)


def test_each_command_says_how_it_is_used() -> None:
    for name in ("status", "rebuild", "optimize"):
        assert CliRunner().invoke(index_app, [name, "--help"]).exit_code == 0

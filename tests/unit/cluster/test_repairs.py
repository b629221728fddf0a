"""`shoal check --repair`: findings into commands and lines, and a writer that does what they say."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster import checking
from shoal.cluster.checking import check
from shoal.cluster.output import Exit, Format
from shoal.cluster.repairs import LINES_MAX, ask, lines, wanted_of
from shoal.errors import TransientError
from shoal.records import Position
from shoal.settings import Settings
from shoal.sources.commands import CommandBody
from shoal.store.fsck import Code, Finding, Subject
from shoal.store.repairing import NAMES_MAX, Wanted
from shoal.store.state_files import write_state
from shoal.store.writing import TableWriter
from tests.fixtures import damage
from tests.fixtures.damage import FIXES, JOBS, METADATA, VECTORS, A
from tests.fixtures.documents import command, document


def at(offset: int, partition: int = 0, cluster: str = "here") -> Position:
    return Position(cluster, "topic", partition, offset, 0)


def finding(code: Code, table: str, *subjects: Subject) -> Finding:
    return Finding(code, table, len(subjects), list(subjects))


def test_what_the_writer_can_mend_is_asked_once_by_name() -> None:
    found = [
        finding(Code.DUPLICATE_KEY, METADATA, Subject(A), Subject("b")),
        finding(Code.ORPHAN_CHUNKS, VECTORS, Subject(A), Subject(A)),
        finding(Code.DUPLICATE_KEY, FIXES, Subject("c1")),
        finding(Code.DUPLICATE_KEY, JOBS, Subject("c2")),
        finding(Code.INDEX_INCOMPLETE, VECTORS, Subject("id_idx")),
        finding(Code.CHUNKS_MISSING, VECTORS, Subject("not asked")),
        finding(Code.LEAKED_FILES, VECTORS, Subject("nor this")),
    ]
    assert wanted_of(found) == [Wanted((A, "b"), ("c1",), ("c2",), (("vectors", "id_idx"),))]
    assert wanted_of([]) == []


def test_commands_are_bounded_in_names_and_bytes() -> None:
    many = [Subject(f"{n}") for n in range(2 * NAMES_MAX + 1)]
    assert [len(each.documents) for each in wanted_of([finding(Code.ORPHAN_CHUNKS, VECTORS, *many)])] == [
        NAMES_MAX, NAMES_MAX, 1,
    ]  # fmt: skip
    long = [Subject(f"{n}" + "x" * 4000) for n in range(120)]
    parts = wanted_of([finding(Code.ORPHAN_CHUNKS, VECTORS, *long)])
    assert sum(len(each.documents) for each in parts) == 120
    assert all(len(json.dumps(each.body())) < 250_000 for each in parts)


def test_lines_join_what_lies_close_and_leave_other_clusters_to_the_objects() -> None:
    subjects = [
        Subject("p:d:a", position=at(5)), Subject("p:d:b", position=at(7)), Subject("p:d:c", position=at(100)),
        Subject("p:d:e", position=at(5, partition=1)),
        Subject("prod:ds:f", position=at(9, cluster="before"), s3_path="s3://b/k/f"), Subject("p:d:g"),
    ]  # fmt: skip
    made, hidden = lines([finding(Code.CHUNKS_MISSING, VECTORS, *subjects)], "here")
    assert made == [
        "shoal replay --from-offset topic/0:5-7 --wait",
        "shoal replay --from-offset topic/0:100-100 --wait",
        "shoal replay --from-offset topic/1:5-5 --wait",
        "shoal backfill s3://b/k/f --urn name --environment prod --dataset ds --source SOURCE",
        "# announce p:d:g again: nothing says where it came from",
    ]
    assert hidden == 0
    many = [Subject(str(n), position=at(100 * n)) for n in range(LINES_MAX + 7)]
    made, hidden = lines([finding(Code.VECTOR_ZERO, VECTORS, *many)], None)
    assert (len(made), hidden) == (LINES_MAX, 7)


def test_foreign_text_in_a_line_is_one_word_of_the_shell() -> None:
    subject = Subject("prod:a$(id)b:f", s3_path="s3://b/it's; rm -rf ~.json")
    ((made,), _) = lines([finding(Code.CHUNKS_MISSING, VECTORS, subject)], "here")
    assert shlex.split(made)[:3] == ["shoal", "backfill", "s3://b/it's; rm -rf ~.json"]
    assert shlex.split(made)[-4:] == ["--dataset", "a$(id)b", "--source", "SOURCE"]
    assert "'a$(id)b'" in made
    subject = Subject("no\nid: $(id)")
    ((made,), _) = lines([finding(Code.CHUNKS_MISSING, VECTORS, subject)], "here")
    assert "\n" not in made


class Log:
    """A log of which a writer takes every command as soon as it is durable."""

    def __init__(self, writer: TableWriter) -> None:
        self.writer = writer
        self.sent: list[bytes] = []

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Any = ()) -> None:
        assert (topic, key) == ("shoal_commands", b"scraper")
        assert value is not None
        self.sent.append(value)

    def flush(self, timeout_s: float) -> None:
        for offset, value in enumerate(self.sent):
            body = CommandBody.model_validate_json(value)
            self.writer.apply([command(body.command_id, body.kind, body.body, offset=offset)], (), damage.NOW)
        damage.upkeep(self.writer)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    place = str(tmp_path / "lancedb")
    writer = damage.open_writer(place)
    writer.apply([document(A, 110), document(A, 111, version="v2", content="2", chunks=3)], (), damage.NOW)
    return Settings(lancedb_path=place, data_dir=tmp_path)


def alive(settings: Settings) -> None:
    write_state(settings, "status.json", {"at": datetime.now(UTC).isoformat()})


def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> int:
    log = Log(damage.open_writer(settings.tables_uri))

    def asked(given: Settings, wanted: list[Wanted], timeout_s: float, progress: Callable[[str], None]) -> Any:
        return ask(given, wanted, timeout_s, progress, producer=log)

    monkeypatch.setattr(checking, "ask", asked)
    return check(settings, leaked_age_s=None, shown_max=3, form=Format.json, repair=True, timeout_s=5)


def test_a_repair_mends_what_it_can_and_looks_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alive(settings)
    damage.orphan(settings.tables_uri)
    damage.twice(METADATA, f"revision = '{A}@v2'")(settings.tables_uri)
    assert run(settings, monkeypatch) == Exit.OK
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["ok"] is True
    assert [job["status"] for job in found["repairs"]] == ["done"]
    assert "removed 1 rows of metadata, 1 rows of vectors" in said.err


def test_what_only_a_message_can_mend_is_printed_as_a_line(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alive(settings)
    damage.chunk_gone(settings.tables_uri)
    assert run(settings, monkeypatch) == Exit.FAILED
    found = json.loads(capsys.readouterr().out)
    assert found["repairs"] == []
    assert found["to_mend"] == ["shoal replay --from-offset topic/0:111-111 --wait"]


def test_without_a_running_shoal_nothing_is_asked(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    damage.orphan(settings.tables_uri)
    with pytest.raises(TransientError, match="only its writer repairs: start it"):
        run(settings, monkeypatch)


def test_a_repair_without_an_outcome_in_time_is_pending(settings: Settings) -> None:
    class Deaf(Log):
        def flush(self, timeout_s: float) -> None:
            pass

    alive(settings)
    log = Deaf(damage.open_writer(settings.tables_uri))
    now = iter(range(100))
    found = ask(
        settings, [Wanted((A,))], 3, lambda _: None, producer=log, pause=lambda _: None, clock=lambda: float(next(now))
    )  # fmt: skip
    assert [job["status"] for job in found] == ["pending"]
    assert len(log.sent) == 1

"""What was erased is nowhere in the tables' files: looked for in their bytes, and found there before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import TransientError
from shoal.settings import Settings
from shoal.store import purging
from shoal.store.purging import Request, gone_by, holding, is_purged, request_purge
from shoal.store.state_files import write_state
from shoal.store.tables import FencedTable
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, WIDTH, deletion, document

T0 = datetime(2025, 1, 20, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SECRET, WORD = "prod:ds:person-4711", "xyzzyplugh"


@pytest.fixture(autouse=True)
def _no_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cleanup goes by the storage's clock, which a test can't wait for."""
    monkeypatch.setattr(purging, "HOLD", timedelta(0))


def a_writer(place: Path, settings: Settings) -> TableWriter:
    return TableWriter.open(settings.tables_uri, {}, MODEL, WIDTH, settings=settings, now=T0)


def upkeep(writer: TableWriter, now: datetime) -> list[str]:
    done = []
    while (step := writer.maintain(now)) is not None:
        done.append(step)
    return done


def files_with(place: Path, text: str) -> list[str]:
    """Files that hold the text as it is; short columns are not compressed."""
    return [
        str(path.relative_to(place))
        for path in place.rglob("*")
        if path.is_file() and "_shoal" not in path.parts and text.encode() in path.read_bytes()
    ]


def the_story(place: Path, settings: Settings) -> tuple[TableWriter, datetime]:
    """A document in two versions among others, in a kept state, in indexes; then deleted."""
    writer = a_writer(place, settings)
    now = T0
    for version in ("v1", "v2"):
        now += MINUTE
        others = [document(f"prod:ds:{version}-{n}", 10 * int(version[1]) + n) for n in range(8)]
        secret = document(SECRET, int(version[1]), version=version, content=f"{WORD} {version}")
        writer.apply([secret, *others], (), now)
        upkeep(writer, now)
        for kind in ("metadata", "vectors"):
            writer._maintenance._fold(kind, writer._epoch)  # type: ignore[arg-type]
    now += MINUTE
    writer.apply([deletion(SECRET, 90)], (), now)
    upkeep(writer, now)
    return writer, now


def test_a_purge_leaves_no_byte_of_it_in_any_file_and_no_row_of_it_in_any_version(tmp_path: Path) -> None:
    settings = Settings(lancedb_path=str(tmp_path), as_of_interval_s=1)
    writer, now = the_story(tmp_path, settings)
    held = holding(settings, {}, "scraper", [SECRET])
    assert held.is_current_clean
    assert held.remembered == 1
    assert held.versions > 0
    assert len(held.kept) == 2
    assert any(path.startswith("scraper_vectors.lance/data/") for path in files_with(tmp_path, WORD))
    for table in ("scraper_vectors.lance", "scraper_metadata.lance"):
        assert any(path.startswith(f"{table}/_indices/") for path in files_with(tmp_path, SECRET))

    request = Request("r1", held.sequence)
    request_purge(settings, request)
    now += MINUTE
    done = upkeep(writer, now)
    assert any(step.startswith("rewrote") for step in done)
    assert not is_purged(settings, request)
    now += MINUTE
    assert any(step.startswith("no version holds") for step in upkeep(writer, now))
    assert is_purged(settings, request)
    assert files_with(tmp_path, WORD) == []
    after = holding(settings, {}, "scraper", [SECRET])
    assert after.is_clean
    assert after.kept == ()
    # The id stays in the one row that keeps a redelivery from bringing it back.
    assert after.remembered == 1
    assert {path.split("/")[0] for path in files_with(tmp_path, SECRET)} <= {"scraper_metadata.lance"}
    # Once: the next looks find nothing to do, and writing goes on.
    assert not any("rewrote" in step for step in upkeep(writer, now + MINUTE))
    assert writer.apply([document(SECRET, 3)], (), now)[0].outcome.value == "superseded"


def test_an_heir_begins_a_purge_anew_and_finishes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(lancedb_path=str(tmp_path))
    writer, now = the_story(tmp_path, settings)
    request = Request("r2", holding(settings, {}, "scraper", [SECRET]).sequence)
    request_purge(settings, request)

    def broken(*_: Any) -> None:
        raise TransientError("killed")

    monkeypatch.setattr(writer._maintenance._purger, "_rebuild", broken)
    with pytest.raises(TransientError, match="killed"):
        upkeep(writer, now + MINUTE)
    heir = a_writer(tmp_path, settings)
    for minute in (2, 3):
        upkeep(heir, now + minute * MINUTE)
    assert is_purged(settings, request)
    assert holding(settings, {}, "scraper", [SECRET]).is_clean


def test_nothing_is_purged_unasked_and_the_time_without_is_stated(tmp_path: Path) -> None:
    settings = Settings(lancedb_path=str(tmp_path))
    writer, now = the_story(tmp_path, settings)
    upkeep(writer, now + 5 * MINUTE)
    assert not holding(settings, {}, "scraper", [SECRET]).is_clean
    assert gone_by(settings, now) == now + timedelta(days=7, hours=2)


def test_a_writer_takes_requests_from_beside_its_own_tables_only(tmp_path: Path) -> None:
    elsewhere = Settings(lancedb_path=str(tmp_path / "live"))
    request = Request("r3", 1)
    request_purge(elsewhere, request)
    writer = TableWriter.open(str(tmp_path / "own"), {}, MODEL, WIDTH, settings=elsewhere, now=T0)
    writer.apply([document(SECRET, 1)], (), T0)
    for minute in (1, 2, 3):
        upkeep(writer, T0 + minute * MINUTE)
    assert not is_purged(elsewhere, request)


def test_the_hold_begins_when_the_rewrite_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purging, "HOLD", 10 * MINUTE)
    settings = Settings(lancedb_path=str(tmp_path))
    writer, now = the_story(tmp_path, settings)
    request = Request("r4", holding(settings, {}, "scraper", [SECRET]).sequence)
    request_purge(settings, request)
    # 1. The rewrite begins, and takes until minute 8. 2. Ten minutes after its beginning it is not yet clean.
    assert any(step.startswith("rewrote") for step in upkeep(writer, now + MINUTE))
    for minute in (8, 12):
        upkeep(writer, now + minute * MINUTE)
    assert not is_purged(settings, request)
    # 3. Ten minutes after the first look behind it, it is.
    upkeep(writer, now + 18 * MINUTE)
    assert is_purged(settings, request)


def test_the_answer_to_a_later_request_answers_the_earlier_ones(tmp_path: Path) -> None:
    settings = Settings(lancedb_path=str(tmp_path))
    write_state(settings, purging.ANSWER, {"id": "other", "sequence": 7})
    assert [is_purged(settings, Request("mine", sequence)) for sequence in (6, 7, 8)] == [True, True, False]


def test_a_version_that_can_not_be_read_is_not_taken_for_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(lancedb_path=str(tmp_path))
    the_story(tmp_path, settings)
    real = FencedTable.rows_of

    def rows_of(table: FencedTable, *arguments: Any) -> Any:
        if int(table.dataset.version) < 3:
            raise ValueError("a manifest of an unknown kind")
        return real(table, *arguments)

    monkeypatch.setattr(FencedTable, "rows_of", rows_of)
    with pytest.raises(TransientError, match="can't be read"):
        holding(settings, {}, "scraper", [SECRET])


def test_a_version_that_was_cleaned_away_meanwhile_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(lancedb_path=str(tmp_path))
    the_story(tmp_path, settings)
    real = purging._holds

    def holds(table: FencedTable, version: int, *rest: Any) -> bool:
        table.dataset.cleanup_old_versions(timedelta(0), error_if_tagged_old_versions=False)  # just before the look
        return real(table, version, *rest)

    monkeypatch.setattr(purging, "_holds", holds)
    held = holding(settings, {}, "scraper", [SECRET])
    assert (held.versions, len(held.kept)) == (2, 1)  # the kept state, in each table

"""A deletion that nobody purges leaves the files by the stated time: its bytes are looked for, and found before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shoal.faults import RARE
from shoal.settings import Settings
from shoal.store import scrubbing
from shoal.store.erasure import stand_of
from shoal.store.scrubbing import age, gone_by
from shoal.store.state_files import read_state
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, WIDTH, deletion, document
from tests.fixtures.upkeep import upkeep

T0 = datetime(2025, 1, 20, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SECRET, WORD = "prod:ds:person-4711", "xyzzyplugh"


def settings_at(place: Path, **changes: Any) -> Settings:
    """Cleanup goes by the storage's clock, which a test can't wait for."""
    made = Settings(lancedb_path=str(place), index_rows_min=256, **changes)
    return made.model_copy(update={"cleanup_age_s": 0.002})


def open_writer(settings: Settings, now: datetime) -> TableWriter:
    return TableWriter.open(settings.tables_uri, {}, MODEL, WIDTH, settings=settings, now=now)


def files_with(place: Path, text: str) -> list[str]:
    """Files that hold the text as it is; short columns are not compressed."""
    return [
        str(path.relative_to(place))
        for path in place.rglob("*")
        if path.is_file() and "_shoal" not in path.parts and text.encode() in path.read_bytes()
    ]


def the_story(settings: Settings) -> TableWriter:
    """One document among many in one large fragment, in a kept state and in the indexes; then deleted."""
    writer = open_writer(settings, T0)
    others = [document(f"prod:ds:{n}", n, content=f"other {n}") for n in range(40)]
    writer.apply([document(SECRET, 50, content=WORD), *others], (), T0)
    upkeep(writer, T0)
    for kind in ("metadata", "vectors"):
        writer._maintenance._fold(kind, writer._epoch)  # type: ignore[arg-type]
    writer.apply([deletion(SECRET, 90)], (), T0 + timedelta(hours=1))
    upkeep(writer, T0 + timedelta(hours=1))
    return writer


@pytest.mark.parametrize("is_busy", [False, True], ids=["nothing more is written", "writing goes on"])
def test_no_file_holds_a_byte_of_a_deleted_document_by_the_stated_time(tmp_path: Path, is_busy: bool) -> None:
    settings = settings_at(tmp_path)
    writer = the_story(settings)
    deleted_at = T0 + timedelta(hours=1)
    by = gone_by(settings, deleted_at)
    assert by is not None
    assert by - deleted_at < timedelta(days=14, hours=3)
    now, number = deleted_at, 100
    while now < deleted_at + 13 * DAY:
        now += DAY
        if is_busy:
            number += 1
            writer.apply(
                [document(f"prod:ds:{number % 7}", number, version=f"v{number}", content=f"{number}")], (), now
            )
        upkeep(writer, now)
        if now < deleted_at + 7 * DAY:
            assert files_with(tmp_path, WORD), "it lies there unless the round comes"
    # A kept state holds it till the end of its days.
    assert files_with(tmp_path, WORD)
    while now < by - timedelta(hours=2):
        now += timedelta(hours=2)
        upkeep(writer, now)
    assert files_with(tmp_path, WORD) == []
    assert stand_of(settings, [SECRET]).remembered == 1
    assert {path.split("/")[0] for path in files_with(tmp_path, SECRET)} <= {"scraper_metadata.lance"}


def test_a_round_serves_all_deletions_of_its_days_and_comes_only_for_deletions(tmp_path: Path) -> None:
    settings = settings_at(tmp_path)
    writer = the_story(settings)
    for hours in (0, 24, 6 * 24):
        writer.apply([deletion(f"prod:ds:{hours}", 200 + hours)], (), T0 + timedelta(hours=hours))
    rounds = []
    for day in (3, 4, 6, 7, 8, 19):
        rounds += [(day, step) for step in upkeep(writer, T0 + day * DAY) if "began to scrub" in step]
        if day == 4:
            writer.apply([document("prod:ds:5", 400, version="v9", content="new")], (), T0 + day * DAY)
    assert [day for day, _ in rounds] == [7]
    writer.apply([deletion("prod:ds:9", 500)], (), T0 + 20 * DAY)
    assert not any("began" in step for step in upkeep(writer, T0 + 26 * DAY))
    assert any("began" in step for step in upkeep(writer, T0 + 27 * DAY))


def test_traffic_during_a_round_does_not_keep_it_from_ending(tmp_path: Path) -> None:
    settings = settings_at(tmp_path)
    writer = the_story(settings)
    now, done, number = T0 + 8 * DAY, [], 600
    while not any("no current file holds" in step for step in done):
        number += 1
        writer.apply([document("prod:ds:3", number, version=f"v{number}", content=f"{number}")], (), now)
        if (step := writer.maintain(now)) is not None:
            done.append(step)
        assert number < 2_000, "each commit leaves a fragment with a deleted row behind"
    known = read_state(settings, scrubbing.STATE)
    assert known["began"] == now.isoformat()


def test_an_heir_begins_the_round_of_a_dead_writer_anew(tmp_path: Path) -> None:
    settings = settings_at(tmp_path)
    writer = the_story(settings)
    while "began to scrub" not in (writer.maintain(T0 + 8 * DAY) or ""):
        pass
    heir = open_writer(settings, T0 + 8 * DAY)
    assert any("no current file holds" in step for step in upkeep(heir, T0 + 8 * DAY))
    assert "writer.scrubbing" in RARE


def test_what_remembers_a_deletion_lives_until_it_is_scrubbed() -> None:
    assert age(Settings()) == 7 * DAY
    assert age(Settings(log_retention_days=3)) == 3 * DAY
    assert age(Settings(log_retention_days=0)) == 7 * DAY
    assert age(Settings(scrub_days=0)) is None
    assert gone_by(Settings(scrub_days=0), T0) is None
    assert gone_by(Settings(), T0) == T0 + timedelta(days=14, hours=3.5)

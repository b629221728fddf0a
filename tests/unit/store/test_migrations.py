"""Tables of every released layout are read, searched and written by this code; an older one is migrated by its writer.

Layout 0 was never released: it stands here for any older one, as layout 1 without some columns.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import ConfigurationError, FencedError, PermanentError
from shoal.records import Outcome
from shoal.store import migrations
from shoal.store.fsck_tables import check
from shoal.store.keywords import parse_keywords
from shoal.store.migrations import Migration, add_missing_columns
from shoal.store.reading import Tables
from shoal.store.requests import SearchRequest
from shoal.store.schemas import IS_DOCUMENT, LAYOUT_VERSION, METADATA_COLUMNS
from shoal.store.search import SearchIndex
from shoal.store.tables import CommitRefused, FencedTable
from tests.fixtures import damage
from tests.fixtures.damage import FIXES, JOBS, METADATA, VECTORS, A, B
from tests.fixtures.documents import document, vector
from tests.fixtures.layouts.make import HERE, contents, unpack

RELEASED = sorted(int(path.name) for path in HERE.iterdir() if path.name.isdecimal())
STEP = Migration(0, 1, add_missing_columns)
TABLES = (METADATA, VECTORS, FIXES, JOBS)
"""That the kept tables have: the ledger came later, and is made where it is missing."""


def errors(place: str) -> Any:
    report = check(place, {}, leaked_before=datetime(2020, 1, 1, tzinfo=UTC), index_rows_min=10**6, settle_s=0)
    assert report is not None
    return [each for each in report.findings if each.severity == "error"]


@pytest.fixture
def older(tmp_path: Path) -> str:
    """Tables of layout 0."""
    place = str(tmp_path / "older")
    unpack(1, place)
    damage.older_layout(place)
    damage.dataset(place, METADATA).drop_columns(["evidence", "near_duplicate_of"])
    damage.dataset(place, VECTORS).drop_columns(["heading"])
    return place


def test_tables_of_our_layout_are_kept() -> None:
    assert LAYOUT_VERSION in RELEASED


@pytest.mark.parametrize("layout", RELEASED)
async def test_tables_of_a_released_layout_are_read_and_searched(layout: int, tmp_path: Path) -> None:
    expected = unpack(layout, str(tmp_path))
    assert contents(str(tmp_path)) == expected
    tables = await Tables.open(str(tmp_path), {}, "scraper", 0.0)
    rows = await tables.rows("metadata", IS_DOCUMENT, METADATA_COLUMNS, None)
    assert {(row["id"], row["version"]) for row in rows} == {(A, "v1"), (A, "v2"), (B, "v1")}
    near = await tables.nearest("vectors", vector("needle two part 1"), IS_DOCUMENT, ["id"], 1, narrow=False)
    assert [row["id"] for row in near] == [f"{A}#1"]
    found = await tables.matching("vectors", parse_keywords("needle"), "content_summary", IS_DOCUMENT, ["id"], 10)
    assert {row["id"] for row in found} == {f"{A}#0", f"{A}#1"}
    await tables.close()


@pytest.mark.parametrize("layout", RELEASED)
def test_tables_of_a_released_layout_are_written(layout: int, tmp_path: Path) -> None:
    place = str(tmp_path)
    unpack(layout, place)
    assert errors(place) == []
    writer = damage.open_writer(place)
    acks = writer.apply([document(B, 10, version="v2", content="new"), document("prod:ds:new", 11)], (), damage.NOW)
    assert [ack.outcome for ack in acks] == [Outcome.INDEXED] * 2
    damage.upkeep(writer)
    assert errors(place) == []
    assert {table: damage.fence(place, table)["layout"] for table in TABLES} == dict.fromkeys(TABLES, 1)


async def test_readers_of_an_older_layout_serve_with_nulls_and_see_its_migration(
    older: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A new reader on old tables.
    tables = await Tables.open(older, {}, "scraper", 0.0)
    rows = await tables.rows("metadata", IS_DOCUMENT, METADATA_COLUMNS, None)
    assert len(rows) == 3
    assert all(set(row) == set(METADATA_COLUMNS) and row["evidence"] is None for row in rows)
    columns = ["id", "heading"]
    near = await tables.nearest("vectors", vector("needle two part 1"), IS_DOCUMENT, columns, 1, narrow=False)
    assert (near[0]["id"], near[0]["heading"]) == (f"{A}#1", None)
    found = await tables.matching("vectors", parse_keywords("needle"), "content_summary", IS_DOCUMENT, columns, 10)
    assert {row["heading"] for row in found} == {None}

    class Fold:
        def __init__(self) -> None:
            self.headings: list[Any] = []

        def take(self, batch: Any) -> None:
            self.headings += batch.column("heading").to_pylist()

    assert (await tables.folded("vectors", IS_DOCUMENT, columns, Fold)).headings == [None] * 3
    with pytest.raises(PermanentError, match=r"older layout.*start a writer"):
        await tables.count("metadata", "evidence IS NOT NULL")
    # 2. Its writer comes and migrates, 3. writes into the new column; 4. the same reader sees that.
    monkeypatch.setattr(migrations, "MIGRATIONS", (STEP,))
    damage.open_writer(older)
    damage.change(older, METADATA, f"id = '{B}'", evidence="seen")
    await tables.view()
    rows = await tables.rows("metadata", f"id = '{B}'", ["evidence"], None)
    assert [row["evidence"] for row in rows] == ["seen"]
    assert await tables.count("metadata", "evidence IS NOT NULL") == 1
    await tables.close()


async def test_a_past_state_of_an_older_layout_is_served_with_nulls(older: str) -> None:
    index = await SearchIndex.open(older, {}, refresh_interval_s=0.0)
    latest = (await index.freshness()).commit_sequence
    page = await index.search(SearchRequest(mode="sql", as_of=latest))
    assert len(page.hits) > 0
    assert {hit.metadata["evidence"] for hit in page.hits} == {None}
    found = await index.search(SearchRequest(mode="keyword", query="needle", as_of=latest))
    assert {hit.chunk["heading"] for hit in found.hits if hit.chunk} == {None}
    await index.close()


def test_the_writer_migrates_and_no_row_is_changed(older: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(older)
    monkeypatch.setattr(migrations, "MIGRATIONS", (STEP,))
    writer = damage.open_writer(older)
    nulls = {METADATA: {"evidence": None, "near_duplicate_of": None}, VECTORS: {"heading": None}, FIXES: {}, JOBS: {}}
    assert contents(older) == {table: [{**row, **nulls[table]} for row in rows] for table, rows in before.items()}
    assert errors(older) == []
    for table in TABLES:
        schema = damage.dataset(older, table).schema
        assert (schema.metadata[b"shoal.layout"], damage.fence(older, table)["layout"]) == (b"1", 1)
        assert all(schema.field(name).nullable for name in nulls[table])
    assert writer.apply([document(B, 10, version="v2", content="new")], (), damage.NOW)[0].outcome is Outcome.INDEXED


@pytest.mark.parametrize("at", range(1, 9))
def test_a_migration_killed_anywhere_is_finished_by_the_next_writer(
    older: str, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(migrations, "MIGRATIONS", (STEP,))
    real, left = FencedTable.settle, [at]

    def settle(self: FencedTable, epoch: int) -> None:  # stands before and after each change
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        real(self, epoch)

    monkeypatch.setattr(FencedTable, "settle", settle)
    with pytest.raises(KeyboardInterrupt):
        damage.open_writer(older)
    monkeypatch.setattr(FencedTable, "settle", real)
    writer = damage.open_writer(older)
    assert errors(older) == []
    assert {damage.fence(older, table)["layout"] for table in TABLES} == {1}
    assert writer.apply([document(B, 10, version="v2", content="new")], (), damage.NOW)[0].outcome is Outcome.INDEXED


def test_a_layout_without_a_way_is_refused_before_anything_is_touched(older: str) -> None:
    before = {table: damage.fence(older, table) for table in TABLES}
    with pytest.raises(ConfigurationError, match="layout 0, and this Shoal knows no way"):
        damage.open_writer(older)
    assert {table: damage.fence(older, table) for table in TABLES} == before


def test_steps_follow_one_another(older: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    def step(number: int) -> Any:
        return lambda table: seen.append((table.kind, number))

    monkeypatch.setattr(migrations, "LAYOUT_VERSION", 2)
    monkeypatch.setattr(migrations, "MIGRATIONS", (Migration(0, 1, step(1)), Migration(1, 2, step(2))))
    monkeypatch.setattr("shoal.store.schemas.LAYOUT_VERSION", 2)
    damage.open_writer(older)
    older_ones = [(kind, number) for kind in ("metadata", "vectors", "fixes", "jobs") for number in (1, 2)]
    assert seen == [*older_ones, ("spend", 2)]  # layout 0 had no ledger: it is made as of layout 1
    assert {damage.fence(older, table)["layout"] for table in TABLES} == {2}


def test_a_zombie_does_not_migrate(older: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. A writer has the tables and is about to migrate; 2. another takes and migrates them; 3. the first goes on.
    def change(table: FencedTable) -> None:
        if not met:
            met.append("once")
            damage.open_writer(older)
        add_missing_columns(table)

    met: list[str] = []
    monkeypatch.setattr(migrations, "MIGRATIONS", (Migration(0, 1, change),))
    real = migrations.migrate

    def once(tables: Any, epoch: int) -> Any:
        try:
            return real(tables, epoch)
        except (FencedError, CommitRefused):
            met.append("refused")
            raise

    monkeypatch.setattr("shoal.store.writing.migrate", once)
    writer = damage.open_writer(older)
    assert "refused" in met
    assert errors(older) == []
    assert writer.statistics().epoch == damage.fence(older, METADATA)["epoch"]


async def test_tables_of_a_newer_layout_are_refused_by_readers_and_writers_in_one_line(tmp_path: Path) -> None:
    place = str(tmp_path / "newer")
    unpack(1, place)
    for table in TABLES:
        damage.dataset(place, table).update_schema_metadata({"shoal.layout": "2"})
    before = shutil.copytree(place, tmp_path / "copy")
    with pytest.raises(ConfigurationError, match="layout 2, this Shoal knows 1: install the newer"):
        await Tables.open(place, {}, "scraper", 0.0)
    with pytest.raises(ConfigurationError, match="layout 2, this Shoal knows 1: install the newer"):
        damage.open_writer(place)
    assert sorted(path.name for path in before.rglob("*")) == sorted(path.name for path in Path(place).rglob("*"))

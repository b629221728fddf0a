"""Rows kept by their address."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest

from shoal.store import row_cache
from shoal.store.gathering import Gathering
from shoal.store.row_cache import ADDRESS, RowCache
from shoal.store.search import SearchIndex
from tests.fixtures.library import Library
from tests.unit.store.test_search import NEAR, NORTH

COLUMNS = ("id", "text")


class Table:
    """The rows of the version that is read now, by address."""

    def __init__(self, rows: dict[int, str]) -> None:
        self.rows, self.asked = rows, list[list[int]]()

    async def read(
        self, kind: str, column: str, keys: Collection[int], columns: Sequence[str], condition: str, most: int | None
    ) -> list[dict[str, Any]]:
        assert column == ADDRESS
        self.asked.append(sorted(keys))
        return [{"id": self.rows[key], "text": "t", ADDRESS: key} for key in keys if key in self.rows]


async def test_a_row_is_read_once_and_known_even_where_the_version_has_it_no_more() -> None:
    table = Table({1: "a", 2: "b"})
    cache = RowCache(Gathering(table.read))
    assert await cache.rows("vectors", [1, 2], COLUMNS) == {1: {"id": "a", "text": "t"}, 2: {"id": "b", "text": "t"}}
    del table.rows[1]
    table.rows[3] = "c"
    assert {at: row["id"] for at, row in (await cache.rows("vectors", [1, 3, 9], COLUMNS)).items()} == {1: "a", 3: "c"}
    assert table.asked == [[1, 2], [3, 9]]


async def test_tables_and_choices_of_columns_are_kept_apart_and_a_table_can_be_forgotten() -> None:
    table = Table({1: "a"})
    cache = RowCache(Gathering(table.read))
    for kind, columns in (("vectors", COLUMNS), ("vectors", ("id",)), ("metadata", COLUMNS)):
        await cache.rows(kind, [1], columns)  # type: ignore[arg-type]
    assert len(table.asked) == 3
    table.rows[1] = "another"
    cache.clear("vectors")
    assert (await cache.rows("vectors", [1], COLUMNS))[1]["id"] == "another"
    assert (await cache.rows("metadata", [1], COLUMNS))[1]["id"] == "a"


async def test_what_was_asked_for_longest_ago_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_cache, "NARROW_ROWS_MAX", 2)
    table = Table({at: str(at) for at in range(9)})
    cache = RowCache(Gathering(table.read))
    for at in (1, 2, 1, 3, 1, 2):
        await cache.rows("vectors", [at], COLUMNS)
    assert table.asked == [[1], [2], [3], [2]]


async def test_a_document_that_changed_is_never_shown_as_it_was_kept(library: Library) -> None:
    """1. A search has kept a document's rows. 2. It is written anew. 3. Each search shows the newest."""
    await library.put("a", [("wind", NORTH)])
    index = await SearchIndex.open(str(library.uri), {}, refresh_interval_s=0.0)
    for version in ("1", "2", "3"):
        if version != "1":
            await library.put("a", [(f"wind {version}", NORTH)], version, replaces=str(int(version) - 1))
        for _ in range(2):
            (hit,) = (await index.search(NEAR)).hits
            assert hit.metadata["version"] == version
            assert hit.chunk is not None
            assert hit.chunk["document_version"] == version
    await index.close()

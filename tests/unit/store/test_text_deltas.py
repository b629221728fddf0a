"""New rows go into the two indexes that rank as deltas, soon and cheaply, and are found and scored as in one index."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import lance
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lance.query import MatchQuery, PhraseQuery

from shoal.settings import Settings
from shoal.store import index_policy
from shoal.store.index_policy import (
    DELTAS_MAX,
    TEXT_GROWTH,
    TEXT_MERGE_ROWS_MAX,
    Act,
    Counts,
    Past,
    decide_text,
    text_merges,
)
from shoal.store.index_views import views
from shoal.store.maintenance import DELTA_AGE, DELTA_ROWS
from shoal.store.tables import FencedTable
from shoal.store.verification import coverage
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, document
from tests.fixtures.upkeep import upkeep

NOW = datetime(2025, 1, 20, 15, 0, tzinfo=UTC)
WIDTH = 16
VECTORS, TEXT = "content_embedding_idx", "content_summary_idx"
WORDS = ["wind", "solar", "load", "price", "outage", "zone", "north", "south", "hourly", "forecast"]


# --- how many are merged --------------------------------------------------------------------------------------


def folded(segments: list[int], rows: int) -> tuple[list[int], int]:
    """The segments after a fold of `rows`, and how many rows it wrote."""
    kept = segments[: len(segments) - text_merges(segments, rows)]
    wrote = sum(segments) - sum(kept) + rows
    return [*kept, wrote], wrote


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=300))
def test_segments_stay_few_and_each_far_larger_than_all_after_it(folds: list[int]) -> None:
    segments: list[int] = []
    for rows in folds:
        segments, wrote = folded(segments, rows)
        assert wrote <= max(rows, TEXT_MERGE_ROWS_MAX)
    small = [at for at, rows in enumerate(segments) if rows + sum(segments[at + 1 :]) <= TEXT_MERGE_ROWS_MAX]
    for at in small[:-1]:
        assert segments[at] > TEXT_GROWTH * segments[at + 1]


def test_a_row_is_written_ten_times_on_the_way_to_a_hundred_thousand() -> None:
    segments, wrote, most = [], 0, 0
    for _ in range(1_000):
        segments, rows = folded(segments, 100)
        wrote, most = wrote + rows, max(most, len(segments))
    assert sum(segments) == 100_000
    assert (wrote / sum(segments), most) == (9.914, 5), "into one segment each time, it would be five hundred times"


def test_what_the_writer_may_not_merge_between_two_commits_is_merged_beside_it() -> None:
    segments = [10**7] + [60_000] * DELTAS_MAX
    assert text_merges(segments, 60_000) == 0
    decided = decide_text(Counts(10**7, segments), Past())
    assert decided.act is Act.MERGE
    assert decide_text(Counts(10**7, segments), Past(ended_s=1.0, took_s=10.0)).due is Act.MERGE
    assert decide_text(Counts(10**7, segments[:DELTAS_MAX]), Past()).act is Act.NOTHING


# --- on tables ------------------------------------------------------------------------------------------------


def open_writer(place: str, **settings: Any) -> TableWriter:
    chosen: dict[str, Any] = {"index_rows_min": 256, "compact_commits": 1_000, **settings}
    return TableWriter.open(place, {}, MODEL, WIDTH, settings=Settings(**chosen), now=NOW)


def write(writer: TableWriter, numbers: list[int], version: str, at: datetime) -> None:
    draw = Random(f"{numbers} {version}")
    writer.apply(
        [
            document(
                f"prod:ds:{n}", 1000 * int(version[1:]) + n, version=version, chunks=10, width=WIDTH,
                content=" ".join(draw.choices(WORDS, k=draw.randrange(3, 9))),
            )
            for n in numbers
        ],
        (), at,
    )  # fmt: skip


def table(place: str) -> FencedTable:
    found = FencedTable.open("vectors", f"{place}/scraper_vectors.lance", {})
    assert found is not None
    return found


def found_by(place: str, query: Any, fast: bool = False) -> dict[str, float]:
    dataset = lance.dataset(f"{place}/scraper_vectors.lance")
    rows = dataset.to_table(columns=["id", "_score"], full_text_query=query, limit=5_000, fast_search=fast)
    return {row["id"]: round(row["_score"], 4) for row in rows.to_pylist()}


def test_a_hundred_new_chunks_are_indexed_within_seconds_and_no_index_is_written_whole_for_it(tmp_path: Path) -> None:
    place = str(tmp_path / "lancedb")
    writer = open_writer(place)
    write(writer, list(range(60)), "v1", NOW)
    upkeep(writer, NOW + timedelta(hours=1))
    before = views(table(place))
    write(writer, list(range(60, 60 + DELTA_ROWS // 10)), "v1", NOW + timedelta(hours=1))
    upkeep(writer, NOW + timedelta(hours=1, seconds=1))
    assert views(table(place))[TEXT].unindexed >= DELTA_ROWS, "not at each commit"
    upkeep(writer, NOW + timedelta(hours=1) + DELTA_AGE)
    after = views(table(place))
    assert [after[name].unindexed for name in (TEXT, VECTORS)] == [0, 0]
    assert len(after[TEXT].segments) == len(before[TEXT].segments) + 1
    assert after[TEXT].base == before[TEXT].base
    assert after["id_idx"].unindexed >= DELTA_ROWS, "scalar indexes wait for more"


def test_many_deltas_find_and_score_what_one_index_does_through_updates_deletions_and_compaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path / "lancedb")
    writer, at, done, most = open_writer(place, compact_commits=5), NOW, [""], 0
    write(writer, list(range(400)), "v1", at)
    upkeep(writer, at)
    for turn in range(1, 9):
        at += 2 * DELTA_AGE
        write(writer, list(range(400 + 10 * turn, 410 + 10 * turn)), "v1", at)
        write(writer, [turn], f"v{1 + turn}", at)  # older chunks go
        done += upkeep(writer, at)
        view = views(table(place))[TEXT]
        assert coverage(view, whole=True) is None
        most = max(most, len(view.segments))
    assert most > 2
    assert sum("compacted vectors" in step for step in done) >= 2
    queries = [MatchQuery(" ".join(pair), "content_summary") for pair in pairwise(WORDS)]
    queries += [PhraseQuery("north south", "content_summary"), MatchQuery("hourly", "content_summary")]
    by_deltas = [found_by(place, query) for query in queries]
    assert all(by_deltas)
    assert [found_by(place, query, fast=True) for query in queries] == by_deltas
    monkeypatch.setattr(index_policy, "DELTAS_MAX", 1)
    done = upkeep(writer, at + timedelta(hours=1))
    assert any("merge of content_summary took" in step for step in done)
    assert len(views(table(place))[TEXT].segments) == 1
    assert [found_by(place, query) for query in queries] == by_deltas

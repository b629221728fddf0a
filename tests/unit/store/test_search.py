"""SearchIndex on real tables, written here with plain lancedb so that every in-between state can be made."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
import pytest_asyncio
from lancedb.index import FTS, BTree, IvfFlat

from shoal.errors import ConfigurationError, TransientError
from shoal.records import FENCE_ID, Vector
from shoal.store import ranked, ranked_pages, reading, search, states
from shoal.store.cursors import CursorError
from shoal.store.filters import And, Equals, FilterError, In, Not, Or, Prefix, QueryError, Range
from shoal.store.reading import Tables
from shoal.store.requests import SearchRequest
from shoal.store.schemas import (
    CHUNK_COLUMNS,
    METADATA_COLUMNS,
    table_schema,
    tombstone_revision,
)
from shoal.store.search import SearchIndex
from tests.fixtures.library import (
    BOTH,
    EVERY_MODE,
    FACTS,
    LIST,
    NAMES,
    NEAR,
    NORTH,
    RANKED_MODES,
    T0,
    WIDTH,
    WORDS,
    Library,
    ids,
    rows_of,
    towards,
)

AT_ONCE = timedelta(milliseconds=1)
SOON = timedelta(milliseconds=200)  # far below the floor of the settings, far above one read


# --- opening ----------------------------------------------------------------------------------


async def test_absent_tables_are_a_transient_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="no tables yet"):
        await SearchIndex.open(str(tmp_path / "nothing"), {})


async def test_tables_without_a_fence_are_not_there_yet(tmp_path: Path) -> None:
    connection = await lancedb.connect_async(tmp_path)
    for kind, name in NAMES.items():
        await connection.create_table(name, schema=table_schema(kind, FACTS))
    with pytest.raises(TransientError, match="no tables yet"):
        await SearchIndex.open(str(tmp_path), {})


async def test_tables_of_somebody_else_are_refused(tmp_path: Path) -> None:
    connection = await lancedb.connect_async(tmp_path)
    for kind, name in NAMES.items():
        await connection.create_table(name, schema=table_schema(kind, FACTS).remove_metadata())
    with pytest.raises(ConfigurationError, match="not made by Shoal"):
        await SearchIndex.open(str(tmp_path), {})


async def test_the_collections_model_and_width_are_read_from_the_tables(index: SearchIndex) -> None:
    assert (index.model, index.width) == ("hash:8", WIDTH)


@pytest.mark.parametrize("request_", EVERY_MODE)
async def test_empty_tables_answer_with_nothing(index: SearchIndex, request_: SearchRequest) -> None:
    page = await index.search(request_)
    assert (page.hits, page.next_cursor, page.warnings) == ((), None, ())
    assert await index.counts() == {"documents": 0, "chunks": 0}


# --- what is seen -----------------------------------------------------------------------------


@pytest.mark.parametrize("request_", EVERY_MODE)
async def test_a_hit_has_all_metadata_and_never_a_vector(
    library: Library, index: SearchIndex, request_: SearchRequest
) -> None:
    await library.put("a", [("wind power", NORTH)], year=2025, warnings=["w"], extra='{"k": 1}')
    (hit,) = (await index.search(request_)).hits
    assert set(hit.metadata) == set(METADATA_COLUMNS)
    assert hit.metadata["collected_at"] == T0
    assert hit.metadata["collected_at"].utcoffset() == timedelta(0)
    assert type(hit.metadata["year"]) is int
    assert hit.metadata["warnings"] == ["w"]
    if request_.mode == "sql":
        assert (hit.chunk, hit.score, hit.distance) == (None, None, None)
    else:
        assert hit.chunk is not None
        assert set(hit.chunk) == set(CHUNK_COLUMNS)
        assert hit.chunk["content_summary"] == "wind power"
        assert hit.score == 1.0
        assert hit.distance == (None if request_.mode == "keyword" else pytest.approx(0.0, abs=1e-6))


@pytest.mark.parametrize("request_", EVERY_MODE)
async def test_half_a_document_is_never_seen(library: Library, index: SearchIndex, request_: SearchRequest) -> None:
    await library.put("whole", [("wind", towards(1))])
    await library.put("half", [("wind", NORTH)], parts=["vectors"])
    assert ids(await index.search(request_)) == ["whole"]
    await library.put("half", [("wind", NORTH)], parts=["metadata"])
    assert sorted(ids(await index.search(request_))) == ["half", "whole"]


@pytest.mark.parametrize("request_", RANKED_MODES)
async def test_chunks_of_another_version_are_not_joined(
    library: Library, index: SearchIndex, request_: SearchRequest
) -> None:
    await library.put("a", [("wind", NORTH)])
    await library.put("a", [("wind", NORTH)], "2", parts=["vectors"])
    assert ids(await index.search(request_)) == []
    await library.put("a", [("wind", NORTH)], "2", parts=["metadata"], replaces="1")
    (hit,) = (await index.search(request_)).hits
    assert hit.metadata["version"] == "2"
    await library.put("a", [("wind", NORTH)], "3", parts=["metadata"], replaces="2")
    assert ids(await index.search(request_)) == []


async def test_superseded_versions_are_hidden_unless_asked_for(library: Library, index: SearchIndex) -> None:
    await library.put("a", [("wind", NORTH)])
    await library.put("a", [("wind", NORTH)], "2", replaces="1", collected_at=T0 + timedelta(hours=1))
    for request in EVERY_MODE:
        (hit,) = (await index.search(request)).hits
        assert hit.metadata["version"] == "2"
    page = await index.search(replace(LIST, include_superseded=True))
    assert [hit.metadata["version"] for hit in page.hits] == ["2", "1"]
    ranked_page = await index.search(replace(NEAR, include_superseded=True))
    assert len(ranked_page.hits) == 1
    assert "include_superseded" in ranked_page.warnings[0]


@pytest.mark.parametrize("request_", EVERY_MODE)
async def test_the_fence_and_tombstones_are_no_documents(
    library: Library, index: SearchIndex, request_: SearchRequest
) -> None:
    await library.put("a", [("wind", NORTH)])
    tombstone = {"revision": tombstone_revision("gone"), "id": "gone", "fence": "deleted", "collected_at": T0}
    await library.merge("metadata", [tombstone])
    page = await index.search(replace(request_, include_superseded=request_.mode == "sql"))
    assert ids(page) == ["a"]
    assert await index.counts() == {"documents": 1, "chunks": 1}
    assert ids(await index.search(replace(request_, filters=Not(Equals("dataset", "other"))))) == ["a"]


@pytest.mark.parametrize("request_", RANKED_MODES)
async def test_a_document_is_one_result_with_its_best_chunk_and_limit_counts_documents(
    library: Library, index: SearchIndex, request_: SearchRequest
) -> None:
    chunks = [("filler text of the plain", towards(1, 0.2 + number / 100)) for number in range(300)]
    await library.put("long", [("wind wind " * 3, NORTH), *(("wind " + text, vector) for text, vector in chunks)])
    await library.put("far", [("a wind among very many other words of this text", towards(2, 5.0))])
    page = await index.search(replace(request_, limit=2))
    assert ids(page) == ["long", "far"]
    assert page.hits[0].chunk is not None
    assert page.hits[0].chunk["chunk_index"] == 0
    assert ids(await index.search(replace(request_, limit=1))) == ["long"]


# --- vectors ----------------------------------------------------------------------------------


async def test_vector_results_are_ordered_by_cosine_and_scored_0_to_1(library: Library, index: SearchIndex) -> None:
    await library.put("near", [("x", towards(1, 0.5) * 7.0)])  # length must not matter
    await library.put("nearer", [("x", towards(1, 0.1) * 0.01)])
    await library.put("opposite", [("x", -NORTH)])
    page = await index.search(NEAR)
    assert ids(page) == ["nearer", "near", "opposite"]
    assert page.hits[1].score == pytest.approx(1 / 1.25**0.5, abs=1e-5)
    assert page.hits[2].distance == pytest.approx(2.0)
    assert page.hits[2].score == 0.0


@pytest.mark.parametrize(
    "vector",
    [np.full(WIDTH, np.nan, np.float32), np.full(WIDTH, np.inf, np.float32), np.zeros(WIDTH, np.float32),
     np.ones(WIDTH + 1, np.float32), np.ones((1, WIDTH), np.float32), None],
)  # fmt: skip
async def test_a_vector_that_nothing_can_be_near_to_is_refused(index: SearchIndex, vector: Vector | None) -> None:
    with pytest.raises(QueryError):
        await index.search(replace(NEAR, vector=vector))
    if vector is not None:
        with pytest.raises(QueryError):
            await index.search(replace(BOTH, vector=vector))
        with pytest.raises(QueryError):
            await index.similar_apis(vector, 3)


async def test_rows_whose_vector_has_no_direction_are_not_found(library: Library, index: SearchIndex) -> None:
    await library.put("zero", [("wind", np.zeros(WIDTH, np.float32))])
    await library.put("infinite", [("wind", np.full(WIDTH, np.inf, np.float32))])
    await library.put("a", [("wind", NORTH)])
    assert ids(await index.search(NEAR)) == ["a"]
    page = await index.search(BOTH)
    assert ids(page)[0] == "a"
    assert all(0.0 <= (hit.score or 0.0) <= 1.0 for hit in page.hits)


async def _many(library: Library, count: int) -> None:
    generator = np.random.default_rng(7)
    vectors = generator.normal(size=(count, WIDTH)).astype(np.float32)
    vectors[:, 0] = np.abs(vectors[:, 0]) + 1.0
    await library.put_all(
        [
            rows_of(
                f"d{number:04}",
                [("wind " * (1 + number % 5) + "solar " * (number % 7) + f"n{number}", vectors[number])],
                dataset=f"set{number % 3}" if number else "single",
                collected_at=T0 + timedelta(seconds=number // 2),
                sha256_hash=f"h{number}",
                urn=f"u{number % 10}",
                traits={"auth_method": "api_key" if number % 2 else "none"},
            )
            for number in range(count)
        ]
    )


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("request_", RANKED_MODES)
async def test_a_filter_with_one_hit_returns_it(
    library: Library, index: SearchIndex, request_: SearchRequest, indexed: bool
) -> None:
    await _many(library, 1_000)
    if indexed:
        await library.tables["vectors"].create_index(
            "content_embedding", config=IvfFlat(distance_type="cosine", num_partitions=32)
        )
        await library.tables["vectors"].create_index("content_summary", config=FTS(with_position=True))
        await library.tables["metadata"].create_index("id", config=BTree())
    away = replace(request_, vector=None if request_.vector is None else -NORTH)
    assert ids(await index.search(replace(away, filters=Equals("dataset", "single")))) == ["d0000"]
    assert ids(await index.search(replace(away, filters=Equals("id", "d0777")))) == ["d0777"]  # not on the chunks
    many = await index.search(replace(away, filters=Equals("urn", "u3"), limit=1_000))
    assert len(many.hits) == 100
    trait = await index.search(replace(away, filters=Equals("auth_method", "none"), limit=1_000))
    assert len(trait.hits) == 500
    assert len((await index.search(replace(away, limit=1_000))).hits) == 1_000


async def test_unselective_conditions_on_documents_alone_are_met_by_looking_deeper(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _many(library, 1_000)
    monkeypatch.setattr(ranked, "PUSHED_DOCUMENTS_MAX", 10)
    page = await index.search(replace(NEAR, filters=Equals("urn", "u3"), limit=60))
    assert len(page.hits) == 60
    assert {hit.metadata["urn"] for hit in page.hits} == {"u3"}
    everything = await index.search(replace(NEAR, limit=1_000))
    assert ids(page) == [hit.metadata["id"] for hit in everything.hits if hit.metadata["urn"] == "u3"][:60]


async def test_a_look_that_ends_at_its_bound_says_so(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranked, "DEPTHS", (4, 8))
    monkeypatch.setattr(ranked, "PUSHED_DOCUMENTS_MAX", 1)
    await _many(library, 50)
    page = await index.search(replace(NEAR, limit=10))
    assert len(page.hits) == 8
    assert "narrow" in page.warnings[0]


# --- listings ---------------------------------------------------------------------------------


async def _all_pages(index: SearchIndex, request: SearchRequest, between: Callable[[], Awaitable[None]] | None = None):  # type: ignore[no-untyped-def]
    pages, cursor = [], None
    while True:
        page = await index.search(replace(request, cursor=cursor))
        pages.append(ids(page))
        cursor = page.next_cursor
        if cursor is None:
            return pages
        if between is not None:
            await between()


async def test_listing_is_newest_first_and_pages_fit_together_though_times_are_equal(
    library: Library, index: SearchIndex
) -> None:
    await _many(library, 101)
    expected = sorted((f"d{n:04}" for n in range(101)), key=lambda name: (-(int(name[1:]) // 2), name))
    pages = await _all_pages(index, replace(LIST, limit=7))
    assert [name for page in pages for name in page] == expected
    assert {len(page) for page in pages[:-1]} == {7}


async def test_pages_stay_whole_while_documents_are_inserted(library: Library, index: SearchIndex) -> None:
    """1. Page through 60 documents. 2. Between any two pages new ones come in before, at and behind the place.
    3. All 60 are seen once; of the new ones each at most once."""
    await _many(library, 60)
    rounds = iter(range(1_000))

    async def insert() -> None:
        number = next(rounds)
        await library.put(f"newest{number}", collected_at=T0 + timedelta(days=1 + number))
        await library.put(f"amid{number}", collected_at=T0 + timedelta(seconds=10))

    seen = [name for page in await _all_pages(index, replace(LIST, limit=9), insert) for name in page]
    assert len(seen) == len(set(seen))
    assert {f"d{n:04}" for n in range(60)} <= set(seen)
    assert not any(name.startswith("newest") for name in seen)


async def test_documents_without_a_time_come_last_and_are_paged_too(library: Library, index: SearchIndex) -> None:
    for number in range(5):
        await library.put(f"timeless{number}", collected_at=None)
        await library.put(f"timed{number}")
    pages = await _all_pages(index, replace(LIST, limit=3))
    names = [name for page in pages for name in page]
    assert names == [f"timed{n}" for n in range(5)] + [f"timeless{n}" for n in range(5)]


async def test_listing_filters_by_time_source_and_hash(library: Library, index: SearchIndex) -> None:
    await _many(library, 20)
    await library.put("other", data_source="CAISO", collected_at=T0 - timedelta(days=3))
    early = Range("collected_at", high=T0, high_inclusive=False)
    assert ids(await index.search(replace(LIST, filters=early))) == ["other"]
    assert ids(await index.search(replace(LIST, filters=Equals("data_source", "CAISO")))) == ["other"]
    assert ids(await index.search(replace(LIST, filters=Equals("sha256_hash", "h7")))) == ["d0007"]
    window = Range("collected_at", T0 + timedelta(seconds=1), T0 + timedelta(seconds=2))
    assert ids(await index.search(replace(LIST, filters=window))) == ["d0004", "d0005", "d0002", "d0003"]


@pytest.mark.parametrize("pushed", [1_000, 1])
async def test_listing_filters_by_what_stands_beside_the_chunks(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch, pushed: int
) -> None:
    monkeypatch.setattr(search.scanning, "PUSHED_DOCUMENTS_MAX", pushed)
    monkeypatch.setattr(search.scanning, "_BATCH_MIN", 8)
    await _many(library, 60)
    pages = await _all_pages(index, replace(LIST, limit=4, filters=Equals("auth_method", "api_key")))
    assert sorted(name for page in pages for name in page) == [f"d{n:04}" for n in range(1, 60, 2)]
    assert {len(page) for page in pages[:-1]} == {4}


@pytest.mark.parametrize("request_", EVERY_MODE)
@pytest.mark.parametrize("text", ["x' OR '1'='1", "' OR fence IS NOT NULL --", "\\' OR true", "a') or ('1'='1"])
async def test_injection_finds_nothing(
    library: Library, index: SearchIndex, request_: SearchRequest, text: str
) -> None:
    await library.put("a", [("wind", NORTH)])
    for tree in (Equals("dataset", text), Prefix("dataset", text), In("dataset", (text,)), Equals("urn", text)):
        assert ids(await index.search(replace(request_, filters=tree))) == []
    assert await index.by_hash(text) == []
    assert await index.job(text) is None
    assert await index.fixes(text) == []
    with pytest.raises(FilterError):
        await index.search(replace(request_, filters=Equals("dataset = 'x' or id", "a")))


async def test_bad_requests_are_told_from_bad_systems(index: SearchIndex) -> None:
    for bad in (
        replace(LIST, limit=0),
        replace(LIST, limit=1_001),
        replace(LIST, collection="other"),
        replace(WORDS, query=None),
        replace(WORDS, query=""),
        replace(LIST, filters=Or((Equals("auth_method", "none"), Equals("urn", "u")))),
        replace(LIST, filters=Equals("fence", "x")),
    ):
        with pytest.raises(QueryError):
            await index.search(bad)


async def test_a_cursor_of_another_question_is_refused(library: Library, index: SearchIndex) -> None:
    await _many(library, 30)
    listed = (await index.search(replace(LIST, limit=5))).next_cursor
    near = (await index.search(replace(NEAR, limit=5))).next_cursor
    assert listed is not None
    assert near is not None
    for request, cursor in (
        (NEAR, listed),
        (LIST, near),
        (WORDS, near),
        (replace(NEAR, vector=towards(1)), near),
        (replace(LIST, filters=Equals("dataset", "set1")), listed),
        (replace(LIST, include_superseded=True), listed),
        (LIST, listed[:-1]),
        (LIST, listed + "x"),
    ):
        with pytest.raises(CursorError):
            await index.search(replace(request, cursor=cursor))


@pytest.mark.parametrize("request_", RANKED_MODES)
@pytest.mark.parametrize("limit", [7, 40])
async def test_ranked_pages_fit_together_across_depths(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch, request_: SearchRequest, limit: int
) -> None:
    monkeypatch.setattr(ranked, "DEPTHS", (16, 64, 256))
    await _many(library, 150)
    pages = await _all_pages(index, replace(request_, limit=limit))
    names = [name for page in pages for name in page]
    assert len(names) == len(set(names)) == 150
    assert names[:100] == ids(await index.search(replace(request_, limit=100)))


async def test_ranked_paging_ends_at_its_bound_with_a_warning(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranked_pages, "OFFSET_MAX", 10)
    await _many(library, 40)
    first = await index.search(replace(NEAR, limit=10))
    second = await index.search(replace(NEAR, limit=10, cursor=first.next_cursor))
    assert len(second.hits) == 10
    assert second.next_cursor is None
    assert "end after 20" in second.warnings[0]


# --- words ------------------------------------------------------------------------------------


TEXTS = {
    "phrase": "the quick brown fox",
    "scattered": "brown bears are quick",
    "code": "error E-1234 in foo_bar(x) AND NOT y",
    "accents": "café in Zürich",
}
TYPED: dict[str, set[str]] = {
    "quick": {"phrase", "scattered"},
    '"quick brown"': {"phrase"},
    '"quick brown" bears': {"phrase"},
    '"quick brown" "brown fox"': {"phrase"},
    '"quick brown': {"phrase", "scattered"},
    '"': set(),
    '""': set(),
    '" "': set(),
    "   ": set(),
    "!!! ??? ***": set(),
    "+quick -brown": {"phrase", "scattered"},
    "content_summary:quick^9": {"phrase", "scattered"},
    "quick* OR (": {"phrase", "scattered"},
    "foo_bar(x)": {"code"},
    "1234": {"code"},
    "nothinglikethis": set(),
    "'; DROP TABLE metadata --": set(),
    "\x00 \ud800 quick": {"phrase", "scattered"},
    "😀": set(),
    " ".join(f'"brown" w{number}' for number in range(40)): {"phrase", "scattered"},
}


@pytest_asyncio.fixture(params=[False, True], ids=["unindexed", "indexed"])
async def texts(request: pytest.FixtureRequest, library: Library) -> Library:
    await library.put_all([rows_of(name, [(text, NORTH)]) for name, text in TEXTS.items()])
    if request.param:
        await library.tables["vectors"].create_index("content_summary", config=FTS(with_position=True))
    return library


@pytest.mark.usefixtures("texts")
async def test_what_a_person_types_is_words_and_phrases_never_syntax(index: SearchIndex) -> None:
    for query, expected in TYPED.items():
        page = await index.search(replace(WORDS, query=query))
        assert set(ids(page)) == expected, query
        assert all(0.0 < (hit.score or 0.0) <= 1.0 for hit in page.hits)
        hybrid = await index.search(replace(BOTH, query=query))
        assert len(hybrid.hits) == len(TEXTS), query  # the vectors find all
        assert set(ids(hybrid)[: len(expected)]) == expected, query


@pytest.mark.parametrize("word", ["the", "and", "The and"])
async def test_stop_words_find_nothing_and_fail_nothing(library: Library, index: SearchIndex, word: str) -> None:
    await library.put("a", [("the wind and the sun", NORTH)])
    config = FTS(with_position=True, stem=True, remove_stop_words=True)
    await library.tables["vectors"].create_index("content_summary", config=config)
    assert ids(await index.search(replace(WORDS, query=word))) == []
    assert ids(await index.search(replace(BOTH, query=word))) == ["a"]
    assert ids(await index.search(replace(WORDS, query=f"{word} winds"))) == ["a"]


@pytest.mark.usefixtures("texts")
async def test_an_overlong_query_is_cut_with_a_warning(index: SearchIndex) -> None:
    page = await index.search(replace(WORDS, query="quick " + "x" * 100_000))
    assert set(ids(page)) == {"phrase", "scattered"}
    assert "characters" in page.warnings[0]


# --- hybrid -----------------------------------------------------------------------------------


async def test_a_document_of_both_legs_is_first(library: Library, index: SearchIndex) -> None:
    await library.put("vector1", [("solar", NORTH)])
    await library.put("vector2", [("solar", towards(1, 0.1))])
    await library.put("both", [("a little wind in a long text of so many other words", towards(2, 3.0))])
    page = await index.search(replace(BOTH, explain=True))
    assert ids(page) == ["both", "vector1", "vector2"]
    assert page.hits[0].explain is not None
    assert set(page.hits[0].explain["legs"]) == {"vector", "keyword"}
    assert page.hits[1].explain is not None
    assert set(page.hits[1].explain["legs"]) == {"vector"}
    assert page.hits[1].score == pytest.approx(0.7)


async def test_hybrid_without_a_vector_is_keyword_and_says_so(library: Library, index: SearchIndex) -> None:
    await library.put("a", [("wind", NORTH)])
    await library.put("b", [("solar", NORTH)])
    page = await index.search(replace(BOTH, vector=None))
    assert (page.mode, ids(page)) == ("keyword", ["a"])
    assert "without a vector" in page.warnings[0]


async def test_a_leg_that_finds_nothing_leaves_the_other(library: Library, index: SearchIndex) -> None:
    await library.put("a", [("solar", NORTH)])
    await library.put("b", [("solar", towards(1))])
    assert ids(await index.search(BOTH)) == ["a", "b"]


async def test_explain_tells_the_plan_and_the_raw_scores(library: Library, index: SearchIndex) -> None:
    await library.put("a", [("wind", towards(1, 0.5))])
    page = await index.search(replace(BOTH, explain=True, filters=Equals("dataset", "nyiso_load")))
    assert page.explain is not None
    assert "dataset = 'nyiso_load'" in page.explain["chunk_filter"]
    assert "KNN" in page.explain["vector_plan"] or "ANN" in page.explain["vector_plan"]
    assert page.hits[0].explain is not None
    vector = page.hits[0].explain["legs"]["vector"]
    assert vector["raw"] == pytest.approx(page.hits[0].distance)
    assert (vector["rank"], vector["normalised"]) == (1, 1.0)
    assert page.timings_ms["total"] >= page.timings_ms["read"] > 0
    assert (await index.search(BOTH)).explain is None


# --- freshness and other hands on the tables --------------------------------------------------


async def test_freshness_is_the_fence_of_what_was_read(library: Library, index: SearchIndex) -> None:
    await library.put("a")
    await library.put("b")
    page = await index.search(LIST)
    assert page.freshness.commit_sequence == 2
    assert page.freshness.committed_at == T0
    assert page.freshness.positions == {("c", "t", 0): 2}
    assert await index.freshness() == page.freshness


async def test_an_answer_tells_what_its_indexes_do_not_cover_yet(library: Library, monkeypatch: Any) -> None:
    monkeypatch.setattr(reading, "_INDEX_LOOK_S", 0.0)
    index = await SearchIndex.open(str(library.uri), {}, refresh_interval_s=0.0)
    await library.put_all([rows_of(f"d{number}") for number in range(20)])
    assert (await index.search(LIST)).unindexed_rows == {"vector": None, "keyword": None}
    assert await index.unindexed_rows("metadata") == {"schema": None, "hash": None}
    assert await index.unindexed_rows("fixes") == {"error": None}
    await library.tables["metadata"].create_index("sha256_hash", config=BTree())
    await index.freshness()
    assert await index.unindexed_rows("metadata") == {"schema": None, "hash": 0}
    await library.tables["vectors"].create_index("content_summary", config=FTS(with_position=True))
    await library.tables["vectors"].create_index("content_embedding", config=IvfFlat(distance_type="cosine"))
    assert (await index.search(NEAR)).unindexed_rows == {"vector": 0, "keyword": 0}
    await library.put_all([rows_of(f"e{number}") for number in range(7)])
    unindexed = (await index.search(NEAR)).unindexed_rows
    assert unindexed == {"vector": 8, "keyword": 8}  # seven chunks, and the fence's row that each commit rewrites
    await index.close()


async def test_an_answer_that_is_made_is_given_even_where_its_coverage_can_t_be_told(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(tables: Tables, kind: str) -> dict[str, int | None]:
        raise TransientError("the store is away")

    await library.put("a")
    monkeypatch.setattr(Tables, "unindexed_rows", away)
    page = await index.search(LIST)
    assert (ids(page), page.unindexed_rows) == (["a"], {})


async def test_a_search_waits_for_the_commit_it_is_told_of(library: Library) -> None:
    index = await SearchIndex.open(str(library.uri), {}, refresh_interval_s=3_600.0)
    waiting = asyncio.create_task(index.search(replace(NEAR, wait_sequence=1)))
    await asyncio.sleep(0)
    await library.put("a")
    page = await waiting
    assert ids(page) == ["a"]
    assert page.warnings == ()
    await index.close()


async def test_a_commit_that_does_not_come_is_a_warning(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "WAIT_S", 0.0)
    await library.put("a")
    page = await index.search(replace(LIST, wait_sequence=99))
    assert ids(page) == ["a"]
    assert "commit 99" in page.warnings[0]


async def test_searches_that_wait_for_a_commit_hold_up_no_others(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. Twice as many as may run wait for a commit that never comes. 2. One that asks for none is answered."""
    monkeypatch.setattr(search, "WAIT_S", 3_600.0)
    await library.put("a")
    never = replace(LIST, wait_sequence=10**17)
    waiting = [asyncio.create_task(index.search(never)) for _ in range(2 * search.IN_FLIGHT_MAX)]
    await asyncio.sleep(0)
    answer = await asyncio.wait_for(index.search(LIST), 60.0)
    assert ids(answer) == ["a"]
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_no_more_than_a_few_searches_wait_for_a_commit(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. Four wait for the next commit, where two may: the others are told to come back. 2. It comes; both are
    answered, 3. and have made room."""
    monkeypatch.setattr(search, "WAITING_MAX", 2)
    monkeypatch.setattr(search, "WAIT_S", 3_600.0)
    for commit in (1, 2):
        endings = asyncio.as_completed([index.search(replace(LIST, wait_sequence=commit)) for _ in range(4)])
        for _ in range(2):
            with pytest.raises(TransientError, match="wait for a commit already"):
                await next(endings)
        await library.put(f"d{commit}")
        for ending in endings:
            assert (await ending).freshness.commit_sequence == commit
    assert ids(await index.search(replace(LIST, wait_sequence=1))) == ["d1", "d2"]  # seen already: no wait


async def test_between_refreshes_a_search_sees_one_state_of_both_tables(library: Library) -> None:
    """1. A reader that refreshes once an hour has seen version 1. 2. Version 2 is written. 3. It still answers
    with version 1, whole: neither nothing nor a mixture. 4. After a refresh it has version 2."""
    await library.put("a", [("wind", NORTH)])
    index = await SearchIndex.open(str(library.uri), {}, refresh_interval_s=3_600.0)
    await library.put("a", [("storm", NORTH)], "2", replaces="1")
    for request in EVERY_MODE:
        (hit,) = (await index.search(request)).hits
        assert hit.metadata["version"] == "1"
    page = await index.search(replace(NEAR, wait_sequence=2))
    assert page.hits[0].metadata["version"] == "2"
    await index.close()


class Held:
    """The refreshes of `tables`, each of which waits for `go`; `begun` of them did. Its last look was `age_s` ago."""

    def __init__(self, index: SearchIndex, monkeypatch: pytest.MonkeyPatch, age_s: float) -> None:
        self.go, self.begun, self.fails = asyncio.Event(), 0, False
        refresh = Tables._refresh

        async def held(tables: Tables) -> reading.View:
            self.begun += 1
            await self.go.wait()
            if self.fails:
                raise TransientError("the store is away")
            return await refresh(tables)

        monkeypatch.setattr(Tables, "_refresh", held)
        index._states._looked_at -= age_s

    @staticmethod
    async def end(index: SearchIndex) -> None:
        """Of the one that is under way."""
        assert index._states._renewing is not None
        await index._states._renewing


async def test_searches_go_on_with_what_they_have_while_newer_versions_are_looked_for(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    await library.put("a", [("wind", NORTH)])
    index = await SearchIndex.open(str(library.uri), {}, refresh_interval_s=3_600.0)
    await library.put("b", [("wind", NORTH)])
    held = Held(index, monkeypatch, 5_400.0)
    for request in EVERY_MODE:
        assert ids(await index.search(request)) == ["a"]
    await asyncio.sleep(0)
    assert held.begun == 1, "one refresh for all of them"
    held.go.set()
    await held.end(index)
    assert ids(await index.search(NEAR)) == ["a", "b"]
    assert held.begun == 1, "and no other before the interval is over"
    await index.close()


async def test_searches_wait_together_for_newer_versions_where_theirs_are_two_intervals_old(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    await library.put("a", [("wind", NORTH)])
    index = await SearchIndex.open(str(library.uri), {}, refresh_interval_s=3_600.0)
    await library.put("b", [("wind", NORTH)])
    monkeypatch.setattr(states, "PATIENCE_S", 0.0)  # else it would be that which they wait for
    held = Held(index, monkeypatch, 7_201.0)
    searching = [asyncio.create_task(index.search(NEAR)) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in searching)
    searching[0].cancel()  # who gives up does not end it for the others
    held.go.set()
    assert [ids(await task) for task in searching[1:]] == [["a", "b"]] * 2
    assert held.begun == 1
    await index.close()


async def test_a_search_that_finds_its_state_older_than_the_interval_waits_a_little_for_a_newer_one(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    await library.put("a", [("wind", NORTH)])
    index = await SearchIndex.open(str(library.uri), {}, refresh_interval_s=3_600.0)
    await library.put("b", [("wind", NORTH)])
    monkeypatch.setattr(states, "PATIENCE_S", 60.0)
    Held(index, monkeypatch, 5_400.0).go.set()
    assert ids(await index.search(NEAR)) == ["a", "b"]
    await index.close()


async def test_a_refresh_that_fails_fails_only_those_who_need_it(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    await library.put("a", [("wind", NORTH)])
    index = await SearchIndex.open(str(library.uri), {}, refresh_interval_s=3_600.0)
    held = Held(index, monkeypatch, 5_400.0)
    held.fails = True
    held.go.set()
    for _ in range(3):
        assert ids(await index.search(NEAR)) == ["a"]
        await asyncio.sleep(0.01)
    assert held.begun > 1, "it is tried again"
    index._states._looked_at -= 3_600.0
    with pytest.raises(TransientError, match="away"):
        await index.search(NEAR)
    held.fails = False
    assert ids(await index.search(NEAR)) == ["a"]
    await index.close()


async def test_a_search_is_of_one_state_though_commits_come_while_it_reads(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A search has read the chunks of version 1. 2. Version 2 is written, and another search sees it. 3. The first
    one answers with version 1, whole, says so, and has read nothing twice."""
    await library.put("a", [("wind", NORTH)])
    index = await SearchIndex.open(str(library.uri), {}, refresh_interval_s=0.0)
    nearest, looks = Tables.nearest, []

    async def moving(tables: Tables, *arguments: Any, **named: Any) -> list[dict[str, Any]]:
        rows = await nearest(tables, *arguments, **named)
        looks.append(rows)
        if len(looks) == 1:
            await library.put("a", [("wind", NORTH)], "2", replaces="1")
            (hit,) = (await index.search(NEAR)).hits
            assert hit.metadata["version"] == "2"
        return rows

    monkeypatch.setattr(Tables, "nearest", moving)
    page = await index.search(NEAR)
    assert [hit.metadata["version"] for hit in page.hits] == ["1"]
    assert page.freshness.commit_sequence == 1
    assert len(looks) == 2
    await index.close()


async def test_a_refresh_waits_for_the_second_half_of_a_commit(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. Version 2's chunks are committed, its metadata not yet. 2. A search begins. 3. The metadata comes.
    4. The search answers with version 2, instead of without the document."""
    monkeypatch.setattr(reading, "_SETTLE_S", 30.0)
    await library.put("a", [("wind", NORTH)])
    assert ids(await index.search(NEAR)) == ["a"]
    await library.put("a", [("wind", NORTH)], "2", parts=["vectors"])
    searching = asyncio.create_task(index.search(NEAR))
    row = asyncio.create_task(library.put("a", [("wind", NORTH)], "2", parts=["metadata"], replaces="1"))
    assert [hit.metadata["version"] for hit in (await searching).hits] == ["2"]
    await row


async def test_readers_survive_compaction_and_cleanup_by_another_handle(library: Library) -> None:
    """1. A reader holds a version. 2. The writer rewrites all files and deletes the old ones at once. 3. The
    reader's next searches of every kind succeed."""
    for number in range(6):
        await library.put(f"d{number}", [("wind", towards(1, number / 10))])
    await library.tables["vectors"].create_index("content_summary", config=FTS(with_position=True))
    index = await SearchIndex.open(str(library.uri), {}, refresh_interval_s=3_600.0)
    for request in EVERY_MODE:
        assert len((await index.search(request)).hits) == 6
    for kind in NAMES:
        await library.merge(kind, [])
        await library.tables[kind].optimize(cleanup_older_than=AT_ONCE, delete_unverified=True)
    await library.put("new", [("wind", NORTH)])
    for kind in NAMES:
        await library.tables[kind].optimize(cleanup_older_than=AT_ONCE, delete_unverified=True)
    for request in EVERY_MODE:
        assert len((await index.search(request)).hits) == 7
    assert len(await index.by_hash("hash of d1 1")) == 1
    assert await index.counts() == {"documents": 7, "chunks": 7}
    await index.close()


async def test_a_writer_that_died_half_way_delays_only_one_search(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    await library.put("a", [("wind", NORTH)])
    await library.put("b", [("wind", NORTH)], parts=["vectors"])
    assert ids(await index.search(NEAR)) == ["a"]
    monkeypatch.setattr(reading, "_SETTLE_S", 1e9)  # who waits again never returns
    assert ids(await index.search(NEAR)) == ["a"]


@pytest.mark.timeout(20)  # it hung the whole event loop
async def test_a_state_that_vanishes_just_as_newer_versions_were_found_is_looked_for_again(
    library: Library, index: SearchIndex
) -> None:
    await library.put("a", [("wind", NORTH)])
    states = index._states
    renewal = states._renewal()
    while not renewal.done():
        await asyncio.sleep(0)  # after its last step, before its callbacks
    states._newest = None  # whoever read it has found its files cleaned away
    state = await states.newest()
    assert (await states.newest()) is state
    assert ids(await index.search(NEAR)) == ["a"]


@pytest.mark.parametrize("refresh_interval_s", [0.0, 0.05])  # who asks waits for it; or it goes on beside
async def test_searches_never_fail_and_never_lose_a_document_while_it_is_rewritten(
    library: Library, monkeypatch: pytest.MonkeyPatch, refresh_interval_s: float
) -> None:
    """A writer makes new versions of ten documents and compacts with early cleanup, readers search all the
    while: each answer has all ten documents, each once."""
    monkeypatch.setattr(reading, "_SETTLE_S", 30.0)
    for number in range(10):
        await library.put(f"d{number}", [("wind", towards(1, number / 10))])
    index = await SearchIndex.open(str(library.uri), {}, refresh_interval_s=refresh_interval_s)
    writing = True

    async def write() -> None:
        nonlocal writing
        for version in range(2, 6):
            for number in range(10):
                vector = towards(1, number / 10)
                await library.put(f"d{number}", [("wind", vector)], str(version), replaces=str(version - 1))
            await library.tables["vectors"].optimize(cleanup_older_than=SOON)
            await library.tables["metadata"].optimize(cleanup_older_than=SOON)
        writing = False

    async def read(request: SearchRequest) -> int:
        answers = 0
        while writing:
            assert sorted(ids(await index.search(request))) == [f"d{number}" for number in range(10)]
            answers += 1
        return answers

    _, *answers = await asyncio.gather(write(), *(read(request) for request in EVERY_MODE))
    assert min(answers) > 0
    await index.close()


# --- look-ups ---------------------------------------------------------------------------------


async def test_by_hash_gives_every_version_with_these_bytes_newest_first(library: Library, index: SearchIndex) -> None:
    await library.put("a", sha256_hash="ff00")
    await library.put("a", (), "2", replaces="1", sha256_hash="ff00", collected_at=T0 + timedelta(hours=2))
    await library.put("b", sha256_hash="ff00", collected_at=T0 + timedelta(hours=1))
    await library.put("c", sha256_hash="ff01")
    rows = await index.by_hash("FF00")
    assert [(row["id"], row["version"]) for row in rows] == [("a", "2"), ("b", "1"), ("a", "1")]
    assert set(rows[0]) == set(METADATA_COLUMNS)


async def test_similar_apis_are_different_apis(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty publications of the nearest dataset don't hide the two others, even where one look sees only ten."""
    monkeypatch.setattr(search.advice, "_LOOK_ROWS", 10)
    loads = [rows_of(f"load{n}", schema_embedding=towards(1, n / 1000), dataset="load") for n in range(40)]
    price = {"api_endpoint": "/v1/price", "auth_method": "none"}
    two = (("first", NORTH), ("second", NORTH))
    others = [
        rows_of("price", two, schema_embedding=towards(1, 1.0), dataset="price", traits=price),
        rows_of("price again", schema_embedding=towards(1, 1.1), dataset="price2", traits=price),
        rows_of("wind", schema_embedding=towards(1, 2.0), dataset="wind", data_source="CAISO"),
        rows_of("old", (), superseded_at=T0, schema_embedding=NORTH, dataset="old"),
    ]
    await library.put_all(loads + others)
    hits = await index.similar_apis(NORTH, 3)
    assert ids(hits) == ["load0", "price", "wind"]
    assert hits[1].chunk is not None
    assert (hits[1].chunk["content_summary"], hits[1].chunk["auth_method"]) == ("first", "none")
    assert [round(hit.score or 0.0, 3) for hit in hits] == [1.0, 0.707, 0.447]
    assert len(await index.similar_apis(NORTH, 50)) == 3


async def _fixes(library: Library) -> None:
    def fix(key: str, hours: int, outcome: str = "worked", kind: str = "HTTPError", **more: Any) -> dict[str, Any]:
        return {
            "id": key,
            "scraper_name": "nyiso_load",
            "error_type": kind,
            "error_message": "403 forbidden by the gateway",
            "summary": key,
            "outcome": outcome,
            "count": 1,
            "reported_at": T0 + timedelta(hours=hours),
        } | more

    await library.merge(
        "fixes",
        [
            fix("old", 1, error_embedding=towards(1, 0.1)),
            fix("new", 3, error_embedding=towards(1, 2.0), error_message="timeout after 30 s"),
            fix("failed", 9, "failed", error_embedding=NORTH, diff="-a\n+b"),
            fix("other type", 8, kind="KeyError", error_embedding=NORTH, error_message="'price'"),
            fix("wrong", 9, marked_wrong_by="me", error_embedding=NORTH, diff="-c\n+d"),
            fix("merged", 7, merged_into="old"),
            fix("elsewhere", 7, scraper_name="caiso"),
        ],
    )


async def test_without_an_error_fixes_that_worked_come_first_then_the_newest_and_wrong_ones_last(
    library: Library, index: SearchIndex
) -> None:
    await _fixes(library)
    rows = await index.fixes("nyiso_load")
    assert [row["id"] for row in rows] == ["other type", "new", "old", "failed", "wrong"]
    assert rows[0]["similarity"] is None
    assert rows[0]["evidence"]["kin_by"] == ["scraper"]
    assert rows[3]["diff"] == "-a\n+b"
    assert "error_embedding" not in rows[0]
    assert [row["id"] for row in await index.fixes("nyiso_load", limit=1)] == ["other type"]


async def test_fixes_of_the_error_type_and_of_the_likest_error_come_first(library: Library, index: SearchIndex) -> None:
    await _fixes(library)
    by_vector = await index.fixes("nyiso_load", "httperror", NORTH)
    assert [row["id"] for row in by_vector] == ["old", "failed", "other type", "new", "wrong"]
    assert by_vector[0]["similarity"] == pytest.approx(0.995, abs=1e-3)
    assert by_vector[0]["evidence"]["error"] == pytest.approx(0.995, abs=1e-3)
    by_words = await index.fixes("nyiso_load", "HTTPError", error_message="Timeout after 60 s", limit=2)
    assert [row["id"] for row in by_words] == ["new", "old"]


async def test_the_fix_of_a_scraper_of_the_same_source_is_found_and_that_of_a_stranger_only_with_the_same_error(
    library: Library, index: SearchIndex
) -> None:
    def fix(key: str, scraper: str, vector: Any) -> dict[str, Any]:
        return {"id": key, "scraper_name": scraper, "error_type": "KeyError", "error_message": key, "summary": key,
                "outcome": "worked", "count": 1, "reported_at": T0, "error_embedding": vector}  # fmt: skip

    await library.put_all(
        [
            rows_of("a", dataset="nyiso_load", scraper_name="nyiso_load"),
            rows_of("b", dataset="nyiso_price", scraper_name="nyiso_price"),
            rows_of(
                "c", dataset="wind", scraper_name="wind", data_source="ENTSOE", data_type="wind", file_format="XML"
            ),
        ]
    )
    await library.merge(
        "fixes",
        [
            fix("kin", "nyiso_price", towards(1, 1.0)),
            fix("stranger", "wind", towards(1, 1.0)),
            fix("far stranger", "wind", towards(1, 9.0)),
        ],
    )
    rows = await index.fixes("nyiso_load", "KeyError", NORTH)
    assert [row["id"] for row in rows] == ["kin", "stranger"]
    assert "data_source" in rows[0]["evidence"]["kin_by"]
    assert [row["id"] for row in await index.fixes("nyiso_load")] == ["kin"]


async def test_the_vector_of_an_api_is_that_of_its_document(library: Library, index: SearchIndex) -> None:
    await library.put_all([rows_of("it's", [("piece", NORTH)], schema_embedding=NORTH), rows_of("other")])
    vector = await index.documents.api_vector("it's")
    assert vector is not None
    assert float(vector @ NORTH) == pytest.approx(1.0)
    assert await index.documents.api_vector("other") is None


async def test_a_job_is_found_once_it_is_applied(library: Library, index: SearchIndex) -> None:
    assert await index.job("c1") is None
    await library.merge("jobs", [{"command_id": "c1", "kind": "fix", "status": "done", "applied_at": T0}])
    job = await index.job("c1")
    assert job is not None
    assert (job["status"], job["applied_at"]) == ("done", T0)
    assert await index.job(FENCE_ID) is None


async def test_filters_combine_chunk_and_document_columns(library: Library, index: SearchIndex) -> None:
    await _many(library, 30)
    tree = And((Equals("auth_method", "api_key"), Equals("urn", "u3"), Not(Equals("dataset", "set0"))))
    for request in EVERY_MODE:
        assert sorted(ids(await index.search(replace(request, filters=tree)))) == ["d0013", "d0023"]

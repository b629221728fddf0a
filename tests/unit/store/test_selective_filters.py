"""A filter never loses results to the vector index: on a trained one, whatever the filter leaves and where it lies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lancedb.index import IvfPq

from shoal.records import Vector
from shoal.store import ranked, reading, selections
from shoal.store.filters import And, Filter, In, IsNull, Not, Or, Prefix, Range, matches
from shoal.store.requests import SearchRequest
from shoal.store.search import SearchIndex
from tests.fixtures.library import NEAR, NORTH, RANKED_MODES, Library, ids, rows_of

ROWS = 1_500
CLUSTERS = 30  # cluster 0 is where the queries are; the others lie around it, ever further away
WIDTH = 8


def _vectors() -> np.ndarray:
    generator = np.random.default_rng(11)
    angles = np.linspace(0.0, np.pi, CLUSTERS)
    sideways = generator.normal(size=(CLUSTERS, WIDTH - 1))
    sideways /= np.linalg.norm(sideways, axis=1, keepdims=True)
    centres = np.hstack([np.cos(angles)[:, None], np.sin(angles)[:, None] * sideways])
    vectors = centres[np.arange(ROWS) % CLUSTERS] + generator.normal(scale=0.05, size=(ROWS, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS = _vectors()


def _of(number: int) -> str:
    return f"cluster{number % CLUSTERS:02}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table whose index is trained and covers every row but the fence's."""
    library = await Library.create(tmp_path_factory.mktemp("trained"))
    await library.put_all(
        [
            rows_of(f"d{number:04}", [("wind", VECTORS[number])], dataset=_of(number), urn=_of(number), year=number)
            for number in range(ROWS)
        ]
    )
    config = IvfPq(distance_type="cosine", num_partitions=CLUSTERS, num_sub_vectors=4)
    await library.tables["vectors"].create_index("content_embedding", config=config)
    stats = await library.tables["vectors"].index_stats("content_embedding_idx")
    assert stats.num_indexed_rows >= ROWS
    return library.uri


@pytest_asyncio.fixture(loop_scope="module")
async def index(trained: Path) -> AsyncIterator[SearchIndex]:
    opened = await SearchIndex.open(str(trained), {})
    yield opened
    await opened.close()


FARTHEST = f"cluster{CLUSTERS - 1:02}"
ON_CHUNKS: list[tuple[str, Filter]] = [
    ("the farthest cluster", Prefix("dataset", FARTHEST)),
    ("a third of the clusters", Prefix("dataset", "cluster2")),
    ("everything", Prefix("dataset", "cluster")),
]
ON_DOCUMENTS: list[tuple[str, Filter]] = [
    ("one document", Range("year", 29, 29)),
    ("a few, scattered", Range("year", 700, 720)),
    ("the farthest cluster", Prefix("urn", FARTHEST)),
]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("bypass_rows", [0, 2_000], ids=["probed", "exact"])
@pytest.mark.parametrize("tree", [tree for _, tree in ON_CHUNKS], ids=[name for name, _ in ON_CHUNKS])
@pytest.mark.parametrize("towards", [NORTH, -NORTH], ids=["near", "away"])
async def test_a_filter_on_chunks_keeps_every_match_that_fits_the_page(
    index: SearchIndex, monkeypatch: pytest.MonkeyPatch, tree: Prefix, towards: Vector, bypass_rows: int
) -> None:
    monkeypatch.setattr(reading, "BYPASS_ROWS", bypass_rows)
    matching = [f"d{number:04}" for number in range(ROWS) if _of(number).startswith(tree.prefix)]
    page = await index.search(replace(NEAR, vector=towards, filters=tree, limit=1_000))
    assert len(page.hits) == min(1_000, len(matching))
    assert set(ids(page)) <= set(matching)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("tree", [tree for _, tree in ON_DOCUMENTS], ids=[name for name, _ in ON_DOCUMENTS])
async def test_a_selective_filter_is_answered_exactly(index: SearchIndex, tree: Filter) -> None:
    """The documents, and their order, of a search without any index."""
    keeps = {
        "year": lambda number: isinstance(tree, Range) and tree.low <= number <= tree.high,  # type: ignore[operator]
        "urn": lambda number: isinstance(tree, Prefix) and _of(number).startswith(tree.prefix),
    }[tree.column]  # type: ignore[union-attr]
    matching = [number for number in range(ROWS) if keeps(number)]
    best = sorted(matching, key=lambda number: -float(VECTORS[number] @ NORTH))[:10]
    page = await index.search(replace(NEAR, filters=tree, limit=10, explain=True))
    assert ids(page) == [f"d{number:04}" for number in best]
    assert page.explain is not None
    assert "KNNVectorDistance" in page.explain["vector_plan"]


@pytest.mark.asyncio(loop_scope="module")
async def test_without_a_filter_the_index_is_used(index: SearchIndex) -> None:
    page = await index.search(replace(NEAR, limit=10, explain=True))
    assert page.explain is not None
    assert "ANN" in page.explain["vector_plan"]


FAR = Range("urn", f"cluster{CLUSTERS // 2:02}")  # half of all, the farther one, by a column of the metadata only
LEFT = [number for number in range(ROWS) if _of(number) >= f"cluster{CLUSTERS // 2:02}"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("limit", [10, 400, 1_000])
async def test_a_filter_that_leaves_many_documents_far_from_the_question_loses_none(
    index: SearchIndex, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """1. 750 documents are left, where only 20 may be named at first. 2. The looks at the nearest 8 and 64 chunks of
    all find few of them. 3. Named in pieces, all are found, and their order is that of a search without any index."""
    monkeypatch.setattr(ranked, "PUSHED_DOCUMENTS_MAX", 20)
    monkeypatch.setattr(ranked, "DEPTHS", (8, 64, 1_024))
    monkeypatch.setattr(selections, "PIECE", 100)
    page = await index.search(replace(NEAR, filters=FAR, limit=limit, explain=True))
    best = sorted(LEFT, key=lambda number: -float(VECTORS[number] @ NORTH))
    assert ids(page) == [f"d{number:04}" for number in best[:limit]]
    assert page.warnings == ()
    assert page.explain is not None
    named = "after ranking, then named"
    assert (page.explain["metadata_filter_applied"], page.explain["metadata_filter_leaves"]) == (named, len(best))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("request_", RANKED_MODES, ids=lambda request: str(request.mode))
async def test_pages_of_such_a_filter_fit_together_where_the_names_begin(
    index: SearchIndex, monkeypatch: pytest.MonkeyPatch, request_: SearchRequest
) -> None:
    monkeypatch.setattr(ranked, "PUSHED_DOCUMENTS_MAX", 20)
    monkeypatch.setattr(ranked, "DEPTHS", (16, 128, 2_048))
    monkeypatch.setattr(selections, "PIECE", 300)
    whole = ids(await index.search(replace(request_, filters=FAR, limit=750)))
    assert sorted(whole) == [f"d{number:04}" for number in LEFT]
    paged: list[str] = []
    cursor = None
    while len(paged) < 60:
        page = await index.search(replace(request_, filters=FAR, limit=7, cursor=cursor))
        paged += ids(page)
        cursor = page.next_cursor
    assert paged == whole[: len(paged)]


@pytest.mark.asyncio(loop_scope="module")
async def test_more_documents_than_may_be_named_are_looked_for_as_deep_as_a_look_goes(
    index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranked, "PUSHED_DOCUMENTS_MAX", 20)
    monkeypatch.setattr(ranked, "DEPTHS", (8, 64))
    monkeypatch.setattr(selections, "NAMED_MAX", 700)
    page = await index.search(replace(NEAR, filters=Range("year", 0, ROWS // 2), limit=100, explain=True))
    assert 0 < len(page.hits) < 64
    assert "narrow the filters" in page.warnings[0]
    assert page.explain is not None
    assert page.explain["metadata_filter_leaves"] == "more than 700"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_filter_that_leaves_nothing_finds_nothing(index: SearchIndex) -> None:
    for request in RANKED_MODES:
        page = await index.search(replace(request, filters=Range("year", ROWS, None), explain=True))
        assert (ids(page), page.warnings) == ([], ())


YEARS = st.integers(-5, ROWS + 5) | st.none()
ON_YEAR = st.tuples(YEARS, YEARS, st.booleans(), st.booleans()).filter(lambda ends: ends[:2] != (None, None))
ON_METADATA = st.one_of(
    ON_YEAR.map(lambda ends: Range("year", *ends)),
    st.lists(st.integers(0, CLUSTERS), max_size=CLUSTERS).map(lambda of: In("urn", tuple(map(_of, of)))),
    st.sampled_from(["cluster", "cluster1", "cluster29", "", "%", "' or true --"]).map(
        lambda text: Prefix("urn", text)
    ),
    st.sampled_from([IsNull("title"), IsNull("year"), Not(IsNull("title")), Or(()), And(())]),
)
TREES = st.recursive(
    ON_METADATA,
    lambda parts: st.one_of(parts.map(Not), st.lists(parts, max_size=3).map(lambda some: Or(tuple(some)))),
    max_leaves=4,
)


@pytest.mark.asyncio(loop_scope="module")
@given(
    tree=TREES,
    prefix=st.none() | st.sampled_from(["cluster2", "cluster0"]),
    first=st.sampled_from([0, 20, 1_000]),
    piece=st.sampled_from([50, 10_000]),
    request=st.sampled_from(RANKED_MODES),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_ranking_has_exactly_what_the_filter_means_however_it_is_applied(
    index: SearchIndex,
    tree: Filter,
    prefix: str | None,
    first: int,
    piece: int,
    request: SearchRequest,
) -> None:
    """Any tree over metadata, also joined with one over chunks; named at once, in pieces, or after ranking."""
    rows = [{"year": n, "urn": _of(n), "title": None, "dataset": _of(n)} for n in range(ROWS)]
    whole = tree if prefix is None else And((Prefix("dataset", prefix), tree))
    matching = {f"d{n:04}" for n, row in enumerate(rows) if matches(whole, row)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranked, "PUSHED_DOCUMENTS_MAX", first)
        patch.setattr(ranked, "DEPTHS", (8, 64, 2_048))
        patch.setattr(selections, "PIECE", piece)
        page = await index.search(replace(request, filters=whole, limit=200))
    assert len(page.hits) == min(200, len(matching))
    assert set(ids(page)) <= matching
    assert len(set(ids(page))) == len(page.hits)
    assert page.warnings == ()

"""What a ranked page shows beyond its ranking: chunks, snippets, boosts, names, spread, facets, explanations."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shoal.store import facets, ranked, ranked_pages, search
from shoal.store.boosts import DAY_S, Boosts
from shoal.store.cursors import CursorError
from shoal.store.filters import Equals, QueryError
from shoal.store.ranked import CHUNKS_MAX, LEGS, WEIGHTS
from shoal.store.requests import SearchRequest
from shoal.store.schemas import tombstone_revision
from shoal.store.search import SearchIndex
from tests.fixtures.library import (
    BOTH,
    EVERY_MODE,
    LIST,
    NEAR,
    NORTH,
    RANKED_MODES,
    T0,
    WORDS,
    Library,
    ids,
    rows_of,
    towards,
)

RRF = replace(BOTH, fusion="rrf")


async def _all_pages(index: SearchIndex, request: SearchRequest) -> list[str]:
    names, cursor = [], None
    while True:
        page = await index.search(replace(request, cursor=cursor))
        names += ids(page)
        cursor = page.next_cursor
        if cursor is None:
            return names


async def _varied(library: Library, count: int = 60) -> None:
    await library.put_all(
        [
            rows_of(
                f"d{n:02}",
                [("wind " * (1 + n % 5) + f"n{n}", towards(1 + n % 7, n / 20)), ("solar", towards(2, 1 + n / 9))],
                dataset=f"set{n % 3}",
                data_type=None if n % 4 == 0 else "load",
                year=2020 + n % 2,
                title=f"Wind speeds {n}" if n % 10 == 0 else "Other",
                collected_at=T0 - timedelta(days=n),
            )
            for n in range(count)
        ]
    )


# --- chunks and snippets ----------------------------------------------------------------------


@pytest.mark.parametrize("request_", [*RANKED_MODES, RRF])
async def test_a_document_shows_its_best_chunks_best_first(
    library: Library, index: SearchIndex, request_: SearchRequest
) -> None:
    texts = [(f"{'wind ' * (9 - n)}text of the plain", towards(1, n / 4)) for n in range(8)]
    await library.put("a", [*texts, ("solar", -NORTH)])
    await library.put("b", [("wind", towards(2, 9.0))])
    for count in (1, 3, CHUNKS_MAX):
        page = await index.search(replace(request_, chunks_per_document=count))
        first, second = page.hits
        assert [chunk["chunk_index"] for chunk in first.chunks] == list(range(count))
        assert first.chunk == first.chunks[0]
        assert [chunk["metadata_id"] for chunk in second.chunks] == ["b"]


async def test_hybrid_takes_chunks_of_both_legs_by_turns(library: Library, index: SearchIndex) -> None:
    await library.put("a", [("solar", NORTH), ("solar", towards(1, 0.1)), ("wind", towards(1, 5.0))])
    (hit,) = (await index.search(replace(BOTH, chunks_per_document=3))).hits
    assert [chunk["chunk_index"] for chunk in hit.chunks] == [0, 2, 1]


@pytest.mark.parametrize("request_", RANKED_MODES)
async def test_highlights_are_snippets_of_each_chunk_with_the_questions_words(
    library: Library, index: SearchIndex, request_: SearchRequest
) -> None:
    await library.put("a", [("x " * 400 + "hourly <b>winds</b> of the wind farm", NORTH)])
    (hit,) = (await index.search(replace(request_, query="wind", highlight=True))).hits
    (shown,) = hit.snippets
    assert [shown.text[start:end] for start, end in shown.spans] == ["winds", "wind"]
    assert hit.chunk is not None
    assert hit.chunk["content_summary"][shown.start :].startswith(shown.text)
    assert (await index.search(request_)).hits[0].snippets == ()


async def test_a_hit_by_meaning_alone_shows_its_beginning(library: Library, index: SearchIndex) -> None:
    await library.put("a", [("solar output by hour", NORTH)])
    (hit,) = (await index.search(replace(NEAR, query="photovoltaics", highlight=True))).hits
    assert (hit.snippets[0].text, hit.snippets[0].spans) == ("solar output by hour", ())


async def test_snippets_and_boosts_are_made_beside_the_event_loop(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, set[int]] = {}

    def noted(name: str) -> None:
        plain = getattr(ranked_pages, name)

        def work(*arguments: Any) -> Any:
            threads.setdefault(name, set()).add(threading.get_ident())
            return plain(*arguments)

        monkeypatch.setattr(ranked_pages, name, work)

    for name in ("snippet", "boosted", "terms_of"):
        noted(name)
    await library.put("a", [("wind", NORTH)], title="Wind")
    await index.search(replace(BOTH, query="wind", highlight=True, boosts=Boosts(title=1.0)))
    assert threads.keys() == {"snippet", "boosted", "terms_of"}
    assert all(threading.get_ident() not in seen for seen in threads.values())


async def test_only_the_pool_is_boosted(library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranked_pages, "POOL_MAX", 4)
    await library.put_all([rows_of(f"d{n}", [("wind", towards(1, n / 9))], title="Wind") for n in range(9)])
    request = replace(NEAR, query="wind", limit=9, boosts=Boosts(title=1.0), explain=True)
    hits = (await index.search(request)).hits
    assert ["boosts" in (hit.explain or {}) for hit in hits] == [True] * 4 + [False] * 5


# --- boosts and names -------------------------------------------------------------------------


@pytest.mark.parametrize("request_", RANKED_MODES)
async def test_recency_puts_the_newer_of_equals_first_and_explains_it(
    library: Library, index: SearchIndex, request_: SearchRequest
) -> None:
    now = datetime.now(UTC)
    for name, days in (("a-old", 300), ("b-new", 1), ("c-none", None)):
        at = None if days is None else now - timedelta(days=days)
        await library.put(name, [("wind", NORTH)], collected_at=at)
    assert ids(await index.search(request_)) == ["a-old", "b-new", "c-none"]
    boosts = Boosts(recency=1.0, half_life_s=30 * DAY_S)
    page = await index.search(replace(request_, boosts=boosts, explain=True))
    assert ids(page) == ["b-new", "a-old", "c-none"]
    explained = page.hits[0].explain
    assert explained is not None
    assert explained["match"] == 1.0
    assert explained["boosts"]["recency"]["value"] == pytest.approx(0.977, abs=1e-3)
    assert explained["score"] == pytest.approx((1 + explained["boosts"]["recency"]["value"]) / 2)
    assert page.explain is not None
    assert page.explain["boosts"]["recency"] == 1.0


async def test_the_title_counts_where_asked_for(library: Library, index: SearchIndex) -> None:
    await library.put("a", [("wind", NORTH)], title="Solar")
    await library.put("b", [("wind", towards(1, 0.1))], title="The wind at sea")
    near = replace(NEAR, query="wind")
    assert ids(await index.search(near)) == ["a", "b"]
    assert ids(await index.search(replace(near, boosts=Boosts(title=1.0)))) == ["b", "a"]


@pytest.mark.parametrize(
    "request_",
    [replace(one, boosts=Boosts(recency=0.7, title=0.3)) for one in (*RANKED_MODES, RRF)]
    + [replace(one, query="wind", mmr_lambda=0.5) for one in (*RANKED_MODES, RRF)]
    + [replace(BOTH, boosts=Boosts(recency=2.0), mmr_lambda=0.3), RRF],
)
async def test_pages_fit_together_however_they_are_ordered(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch, request_: SearchRequest
) -> None:
    """The first looks see only some of the documents: deeper ones come behind them, on every page size alike."""
    monkeypatch.setattr(ranked, "DEPTHS", (16, 64, 256))
    monkeypatch.setattr(ranked_pages, "POOL_MAX", 32)
    await _varied(library)
    request = replace(request_, query="wind")
    whole = ids(await index.search(replace(request, limit=100)))
    assert len(whole) == len(set(whole)) == 60
    assert await _all_pages(index, replace(request, limit=7)) == whole
    assert await _all_pages(index, replace(request, limit=25)) == whole


async def test_scores_never_rise_along_boosted_pages(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranked, "DEPTHS", (16, 64, 256))
    await _varied(library)
    page = await index.search(replace(BOTH, boosts=Boosts(recency=1.0), limit=100))
    scores = [hit.score for hit in page.hits]
    assert scores == sorted(scores, key=lambda score: -(score or 0.0))


async def test_a_cursor_of_another_ranking_is_refused(library: Library, index: SearchIndex) -> None:
    await _varied(library, 20)
    cursor = (await index.search(replace(BOTH, limit=5))).next_cursor
    assert cursor is not None
    others = [RRF, replace(BOTH, boosts=Boosts(title=1.0)), replace(BOTH, mmr_lambda=0.5)]
    for other in others:
        with pytest.raises(CursorError):
            await index.search(replace(other, cursor=cursor))


HASH = "ab" * 32
PATH = "s3://bucket/nyiso/load_20250120.json"


@pytest.mark.parametrize("name", ["prod:nyiso:load_20250120.json", "load_20250120.json", PATH, HASH, HASH.upper()])
@pytest.mark.parametrize("request_", RANKED_MODES)
async def test_a_document_that_is_named_comes_first(
    library: Library, index: SearchIndex, request_: SearchRequest, name: str
) -> None:
    await library.put_all([rows_of(f"d{n}", [("wind load json nyiso", NORTH)]) for n in range(5)])
    named = {"urn": "load_20250120.json", "s3_path": PATH, "sha256_hash": HASH}
    chunks = [("first", -NORTH), ("second", -NORTH)]
    await library.put("prod:nyiso:load_20250120.json", chunks, **named)
    page = await index.search(replace(request_, query=name, explain=True))
    first = page.hits[0]
    assert first.metadata["urn"] == "load_20250120.json"
    assert (first.score, first.chunk and first.chunk["chunk_index"]) == (1.0, 0)
    assert first.explain is not None
    assert first.explain["identifier"] in ("id", "urn", "s3_path", "sha256_hash")
    assert len(ids(page)) == len(set(ids(page)))
    off = await index.search(replace(request_, query=name, boosts=Boosts(identifier=False), limit=3))
    assert "prod:nyiso:load_20250120.json" not in ids(off)[:1] or request_.mode != "vector"


@pytest.mark.parametrize("request_", RANKED_MODES)
async def test_a_named_document_keeps_to_the_filters_and_to_what_is_current(
    library: Library, index: SearchIndex, request_: SearchRequest
) -> None:
    await library.put("a.json", [("solar", -NORTH)], urn="x.json", dataset="one")
    await library.put("b.json", [("solar", -NORTH)], urn="x.json", dataset="two", traits={"auth_method": "none"})
    await library.put("c.json", [("solar", -NORTH)], urn="x.json", dataset="two", parts=["metadata"])
    await library.put("d.json", [("solar", -NORTH)], urn="x.json", dataset="two", superseded_at=T0)
    request = replace(request_, query="x.json", limit=2)
    assert ids(await index.search(replace(request, filters=Equals("dataset", "one")))) == ["a.json"]
    assert ids(await index.search(replace(request, filters=Equals("auth_method", "none")))) == ["b.json"]
    assert sorted(ids(await index.search(request))) == ["a.json", "b.json"]
    assert ids(await index.search(replace(request, filters=Equals("dataset", "x.json")))) == []


@pytest.mark.parametrize(
    "text", ["x' OR '1'='1", "a:' OR fence IS NOT NULL --", "\ud800:1", "1\0", "s3://" + "x" * 3000, "1" * 1_190 + " a"]
)
async def test_a_hostile_name_names_nothing(library: Library, index: SearchIndex, text: str) -> None:
    await library.put("a", [("solar", NORTH)])
    page = await index.search(replace(NEAR, query=text, explain=True))
    assert ids(page) == ["a"]
    assert page.hits[0].explain is not None
    assert "identifier" not in page.hits[0].explain


# --- spread -----------------------------------------------------------------------------------


async def test_near_duplicates_make_room_for_what_is_different(library: Library, index: SearchIndex) -> None:
    for number in range(5):
        await library.put(f"same{number}", [("wind", towards(1, 0.3 + number / 1000))])
    await library.put("other", [("wind", towards(2, 0.6))])
    request = replace(NEAR, limit=2, explain=True)
    assert ids(await index.search(request)) == ["same0", "same1"]
    page = await index.search(replace(request, mmr_lambda=0.4))
    assert ids(page) == ["same0", "other"]
    assert page.hits[1].explain is not None
    assert page.hits[1].explain["mmr"]["place_before"] == 6
    assert sorted(ids(await index.search(replace(request, mmr_lambda=0.4, limit=9)))) == sorted(
        ids(await index.search(replace(request, limit=9)))
    )


# --- fusion and explanations ------------------------------------------------------------------


async def test_the_fusion_is_selectable_and_explained(library: Library, index: SearchIndex) -> None:
    await library.put("vector", [("solar", NORTH)])
    await library.put("both", [("wind", towards(1, 0.2))])
    await library.put("words", [("wind wind wind", -NORTH)])
    for request in (BOTH, RRF):
        page = await index.search(replace(request, explain=True))
        assert page.explain is not None
        assert page.explain["fusion"] == {
            "method": request.fusion,
            "weights": WEIGHTS[request.fusion],
        }  # too few to adapt
        for rank_of, hit in enumerate(page.hits, start=1):
            explained: dict[str, Any] = hit.explain or {}
            assert (explained["rank"], explained["fusion"], explained["match"]) == (rank_of, request.fusion, hit.score)
            legs = explained["legs"]
            assert legs.keys() <= set(LEGS)
            assert all(leg.keys() >= {"rank", "raw", "normalised", "weight"} for leg in legs.values())
            total = sum(leg["weight"] * leg["normalised"] for leg in legs.values())
            assert total == pytest.approx(hit.score)
    with pytest.raises(QueryError, match="known: weighted, rrf"):
        await index.search(replace(BOTH, fusion="borda"))  # type: ignore[arg-type]


async def test_hybrid_puts_a_document_with_two_good_chunks_before_one_with_the_same_best(
    library: Library, index: SearchIndex
) -> None:
    best, good = ("wind wind speed", towards(1, 0.1)), ("wind wind gust", towards(2, 0.2))
    weak = [rows_of(f"d{n:02}", [("wind " + "sun " * (9 + n), towards(3, 1 + n / 9))]) for n in range(30)]
    await library.put_all([rows_of("one", [best]), rows_of("two", [best, good]), *weak])
    page = await index.search(replace(BOTH, limit=2, explain=True))
    assert ids(page) == ["two", "one"]
    first, second = [hit.explain["legs"] for hit in page.hits if hit.explain]
    for name in LEGS:
        assert first[name]["raw"] == first[name]["passages"][0] == second[name]["raw"]
        assert (len(first[name]["passages"]), len(second[name]["passages"])) == (2, 1)
        assert first[name]["normalised"] > second[name]["normalised"]


@pytest.mark.parametrize("depths", [(256, 1_024), (24, 48, 96, 192)])
async def test_what_each_leg_gave_times_the_weight_shown_is_the_score_on_every_page(
    library: Library, index: SearchIndex, depths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranked, "DEPTHS", depths)
    await _varied(library)
    for request in (BOTH, RRF, NEAR, WORDS):
        seen, cursor, first = 0, None, True
        while first or cursor:
            page = await index.search(replace(request, limit=7, explain=True, cursor=cursor))
            cursor = page.next_cursor
            for hit in page.hits:
                assert hit.explain is not None
                legs = hit.explain["legs"].values()
                assert sum(leg["normalised"] * leg["weight"] for leg in legs) == pytest.approx(hit.score)
            assert page.explain is not None
            if request is BOTH and first:
                used = page.explain["fusion"]["weights"]
                assert used != WEIGHTS["weighted"]
                assert sum(used.values()) == pytest.approx(1.0)
                assert page.hits[0].explain is not None
                shown = {name: leg["weight"] for name, leg in page.hits[0].explain["legs"].items()}
                assert shown == {name: used[name] for name in shown}
            seen, first = seen + len(page.hits), False
        assert seen == 60


async def test_a_page_tells_where_its_time_went(library: Library, index: SearchIndex) -> None:
    await library.put("a", [("wind", NORTH)])
    timings = (await index.search(BOTH)).timings_ms
    assert timings.keys() == {"queued", "prepare", "read", "total", "legs", "documents", "order", "chunks"}


# --- facets -----------------------------------------------------------------------------------


def _values(page: Any, column: str) -> dict[Any, int]:
    return dict(page.facets.columns[column].values)


@pytest.mark.parametrize("request_", EVERY_MODE)
async def test_facets_count_every_matching_document_once_and_no_other_row(
    library: Library, index: SearchIndex, request_: SearchRequest
) -> None:
    await _varied(library)
    await library.put("d00", [("wind", NORTH)], "2", replaces="1", dataset="set0", year=2020)
    tombstone = {"revision": tombstone_revision("gone"), "id": "gone", "fence": "deleted", "dataset": "gone"}
    await library.merge("metadata", [tombstone])
    page = await index.search(replace(request_, limit=3, facets=("dataset", "data_type", "year")))
    assert page.facets is not None
    assert (page.facets.counted, page.facets.exact) == (60, True)
    assert page.facets.columns["dataset"].values == (("set0", 20), ("set1", 20), ("set2", 20))
    assert _values(page, "year") == {2020: 30, 2021: 30}
    assert page.facets.columns["data_type"].missing == 14
    assert (await index.search(replace(request_, limit=3))).facets is None


@pytest.mark.parametrize("request_", EVERY_MODE)
async def test_facets_keep_to_the_filters_of_documents_and_of_chunks(
    library: Library, index: SearchIndex, request_: SearchRequest
) -> None:
    for number in range(9):
        traits = {"auth_method": "none" if number % 3 else "basic"}
        await library.put(
            f"d{number}", [("wind", NORTH)] * 2, dataset=f"s{number % 2}", urn=f"u{number}", traits=traits
        )
    await library.put("d1", [("wind", NORTH)], "2", parts=["vectors"], traits={"auth_method": "none"})
    by_trait = await index.search(replace(request_, filters=Equals("auth_method", "basic"), facets=("dataset",)))
    assert _values(by_trait, "dataset") == {"s0": 2, "s1": 1}
    by_urn = await index.search(replace(request_, filters=Equals("urn", "u3"), facets=("dataset",)))
    assert _values(by_urn, "dataset") == {"s1": 1}


async def test_a_listing_can_count_older_versions_too(library: Library, index: SearchIndex) -> None:
    await library.put("a", dataset="x")
    await library.put("a", version="2", replaces="1", dataset="y")
    page = await index.search(replace(LIST, facets=("dataset",), include_superseded=True))
    assert _values(page, "dataset") == {"x": 1, "y": 1}


@pytest.mark.parametrize("request_", RANKED_MODES)
async def test_ranked_facets_say_when_they_count_only_the_best(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch, request_: SearchRequest
) -> None:
    monkeypatch.setattr(ranked, "DEPTHS", (16, 64, 256))
    await _varied(library)
    pages = [await index.search(replace(request_, limit=limit, facets=("dataset",))) for limit in (2, 50)]
    for page in pages:
        assert page.facets is not None
        assert not page.facets.exact
        assert 0 < page.facets.counted < 60
    assert pages[0].facets == pages[1].facets


async def test_a_listings_facets_say_when_there_was_too_much_to_count(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _varied(library)
    monkeypatch.setattr(facets, "DOCUMENTS_MAX", 10)
    page = await index.search(replace(LIST, facets=("dataset",)))
    assert page.facets is not None
    assert (page.facets.counted, page.facets.exact) == (10, False)
    monkeypatch.setattr(facets, "DOCUMENTS_MAX", 1_000)
    monkeypatch.setattr(facets, "CHUNKS_MAX", 10)
    page = await index.search(replace(LIST, filters=Equals("token_count", 1), facets=("dataset",)))
    assert page.facets is not None
    assert (page.facets.counted, page.facets.exact) == (0, True)


async def test_a_facet_lists_a_bounded_number_of_values_and_counts_the_rest(
    library: Library, index: SearchIndex
) -> None:
    await library.put_all([rows_of(f"d{n:03}", dataset=f"set{n:03}") for n in range(50)])
    await library.put("again", dataset="set049")
    facet = (await index.search(replace(LIST, facets=("dataset",)))).facets.columns["dataset"]  # type: ignore[union-attr]
    assert facet.values[:2] == (("set049", 2), ("set000", 1))
    assert (len(facet.values), facet.others, facet.missing) == (facets.VALUES_MAX, 51 - facets.VALUES_MAX - 1, 0)


@pytest.mark.parametrize(
    "bad",
    [
        {"facets": ("id",)},
        {"facets": ("fence",)},
        {"facets": ("dataset, fence",)},
        {"mmr_lambda": 1.1},
        {"mmr_lambda": float("nan")},
        {"chunks_per_document": 0},
        {"chunks_per_document": CHUNKS_MAX + 1},
        {"boosts": Boosts(recency=-1)},
    ],
)
async def test_what_makes_no_ranking_is_refused(index: SearchIndex, bad: dict[str, Any]) -> None:
    for request in (LIST, WORDS):
        with pytest.raises(QueryError):
            await index.search(replace(request, **bad))


async def test_an_overlong_question_is_looked_up_by_its_beginning(library: Library, index: SearchIndex) -> None:
    await library.put("a", [("wind", NORTH)])
    page = await index.search(replace(WORDS, query="wind " * 2_000, highlight=True, boosts=Boosts(title=1.0)))
    assert ids(page) == ["a"]
    assert search.QUERY_LENGTH_MAX < 10_000

"""Pages of a ranking stay those of its first page, whatever is written meanwhile, or are refused: never mixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lancedb.index import FTS, IvfFlat

from shoal.errors import TransientError
from shoal.store import past, ranked
from shoal.store.cursors import CursorError, Pin, from_start
from shoal.store.filters import Equals, Range
from shoal.store.requests import SearchRequest
from shoal.store.search import SearchIndex
from tests.fixtures.library import BOTH, LIST, NEAR, NORTH, RANKED_MODES, WORDS, Library, ids, rows_of, towards
from tests.unit.store.test_past import Clocked, deletion, document, opened

AGES = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


async def _filled(library: Library, count: int = 60) -> None:
    await library.put_all(
        [
            rows_of(f"d{n:02}", [("wind " * (1 + n % 7) + f"n{n}", towards(1 + n % 7, n / 20))], year=2000 + n % 2)
            for n in range(count)
        ]
    )


async def _disturb(library: Library, number: int) -> None:
    """What comes in before, at and behind any place, a new version of what was shown, and one removed."""
    await library.put(f"best{number}", [("wind " * 9, NORTH)], year=2000)
    await library.put(f"last{number}", [("much else and a wind", -NORTH)], year=2000)
    await library.put(f"d{number:02}", [("nothing of it", -NORTH)], "2", replaces="1")
    await library.tables["metadata"].delete(f"id = 'd{59 - number}'")
    if number % 3 == 1:
        await library.tables["vectors"].optimize()


@pytest.mark.parametrize(
    ("request_", "filters"),
    [(NEAR, None), (WORDS, None), (BOTH, Range("year", 2000, 2000))],
    ids=["vector", "keyword", "hybrid filtered"],
)
async def test_pages_are_those_of_one_state_whatever_is_written_between_them(
    library: Library, monkeypatch: pytest.MonkeyPatch, request_: SearchRequest, filters: Range | None
) -> None:
    """1. The ranking as it is. 2. Its pages, with writes and compaction before each next one. 3. They are the same;
    a new search sees the writes."""
    monkeypatch.setattr(ranked, "DEPTHS", (16, 64, 256))
    monkeypatch.setattr(ranked, "PUSHED_DOCUMENTS_MAX", 10)
    await _filled(library)
    index = await SearchIndex.open(str(library.uri), {}, refresh_interval_s=0.0)
    asked = replace(request_, filters=filters, limit=9)
    whole = await index.search(replace(asked, limit=100))
    page = await index.search(asked)
    seen, number = ids(page), 0
    while page.next_cursor is not None:
        await _disturb(library, number)
        page = await index.search(replace(asked, cursor=page.next_cursor))
        assert page.freshness == whole.freshness
        seen, number = seen + ids(page), number + 1
    assert seen == ids(whole)
    assert ids(await index.search(asked)) != seen[:9]
    await index.close()


@AGES
@given(limits=st.lists(st.integers(1, 30), min_size=1, max_size=5), mode=st.sampled_from(RANKED_MODES))
async def test_pages_of_any_sizes_repeat_and_skip_nothing(
    tmp_path_factory: pytest.TempPathFactory, limits: list[int], mode: SearchRequest
) -> None:
    library = await Library.create(tmp_path_factory.mktemp("sizes"))
    await _filled(library, 40)
    index = await SearchIndex.open(str(library.uri), {}, refresh_interval_s=0.0)
    whole = ids(await index.search(replace(mode, limit=100)))
    seen: list[str] = []
    cursor: str | None = None
    for number, limit in enumerate([*limits, 100]):
        page = await index.search(replace(mode, limit=limit, cursor=cursor))
        seen, cursor = seen + ids(page), page.next_cursor
        if cursor is None:
            break
        await library.put(f"new{number}", [("wind", NORTH)])
    assert seen == whole
    await index.close()


async def test_the_index_is_that_of_the_first_page_too(library: Library, index: SearchIndex) -> None:
    """A rebuilt index ranks otherwise, by a little or by much; with one probe of many it finds other rows."""
    await _filled(library)
    await library.tables["vectors"].create_index("content_summary", config=FTS(with_position=True))
    first = await index.search(replace(BOTH, limit=20))
    expected = ids(await index.search(replace(BOTH, limit=60)))
    ivf = IvfFlat(distance_type="cosine", num_partitions=20)
    await library.tables["vectors"].create_index("content_embedding", config=ivf)
    second = await index.search(replace(BOTH, limit=40, cursor=first.next_cursor, explain=True))
    assert ids(first) + ids(second) == expected
    assert second.explain is not None
    assert "ANN" not in second.explain["vector_plan"]


async def test_states_that_pages_are_read_from_are_few(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "PINNED_MAX", 2)
    await _filled(library)
    pages = []
    for number in range(4):
        pages.append(await index.search(replace(NEAR, limit=5)))
        await library.put(f"new{number}", [("wind", NORTH)])
    for page in (*pages, *pages):  # one that is no longer held open is opened again
        second = await index.search(replace(NEAR, limit=5, cursor=page.next_cursor))
        assert second.freshness.commit_sequence == page.freshness.commit_sequence
        assert len(index._past._pinned) <= past.PINNED_MAX
    assert "new0" in ids(await index.search(NEAR))


async def test_a_page_whose_state_is_gone_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    """1. A first page. 2. Its versions are compacted and cleaned away: a cursor does not hold them. 3. The next page
    is refused, whether its handles were open or not, and the search goes on for others."""
    place = str(tmp_path / "lancedb")
    clocked = Clocked(place, as_of_days=0)
    clocked.commit(*(document(f"prod:ds:{n}", n, content=f"wind {n}") for n in range(20)))
    async with opened(place) as index, opened(place) as other:
        asked = replace(WORDS, limit=5)
        first = await index.search(asked)
        second = await index.search(replace(asked, cursor=first.next_cursor))
        clocked.commit(document("prod:ds:1", 40, version="v2", content="wind again"))
        clocked.compact()
        clocked.commit(deletion("prod:ds:2", 41))
        clocked.compact()
        clocked.clean()
        for one, cursor in ((other, first.next_cursor), (other, second.next_cursor), (index, second.next_cursor)):
            with pytest.raises(CursorError, match=r"commit \d+\) is no longer kept: start again without the cursor"):
                await one.search(replace(asked, cursor=cursor, highlight=True))
        assert len((await index.search(replace(asked, limit=100))).hits) == 19


async def test_a_cursor_that_names_versions_of_other_tables_is_refused(library: Library, index: SearchIndex) -> None:
    await _filled(library)
    cursor = (await index.search(replace(NEAR, limit=5))).next_cursor
    assert cursor is not None
    head, _, inner = cursor.partition("~")
    sequence, metadata, vectors = (int(part) for part in head[1:].split("."))
    for pin in (
        Pin(sequence + 1, metadata, vectors),
        Pin(sequence, metadata + 1_000, vectors),
        Pin(sequence, metadata, 10**18 - 1),
        Pin(sequence, 0, 0),
        Pin(sequence, 1, vectors),
        Pin(sequence, metadata, vectors, 1),
    ):
        with pytest.raises(CursorError, match="start again without"):
            await index.search(replace(NEAR, limit=5, cursor=f"{pin}{inner}"))
    for forged in (
        cursor + "x",
        "@1.2~x",
        "@" * 4_000,
        f"@{10**19}.1.1~{inner}",
        f"{head}~{head}~{inner}",  # one that names two states would open one from within the other
        f"~{sequence}~00~{cursor}",
        f"{head}~~{sequence}~00~{inner}",
    ):
        with pytest.raises(CursorError):
            await index.search(replace(NEAR, limit=5, cursor=forged))
    with pytest.raises(CursorError, match="another query"):
        await index.search(replace(WORDS, limit=5, cursor=cursor))


async def test_a_cursor_of_a_generation_that_was_left_is_refused_though_versions_and_commits_are_the_same(
    library: Library, index: SearchIndex
) -> None:
    """Pages of a ranking and of `as_of`, there and back: the tables of turn 0 stand for those of the other model."""
    await _filled(library, 20)
    commit = (await index.search(LIST)).freshness.commit_sequence
    later = await SearchIndex.open(str(library.uri), {}, refresh_interval_s=0.0, turn=2)
    try:
        for asked in (
            replace(NEAR, limit=5),
            replace(NEAR, limit=5, as_of=commit),
            replace(LIST, limit=5, as_of=commit),
        ):
            for one, other in ((index, later), (later, index)):
                first = await one.search(asked)
                second = await one.search(replace(asked, cursor=first.next_cursor))
                assert not {*ids(first)} & {*ids(second)}
                assert first.next_cursor is not None
                assert second.next_cursor is not None
                for cursor in (first.next_cursor, second.next_cursor, from_start(first.next_cursor)):
                    with pytest.raises(CursorError, match=r"embedding model was changed\): start again without"):
                        await other.search(replace(asked, as_of=None, cursor=cursor))
        # A listing is stable by value: it goes on in the new tables.
        listed = await index.search(replace(LIST, limit=15))
        assert len((await later.search(replace(LIST, limit=15, cursor=listed.next_cursor))).hits) == 5
    finally:
        await later.close()


async def test_storage_that_is_away_is_not_a_cursor_that_is_gone(
    library: Library, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise TransientError("the store is away", 1.0)

    await _filled(library)
    cursor = (await index.search(replace(NEAR, limit=5))).next_cursor
    monkeypatch.setattr(past.PinnedTables, "fence", away)
    with pytest.raises(TransientError, match="away"):
        await index.search(replace(NEAR, limit=5, cursor=cursor))


async def test_a_search_can_begin_anew_in_the_state_of_its_pages(library: Library, index: SearchIndex) -> None:
    """As one does that goes on by words since its question can't be embedded any more."""
    await _filled(library)
    expected = ids(await index.search(replace(WORDS, limit=8)))
    cursor = (await index.search(replace(NEAR, limit=5))).next_cursor
    assert cursor is not None
    await library.put("new", [("wind " * 9, NORTH)])
    assert ids(await index.search(WORDS))[0] == "new"
    page = await index.search(replace(WORDS, limit=8, cursor=from_start(cursor)))
    assert ids(page) == expected
    second = await index.search(replace(WORDS, limit=8, cursor=page.next_cursor))
    assert not {*ids(second)} & {*expected, "new"}
    past_cursor = (await index.search(replace(NEAR, limit=5, as_of=1))).next_cursor
    assert past_cursor is not None
    then = await index.search(replace(WORDS, limit=8, cursor=from_start(past_cursor)))
    assert ids(then) == expected
    assert then.as_of is not None


async def test_a_wait_token_beside_a_cursor_waits_for_nothing_and_says_where_it_is_not_met(
    library: Library, index: SearchIndex
) -> None:
    await _filled(library)
    first = await index.search(replace(NEAR, limit=5, wait_sequence=1))
    second = await index.search(replace(NEAR, limit=5, wait_sequence=1, cursor=first.next_cursor))
    assert second.warnings == ()
    later = await index.search(replace(NEAR, limit=5, wait_sequence=9, cursor=second.next_cursor))
    assert "of commit 1, before 9" in later.warnings[0]


async def test_listings_are_not_pinned_they_are_stable_by_value(library: Library, index: SearchIndex) -> None:
    await _filled(library)
    page = await index.search(replace(LIST, limit=5, filters=Equals("dataset", "nyiso_load")))
    assert page.next_cursor is not None
    assert page.next_cursor[0] not in "@~"

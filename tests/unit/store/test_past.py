"""The index as it was: exactly the rows of then, for as long as they are kept, whatever upkeep does meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import pytest

from shoal.records import Deletion, Writable
from shoal.settings import Settings
from shoal.store import snapshots as snapshots_module
from shoal.store.boosts import DAY_S, Boosts, recency
from shoal.store.cursors import CursorError
from shoal.store.filters import Equals, QueryError
from shoal.store.past import PINNED_MAX
from shoal.store.requests import SearchRequest
from shoal.store.search import SearchIndex
from shoal.store.snapshots import Keeping, Snapshot, paired, tag_name
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, WIDTH, deletion, document, vector

T0 = datetime(2025, 1, 20, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TABLES = ("scraper_metadata", "scraper_vectors")


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "lancedb")


class Clocked:
    """A writer that commits once a minute, and what the index held after each commit."""

    def __init__(self, place: str, **settings: Any) -> None:
        self.place = place
        self.writer = TableWriter.open(place, {}, MODEL, WIDTH, settings=Settings(**settings), now=T0)
        self.now = T0
        self.held: dict[int, set[tuple[str, str]]] = {}
        self.at: dict[int, datetime] = {}
        self._documents: dict[str, str] = {}

    def commit(self, *batch: Writable) -> int:
        self.now += MINUTE
        acks = self.writer.apply(batch, (), self.now)
        for item in batch:
            if isinstance(item, Deletion):
                self._documents.pop(str(item.document_id), None)
            else:
                announcement = item.fetched.announcement  # type: ignore[union-attr]
                self._documents[announcement.document_id] = announcement.version
        sequence = acks[0].commit_sequence
        assert sequence is not None
        self.held[sequence], self.at[sequence] = set(self._documents.items()), self.now
        return sequence

    def upkeep(self) -> None:
        while self.writer.maintain(self.now) is not None:
            pass

    def clean(self) -> None:
        """Cleanup at age zero, which the settings don't allow."""
        for kind in ("metadata", "vectors"):
            table = self.writer._tables[kind]  # type: ignore[index]
            table.refresh()
            table.dataset.cleanup_old_versions(timedelta(0), error_if_tagged_old_versions=False)
            table.refresh()

    def compact(self) -> None:
        for kind in ("metadata", "vectors"):
            self.writer._maintenance._compact(kind, self.writer._epoch)  # type: ignore[arg-type]

    def tags(self) -> list[Snapshot]:
        return paired(*({n: t["version"] for n, t in lance.dataset(f"{self.place}/{name}.lance").tags.list().items()}
                        for name in TABLES))  # fmt: skip


@asynccontextmanager
async def opened(place: str) -> AsyncIterator[SearchIndex]:
    index = await SearchIndex.open(place, {}, refresh_interval_s=0.0)
    try:
        yield index
    finally:
        await index.close()


async def seen(index: SearchIndex, as_of: datetime | int, **asked: Any) -> tuple[int, set[tuple[str, str]]]:
    page = await index.search(SearchRequest(mode="sql", as_of=as_of, limit=100, **asked))
    assert page.as_of is not None
    assert page.as_of.sequence == page.freshness.commit_sequence
    return page.as_of.sequence, {(hit.metadata["id"], hit.metadata["version"]) for hit in page.hits}


def story(clocked: Clocked) -> list[int]:
    """Nine commits: new documents, new versions, a deletion, and one that touches no chunk."""
    return [
        *(clocked.commit(document(f"prod:ds:{n}", n, content=f"wind {n}")) for n in range(1, 5)),
        clocked.commit(document("prod:ds:1", 10, version="v2", content="solar one")),
        clocked.commit(document("prod:ds:2", 2, content="wind 2")),  # a redelivery
        clocked.commit(deletion("prod:ds:3", 12)),
        clocked.commit(document("prod:ds:5", 13, content="tide 5"), document("prod:ds:6", 14, content="tide 6")),
        clocked.commit(document("prod:ds:1", 15, version="v3", content="coal one", chunks=1)),
    ]


async def test_every_commit_within_the_cleanup_age_can_be_asked_for_by_sequence_and_by_time(place: str) -> None:
    clocked = Clocked(place, as_of_days=0)
    sequences = story(clocked)
    clocked.upkeep()
    clocked.compact()
    assert clocked.tags() == []
    async with opened(place) as index:
        for sequence in sequences:
            assert await seen(index, sequence) == (sequence, clocked.held[sequence])
            assert await seen(index, clocked.at[sequence]) == (sequence, clocked.held[sequence])
            between = clocked.at[sequence] + MINUTE / 2
            assert await seen(index, between) == (sequence, clocked.held[sequence])
        assert await seen(index, T0) == (0, set())
        live = await index.search(SearchRequest(mode="sql"))
        assert live.as_of is None
        assert len(live.hits) == len(clocked.held[sequences[-1]])


async def test_snapshots_outlive_cleanup_compaction_and_a_rebuilt_index_and_the_rest_goes(place: str) -> None:
    clocked = Clocked(place, as_of_interval_s=90, index_rows_min=256, compact_commits=3)
    kept = []
    for commit in range(8):
        batch = [
            document(f"prod:ds:{n}", 100 * commit + n, version=f"v{commit}", content=f"word{commit} {n}", chunks=1)
            for n in range(40)
        ]
        sequence = clocked.commit(*batch, *([deletion("prod:ds:0", 100 * commit + 99)] if commit % 2 else ()))
        clocked.upkeep()
        if commit % 2 == 0:
            kept.append(sequence)
    clocked.compact()
    clocked.writer._maintenance._fold("vectors", clocked.writer._epoch)
    clocked.clean()
    assert [one.sequence for one in clocked.tags()] == kept
    async with opened(place) as index:
        for sequence in kept:
            state = await seen(index, sequence)
            assert state == (sequence, clocked.held[sequence])
            commit = (sequence - kept[0]) // (kept[1] - kept[0]) * 2
            found = await index.search(SearchRequest(mode="keyword", query=f"word{commit}", as_of=sequence, limit=50))
            assert {(hit.metadata["id"], hit.metadata["version"]) for hit in found.hits} == clocked.held[sequence]
            (best, *_) = (
                await index.search(
                    SearchRequest(mode="vector", vector=vector(f"word{commit} 7 part 0"), as_of=sequence)
                )
            ).hits
            assert (best.metadata["id"], best.metadata["version"]) == ("prod:ds:7", f"v{commit}")
        # What lies between two snapshots is gone: the one before stands for it, and the answer says so.
        gone = kept[0] + 1
        page = await index.search(SearchRequest(mode="sql", as_of=gone))
        assert page.as_of is not None
        assert page.as_of.sequence == kept[0]
        assert "newest state kept before" in page.warnings[-1]
        # The latest commit can always be asked for.
        last = max(clocked.held)
        assert await seen(index, last) == (last, clocked.held[last])


async def test_what_was_new_then_is_new_in_a_search_of_then(place: str) -> None:
    """The commits are years old: by the clock of now, no document would be recent."""
    clocked = Clocked(place)
    sequence = clocked.commit(document("prod:ds:1", 1, content="wind 1"))
    recent = Boosts(recency=1.0, half_life_s=DAY_S)
    async with opened(place) as index:
        request = SearchRequest(mode="keyword", query="wind", boosts=recent, explain=True)
        (then,) = (await index.search(replace(request, as_of=sequence))).hits
        (now,) = (await index.search(request)).hits
    assert then.explain is not None
    assert now.explain is not None
    age_s = (clocked.at[sequence] - then.metadata["collected_at"]).total_seconds()
    assert then.explain["boosts"]["recency"]["value"] == recency(
        then.metadata["collected_at"], clocked.at[sequence], DAY_S
    )
    assert age_s < 30 * DAY_S
    assert now.explain["boosts"]["recency"]["value"] < then.explain["boosts"]["recency"]["value"]


async def test_what_is_too_early_or_not_yet_is_refused_with_what_can_be_asked_for(place: str) -> None:
    clocked = Clocked(place, as_of_interval_s=10_000)
    story(clocked)
    clocked.upkeep()  # one snapshot: of the last commit
    later = clocked.commit(document("prod:ds:9", 90))
    clocked.clean()
    (only,) = clocked.tags()
    async with opened(place) as index:
        for early in (only.sequence - 1, T0 + MINUTE):
            with pytest.raises(QueryError, match=f"kept; the earliest is commit {only.sequence} of 2025-01-20"):
                await seen(index, early)
        with pytest.raises(QueryError, match=f"has not happened; the latest is {later}"):
            await seen(index, later + 1)
        with pytest.raises(QueryError, match="future"):
            await seen(index, datetime.now(UTC) + timedelta(days=1))
        with pytest.raises(QueryError, match="wait token"):
            await seen(index, later, wait_sequence=later)


async def test_filters_and_pages_stay_in_the_state_of_the_first_page(place: str) -> None:
    clocked = Clocked(place)
    old = clocked.commit(*(document(f"prod:ds:{n}", n, content=f"wind {n}", chunks=1) for n in range(25)))
    clocked.commit(*(deletion(f"prod:ds:{n}", 100 + n) for n in range(20)))
    async with opened(place) as index:
        for mode in ({"mode": "sql"}, {"mode": "keyword", "query": "wind"},
                     {"mode": "hybrid", "query": "wind", "vector": vector("wind 3 part 0")}):  # fmt: skip
            asked = {**mode, "filters": Equals("dataset", "nyiso_load"), "limit": 10}
            first = await index.search(SearchRequest(**asked, as_of=old))  # type: ignore[arg-type]
            second = await index.search(SearchRequest(**asked, as_of=old, cursor=first.next_cursor))  # type: ignore[arg-type]
            # The cursor alone knows the state too.
            third = await index.search(SearchRequest(**asked, cursor=second.next_cursor))  # type: ignore[arg-type]
            ids = [hit.metadata["id"] for page in (first, second, third) for hit in page.hits]
            assert sorted(ids) == sorted(f"prod:ds:{n}" for n in range(25))
            assert third.as_of == first.as_of
            assert third.next_cursor is None
        live = await index.search(SearchRequest(mode="sql", limit=2))
        for request, message in (
            (SearchRequest(mode="sql", limit=2, as_of=old, cursor=live.next_cursor), "without as_of"),
            (
                SearchRequest(mode="sql", limit=2, as_of=old + 1, cursor=f"~{old}~00000000~{live.next_cursor}"),
                "another",
            ),
            (SearchRequest(mode="sql", limit=2, cursor=f"~{old}~zz"), "no cursor|without as_of"),
            (SearchRequest(mode="sql", limit=2, cursor="~~~"), "without as_of"),
            (SearchRequest(mode="keyword", query="x", cursor=f"~{old}~0~{live.next_cursor}"), "another query"),
        ):
            with pytest.raises(CursorError, match=message):
                await index.search(request)


async def test_a_cursor_of_a_state_that_is_gone_is_refused_and_not_served_from_another(place: str) -> None:
    clocked = Clocked(place, as_of_days=0)
    old = clocked.commit(*(document(f"prod:ds:{n}", n) for n in range(5)))
    async with opened(place) as index:
        first = await index.search(SearchRequest(mode="sql", limit=2, as_of=old))
        clocked.commit(document("prod:ds:7", 70))
        clocked.compact()
        clocked.clean()
        with pytest.raises(QueryError, match="no longer kept"):
            await index.search(SearchRequest(mode="sql", limit=2, as_of=old, cursor=first.next_cursor))


async def test_half_a_commit_and_its_undoing_are_not_seen(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. A writer is killed between its two tables; 2. the heir undoes the chunks; 3. it goes on.
    clocked = Clocked(place)
    whole = clocked.commit(document("prod:ds:1", 1, content="wind"))
    metadata = clocked.writer._tables["metadata"]
    monkeypatch.setattr(metadata, "commit", lambda *_: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        clocked.writer.apply([document("prod:ds:2", 2, content="never whole")], (), clocked.now)
    heir = Clocked(place)
    heir.now = clocked.now + MINUTE
    heir._documents = {"prod:ds:1": "v1"}
    after = heir.commit(document("prod:ds:3", 3, content="tide"))
    async with opened(place) as index:
        for sequence, words in ((whole, {"prod:ds:1"}), (after, {"prod:ds:1", "prod:ds:3"})):
            page = await index.search(SearchRequest(mode="keyword", query="wind tide never", as_of=sequence))
            assert {hit.metadata["id"] for hit in page.hits} == words


async def test_a_kill_between_the_two_tags_leaves_none_and_the_next_round_makes_it_whole(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocked = Clocked(place)
    sequence = clocked.commit(document("prod:ds:1", 1))

    def kill(point: str) -> None:
        raise Killed(point)

    monkeypatch.setattr(snapshots_module, "reach", kill)
    with pytest.raises(Killed, match="snapshotting"):
        clocked.upkeep()
    monkeypatch.undo()
    assert clocked.tags() == []
    later = Clocked(place)
    later.now, later._documents = clocked.now, {"prod:ds:1": "v1"}
    next_sequence = later.commit(document("prod:ds:2", 2))
    later.upkeep()
    assert [one.sequence for one in later.tags()] == [next_sequence]
    for name in TABLES:  # the half one is gone
        assert list(lance.dataset(f"{place}/{name}.lance").tags.list()) == [tag_name(next_sequence, later.now)]
    later.clean()
    async with opened(place) as index:
        with pytest.raises(QueryError, match="no longer kept"):
            await seen(index, sequence)


async def test_states_held_open_are_few_and_the_live_handles_never_move_back(place: str) -> None:
    clocked = Clocked(place)
    sequences = story(clocked)
    async with opened(place) as index:
        for sequence in sequences:
            await seen(index, sequence)
            assert len((await index.search(SearchRequest(mode="sql"))).hits) == 5
        assert len(index._past._pinned) == PINNED_MAX


def test_the_bound_on_disk_drops_the_oldest_and_cleanup_then_frees_their_files(place: str) -> None:
    def size() -> int:
        return sum(path.stat().st_size for path in Path(place).rglob("*.lance") if path.is_file())

    def run(factor: float) -> tuple[int, int]:
        clocked = Clocked(place, as_of_interval_s=1, as_of_disk_factor=factor, as_of_bytes_min=0)
        for commit in range(8):
            clocked.commit(*(document(f"prod:ds:{n}", 1000 * factor + 100 * commit + n, version=f"v{factor}.{commit}",  # type: ignore[arg-type]
                                      content=f"{'much text ' * 50}{commit} {n}") for n in range(50)))  # fmt: skip
            clocked.upkeep()
            clocked.compact()
        clocked.now += MINUTE
        clocked.upkeep()
        clocked.clean()
        return len(clocked.tags()), size()

    (many, large), (few, small) = run(100.0), run(1.0)
    assert many > few >= 1
    current = sum(
        sum(snapshots_module.files_of(lance.dataset(f"{place}/{name}.lance"), name).values()) for name in TABLES
    )
    assert small < 2.1 * current < large


def test_after_a_start_each_round_opens_few_kept_states_the_newest_first_until_all_are_known(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Clocked(place, as_of_interval_s=1)
    for number in range(7):
        first.commit(document("prod:ds:1", number, version=f"v{number}", content=f"text {number}"))
        first.upkeep()
    kept = [one.metadata for one in first.tags()]
    assert len(kept) == 7
    monkeypatch.setattr(snapshots_module, "OPENED_MAX", 3)
    heir = Clocked(place, as_of_interval_s=3_600, as_of_disk_factor=0, as_of_bytes_min=1 << 40)
    keeper = heir.writer._maintenance._snapshots
    opened = []
    for _ in range(4):
        heir.writer._maintenance._keep_snapshots(T0 + 10 * MINUTE, heir.writer._epoch)
        opened.append(sorted(version for kind, version in keeper._files if kind == "metadata"))
    assert opened == [kept[-3:], kept[-6:], kept, kept]
    assert not keeper.is_learning
    # With no room for any of them, all that is known to be too much goes in the first round.
    strict = Clocked(place, as_of_interval_s=3_600, as_of_disk_factor=0, as_of_bytes_min=0)
    strict.writer._maintenance._keep_snapshots(T0 + 10 * MINUTE, strict.writer._epoch)
    assert len(strict.tags()) <= 3


def test_upkeep_goes_on_learning_without_waiting_for_the_next_snapshot(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Clocked(place, as_of_interval_s=1)
    for number in range(3):
        first.commit(document("prod:ds:1", number, version=f"v{number}", content=f"text {number}"))
        first.upkeep()
    monkeypatch.setattr(snapshots_module, "OPENED_MAX", 1)
    heir = Clocked(place, as_of_interval_s=3_600)
    for _ in range(4):
        heir.upkeep()
    assert len(heir.writer._maintenance._snapshots._files) == 2 * 3


# --- the policy alone -------------------------------------------------------------------------


def snapshot(sequence: int, at: datetime) -> Snapshot:
    return Snapshot(sequence, at, sequence, sequence)


KEEPING = Keeping(timedelta(days=7), timedelta(minutes=15), 1.0, 0)


def test_a_snapshot_is_due_once_something_changed_and_the_interval_is_over() -> None:
    last = snapshot(4, T0)
    assert KEEPING.is_due(None, 1, T0)
    assert not KEEPING.is_due(None, 0, T0)
    assert not KEEPING.is_due(last, 4, T0 + timedelta(days=1))
    assert not KEEPING.is_due(last, 5, T0 + 14 * MINUTE)
    assert KEEPING.is_due(last, 5, T0 + 15 * MINUTE)


def test_a_state_is_kept_until_what_followed_it_is_too_old_and_older_ones_thin_out_to_one_an_hour() -> None:
    every = [snapshot(n, T0 + n * 15 * MINUTE) for n in range(9 * 96)]  # nine days
    now = every[-1].committed_at
    gone = {one.sequence for one in KEEPING.outlived(every, now)}
    left = [one for one in every if one.sequence not in gone]
    assert left[-1] == every[-1]
    assert (
        now - timedelta(days=7) - timedelta(hours=1)
        < left[0].committed_at
        <= now - timedelta(days=7) + timedelta(hours=1)
    )
    young = [one for one in left if one.committed_at > now - timedelta(days=1)]
    assert len(young) == 96
    assert len(left) - len(young) == pytest.approx(6 * 24, abs=2)
    # Nothing happened for a month: the last state is still the state of a week ago.
    idle = [snapshot(1, T0), snapshot(2, T0 + timedelta(days=30))]
    assert KEEPING.outlived(idle, T0 + timedelta(days=31)) == []
    assert KEEPING.outlived(idle, T0 + timedelta(days=37)) == idle[:1]


def test_the_bound_counts_a_file_once_and_drops_from_the_oldest() -> None:
    states = [snapshot(n, T0 + n * MINUTE) for n in (1, 2, 3)]
    files = {1: {"a": 100, "b": 10}, 2: {"b": 10, "c": 60}, 3: {"c": 60, "d": 40, "now": 100}}
    current = {"now": 100}
    assert KEEPING.beyond_bound(states, files, current) == states[:2]  # 40 + 60 = 100 fit; b makes it 110
    assert Keeping(KEEPING.age, KEEPING.interval, 1.0, 110).beyond_bound(states, files, current) == states[:1]
    assert Keeping(KEEPING.age, KEEPING.interval, 3.0, 0).beyond_bound(states, files, current) == []
    assert Keeping(KEEPING.age, KEEPING.interval, 0.1, 0).beyond_bound(states, files, current) == states
    newest = {number: held for number, held in files.items() if number > 1}
    assert KEEPING.beyond_bound(states, newest, current) == states[:2]  # the oldest is older than what must go
    assert KEEPING.beyond_bound(states, {3: files[3]}, current) == []  # nobody knows yet


def test_only_names_that_both_tables_have_are_snapshots() -> None:
    name = tag_name(7, T0)
    assert paired({name: 3, "mine": 1, "shoal.asof.x.y": 1}, {name: 4, "shoal.asof.x.y": 1}) == [Snapshot(7, T0, 3, 4)]
    assert paired({name: 3}, {}) == []

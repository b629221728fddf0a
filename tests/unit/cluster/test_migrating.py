"""A change of the model: the copy becomes what its original is, whatever happens meanwhile, and moves in one commit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest

from shoal import faults
from shoal.cluster import migrating
from shoal.cluster.embedding_texts import Embedder
from shoal.cluster.migrating import BudgetReached, Migration, beside, can_go_back, in_use, to_copy
from shoal.embeddings.hash_model import HashModel
from shoal.errors import ConfigurationError, FencedError, ShoalError, TransientError
from shoal.records import Embedded, Outcome, Writable
from shoal.serve_apps.index_provider import IndexProvider
from shoal.settings import Settings
from shoal.spending import Counts, entry, spend_key
from shoal.store import dropping, generations, writing
from shoal.store.dropping import drop
from shoal.store.filters import QueryError
from shoal.store.generations import Generation, Handover, MovedError
from shoal.store.requests import SearchRequest
from shoal.store.schemas import IS_CURRENT, IS_DOCUMENT, chunk_id
from shoal.store.search import SearchIndex
from shoal.store.tables import CommitRefused, FencedTable, to_arrow
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, WIDTH, command, deletion, document, failed, vector

NOW = datetime(2025, 1, 20, 15, 0, tzinfo=UTC)
WIDER = "hash:128"


class Place:
    """Tables under a directory, their writer, and the model that they change to."""

    def __init__(self, directory: Path) -> None:
        self.settings = Settings(data_dir=directory, embedding_provider="hash")
        self.root = self.settings.tables_uri
        self.wider, self.narrow = (Embedder(self.settings, f"hash:{width}", width) for width in (128, WIDTH))
        self._opened: list[Any] = [self.wider, self.narrow]

    def writer(self, at: Generation | None = None, now: datetime = NOW) -> TableWriter:
        model, width = (at.facts.model, at.facts.width) if at else (MODEL, WIDTH)
        role = {"role": at.role} if at else {}
        place = at.uri if at else self.root
        return self.kept(TableWriter.open(place, {}, model, width, settings=self.settings, now=now, **role))

    def kept(self, one: Any) -> Any:
        self._opened.append(one)
        return one

    def migration(self, tokens_max: int | None = None) -> Migration:
        used, copy = to_copy(self.settings, WIDER, 128)
        return self._migration(used, copy, self.wider, tokens_max)

    def back(self) -> Migration:
        used = in_use(self.settings)
        left = beside(self.settings, used)
        assert left is not None
        assert can_go_back(self.settings, left, used)
        return self._migration(used, left, self.narrow if left.facts.width == WIDTH else self.wider, None)

    def _migration(self, used: Generation, copy: Generation, embedder: Embedder, tokens_max: int | None) -> Migration:
        made = Migration.open(self.settings, used, copy, embedder, tokens_max)
        made.now = lambda: NOW
        return self.kept(made)

    def close(self) -> None:
        for one in self._opened:
            one.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def rows(uri: str, kind: Any, name: str, columns: list[str], where: str = IS_DOCUMENT) -> list[tuple[Any, ...]]:
    table = FencedTable.open(kind, f"{uri}/{name}.lance", {})
    assert table is not None
    return sorted((tuple(row[column] for column in columns) for row in table.rows(columns, where)), key=repr)


def holds(uri: str) -> dict[str, list[tuple[Any, ...]]]:
    """Everything but vectors, the model's name and what the writer says of itself."""
    found = {}
    for kind, name in (("metadata", "scraper_metadata"), ("vectors", "scraper_vectors"), ("fixes", "scraper_fixes"),
                       ("jobs", "shoal_jobs"), ("spend", "shoal_spend")):  # fmt: skip
        table = FencedTable.open(kind, f"{uri}/{name}.lance", {})  # type: ignore[arg-type]
        assert table is not None
        columns = [column for column in table.schema.names if not column.endswith(("_embedding", "ding_model"))]
        marks = "fence IS NULL OR fence NOT LIKE '%epoch%'"
        found[name] = rows(uri, kind, name, columns, marks)
    return found


SPENT = spend_key("2025-01-20", "openai:small", "scraper", "NYISO", "nyiso_load", "live")
LOG: list[Writable] = [
    document("prod:ds:a", 0, content="wind and load", chunks=3),
    document("prod:ds:b", 1, content="prices of the day"),
    document("prod:ds:c", 2, content="to be deleted"),
    document("prod:ds:b", 3, version="v2", content="prices of the next day", chunks=4),
    failed("prod:ds:d", 4, content="broken"),
    deletion("prod:ds:c", 5),
    deletion(None, 6, s3_path="s3://scrapes/year=2025/month=01/day=20/0.json"),
    document("prod:ds:a", 7, version="v2", content="wind again"),
    command("c1", "fix", {"scraper_name": "s", "summary": "use the other key"}, offset=0, text="KeyError"),
    command("c2", "unknown", {}, offset=1),
    command("c3", "spend", {"book": "b1", "entries": [entry(SPENT, Counts(2, 1, 10, 5_000, 70))]}, offset=2),
]


def test_a_copy_holds_what_its_original_holds_with_vectors_of_its_own_model(place: Place) -> None:
    place.writer().apply(LOG, (), NOW)
    migration = place.migration()
    migration.build()
    assert not migration.look()
    assert holds(migration.copy.uri) == holds(place.root)
    assert len(holds(place.root)["shoal_spend"]) == 1
    chunks = rows(migration.copy.uri, "vectors", "scraper_vectors", ["content_summary", "content_embedding"])
    for text, stored in chunks:
        np.testing.assert_allclose(stored, HashModel(128).embed([text])[0], rtol=1e-6)
    models = rows(
        migration.copy.uri, "metadata", "scraper_metadata", ["embedding_model"], f"{IS_CURRENT} AND chunk_count > 0"
    )
    assert set(models) == {(WIDER,)}
    apis = rows(migration.copy.uri, "metadata", "scraper_metadata", ["id"], "schema_embedding IS NOT NULL")
    assert apis == rows(place.root, "metadata", "scraper_metadata", ["id"], "schema_embedding IS NOT NULL")
    fixes = rows(migration.copy.uri, "fixes", "scraper_fixes", ["id", "error_embedding"])
    assert len(fixes[0][1]) == 128
    assert in_use(place.settings).number == 1  # nothing has moved


def test_what_is_written_while_it_is_built_is_brought_over(place: Place) -> None:
    writer = place.writer()
    writer.apply(LOG[:3], (), NOW)
    migration = place.migration()
    migration.build()
    writer.apply(LOG[3:], (), NOW)  # a new version, deletions by id and by path, an error, commands
    assert migration.look()
    migration.catch_up()
    assert not migration.look()
    assert holds(migration.copy.uri) == holds(place.root)


def test_a_document_written_anew_under_the_same_version_is_brought_over(place: Place) -> None:
    writer = place.writer()
    writer.apply([document("prod:ds:a", 0, content="one")], (), NOW)
    migration = place.migration()
    migration.build()
    writer.apply([document("prod:ds:a", 1, content="other")], (), NOW)  # same version, later in the log
    migration.catch_up()
    assert holds(migration.copy.uri) == holds(place.root)


def test_the_collection_moves_with_one_commit_and_its_writer_goes_with_it(place: Place) -> None:
    old = place.writer()
    old.apply(LOG, (), NOW)
    migration = place.migration()
    migration.build()
    sequence = old.statistics().commit_sequence
    moved = migration.switch()
    migration.close()
    assert in_use(place.settings) == moved
    assert (moved.number, moved.facts.model) == (2, WIDER)
    with pytest.raises(MovedError):
        old.apply([document("prod:ds:e", 8)], (), NOW)
    with pytest.raises(MovedError):  # nor can one be opened there by whoever knows no better
        place.writer()
    new = place.writer(moved)
    made = document("prod:ds:e", 8, width=128)
    made = type(made)(made.fetched, WIDER, made.vectors, made.schema_vector)
    ack = new.apply([made], (), NOW)[0]
    assert ack.outcome is Outcome.INDEXED
    assert ack.commit_sequence > sequence, "who waits for a commit of before sees it"


def test_a_collection_goes_back_with_everything_that_was_written_since(place: Place) -> None:
    place.writer().apply(LOG, (), NOW)
    migration = place.migration()
    migration.build()
    moved = migration.switch()
    migration.close()
    new = place.writer(moved)
    made = document("prod:ds:e", 8, content="written after the switch", width=128)
    new.apply([type(made)(made.fetched, WIDER, made.vectors, made.schema_vector), deletion("prod:ds:b", 9)], (), NOW)

    back = place.back()
    home = back.switch()
    back.close()
    assert (home.number, home.facts.model) == (1, MODEL)
    assert in_use(place.settings).number == 1
    assert holds(place.root) == holds(moved.uri)
    with pytest.raises(MovedError):
        new.apply([deletion("prod:ds:a", 10)], (), NOW)
    writer = place.writer(home)
    writer.apply([document("prod:ds:g", 11)], (), NOW)
    assert in_use(place.settings).number == 1

    forth = place.back()  # and there again
    assert forth.switch().number == 2
    assert in_use(place.settings).number == 2


def test_the_switch_is_refused_where_the_original_was_written_to_since_it_was_compared(place: Place) -> None:
    writer = place.writer()
    writer.apply(LOG[:2], (), NOW)
    migration = place.migration()
    migration.build()
    migration.look()
    handover = Handover(migration.original["metadata"])
    writer.apply([document("prod:ds:late", 9)], (), NOW)
    with pytest.raises(CommitRefused):
        handover.move(2, 1)
    assert in_use(place.settings).number == 1
    assert migration.switch().number == 2
    assert holds(migration.copy.uri)["scraper_metadata"] == holds(place.root)["scraper_metadata"]


def test_a_command_whose_record_is_on_its_way_at_the_switch_is_not_acknowledged(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = place.writer()
    writer.apply(LOG, (), NOW)
    migration = place.migration()
    migration.build()
    moments: list[str] = []

    def switched_under_it(point: str) -> None:
        if point == "writer.after_metadata" and not moments:
            moments.append(point)
            assert migration.switch().number == 2

    monkeypatch.setattr(writing, "reach", switched_under_it)
    late = [command("late", "unknown", {}, offset=9)]
    with pytest.raises(MovedError):
        writer.apply(late, (), NOW)
    migration.close()
    new = place.writer(in_use(place.settings))  # it is delivered again there
    new.apply(late, (), NOW)
    jobs = rows(migration.copy.uri, "jobs", "shoal_jobs", ["command_id"])
    assert ("late",) in jobs


def test_a_held_writer_waits_and_goes_on_when_the_hold_is_over(place: Place) -> None:
    writer = place.writer()
    writer.apply(LOG[:1], (), NOW)
    migration = place.migration()
    handover = Handover(migration.original["metadata"])
    handover.hold(NOW + timedelta(seconds=60))
    late = [document("prod:ds:late", 9)]
    with pytest.raises(TransientError, match="held"):
        writer.apply(late, (), NOW)
    with pytest.raises(TransientError, match="held"):  # nor does a new one begin
        place.writer()
    after = NOW + timedelta(seconds=61)  # whoever asked for it has died
    assert writer.apply(late, (), after)[0].outcome is Outcome.INDEXED
    with pytest.raises(CommitRefused):
        handover.move(2, 1)


def test_a_hold_that_is_given_up_ends_at_once(place: Place) -> None:
    writer = place.writer()
    writer.apply(LOG[:1], (), NOW)
    migration = place.migration()
    migration.embedder = place.kept(Refusing(place.settings, "hash:128", 128))
    with pytest.raises(ShoalError):
        migration.switch()
    assert writer.apply([document("prod:ds:late", 9)], (), NOW)[0].outcome is Outcome.INDEXED


class Refusing(Embedder):
    def embed(self, texts: Any, kind: Any) -> Any:
        raise TransientError("the provider is down")


def test_a_hold_in_the_far_future_holds_nobody(place: Place) -> None:
    writer = place.writer()
    writer.apply(LOG[:1], (), NOW)
    Handover(place.migration().original["metadata"]).hold(NOW + timedelta(days=1))  # another clock
    assert writer.apply([document("prod:ds:late", 9)], (), NOW)[0].outcome is Outcome.INDEXED


def test_chunks_whose_metadata_never_came_are_not_brought_over(place: Place) -> None:
    writer = place.writer()
    writer.apply(LOG, (), NOW)
    half = writer.tables["vectors"]
    fence = half.fence
    row = {"id": chunk_id("prod:ds:b", 9), "metadata_id": "prod:ds:b", "content_summary": "half"}
    half.commit([row], fence.advanced(token="t", now=NOW, sequence=fence.commit_sequence + 1))
    migration = place.migration()
    migration.build()
    ids = rows(migration.copy.uri, "vectors", "scraper_vectors", ["id"])
    assert ("prod:ds:b#9",) not in ids
    assert ("prod:ds:b#0",) in ids


def test_a_build_stops_at_its_bound_and_goes_on_with_a_higher_one(place: Place) -> None:
    place.writer().apply(LOG, (), NOW)
    small = place.migration(tokens_max=1)
    with pytest.raises(BudgetReached, match="raise --max-tokens"):
        small.build()
    assert small.budget.spent == 0, "not a cent before it is said"
    small.close()
    whole = place.migration(tokens_max=2_000)
    whole.build()
    spent = whole.budget.spent
    assert 0 < spent < 2_000
    whole.close()
    again = place.migration(tokens_max=2_000)
    again.build()
    assert again.budget.spent == spent, "what is there costs nothing again"


def test_a_model_that_takes_shorter_texts_is_refused_before_anything_is_spent(place: Place) -> None:
    place.writer().apply([document("prod:ds:long", 0, content="word " * 300, chunks=1)], (), NOW)
    migration = place.migration()
    with pytest.raises(ConfigurationError, match="nothing is cut off"):
        migration.build()
    assert migration.budget.spent == 0


def test_the_same_model_and_a_second_copy_are_refused(place: Place) -> None:
    place.writer().apply(LOG[:1], (), NOW)
    with pytest.raises(ConfigurationError, match="already"):
        to_copy(place.settings, MODEL, WIDTH)
    place.migration().build()
    with pytest.raises(ConfigurationError, match="lies beside"):
        to_copy(place.settings, "hash:32", 32)


def test_a_copy_that_was_never_used_can_be_cancelled_and_begun_anew(place: Place) -> None:
    place.writer().apply(LOG, (), NOW)
    migration = place.migration()
    migration.build()
    migration.close()
    used = in_use(place.settings)
    left = beside(place.settings, used)
    assert left is not None
    assert not can_go_back(place.settings, left, used)
    drop(place.settings, {}, left, used)
    assert beside(place.settings, used) is None
    assert not Path(left.uri).exists()
    assert in_use(place.settings).number == 1
    place.migration().build()


@pytest.mark.parametrize("is_opened", [False, True])
def test_after_going_back_the_copy_can_be_dropped_whether_or_not_a_writer_was_there(
    place: Place, *, is_opened: bool
) -> None:
    place.writer().apply(LOG, (), NOW)
    migration = place.migration()
    migration.build()
    migration.switch()
    back = place.back()
    home = back.switch()
    back.close()
    if is_opened:
        place.writer(home)
    left = beside(place.settings, home)
    assert left is not None
    drop(place.settings, {}, left, home)
    used = in_use(place.settings)
    assert (used.number, used.turn) == (1, 2)
    place.writer(used).apply([document("prod:ds:after", 12)], (), NOW)
    place.migration().build()


def test_the_first_generation_can_be_dropped_and_the_collection_migrated_again(place: Place) -> None:
    place.writer().apply(LOG, (), NOW)
    migration = place.migration()
    migration.build()
    moved = migration.switch()
    migration.close()
    before = holds(moved.uri)
    left = beside(place.settings, moved)
    assert left is not None
    drop(place.settings, {}, left, moved)
    drop(place.settings, {}, left, moved)  # killed after the tables went, asked again
    assert in_use(place.settings).number == 2
    assert beside(place.settings, in_use(place.settings)) is None
    assert holds(moved.uri) == before

    used, third = to_copy(place.settings, MODEL, WIDTH)
    assert third.number == 3
    again = Migration.open(place.settings, used, third, place.narrow)
    place.kept(again)
    again.now = lambda: NOW
    again.build()
    assert again.switch().number == 3
    again.close()
    drop(place.settings, {}, used, in_use(place.settings))
    assert in_use(place.settings).number == 3
    assert holds(third.uri) == before


def test_an_open_index_answers_of_its_own_generation_until_the_other_takes_its_place(place: Place) -> None:
    place.writer().apply(LOG, (), NOW)
    migration = place.migration()
    migration.build()

    async def ask() -> None:
        warmed: list[str] = []

        async def warm(index: SearchIndex) -> None:
            warmed.append(index.model)

        async def open_index() -> SearchIndex:
            return await SearchIndex.open_current(place.settings, {})

        provider = IndexProvider(open_index, warm=warm)
        old = await provider()
        assert (old.model, old.width, old.is_left) == (MODEL, WIDTH, False)
        await asyncio.to_thread(migration.switch)
        await old._tables.view(max_age_s=0.0)
        assert old.is_left
        assert await provider() is old  # while the other is opened
        page = await old.search(SearchRequest(mode="vector", vector=vector("wind again")))
        assert page.hits
        while (new := await provider()) is old:
            await asyncio.sleep(0.01)
        assert (new.model, new.width, warmed) == (WIDER, 128, [WIDER])
        asked = HashModel(128).embed(["wind again part 0"], "query")[0]
        page = await new.search(SearchRequest(mode="vector", vector=asked))
        assert page.hits[0].metadata["id"] == "prod:ds:a"
        assert (await new.counts()) == (await old.counts())
        with pytest.raises(QueryError, match="no longer kept"):  # what the copy was before is no state of it
            await new.search(SearchRequest(mode="sql", as_of=1))
        await new.close()
        await old.close()

    asyncio.run(ask())


def test_who_builds_a_copy_that_has_come_into_use_meanwhile_is_refused(place: Place) -> None:
    place.writer().apply(LOG, (), NOW)
    first = place.migration()
    first.build()
    late = to_copy(place.settings, WIDER, 128)  # another process looks ...
    moved = first.switch()
    first.close()
    writer = place.writer(moved)
    writer.apply([deletion("prod:ds:a", 9)], (), NOW)
    before = holds(moved.uri)
    with pytest.raises(MovedError, match="in use"):  # ... and acts on it too late
        place._migration(*late, place.wider, None)
    assert holds(moved.uri) == before
    writer.apply([deletion("prod:ds:b", 10)], (), NOW)  # nor has it taken the tables from their writer


def test_two_that_build_the_same_copy_end_with_one(place: Place) -> None:
    place.writer().apply(LOG, (), NOW)
    first = place.migration()
    second = place.migration()
    with pytest.raises(FencedError):
        first.build()
    second.build()
    assert second.switch().number == 2


def test_a_build_ends_where_the_collection_has_moved_away_under_it(place: Place) -> None:
    place.writer().apply(LOG[:2], (), NOW)
    migration = place.migration()
    migration.build()
    Handover(migration.original["metadata"]).move(2, 1)
    with pytest.raises(MovedError):
        migration.catch_up()


def test_a_damaged_row_that_is_there_twice_is_said_and_nothing_is_switched(place: Place) -> None:
    writer = place.writer()
    writer.apply(LOG, (), NOW)
    vectors = writer.tables["vectors"]
    (row,) = vectors.rows(vectors.schema.names, "id = 'prod:ds:b#0'")
    lance.write_dataset(to_arrow([row], vectors.schema), vectors.uri, mode="append")
    migration = place.migration()
    with pytest.raises(ShoalError, match="shoal check"):
        migration.switch()
    assert in_use(place.settings).number == 1
    assert writer.apply([deletion("prod:ds:a", 10)], (), NOW)[0].outcome is Outcome.DELETED


IN_ORDER = (
    "migration.after_call", "mirror.before_chunks", "mirror.after_chunks", "mirror.after_metadata", "migration.holding",
    "handover.before", "handover.after",
)  # fmt: skip
LATE = "migration.dropping"


class Killed(BaseException):
    """This process is gone: nothing of it runs any more."""


class Killer:
    """Ends whoever reaches the point that is armed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.point = ""
        for module in (writing, generations, migrating, dropping):
            monkeypatch.setattr(module, "reach", self.reach)
        monkeypatch.setattr(migrating, "_quietly", lambda step: None if self.point else step())

    def reach(self, point: str) -> None:
        if point == self.point:
            raise Killed(point)


def test_killed_at_each_of_its_moments_it_ends_with_the_same_tables(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {*IN_ORDER, LATE} == set(faults.MIGRATION_POINTS)
    killer = Killer(monkeypatch)
    place.writer().apply(
        [*LOG, *(document(f"prod:ds:{at}", 20 + at, content=f"text {at} " + 20 * "word ") for at in range(20))], (), NOW
    )

    def write(number: int) -> None:
        """As the collection's writer of then, whose predecessor was left where it was; after any hold has run out."""
        used = in_use(place.settings)
        after = NOW + timedelta(minutes=5)
        writer = place.writer(used, after)
        made = document(f"prod:ds:new{number}", 100 + number, content=f"brought {number}", width=used.facts.width)
        brought = Embedded(made.fetched, used.facts.model, made.vectors, made.schema_vector)
        acks = writer.apply([brought, deletion(f"prod:ds:{10 + number}", 200 + number)], (), after)
        assert [ack.outcome for ack in acks] == [Outcome.INDEXED, Outcome.DELETED]

    def run(migration: Migration) -> None:
        migration.build()
        migration.switch()

    spent: list[int] = []
    for number, point in enumerate(IN_ORDER):
        killer.point = point
        migration = place.migration()
        with pytest.raises(Killed):
            run(migration)
        migration.close()
        spent.append(migration.budget.spent)
        killer.point = ""
        assert in_use(place.settings).number == (2 if point == "handover.after" else 1), point
        write(number)
    # From the commit of the page on only what came since is paid for.
    assert spent[4] - spent[3] < spent[0] / 4
    used = in_use(place.settings)
    assert used.facts.model == WIDER
    back = place.back()
    assert set(back.look().documents) == {"prod:ds:new6", "prod:ds:16"}, "but for what came after the switch"
    back.close()

    killer.point = LATE
    left = beside(place.settings, used)
    assert left is not None
    with pytest.raises(Killed):
        drop(place.settings, {}, left, used)
    killer.point = ""
    write(7)
    drop(place.settings, {}, left, used)
    assert beside(place.settings, in_use(place.settings)) is None
    write(8)

"""The audit finds every difference between a log and its tables, and none where there is none.

Random logs are applied through the plans of the real writer: in batches, redelivered, partitions interleaved, up
to somewhere. What that leaves is right by definition (the commit plan has its own tests against a model), so
the audit must find nothing; and whatever is then changed by hand it must find, and call it by its name.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.records import Ack, Announcement, Command, Deletion, Embedded, Failure, Outcome, Position, Work
from shoal.spending import SPEND_KIND
from shoal.store.audit import Audit, Finding, Kind, Report, Span, differing
from shoal.store.audit_expiry import Expiry
from shoal.store.lookups import stored_version
from shoal.store.planning import TEXT_DROPPED, plan
from shoal.store.rows import Row
from shoal.store.schemas import CollectionFacts, revision, tombstone_revision
from tests.fixtures.documents import MODEL, WIDTH, document, failed, position

FACTS = CollectionFacts(MODEL, WIDTH)
NOW = datetime(2025, 1, 20, 15, 0, tzinfo=UTC)
A, B = "prod:ds:a.json", "prod:ds:b.json"
P = "s3://scrapes/p.json"
EVENT = "prod:s3:scrapes/p.json"


@dataclass(frozen=True)
class Message:
    """One message of the log. `item` None: its object can't be read, so it is a dead letter without a row."""

    at: Position
    work: Announcement | Deletion
    item: Embedded | Deletion | None


@dataclass
class Tables:
    """The tables as lists of rows, so that they can be wrong; changed by plans as the writer changes the real."""

    rows: list[Row] = field(default_factory=list)
    chunks: list[Row] = field(default_factory=list)

    def apply(self, batch: Sequence[Embedded | Deletion]) -> list[Ack]:
        stored = [stored_version(row) for row in self.rows]
        made = plan(batch, stored, FACTS, "scraper", NOW)
        fresh = {row["id"] for row in made.chunks}
        self.chunks = [
            row for row in self.chunks if row["id"] not in fresh and row["metadata_id"] not in made.replaced
        ] + made.chunks
        written = {row["revision"] for row in made.metadata}
        kept = [row for row in self.rows if row["revision"] not in {*made.removed, *written}]
        for row in kept:
            if row["revision"] in made.superseded:
                row["superseded_at"] = NOW
            if row["revision"] in made.promoted:
                row["superseded_at"] = None
                if row["validation_status"] != "error":
                    row |= {"validation_status": "error", "chunk_count": 0, "warnings": [TEXT_DROPPED]}
        self.rows = kept + [{"s3_path": None, "validation_status": None, "fence": None, **row} for row in made.metadata]
        return made.acks

    def of(self, document_id: str) -> list[Row]:
        return [row for row in self.rows if row["id"] == document_id and row["fence"] is None]


@dataclass
class World:
    """A log, the tables after it, which messages died, and how far the group is."""

    log: list[Message]
    tables: Tables = field(default_factory=Tables)
    dead: set[Position] = field(default_factory=set)
    done: dict[int, int] = field(default_factory=dict)
    start: int = 0

    def deliver(self, messages: Sequence[Message]) -> None:
        batch = [message.item for message in messages if message.item is not None]
        acks = iter(self.tables.apply(batch) if batch else ())
        for message in messages:
            is_bad = message.item is None or (isinstance(message.item, Embedded) and message.item.fetched.failure)
            ack = next(acks) if message.item is not None else None
            if is_bad or (ack is not None and ack.outcome is Outcome.DEAD_LETTERED):
                self.dead.add(message.at)

    def audited(self, audit: Callable[..., Audit] = Audit, works: dict[int, list[Work] | str] | None = None) -> Report:
        ends: dict[int, int] = {}
        for message in self.log:
            ends[message.at.partition] = message.at.offset + 1
        spans = {
            ("cluster", "topic", partition): Span(self.start, end, self.done.get(partition, end))
            for partition, end in ends.items()
        }
        made = audit(spans, is_event_id=lambda name: name.startswith("prod:s3:"))
        for message in self.log:
            if message.at.offset >= self.start:
                told = (works or {}).get(message.at.offset, [message.work])
                made.message(message.at, told, is_dead=message.at in self.dead)
        for row in self.tables.rows:
            made.row(
                stored_version(row),
                chunk_count=row.get("chunk_count") or 0,
                has_dropped_text=TEXT_DROPPED in (row.get("warnings") or ()),
            )
        for row in self.tables.chunks:
            columns = ("id", "metadata_id", "document_version", "sha256_hash", "chunk_index")
            made.chunk(*(row[column] for column in columns))
        return made.report()


def message(item: Embedded | Deletion, *, readable: bool = True) -> Message:
    work = item if isinstance(item, Deletion) else item.fetched.announcement
    return Message(work.position, work, item if readable else None)


def drawn_log(draw: st.DrawFn, partitions: int, clock_error_ms: int = 0) -> list[Message]:
    log: list[Message] = []
    offsets = [0] * partitions
    for tick in range(draw(st.integers(1, 14))):
        partition = draw(st.integers(0, partitions - 1))
        offset = offsets[partition]
        offsets[partition] += 1
        at = position(offset, timestamp_ms=tick + draw(st.integers(0, clock_error_ms)), partition=partition)
        document_id = draw(st.sampled_from([A, B]))
        kind = draw(st.sampled_from(["good", "good", "good", "failed", "deleted", "unreadable"]))
        if kind == "deleted":
            log.append(message(Deletion(at, "scraper", document_id)))
            continue
        make = failed if kind == "failed" else document
        version, content = draw(st.sampled_from(["", "1", "2"])), draw(st.sampled_from("xyz"))
        chunks = draw(st.integers(0, 3))
        item = make(document_id, 0, version=version, content=content, chunks=chunks, at=at)
        log.append(message(item, readable=kind != "unreadable"))
    return log


@st.composite
def worlds(draw: st.DrawFn, partitions: int = 1, clock_error_ms: int = 0) -> World:
    """A log that was delivered at least once, in order within each partition, up to somewhere."""
    world = World(drawn_log(draw, partitions, clock_error_ms))
    lanes = [[each for each in world.log if each.at.partition == number] for number in range(partitions)]
    done = [0] * partitions
    for _ in range(draw(st.integers(0, 8))):
        batch: list[Message] = []
        for number in draw(st.permutations(range(partitions))):
            start = draw(st.integers(0, done[number]))  # what was applied and not committed comes again
            end = draw(st.integers(start, len(lanes[number])))
            batch += lanes[number][start:end]
            done[number] = max(done[number], end)
        world.deliver(batch)
    for number in range(partitions):
        world.done[number] = draw(st.integers(0, done[number]))  # committed late
    return world


def kinds(report: Report) -> set[Kind]:
    return {finding.kind for finding in report.findings}


@given(worlds())
@settings(max_examples=120, deadline=None)
def test_whatever_was_delivered_how_often_and_how_far_is_no_difference(world: World) -> None:
    report = world.audited()
    assert report.findings == ()
    assert report.differences == report.counts["undecided"] == 0


@given(worlds(partitions=3, clock_error_ms=2))
@settings(max_examples=120, deadline=None)
def test_partitions_that_interleave_and_clocks_that_disagree_make_no_difference(world: World) -> None:
    assert world.audited().findings == ()


@given(worlds(), st.integers(0, 14))
@settings(max_examples=60, deadline=None)
def test_what_stands_before_the_logs_start_is_neither_extra_nor_missed(world: World, start: int) -> None:
    world.start = start
    report = world.audited()
    assert report.findings == ()
    old = [row for row in world.tables.rows if row["fence"] is None and row["kafka_offset"] < start]
    deleted = [row for row in old if report.counts["older_rows"] != len(old)]
    assert not deleted


# --- a model: the one table that a fully delivered log of one partition can have -------------------


def expected(log: Sequence[Message]) -> tuple[set[Any], set[Any]]:
    """(rows, chunk ids with version and hash), by reading the log one message at a time. Rows of dead letters are
    left out where nothing says that they must be there."""
    versions: dict[str, dict[str, tuple[Any, Embedded]]] = {}
    stones: dict[str, int] = {}
    for each in log:
        if isinstance(each.work, Deletion):
            assert each.work.document_id is not None
            versions[each.work.document_id] = {}
            stones[each.work.document_id] = each.at.offset
        elif isinstance(each.item, Embedded):
            mine = versions.setdefault(each.work.document_id, {})
            rank = (each.item.fetched.failure is None, each.at.timestamp_ms, each.at.offset)
            if each.work.version not in mine or rank > mine[each.work.version][0]:
                mine[each.work.version] = (rank, each.item)
    rows, chunks = {(name, tombstone_revision(name), offset, None, None) for name, offset in stones.items()}, set()
    for name, mine in versions.items():
        if not mine:
            continue
        current = max(mine, key=lambda version: (mine[version][0][0], version))
        for version, ((is_good, _, offset), item) in mine.items():
            rows.add((name, revision(name, version), offset, is_good, version == current))
            if version == current and item.fetched.extraction is not None:
                chunks |= {
                    (f"{name}#{chunk.index}", name, version, item.fetched.sha256)
                    for chunk in item.fetched.extraction.chunks
                }
    return rows, chunks


def held(tables: Tables) -> tuple[list[Any], list[Any]]:
    rows = [
        (row["id"], row["revision"], row["kafka_offset"], None, None)
        if row["fence"]
        else (
            row["id"], row["revision"], row["kafka_offset"], row["validation_status"] == "indexed",
            row["superseded_at"] is None,
        )
        for row in tables.rows
    ]  # fmt: skip
    columns = ("id", "metadata_id", "document_version", "sha256_hash")
    return rows, [tuple(row[column] for column in columns) for row in tables.chunks]


def mutations(tables: Tables, rng: random.Random) -> str:
    """One change by hand; what it was."""
    what = rng.choice(
        ["drop row", "copy row", "move row", "turn row", "drop chunk", "copy chunk", "change chunk", "add"]
    )
    rows, chunks = tables.rows, tables.chunks
    if (what.endswith("row") and not rows) or (what.endswith("chunk") and not chunks):
        return "nothing"
    if what == "drop row":
        rows.pop(rng.randrange(len(rows)))
    elif what == "copy row":
        rows.append(dict(rng.choice(rows)))
    elif what == "move row":
        rng.choice(rows)["kafka_offset"] += rng.choice([1, 100])
    elif what == "turn row":
        row = rng.choice(rows)
        row["superseded_at"] = None if row["superseded_at"] else NOW
    elif what == "drop chunk":
        chunks.pop(rng.randrange(len(chunks)))
    elif what == "copy chunk":
        chunks.append(dict(rng.choice(chunks)))
    elif what == "change chunk":
        rng.choice(chunks)[rng.choice(["document_version", "sha256_hash", "metadata_id"])] = "other"
    else:
        stranger = document("prod:ds:c.json", 0, at=position(0))
        tables.apply([stranger])
    return what


@given(worlds(), st.randoms(use_true_random=False))
@settings(max_examples=250, deadline=None)
def test_the_verdict_is_whole_exactly_where_the_tables_are_what_a_model_makes_of_the_log(
    world: World, rng: random.Random
) -> None:
    world.deliver(world.log)
    world.done = {}
    what = mutations(world.tables, rng)
    rows, chunks = held(world.tables)
    due_rows, due_chunks = expected(world.log)
    # Of a dead letter the log can't tell whether its bytes were read: its row may be there or not.
    optional = {row for row in due_rows if row[3] is False}
    twice = len(set(rows)) != len(rows) or len(set(chunks)) != len(chunks)
    # Turning the mark of a tombstone means nothing: it has none.
    same_rows = set(rows) - optional == due_rows - optional
    currents = {row[0]: row[1] for row in rows if row[4]}
    is_right = not twice and same_rows and set(chunks) == due_chunks
    if what == "drop row" and set(rows) != due_rows:
        is_right = is_right and {row[0] for row in rows if row[3] is not None} == set(currents)
    report = world.audited()
    assert (report.differences == 0) == is_right, (what, report.findings)


# --- each kind by name ----------------------------------------------------------------------------


def world_of(*items: Embedded | Deletion) -> World:
    world = World([message(item) for item in items])
    world.deliver(world.log)
    assert world.audited().findings == ()
    return world


def only(report: Report) -> Finding:
    (finding,) = report.findings
    assert report.counts[finding.kind] == 1
    return finding


def test_a_lost_row_is_missing_and_names_the_message_that_says_it() -> None:
    world = world_of(document(A, 0, version="1"), document(A, 1, version="2"))
    world.tables.rows = [row for row in world.tables.rows if row["version"] != "1"]
    found = only(world.audited())
    assert (found.kind, found.document_id, found.version, found.position) == (Kind.MISSING, A, "1", position(0))


def test_a_row_that_stands_at_an_older_message_of_its_version_is_a_lost_update() -> None:
    world = world_of(document(A, 0, content="x"), document(A, 1, content="y"))
    world.tables = Tables()
    world.tables.apply([world.log[0].item])  # type: ignore[list-item]
    found = only(world.audited())
    assert (found.kind, found.position) == (Kind.MISSING, position(1))
    assert "topic/0:0" in found.detail


def test_what_is_not_done_yet_is_pending_whether_or_not_its_row_is_there() -> None:
    world = world_of(document(A, 0), document(B, 1))
    world.done = {0: 1}
    assert world.audited().counts["pending"] == 1
    world.tables.rows = world.tables.of(A)
    world.tables.chunks = [row for row in world.tables.chunks if row["metadata_id"] == A]
    assert world.audited().findings == ()
    world.done = {0: 2}
    assert only(world.audited()).document_id == B


def test_a_deleted_document_that_is_still_there_is_extra_and_so_is_a_deletion_nobody_sent() -> None:
    world = world_of(document(A, 0), Deletion(position(1), "scraper", A))
    stone = world.tables.rows
    world.tables = Tables(stone[:])
    before = Tables()
    before.apply([document(A, 0)])
    world.tables.rows += before.rows
    world.tables.chunks = before.chunks
    assert kinds(world.audited()) == {Kind.EXTRA}
    world.tables = Tables(stone)
    world.log[1] = message(document(B, 1))
    world.tables.apply([document(B, 1)])
    assert kinds(world.audited()) == {Kind.EXTRA, Kind.MISSING}


def test_a_deletion_that_left_no_trace_is_missing() -> None:
    world = world_of(Deletion(position(0), "scraper", A))
    world.tables.rows = []
    assert only(world.audited()).kind is Kind.MISSING


def test_a_row_that_no_message_says_is_extra_but_not_in_another_cluster_or_topic() -> None:
    world = world_of(document(A, 0))
    world.tables.apply([document(B, 0, at=replace(position(0), cluster="an earlier life"))])
    world.tables.apply([document("prod:ds:c", 0, at=replace(position(0), topic="elsewhere"))])
    report = world.audited()
    assert report.findings == ()
    assert report.counts["older_rows"] == 2
    world.tables.apply([document("prod:ds:d", 0)])
    assert only(world.audited()).kind is Kind.EXTRA


@pytest.mark.parametrize("trimmed", [True, False])
def test_a_copy_whose_original_is_beyond_the_log_names_no_message(trimmed: bool) -> None:
    """The message at that offset, if any, is another one: to replay it would mend nothing."""
    beyond = position(0) if trimmed else replace(position(3), cluster="an earlier life")
    copies = {
        1: [document(A, 0, at=beyond).fetched.announcement],
        2: [Deletion(beyond, "scraper", B)],
        3: [document(EVENT, 0, at=beyond, location=P).fetched.announcement],
    }
    world = World([message(document("prod:ds:c", offset)) for offset in range(4)], start=1)
    report = world.audited(works=copies)  # type: ignore[arg-type]
    assert [(each.kind, each.document_id, each.position) for each in report.findings] == [
        (Kind.MISSING, EVENT, None), (Kind.MISSING, A, None), (Kind.MISSING, B, None),
    ]  # fmt: skip


def test_a_tombstone_whose_deletion_compaction_may_have_taken_is_undecided() -> None:
    world = world_of(document(A, 0), Deletion(position(1), "scraper", A), document(B, 2))
    del world.log[:2]  # the null record goes too, after its time, and nothing about A comes later
    report = world.audited()
    assert report.findings == ()
    assert report.counts["undecided"] == 1
    world.tables.apply([Deletion(position(9), "scraper", "prod:ds:c")])
    assert only(world.audited()).kind is Kind.EXTRA, "beyond the end there is no gap"


def expiring(before: datetime) -> Callable[..., Audit]:
    def audit(spans: Any, **options: Any) -> Audit:
        return Audit(spans, expiry=Expiry(lambda said: said.collected_at < before), **options)

    return audit


def test_what_retention_took_is_expired_and_not_missing() -> None:
    old, new = NOW - timedelta(days=9), NOW
    world = world_of(document(A, 0, collected_at=old), document(B, 1, collected_at=new))
    both = list(world.tables.rows)
    # 1. It is not gone yet. 2. It is. 3. What has not expired is missing all the same.
    assert world.audited(expiring(NOW)).findings == ()
    assert world.audited(expiring(NOW)).counts["expired"] == 0
    world.tables.rows = [row for row in both if row["id"] == B]
    world.tables.chunks = [row for row in world.tables.chunks if row["metadata_id"] == B]
    report = world.audited(expiring(NOW))
    assert (report.findings, report.counts["expired"]) == ((), 1)
    world.tables.rows, world.tables.chunks = [], []
    found = only(world.audited(expiring(NOW)))
    assert (found.kind, found.document_id) == (Kind.MISSING, B)
    assert kinds(world.audited()) == {Kind.MISSING}


def test_a_document_that_expired_with_its_current_version_took_newer_history_along() -> None:
    old, new = NOW - timedelta(days=9), NOW
    world = world_of(
        document(A, 0, version="1", collected_at=new), document(A, 1, version="2", content="2", collected_at=old)
    )
    world.tables.rows, world.tables.chunks = [], []
    report = world.audited(expiring(NOW))
    assert (report.findings, report.counts["expired"]) == ((), 2)
    # Of one whose current version has not expired, neither is explained but the old one.
    world = world_of(
        document(A, 0, version="1", collected_at=old), document(A, 1, version="2", content="2", collected_at=new)
    )
    world.tables.rows, world.tables.chunks = [], []
    assert (only(world.audited(expiring(NOW))).version) == "2"


def test_an_error_row_is_right_beside_its_dead_letter_and_a_silent_drop_without() -> None:
    world = world_of(failed(A, 0))
    world.dead.clear()
    assert only(world.audited()).kind is Kind.LOST_DEAD_LETTER


def test_an_unusable_message_without_a_dead_letter_was_dropped() -> None:
    world = world_of(document(A, 0), document(B, 1))
    world.tables.rows, world.tables.chunks = world.tables.of(A), world.tables.chunks[:2]
    world.dead.add(position(1))
    assert world.audited(works={1: "not_json"}).findings == ()
    world.dead.clear()
    assert only(world.audited(works={1: "not_json"})).kind is Kind.LOST_DEAD_LETTER


def test_where_the_oldest_dead_letters_are_gone_nothing_is_said_to_lack_one() -> None:
    world = world_of(failed(A, 0))
    world.dead.clear()

    def audit(spans: Any, **options: Any) -> Audit:
        return Audit(spans, dead_letters_are_whole=False, **options)

    report = world.audited(audit)
    assert report.findings == ()
    assert report.counts["undecided"] == 1


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda tables: tables.chunks.pop(), {Kind.MISSING_CHUNKS}),
        (lambda tables: tables.chunks.append(dict(tables.chunks[0])), {Kind.DUPLICATE}),
        (lambda tables: tables.chunks[0].update(document_version="0"), {Kind.STALE_CHUNKS, Kind.MISSING_CHUNKS}),
        (lambda tables: tables.chunks[0].update(sha256_hash="0"), {Kind.STALE_CHUNKS, Kind.MISSING_CHUNKS}),
        (lambda tables: tables.chunks.append({**tables.chunks[0], "id": f"{A}#9", "chunk_index": 9}),
         {Kind.STALE_CHUNKS}),
        (lambda tables: tables.chunks.append({**tables.chunks[0], "metadata_id": "gone"}), {Kind.ORPHAN_CHUNKS}),
        (lambda tables: tables.rows.append(dict(tables.of(A)[0])), {Kind.DUPLICATE}),
        (lambda tables: [row.update(superseded_at=None) for row in tables.rows], {Kind.DUPLICATE}),
        (lambda tables: [row.update(superseded_at=None if row["superseded_at"] else NOW) for row in tables.rows],
         {Kind.WRONG_CURRENT, Kind.STALE_CHUNKS, Kind.MISSING_CHUNKS}),
        (lambda tables: [row.update(superseded_at=NOW) for row in tables.rows],
         {Kind.WRONG_CURRENT, Kind.ORPHAN_CHUNKS}),
    ],
)  # fmt: skip
def test_every_damage_has_its_name(change: Callable[[Tables], Any], kind: set[Kind]) -> None:
    world = world_of(document(A, 0, version="1"), document(A, 1, version="2"))
    change(world.tables)
    report = world.audited()
    assert kinds(report) == kind
    assert all(report.counts[each] for each in kind)


# --- S3 events, commands, copies ------------------------------------------------------------------


def test_an_s3_event_is_kept_by_whichever_document_lies_at_its_path() -> None:
    event = document(EVENT, 1, version="2", location=P)
    for owner in (A, EVENT):
        world = World([message(document(A, 0, version="1", location=P)), message(event)])
        resolved = document(owner, 1, version="2", location=P)
        world.log[1] = replace(world.log[1], item=resolved)
        world.deliver(world.log)
        assert world.audited().findings == ()
        world.tables.rows = [row for row in world.tables.rows if row["version"] != "2"]
        world.tables.chunks = []
        assert Kind.MISSING in kinds(world.audited())


def test_a_removed_object_takes_its_document_along_and_one_that_stays_is_extra() -> None:
    removal = Deletion(position(1), "scraper", None, s3_path=P)
    world = world_of(document(A, 0, location=P), removal)
    assert world.tables.of(A) == []
    world.tables = Tables()
    world.tables.apply([document(A, 0, location=P)])
    found = only(world.audited())
    assert (found.kind, found.position) == (Kind.EXTRA, position(1))


def test_the_removal_of_one_version_of_an_object_is_about_the_document_made_of_it_only() -> None:
    def made(offset: int, version_id: str) -> Embedded:
        return document(A, offset, version=str(offset), location=P, version_id=version_id)

    old = Deletion(position(2), "scraper", None, s3_path=P, version_id="a")
    world = world_of(made(0, "a"), made(1, "b"), old)
    assert [row["version"] for row in world.tables.of(A) if row["fence"] is None] == ["1"]
    world.log.append(message(Deletion(position(3), "scraper", None, s3_path=P, version_id="b")))
    assert only(world.audited()).position == position(3)
    world.deliver(world.log[3:])
    assert world.audited().findings == ()


def test_a_document_that_moved_away_before_its_old_object_was_removed_stays() -> None:
    elsewhere = "s3://scrapes/q.json"
    world_of(
        document(A, 0, version="1", location=P), document(A, 1, version="2", location=elsewhere),
        Deletion(position(2), "scraper", None, s3_path=P),
    )  # fmt: skip


def test_a_command_that_tells_the_cost_has_none() -> None:
    world = world_of(document(A, 0), document(B, 1))
    command = Command(position(1), "c1", SPEND_KIND, "scraper", "{}", "embedder", NOW)
    world.tables.rows, world.tables.chunks = world.tables.of(A), world.tables.chunks[:2]
    assert kinds(world.audited(works={1: [command]})) == set()


def test_a_command_has_one_job() -> None:
    world = world_of(document(A, 0), document(B, 1))
    command = Command(position(1), "c1", "fix", "scraper", "{}", "me", NOW)
    world.tables.rows, world.tables.chunks = world.tables.of(A), world.tables.chunks[:2]
    assert only(world.audited(works={1: [command]})).kind is Kind.MISSING

    for jobs, found in ((["c1"], set()), (["c1", "c1"], {Kind.DUPLICATE})):

        def audit(spans: Any, jobs: list[str] = jobs, **options: Any) -> Audit:
            made = Audit(spans, **options)
            for job in jobs:
                made.job(job)
            return made

        assert kinds(world.audited(audit, works={1: [command]})) == found


def copy_of(item: Embedded) -> Embedded:
    announcement = replace(item.fetched.announcement, is_replay=True)
    return replace(item, fetched=replace(item.fetched, announcement=announcement))


def copied(item: Embedded | Deletion | None) -> Embedded | Deletion | None:
    return copy_of(item) if isinstance(item, Embedded) else item


def test_a_copy_counts_as_its_original() -> None:
    original = document(A, 0)
    world = world_of(original)
    world.log.append(Message(position(1), copy_of(original).fetched.announcement, copy_of(original)))
    world.deliver(world.log[1:])
    assert world.audited().findings == ()
    world.tables = Tables()
    world.deliver(world.log[1:])
    assert world.audited().findings == (), "the copy alone brings back what the original wrote"


@given(worlds(), st.data())
@settings(max_examples=120, deadline=None)
def test_copies_of_any_part_of_the_log_change_nothing_that_is_right_and_mend_what_is_not(
    world: World, data: st.DataObject
) -> None:
    world.deliver(world.log)
    world.done = {}
    before = held(world.tables)
    part = data.draw(st.lists(st.sampled_from(world.log), unique_by=lambda each: each.at.offset))
    end = len(world.log)
    copies = [
        replace(
            each, at=position(end + number), item=copy_of(each.item) if isinstance(each.item, Embedded) else each.item
        )
        for number, each in enumerate(part)
    ]
    world.log += copies
    world.deliver(copies)
    assert [sorted(map(repr, part)) for part in held(world.tables)] == [sorted(map(repr, part)) for part in before]
    assert world.audited().findings == ()
    victim = data.draw(st.sampled_from([A, B]))
    world.tables.rows = [row for row in world.tables.rows if row["id"] != victim]
    world.tables.chunks = [row for row in world.tables.chunks if row["metadata_id"] != victim]
    originals = world.log[:end]
    world.deliver([
        replace(each, item=copied(each.item)) for each in originals
    ])  # fmt: skip
    assert [sorted(map(repr, part)) for part in held(world.tables)] == [sorted(map(repr, part)) for part in before]


def test_a_copy_mends_the_chunks_that_its_original_wrote() -> None:
    original = document(A, 0, chunks=3)
    world = world_of(original)
    world.tables.chunks.pop()
    assert only(world.audited()).position == position(0)
    world.deliver([replace(world.log[0], item=copy_of(original))])
    assert world.audited().findings == ()


def test_a_copy_that_can_not_be_read_any_more_takes_nothing_away() -> None:
    original = document(A, 0)
    world = world_of(original)
    gone = failed(A, 0)
    assert isinstance(gone.fetched.failure, Failure)
    world.tables.apply([copy_of(gone)])
    assert world.audited().findings == ()


def test_only_what_a_later_look_finds_again_stays() -> None:
    world = world_of(document(A, 0), document(B, 1))
    whole = list(world.tables.rows)
    world.tables.rows = []
    world.tables.chunks = []
    first = world.audited()
    assert len(first.findings) == 2
    world.tables.rows = [row for row in whole if row["id"] == A]
    second = world.audited()
    assert [(finding.kind, finding.document_id) for finding in differing(first, second)] == [(Kind.MISSING, B)]

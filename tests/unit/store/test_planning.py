"""The commit plan: whatever way a log is cut, repeated and shuffled, the same versions end up current."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shoal.errors import DeadReason
from shoal.records import FENCE_ID, Ack, Deletion, Embedded, Outcome
from shoal.store.planning import CommitPlan, plan, precedes
from shoal.store.schemas import chunk_id, revision
from tests.fixtures.documents import WIDTH, deletion, document, failed, position
from tests.fixtures.plan_tables import FACTS, NOW, Tables

A, B = "prod:ds:a.json", "prod:ds:b.json"

INDEXED, UNCHANGED, SUPERSEDED = Outcome.INDEXED, Outcome.UNCHANGED, Outcome.SUPERSEDED
DELETED, DEAD = Outcome.DELETED, Outcome.DEAD_LETTERED


def model(log: Sequence[Embedded | Deletion]) -> tuple[dict[str, tuple[str, str, bool]], dict[str, tuple[str, str]]]:
    """What the log says, read at once: current versions, and chunk id -> (version, text)."""
    current: dict[str, Embedded] = {}
    chunks: dict[str, tuple[str, str]] = {}

    def rank(item: Embedded) -> tuple[bool, str, int, int]:
        announcement = item.fetched.announcement
        at = announcement.position
        return item.fetched.failure is None, announcement.version, at.timestamp_ms, at.offset

    for item in log:
        if isinstance(item, Deletion):
            current.pop(str(item.document_id), None)
            continue
        key = item.fetched.announcement.document_id
        if key not in current or rank(item) > rank(current[key]):
            current[key] = item
    for key, item in current.items():
        for chunk in item.fetched.extraction.chunks if item.fetched.extraction else ():
            chunks[chunk_id(key, chunk.index)] = (item.fetched.announcement.version, chunk.text)
    return {
        key: (item.fetched.announcement.version, str(item.fetched.sha256), item.fetched.failure is None)
        for key, item in current.items()
    }, chunks


def assert_like_model(tables: Tables, log: Sequence[Embedded | Deletion]) -> None:
    current, chunks = model(log)
    assert tables.current() == current
    assert {key: (version, text) for key, (_, version, text) in tables.chunks.items()} == chunks


@st.composite
def logs(draw: st.DrawFn) -> list[Embedded | Deletion]:
    log: list[Embedded | Deletion] = []
    for offset in range(draw(st.integers(1, 12))):
        document_id = draw(st.sampled_from([A, B]))
        kind = draw(st.sampled_from(["good", "good", "good", "failed", "deleted"]))
        if kind == "deleted":
            log.append(deletion(document_id, offset))
            continue
        at = position(offset, timestamp_ms=draw(st.integers(0, 3)))
        version, content = draw(st.sampled_from(["", "1", "2"])), draw(st.sampled_from("xyz"))
        make = failed if kind == "failed" else document
        log.append(make(document_id, offset, version=version, content=content, chunks=draw(st.integers(0, 3)), at=at))
    return log


@given(logs(), st.data())
@settings(max_examples=150, deadline=None)
def test_any_split_of_a_log_with_any_redelivery_ends_in_what_the_log_says(
    log: list[Embedded | Deletion], data: st.DataObject
) -> None:
    tables = Tables()
    done = 0
    while done < len(log):
        end = data.draw(st.integers(done + 1, len(log)))
        start = data.draw(st.integers(0, done))  # offsets are committed late: what was applied comes again
        tables.apply(log[start:end])
        done = end
    assert_like_model(tables, log)


@given(logs(), st.data())
@settings(max_examples=150, deadline=None)
def test_any_order_ends_in_what_the_log_says_unless_a_deletion_is_overtaken(
    log: list[Embedded | Deletion], data: st.DataObject
) -> None:
    order = list(data.draw(st.permutations(range(len(log)))))
    arrivals: list[int] = []
    for index in order:
        item = log[index]
        key = item.document_id if isinstance(item, Deletion) else item.fetched.announcement.document_id
        arrivals += [
            earlier
            for earlier in range(index)
            if earlier not in arrivals and isinstance(log[earlier], Deletion) and log[earlier].document_id == key  # type: ignore[union-attr]
        ]
        if index not in arrivals:
            arrivals.append(index)
    tables = Tables()
    while arrivals:
        count = data.draw(st.integers(1, len(arrivals)))
        tables.apply([log[index] for index in arrivals[:count]])
        del arrivals[:count]
    assert_like_model(tables, log)


def outcomes(tables: Tables, *batch: Embedded | Deletion) -> list[Outcome]:
    return [ack.outcome for ack in tables.apply(batch)]


def test_a_newer_version_replaces_and_an_older_one_becomes_history_without_chunks() -> None:
    tables = Tables()
    assert outcomes(tables, document(A, 1, version="1", content="one")) == [INDEXED]
    assert outcomes(tables, document(A, 2, version="3", content="three")) == [INDEXED]
    assert outcomes(tables, document(A, 3, version="2", content="two")) == [SUPERSEDED]
    assert {(v.version, v.is_current) for v in tables.versions.values()} == {("1", False), ("2", False), ("3", True)}
    assert {text for _, _, text in tables.chunks.values()} == {"three part 0", "three part 1"}


def test_one_batch_keeps_the_newest_and_records_the_others_as_history() -> None:
    tables = Tables()
    batch = [document(A, n, version=v, content=v) for n, v in enumerate("132")]
    assert outcomes(tables, *batch) == [SUPERSEDED, INDEXED, SUPERSEDED]
    assert len(tables.versions) == 3


def test_the_same_bytes_under_a_newer_version_are_unchanged_but_restamped() -> None:
    tables = Tables()
    outcomes(tables, document(A, 1, version="1"))
    assert outcomes(tables, document(A, 2, version="2")) == [UNCHANGED]
    assert tables.current()[A][0] == "2"
    assert {version for _, version, _ in tables.chunks.values()} == {"2"}


def test_a_redelivery_writes_nothing() -> None:
    tables = Tables()
    batch = [document(A, 1), document(B, 2, version="")]
    outcomes(tables, *batch)
    made = plan(batch, tables.stored(batch), FACTS, "scraper", NOW)
    assert [ack.outcome for ack in made.acks] == [UNCHANGED, UNCHANGED]
    assert made == CommitPlan(acks=made.acks)


def test_a_redelivered_version_that_is_history_stays_as_it_is() -> None:
    tables = Tables()
    old, new = document(A, 1, version="1", content="x"), document(A, 2, version="2", content="y")
    outcomes(tables, old, new)
    made = plan([old], tables.stored([old]), FACTS, "scraper", NOW)
    assert made.acks == [Ack(UNCHANGED)]
    assert not made.metadata


def test_versions_with_the_same_place_and_time_are_ordered_by_their_hash() -> None:
    one, two = document(A, 1, content="one"), document(A, 1, content="two")
    greater = max(one, two, key=lambda item: item.fetched.sha256 or "")
    for batch in ([one, two], [two, one]):
        tables = Tables()
        outcomes(tables, *batch)
        assert tables.current()[A][1] == greater.fetched.sha256


def test_offsets_of_different_clusters_are_not_compared() -> None:
    before = replace(position(100, timestamp_ms=1_000), cluster="first life")
    after = replace(position(3, timestamp_ms=2_000), cluster="second life")
    assert precedes(before, after)
    assert not precedes(after, before)
    tables = Tables()
    outcomes(tables, document(A, 0, content="x", at=before))
    assert outcomes(tables, document(A, 0, content="y", at=after)) == [INDEXED]


def test_insert_and_delete_in_one_batch_are_applied_in_log_order() -> None:
    tables = Tables()
    assert outcomes(tables, document(A, 1), deletion(A, 2)) == [SUPERSEDED, DELETED]
    assert (tables.current(), tables.chunks) == ({}, {})
    assert outcomes(tables, deletion(A, 3), document(A, 4)) == [DELETED, INDEXED]
    assert len(tables.chunks) == 2


def test_a_deletion_removes_the_document_with_its_history() -> None:
    tables = Tables()
    outcomes(tables, document(A, 1, version="1"), document(A, 2, version="2", content="y"), document(B, 3))
    assert outcomes(tables, deletion(A, 4)) == [DELETED]
    assert {version.document_id for version in tables.versions.values()} == {B}
    assert {chunk[0] for chunk in tables.chunks.values()} == {B}


def test_a_document_announced_before_its_deletion_is_not_raised_from_the_dead() -> None:
    tables = Tables()
    outcomes(tables, document(A, 1), deletion(A, 2))
    assert outcomes(tables, document(A, 1)) == [SUPERSEDED]
    assert tables.current() == {}


def test_records_of_one_message_that_remove_and_create_an_object_are_applied_in_their_order() -> None:
    for again in range(3):  # a message of several records may be delivered again, as a whole
        removed_then_created, created_then_removed = Tables(), Tables()
        for _ in range(again + 1):
            outcomes(removed_then_created, deletion(A, 2))
            outcomes(removed_then_created, document(A, 2))
            outcomes(created_then_removed, document(A, 2), deletion(A, 2))
        assert list(removed_then_created.current()) == [A]
        assert created_then_removed.current() == {}


def test_a_late_deletion_leaves_what_was_announced_after_it() -> None:
    tables = Tables()
    outcomes(tables, document(A, 3))
    assert outcomes(tables, deletion(A, 2)) == [SUPERSEDED]
    assert A in tables.current()


def test_deleting_what_was_never_there_is_no_error() -> None:
    assert outcomes(Tables(), deletion(A, 1), deletion(None, 2, s3_path="s3://scrapes/none")) == [DELETED, DELETED]


def test_a_removed_object_deletes_the_documents_that_lie_there_now() -> None:
    tables = Tables()
    outcomes(tables, document(A, 1, version="1", location="s3://scrapes/old"))
    outcomes(tables, document(A, 2, version="2", location="s3://scrapes/new", content="y"))
    assert outcomes(tables, deletion(None, 3, s3_path="s3://scrapes/old")) == [DELETED]
    assert A in tables.current(), "only an older version lay there"
    assert outcomes(tables, document(B, 4, location="s3://b"), deletion(None, 5, s3_path="s3://b")) == [
        SUPERSEDED, DELETED,
    ]  # fmt: skip
    assert outcomes(tables, deletion(None, 6, s3_path="s3://scrapes/new")) == [DELETED]
    assert (tables.current(), tables.chunks) == ({}, {})


def test_the_removal_of_an_older_version_of_an_object_leaves_the_current_document() -> None:
    tables = Tables()
    path = "s3://scrapes/a"
    outcomes(tables, document(A, 1, version="1", location=path, version_id="one"))
    outcomes(tables, document(A, 2, version="2", location=path, version_id="two", content="y"))
    assert outcomes(tables, deletion(None, 3, s3_path=path, version_id="one")) == [DELETED]
    assert tables.current()[A][0] == "2"
    assert len(tables.chunks) == 2
    assert outcomes(tables, deletion(None, 4, s3_path=path, version_id="two")) == [DELETED]
    assert (tables.current(), tables.chunks) == ({}, {})


def test_a_removal_that_is_redelivered_leaves_the_history_of_what_came_to_lie_there_later() -> None:
    tables = Tables()
    removal = deletion(None, 2, s3_path="s3://b/new")
    outcomes(tables, document(A, 1, version="1", location="s3://b/old"), removal)
    outcomes(tables, document(A, 3, version="2", content="y", location="s3://b/new"))
    assert outcomes(tables, removal) == [SUPERSEDED]
    assert {version.version for version in tables.versions.values()} == {"1", "2"}
    assert not tables.tombstones


@st.composite
def logs_of_objects(draw: st.DrawFn) -> list[Embedded | Deletion]:
    """Documents whose versions lie at different paths, and removals of those objects."""
    log: list[Embedded | Deletion] = []
    for offset in range(draw(st.integers(2, 9))):
        path = draw(st.sampled_from(["s3://b/one", "s3://b/two", "s3://b/three"]))
        if draw(st.integers(0, 2)) == 0:
            log.append(deletion(None, offset, s3_path=path))
        else:
            version = draw(st.sampled_from(["1", "2", "3"]))
            log.append(document(draw(st.sampled_from([A, B])), offset, version=version, content=path, location=path))
    return log


@given(logs_of_objects(), st.data())
@settings(max_examples=300, deadline=None)
def test_removals_end_the_same_whichever_document_overtakes_them(
    log: list[Embedded | Deletion], data: st.DataObject
) -> None:
    """As the pipeline runs them: works that share a document or a path stay in order, all others may not. What can't
    be mended is told: a removal that is overtaken by a lower version announced after it (`dropped`)."""

    def keys(item: Embedded | Deletion) -> set[str | None]:
        if isinstance(item, Deletion):
            return {item.s3_path}
        return {item.fetched.announcement.document_id, item.fetched.announcement.location}

    in_order, overtaken = Tables(), Tables()
    for item in log:
        in_order.apply([item])
    waiting = list(log)
    while waiting:
        ready = [n for n, item in enumerate(waiting) if all(keys(item).isdisjoint(keys(w)) for w in waiting[:n])]
        taken = [waiting[n] for n in sorted(data.draw(st.sets(st.sampled_from(ready), min_size=1)))]
        waiting = [item for item in waiting if item not in taken]
        overtaken.apply(data.draw(st.permutations(taken)))
    assume(not overtaken.dropped)
    assert overtaken.rows() == in_order.rows()
    assert overtaken.current() == in_order.current()
    assert overtaken.chunks == in_order.chunks
    begin = data.draw(st.integers(0, len(log)))
    overtaken.apply(log[begin:])  # what was not committed comes again
    assert overtaken.rows() == in_order.rows()
    assert overtaken.chunks == in_order.chunks


def test_the_removal_of_an_older_versions_object_leaves_the_newer_one_whichever_comes_first() -> None:
    old = document(A, 1, version="1", location="s3://b/one")
    new = document(A, 2, version="2", content="y", location="s3://b/two")
    gone = deletion(None, 3, s3_path="s3://b/one")
    for order in ([old, new, gone], [old, gone, new]):
        tables = Tables()
        for item in order:
            tables.apply([item])
        assert tables.rows() == {(A, "2", True)}
        assert len(tables.chunks) == 2


def test_a_failure_does_not_take_the_place_of_a_mark() -> None:
    log = [
        document(A, 0, version="1", location="s3://b/q"),
        document(A, 1, version="2", content="y", location="s3://b/p"),
        deletion(None, 2, s3_path="s3://b/p"),
        failed(A, 3, version="2", location="s3://b/p"),
    ]
    for cuts in ([0, 4], [0, 1, 2, 3, 4], [0, 2, 4]):
        tables = Tables()
        for begin, end in itertools.pairwise(cuts):
            tables.apply(log[begin:end])
        assert tables.rows() == {(A, "1", False)}
        tables.apply(log)
        assert tables.rows() == {(A, "1", False)}


def test_what_a_document_was_before_does_not_come_back_when_its_object_is_removed() -> None:
    tables = Tables()
    outcomes(tables, document(A, 1, version="1", location="s3://b/one"))
    outcomes(tables, document(A, 2, version="2", content="y", location="s3://b/two"))
    assert outcomes(tables, deletion(None, 3, s3_path="s3://b/two")) == [DELETED]
    assert tables.rows() == {(A, "1", False)}
    assert tables.chunks == {}
    assert outcomes(tables, document(A, 4, version="1", content="z", location="s3://b/one")) == [INDEXED]
    assert tables.rows() == {(A, "1", True)}, "announced anew after the removal"


def test_a_delete_marker_deletes_whatever_version_lies_there() -> None:
    tables = Tables()
    outcomes(tables, document(A, 1, location="s3://scrapes/a", version_id="one"))
    assert outcomes(tables, deletion(None, 2, s3_path="s3://scrapes/a")) == [DELETED]
    assert tables.current() == {}


def test_the_removal_of_a_version_deletes_a_document_that_names_none() -> None:
    tables = Tables()
    outcomes(tables, document(A, 1, location="s3://scrapes/a"))
    assert outcomes(tables, deletion(None, 2, s3_path="s3://scrapes/a", version_id="one")) == [DELETED]
    assert tables.current() == {}


def test_a_deletion_overtaken_by_a_lower_version_leaves_a_row_that_says_so() -> None:
    tables = Tables()
    outcomes(tables, document(A, 1, version="2"))
    outcomes(tables, document(A, 3, version="1", content="y"))  # history; its text is dropped
    outcomes(tables, deletion(A, 2))
    assert tables.current() == {A: ("1", document(A, 3, content="y").fetched.sha256, False)}
    assert tables.chunks == {}


def test_a_failed_newer_version_does_not_hide_the_last_good_one() -> None:
    tables = Tables()
    outcomes(tables, document(A, 1, version="1"))
    assert outcomes(tables, failed(A, 2, version="2", content="broken")) == [DEAD]
    assert tables.current()[A][0] == "1"
    assert len(tables.versions) == 2
    assert len(tables.chunks) == 2


def test_a_failed_document_is_known_until_a_good_version_comes() -> None:
    tables = Tables()
    assert outcomes(tables, failed(A, 2, version="2", content="broken")) == [DEAD]
    assert tables.current()[A][2] is False
    assert outcomes(tables, document(A, 1, version="1")) == [INDEXED]
    assert tables.current()[A][2] is True


def test_the_failure_the_reader_knows_is_not_told_again() -> None:
    assert Tables().apply([failed(A, 1)]) == [Ack(DEAD)]


def test_what_could_not_even_be_read_keeps_no_row() -> None:
    tables = Tables()
    item = failed(A, 1)
    nothing = replace(item, fetched=replace(item.fetched, sha256=None))
    assert outcomes(tables, nothing) == [DEAD]
    assert not tables.versions


def _spoiled(value: float) -> Embedded:
    item = document(A, 1)
    assert item.vectors is not None
    vectors = item.vectors.copy()
    vectors[1, :] = value
    return replace(item, vectors=vectors)


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (_spoiled(np.nan), "not finite"),
        (_spoiled(np.inf), "not finite"),
        (_spoiled(0.0), "zero"),
        (document(A, 1, width=4), "width 8"),
        (replace(document(A, 1), vectors=None), "2 chunks"),
        (replace(document(A, 1), schema_vector=np.zeros(WIDTH, np.float32)), "zero"),
    ],
)
def test_a_vector_that_can_not_be_searched_refuses_its_document_alone(item: Embedded, says: str) -> None:
    tables = Tables()
    refused, good = tables.apply([item, document(B, 2)])
    assert good.outcome is INDEXED
    assert refused.outcome is DEAD
    assert refused.failure is not None
    assert refused.failure.reason is DeadReason.WRITE_REJECTED
    assert says in refused.failure.message
    assert {chunk[0] for chunk in tables.chunks.values()} == {B}
    assert tables.current()[A][2] is False, "the file is known, as an error"


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (document(FENCE_ID, 1), DeadReason.WRITE_REJECTED),
        (deletion(FENCE_ID, 1), DeadReason.WRITE_REJECTED),
        (document("prod:ds:\ud800", 1), DeadReason.WRITE_REJECTED),
        (document(A, 1, version="\0"), DeadReason.WRITE_REJECTED),
        (document("prod:ds:" + "x" * 5000, 1), DeadReason.WRITE_REJECTED),
        (document(A, 1, collection="other"), DeadReason.COLLECTION_REFUSED),
        (replace(deletion(A, 1), collection="other"), DeadReason.COLLECTION_REFUSED),
    ],
)
def test_what_has_no_place_in_the_tables_is_refused(item: Embedded | Deletion, reason: DeadReason) -> None:
    made = plan([item, document(B, 2)], [], FACTS, "scraper", NOW)
    assert made.acks[0].outcome is DEAD
    assert made.acks[0].failure is not None
    assert made.acks[0].failure.reason is reason
    assert [row["id"] for row in made.metadata] == [B]


@given(st.text(max_size=8), st.text(max_size=4), st.text(max_size=8), st.text(max_size=4))
def test_two_versions_never_share_a_key(id_1: str, version_1: str, id_2: str, version_2: str) -> None:
    same = (id_1, version_1) == (id_2, version_2)
    assert (revision(id_1, version_1) == revision(id_2, version_2)) is same

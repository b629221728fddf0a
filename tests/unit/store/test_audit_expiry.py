"""Retention on real tables, held against the log: what it took is no difference, and whatever else is gone is one."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shoal.records import Announcement, Deletion, Embedded, Position, Writable
from shoal.settings import Settings
from shoal.store.audit import Audit, Kind, Report, Span
from shoal.store.audit_expiry import CLOCKS, Expiry
from shoal.store.audit_rows import TablesSnapshot
from shoal.store.planning import Tombstone, Version
from shoal.store.retention import Retention, Rule
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, WIDTH, deletion, document

T0 = datetime(2025, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
RULES: dict[str, Any] = {"load": {"keep_versions": 2}, "price*": {"keep_days": 40, "keep_versions": 3}}
DATASETS = ("load", "price_day", "weather")
Stored = tuple[Version | Tombstone, int, bool]


def settings_at(place: Path, **changes: Any) -> Settings:
    return Settings(lancedb_path=str(place), as_of_days=0, **{"retention": RULES, **changes})


def at(offset: int, now: datetime) -> Position:
    return Position("cluster", "topic", 0, offset, int(now.timestamp() * 1000))


def expire(writer: TableWriter, now: datetime) -> None:
    writer._retained_at = None
    while writer.maintain(now) is not None:
        pass


def drawn(chance: random.Random, offset: int, now: datetime) -> Writable:
    dataset, name = chance.choice(DATASETS), chance.randrange(3)
    identity, path = f"prod:{dataset}:{name}", f"s3://b/{dataset}/{name}"
    if chance.random() < 0.12:
        by_path = chance.random() < 0.5
        return deletion(None if by_path else identity, offset, s3_path=path if by_path else None, at=at(offset, now))
    version = f"v{chance.choice([offset, offset, chance.randrange(1, offset + 2)]):04}"
    return document(
        identity, offset, version=version, content=f"{offset}", chunks=1, location=path, dataset=dataset,
        collected_at=now - chance.uniform(0, 30) * DAY, at=at(offset, now),
    )  # fmt: skip


def audited(log: list[Writable], rows: list[Stored], chunks: list[Any], expiry: Expiry) -> Report:
    found = Audit({("cluster", "topic", 0): Span(0, len(log), len(log))}, expiry=expiry)
    for item in log:
        work = item.fetched.announcement if isinstance(item, Embedded) else item
        assert isinstance(work, Announcement | Deletion)
        found.message(work.position, [work], is_dead=False)
    for stored, chunk_count, has_dropped_text in rows:
        found.row(stored, chunk_count=chunk_count, has_dropped_text=has_dropped_text)
    for chunk in chunks:
        found.chunk(*chunk)
    return found.report()


@pytest.mark.parametrize("seed", range(2))
def test_what_retention_took_is_no_difference_and_any_other_row_that_is_gone_is_missing(
    tmp_path: Path, seed: int
) -> None:
    chance, settings = random.Random(seed), settings_at(tmp_path, superseded_keep_days=60, log_retention_days=90)
    writer = TableWriter.open(settings.tables_uri, {}, MODEL, WIDTH, settings=settings, now=T0)
    log: list[Writable] = []
    now, expired = T0, 0
    for _ in range(6):
        now += chance.uniform(1, 30) * DAY
        batch = [drawn(chance, len(log) + n, now) for n in range(10)]
        log += batch
        writer.apply(batch, (), now)
        later = now + timedelta(hours=1)
        expire(writer, later)
        snapshot = TablesSnapshot.open(settings.tables_uri, {})
        assert snapshot is not None
        rows, chunks = list(snapshot.versions()), list(snapshot.chunks())
        expiry = Retention.of(settings).expiry(later)
        report = audited(log, rows, chunks, expiry)
        assert report.findings == ()
        expired = report.counts["expired"]
    assert expired > 5
    missing = audited(log, rows, chunks, Expiry()).counts[Kind.MISSING]
    assert missing == expired, "without the rules it would all be missing"
    for gone, _, _ in rows:
        if isinstance(gone, Version) and gone.removed_at is None:
            left = [row for row in rows if row[0] is not gone]
            kept = [chunk for chunk in chunks if not (gone.is_current and chunk[1] == gone.document_id)]
            found = audited(log, left, kept, expiry).findings
            assert any(each.document_id == gone.document_id for each in found), gone
    by_id = {gone.document_id for gone, _, _ in rows if isinstance(gone, Version) and gone.is_current}
    for identity in by_id:  # a document that was lost whole
        left = [row for row in rows if row[0].document_id != identity]
        found = audited(log, left, [chunk for chunk in chunks if chunk[1] != identity], expiry).findings
        assert any((each.kind, each.document_id) == (Kind.MISSING, identity) for each in found)


def test_the_memory_of_a_deletion_expires_with_what_it_deleted(tmp_path: Path) -> None:
    log = [document("prod:ds:a", 0, at=at(0, T0)), deletion("prod:ds:a", 1, at=at(1, T0))]
    rules = Retention({}, None, 30)
    assert audited(log, [], [], rules.expiry(T0 + 29 * DAY)).counts[Kind.MISSING] == 2
    after = audited(log, [], [], rules.expiry(T0 + 31 * DAY))
    assert (after.findings, after.counts["expired"]) == ((), 2)
    again = [*log, document("prod:ds:a", 2, version="v2", at=at(2, T0))]
    (found,) = audited(again, [], [], rules.expiry(T0 + 31 * DAY)).findings
    assert (found.kind, found.version) == (Kind.MISSING, "v2"), "announced after its deletion"


def test_history_counts_from_when_it_became_that_and_not_from_when_it_was_announced() -> None:
    """A version of day 0 that was replaced on day 50 is history for ten days, not sixty."""
    expiry = Retention({}, 20, None).expiry(T0 + 60 * DAY)
    assert not expiry.took_history(at(0, T0), [at(1, T0 + 50 * DAY)])
    assert expiry.took_history(at(0, T0), [at(2, T0 + 50 * DAY), at(1, T0 + 39 * DAY)])
    assert not expiry.took_history(at(0, T0), []), "a current version is no history"
    assert expiry.took_history(at(0, T0), [at(1, T0 + 40 * DAY + CLOCKS / 2)]), "clocks differ"
    assert not Retention({}, None, None).expiry(T0 + 999 * DAY).took_history(at(0, T0), [at(1, T0)])


def test_a_dataset_without_a_rule_keeps_all_its_versions() -> None:
    expiry = Retention({"load": Rule(keep_versions=2)}, None, None).expiry(T0)
    announced = [item.fetched.announcement for item in (document("a", 0, dataset="load"), document("a", 0))]
    assert [expiry.versions(each) for each in announced] == [2, None]

"""Retention on real tables: exactly what a plain model says goes, whole documents or none, and kills change nothing."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import pytest

from shoal.errors import ConfigurationError
from shoal.records import Outcome, Writable
from shoal.settings import Settings, load
from shoal.store import retention as retention_module
from shoal.store.retention import Retention, Rule
from shoal.store.schemas import IS_DOCUMENT
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, WIDTH, deletion, document

T0 = datetime(2025, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
RULES = {
    "load": {"keep_versions": 2},
    "price*": {"keep_days": 40},
    "price_real*": {"keep_days": 10, "keep_versions": 1},
    "price_real_kept": {"keep_days": 3650},
}
DATASETS = ("load", "price_day", "price_real_time", "price_real_kept", "weather")

Rows = list[dict[str, Any]]


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "lancedb")


def open_writer(place: str, **settings: Any) -> TableWriter:
    return TableWriter.open(place, {}, MODEL, WIDTH, settings=Settings(as_of_days=0, **settings), now=T0)


def write(writer: TableWriter, now: datetime, *batch: Writable) -> list[Outcome]:
    return [ack.outcome for ack in writer.apply(batch, (), now)]


def expire(writer: TableWriter, now: datetime) -> int:
    """Steps until nothing is due."""
    steps = 0
    writer._retained_at = None
    while (done := writer.maintain(now)) is not None:
        steps += "expired" in done
    return steps


def stored(place: str) -> Rows:
    columns = ["revision", "id", "version", "dataset", "collected_at", "superseded_at", "indexed_at", "fence"]
    rows: Rows = lance.dataset(f"{place}/scraper_metadata.lance").to_table(columns=columns).to_pylist()
    return [row for row in rows if row["id"] != "__fence__"]


def documents_with_chunks(place: str) -> set[str]:
    table = lance.dataset(f"{place}/scraper_vectors.lance").to_table(columns=["metadata_id"], filter=IS_DOCUMENT)
    return set(table["metadata_id"].to_pylist())


def survivors(rows: Rows, now: datetime) -> set[str]:
    """The rules, applied to a whole table in the plainest way, again and again until nothing more goes."""

    def rule(dataset: str | None) -> Mapping[str, float]:
        return {
            "load": RULES["load"],
            "price_day": RULES["price*"],
            "price_real_time": RULES["price_real*"],
            "price_real_kept": RULES["price_real_kept"],
        }.get(dataset or "", {})

    left = {row["revision"]: row for row in rows}
    while True:
        documents = [row for row in left.values() if row["fence"] is None]
        gone: set[str] = set()
        for row in documents:
            of_it = [other for other in documents if other["id"] == row["id"]]
            kept = rule(row["dataset"])
            if "keep_days" in kept and row["collected_at"] < now - kept["keep_days"] * DAY:
                gone |= {row["revision"]} if row["superseded_at"] else {other["revision"] for other in of_it}
            if "keep_versions" in kept and row["superseded_at"]:
                newer = [o for o in of_it if o["superseded_at"] is None or o["version"] > row["version"]]
                gone |= {row["revision"]} if len(newer) >= kept["keep_versions"] else set()
            if row["superseded_at"] and row["superseded_at"] < now - 90 * DAY:
                gone.add(row["revision"])
        if not gone:
            history = {row["id"] for row in documents if row["superseded_at"]}
            gone = {
                row["revision"]
                for row in left.values()
                if row["fence"] and row["indexed_at"] < now - 30 * DAY and row["id"] not in history
            }
        if not gone:
            return set(left)
        for revision in gone:
            del left[revision]


@pytest.mark.parametrize("seed", range(2))
def test_what_is_left_is_what_a_plain_model_keeps(place: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "ROWS_MAX", 7)  # many small steps
    chance = random.Random(seed)
    writer = open_writer(place, retention=RULES)
    now, offset = T0, 0
    for _ in range(6):
        now += chance.uniform(1, 25) * DAY
        batch: list[Writable] = []
        for _ in range(12):
            offset += 1
            dataset, name = chance.choice(DATASETS), chance.randrange(4)
            identity, path = f"prod:{dataset}:{name}", f"s3://b/{dataset}/{name}"
            if chance.random() < 0.1:
                batch.append(deletion(identity, offset))
            elif chance.random() < 0.1:
                batch.append(deletion(None, offset, s3_path=path))
            else:
                collected = now - chance.uniform(0, 30) * DAY
                version = f"v{chance.choice([offset, offset, chance.randrange(1, offset + 1)]):04}"
                batch.append(document(identity, offset, version=version, content=f"{offset}", chunks=1, location=path,
                                      dataset=dataset, collected_at=collected))  # fmt: skip
        write(writer, now, *batch)
        expected = survivors(stored(place), now)
        assert len(expected) < len(stored(place)) or expire(writer, now) == 0
        expire(writer, now)
        rows = stored(place)
        assert {row["revision"] for row in rows} == expected
        assert expire(writer, now) == 0
        current = {row["id"] for row in rows if row["fence"] is None and row["superseded_at"] is None}
        assert documents_with_chunks(place) <= current
        assert writer.statistics().documents == len(current)
    assert len(rows) < offset


def test_a_kill_between_the_tables_leaves_the_document_whole_and_it_expires_with_the_next_writer(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(place, retention={"nyiso*": {"keep_days": 1}})
    write(writer, T0, document("prod:ds:a", 1, collected_at=T0), document("prod:ds:b", 2, collected_at=T0 + 5 * DAY))

    def kill(_: Any, *args: Any, **options: Any) -> None:
        raise Killed

    monkeypatch.setattr(writer._metadata, "commit", kill.__get__(writer._metadata))
    with pytest.raises(Killed):
        expire(writer, T0 + 2 * DAY)
    assert documents_with_chunks(place) == {"prod:ds:b"}  # half done ...
    heir = open_writer(place, retention={"nyiso*": {"keep_days": 1}})
    assert documents_with_chunks(place) == {"prod:ds:a", "prod:ds:b"}  # ... and undone
    assert expire(heir, T0 + 2 * DAY) == 1
    assert documents_with_chunks(place) == {"prod:ds:b"}
    # A redelivery brings it back for as long as the log has it, and it expires again.
    assert write(heir, T0 + 2 * DAY, document("prod:ds:a", 1, collected_at=T0)) == [Outcome.INDEXED]
    assert expire(heir, T0 + 2 * DAY) == 1
    assert documents_with_chunks(place) == {"prod:ds:b"}


def test_a_deletion_is_remembered_for_as_long_as_a_log_may_redeliver_what_it_deleted(place: str) -> None:
    writer = open_writer(place, log_retention_days=30)
    write(writer, T0, document("prod:ds:a", 1), deletion("prod:ds:a", 2))
    expire(writer, T0 + 29 * DAY)
    assert write(writer, T0 + 29 * DAY, document("prod:ds:a", 1)) == [Outcome.SUPERSEDED]
    assert len(stored(place)) == 1
    expire(writer, T0 + 31 * DAY)
    assert stored(place) == []


def test_nothing_ever_goes_where_the_settings_say_so(place: str) -> None:
    writer = open_writer(place, superseded_keep_days=0, log_retention_days=0)
    write(writer, T0, document("prod:ds:a", 1), document("prod:ds:a", 2, version="v2"), deletion("prod:ds:b", 3))
    assert expire(writer, T0 + 40_000 * DAY) == 0
    assert len(stored(place)) == 3


def test_the_exact_name_wins_and_then_the_longest_prefix() -> None:
    rules = Retention.of(Settings(retention={**RULES, "*": {"keep_days": 99}}))
    assert rules.rule("load") == Rule(None, 2)
    assert rules.rule("price_day") == Rule(40)
    assert rules.rule("price_real_x") == Rule(10, 1)
    assert rules.rule("price_real_kept") == Rule(3650)
    assert rules.rule("elsewhere") == Rule(99)


@pytest.mark.parametrize(
    "wrong",
    ['{"a*b": {"keep_days": 1}}', '{"": {"keep_days": 1}}', '{"a": {"keep_days": 0}}', '{"a": {"keep_dayz": 1}}',
     '{"a": {"keep_versions": 0}}', '{"a": 3}', "[1]", "{"],
)  # fmt: skip
def test_a_wrong_rule_stops_the_start(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_RETENTION", wrong)
    with pytest.raises(ConfigurationError):
        load()


def test_a_version_has_expired_by_the_rule_of_its_dataset() -> None:
    rules = Retention.of(Settings(retention={"old": {"keep_days": 2}, "many": {"keep_versions": 1}}))
    now = datetime(2025, 1, 20, tzinfo=UTC)
    limit = now - timedelta(days=2)
    assert rules.has_expired("old", limit - timedelta(seconds=1), now)
    assert not rules.has_expired("old", limit, now)
    assert not rules.has_expired("many", limit - timedelta(days=99), now)
    assert not rules.has_expired("other", limit - timedelta(days=99), now)

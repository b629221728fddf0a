"""The fence holds on every storage that Shoal supports: on disk, and on S3 by its conditional writes.

One suite, both places. It proves what the writer stands on (a commit staged on a version is refused once the
fence row was touched) and what follows from it (one writer, whole batches).
"""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import Any

import lance
import pytest

from shoal.errors import ConfigurationError, FencedError, TransientError
from shoal.records import Outcome
from shoal.settings import Settings
from shoal.store.schemas import IS_CURRENT, IS_DOCUMENT
from shoal.store.tables import CommitRefused, FencedTable
from shoal.store.writing import TableWriter, storage_options
from tests.fixtures.documents import MODEL, WIDTH, deletion, document
from tests.fixtures.s3_server import S3Server

NOW = datetime(2025, 1, 20, 15, 0, tzinfo=UTC)
A, B = "prod:ds:it's a.json", "prod:ds:b.json"


@dataclass(frozen=True)
class Place:
    """Where the tables are, and how to get there."""

    uri: str
    options: dict[str, str]

    def writer(self) -> TableWriter:
        return TableWriter.open(self.uri, self.options, MODEL, WIDTH, settings=Settings(), now=NOW)

    def jobs(self) -> FencedTable:
        """The simplest of the tables, opened anew."""
        table = FencedTable.open("jobs", f"{self.uri}/shoal_jobs.lance", self.options)
        assert table is not None
        return table

    def read(self, table: str, columns: list[str], condition: str) -> list[tuple[Any, ...]]:
        dataset = lance.dataset(f"{self.uri}/{table}.lance", storage_options=self.options or None)
        rows = dataset.to_table(columns=columns, filter=condition).to_pylist()
        return sorted(tuple(row[column] for column in columns) for row in rows)

    def current(self) -> list[tuple[Any, ...]]:
        return self.read("scraper_metadata", ["id", "version"], IS_CURRENT)

    def chunks(self) -> list[tuple[Any, ...]]:
        return self.read("scraper_vectors", ["id", "document_version"], IS_DOCUMENT)

    def job_ids(self) -> list[tuple[Any, ...]]:
        return self.read("shoal_jobs", ["command_id"], IS_DOCUMENT)


def put(table: FencedTable, command_id: str | None, epoch: int | None = None) -> None:
    """One commit of one row (or none) and the fence, on the version that `table` holds."""
    fence = replace(table.fence, token=uuid.uuid4().hex, epoch=table.fence.epoch if epoch is None else epoch)
    table.commit([] if command_id is None else [{"command_id": command_id}], fence)


class FenceSuite:
    """The claims. A subclass says where."""

    @pytest.mark.parametrize("theirs", ["same", "another", None])
    def test_a_commit_staged_before_anothers_is_refused_whatever_that_one_wrote(
        self, place: Place, theirs: str | None
    ) -> None:
        place.writer()
        ours, other = place.jobs(), place.jobs()
        put(other, theirs, epoch=other.fence.epoch + 1)
        with pytest.raises(CommitRefused):
            put(ours, "same")
        assert place.job_ids() == ([(theirs,)] if theirs else [])

    def test_the_same_transaction_can_not_land_twice(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        place.writer()
        table = place.jobs()
        staged: list[tuple[Any, Any]] = []
        real = lance.LanceDataset.commit

        def commit(base: Any, transaction: Any, **options: Any) -> Any:
            staged.append((base, transaction))
            return real(base, transaction, **options)

        monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(commit))
        put(table, "once")
        with pytest.raises(OSError, match="onflict"):
            real(*staged[0], max_retries=0)
        assert place.job_ids() == [("once",)]

    def test_a_handle_does_not_take_the_commit_of_a_writer_of_the_same_epoch_for_its_own(self, place: Place) -> None:
        place.writer()
        ours, other = place.jobs(), place.jobs()
        put(ours, "ours")
        ours.settle(ours.fence.epoch)
        other.refresh()
        put(other, "theirs")
        with pytest.raises(CommitRefused):
            ours.settle(ours.fence.epoch)

    def test_an_index_built_meanwhile_refuses_nobody(self, place: Place) -> None:
        place.writer()
        table = place.jobs()
        put(table, "first")
        lance.dataset(table.uri, storage_options=place.options or None).create_scalar_index("kind", "BITMAP")
        put(table, "second")
        assert place.job_ids() == [("first",), ("second",)]

    def test_of_many_commits_staged_on_one_version_exactly_one_lands(self, place: Place) -> None:
        place.writer()
        count = 6
        tables = [place.jobs() for _ in range(count)]
        start = Barrier(count)

        def race(number: int) -> bool:
            start.wait()
            try:
                put(tables[number], f"c{number}")
            except TransientError:
                return False
            return True

        with ThreadPoolExecutor(count) as pool:
            landed = [number for number, won in enumerate(pool.map(race, range(count))) if won]
        assert place.job_ids() == [(f"c{number}",) for number in landed]
        assert len(landed) == 1

    def test_a_zombie_is_fenced_and_nothing_of_its_batch_is_left(self, place: Place) -> None:
        zombie = place.writer()
        zombie.apply([document(A, 1)], (), NOW)
        heir = place.writer()
        with pytest.raises(FencedError):
            zombie.apply([document(A, 2, version="v2"), document(B, 3)], (), NOW)
        assert place.current() == [(A, "v1")]
        assert place.chunks() == [(f"{A}#0", "v1"), (f"{A}#1", "v1")]
        assert heir.apply([document(B, 3)], (), NOW)[0].outcome is Outcome.INDEXED

    def test_a_writer_that_looked_before_another_was_opened_has_an_epoch_of_its_own(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place.writer()
        take, others = TableWriter._take, []

        def meanwhile(self: TableWriter, *how: Any, **more: Any) -> Any:
            with monkeypatch.context() as patch:
                patch.setattr(TableWriter, "_take", take)
                others.append(place.writer())
            monkeypatch.setattr(TableWriter, "_take", take)
            return self._take(*how, **more)

        monkeypatch.setattr(TableWriter, "_take", meanwhile)
        ours = place.writer()
        (other,) = others
        assert ours._epoch > other._epoch
        with pytest.raises(FencedError):
            other.apply([document(A, 1)], (), NOW)
        assert ours.apply([document(A, 1)], (), NOW)[0].outcome is Outcome.INDEXED

    def test_of_writers_opened_at_once_the_last_one_stays_and_every_row_is_there_once(self, place: Place) -> None:
        count = 3
        start = Barrier(count)

        def work(number: int) -> list[str]:
            written = []
            try:
                start.wait()
                writer = place.writer()
                for offset in range(3):
                    name = f"prod:ds:{number}-{offset}"
                    writer.apply([document(name, offset), document(A, 1)], (), NOW)
                    written.append(name)
            except (FencedError, TransientError):
                pass
            return written

        with ThreadPoolExecutor(count) as pool:
            acked = {name for names in pool.map(work, range(count)) for name in names}
        stored = [row[0] for row in place.current()]
        assert len(stored) == len(set(stored)), "no row twice"
        assert acked <= set(stored), "what was acked is there"
        place.writer()  # mends what a fenced writer left half done
        stored = [row[0] for row in place.current()]
        assert sorted(row[0] for row in place.chunks()) == sorted(f"{name}#{n}" for name in stored for n in (0, 1))

    def test_chunks_ahead_of_metadata_are_rolled_back_and_redelivery_repairs(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writer = place.writer()
        writer.apply([document(A, 1, chunks=3), document(B, 2)], (), NOW)
        batch = [document(A, 3, version="v2", content="new", chunks=1), deletion(B, 4)]
        monkeypatch.setattr(writer._metadata, "commit", _killed)
        with pytest.raises(KeyboardInterrupt):
            writer.apply(batch, (), NOW)
        assert place.chunks() == [(f"{A}#0", "v2")]
        heir = place.writer()
        assert place.chunks() == sorted((f"{name}#{n}", "v1") for name, count in ((A, 3), (B, 2)) for n in range(count))
        heir.apply(batch, (), NOW)
        assert (place.current(), place.chunks()) == ([(A, "v2")], [(f"{A}#0", "v2")])

    def test_undoing_half_a_batch_never_undoes_what_another_writer_wrote_since(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # 1. A writer dies with its chunks in; 2. an heir has looked and is about to undo them, and stalls;
        # 3. a second heir undoes them and goes on; 4. the first wakes up.
        dead = place.writer()
        dead.apply([document(A, 1)], (), NOW)
        monkeypatch.setattr(dead._metadata, "commit", _killed)
        with pytest.raises(KeyboardInterrupt):
            dead.apply([document(A, 2, version="v2")], (), NOW)
        stalled = FencedTable.open("vectors", f"{place.uri}/scraper_vectors.lance", place.options)
        assert stalled is not None
        heir = place.writer()
        heir.apply([document(B, 3)], (), NOW)
        written = place.chunks()
        with pytest.raises(CommitRefused):
            stalled.undo(stalled.fence.commit_sequence - 1, replace(stalled.fence, token="late"))
        assert place.chunks() == written
        assert len(written) == 4


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt


class TestOnDisk(FenceSuite):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return Place(str(tmp_path / "lancedb"), {})


class TestOnS3(FenceSuite):
    @pytest.fixture
    def place(self, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Place:
        for name, value in s3_server.env().items():
            monkeypatch.setenv(name, value)
        settings = Settings(lancedb_path=f"s3://{s3_server.bucket('fence')}/{uuid.uuid4().hex}")
        return Place(settings.tables_uri, storage_options(settings))

    def test_a_missing_bucket_and_a_wrong_key_are_for_a_person_to_mend(self, place: Place) -> None:
        nowhere = Place("s3://shoal-no-such-bucket/db", place.options)
        stranger = Place(place.uri, {**place.options, "aws_secret_access_key": "wrong"})
        for wrong in (nowhere, stranger):
            with pytest.raises(ConfigurationError, match="LANCEDB_PATH"):
                wrong.writer()

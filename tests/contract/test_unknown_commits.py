"""A commit whose answer is lost on the network: it landed or it did not, and the writer finds out which.

A real S3 server behind a proxy that lets the request through and keeps the answer. What is asked for: never a row
twice, never an ack for what is not there, and the same writer goes on.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest

from shoal.errors import ShoalError, TransientError
from shoal.records import Outcome, Writable
from shoal.settings import Settings
from shoal.store.writing import TableWriter, storage_options
from tests.fixtures.documents import MODEL, WIDTH, command, deletion, document
from tests.fixtures.proxy import Mode, Proxy
from tests.fixtures.s3_server import S3Server
from tests.fixtures.writer_process import snapshot

NOW = datetime(2025, 1, 20, 15, 0, tzinfo=UTC)
A, B, C = "prod:ds:a.json", "prod:ds:b.json", "prod:ds:c.json"
FIX = {"scraper_name": "s", "summary": "renamed"}
TABLES = ["scraper_vectors", "scraper_fixes", "scraper_metadata", "shoal_jobs"]

BEFORE: list[Writable] = [document(A, 1), document(B, 2, chunks=3)]
BATCH: list[Writable] = [
    document(A, 3, version="v2", content="new", chunks=1), deletion(B, 4), document(C, 5), command("c1", "fix", FIX),
]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """One set of tables, by way of the proxy and around it."""

    proxy: Proxy
    uri: str
    options: dict[str, str]
    direct: dict[str, str]

    def writer(self) -> TableWriter:
        return TableWriter.open(self.uri, self.options, MODEL, WIDTH, settings=Settings(), now=NOW)

    def manifest_of(self, table: str) -> bytes:
        """What the request that commits to this table begins with."""
        return f"PUT {urlsplit(self.uri.replace('s3://', 'http://x/')).path}/{table}.lance/_versions/".encode()

    def rows(self) -> dict[str, list[tuple[object, ...]]]:
        return snapshot(self.uri, self.direct)


@pytest.fixture
def place(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    settings = Settings(lancedb_path=f"s3://{s3_server.bucket('unknown')}/{uuid.uuid4().hex}")
    direct = storage_options(settings)
    port = urlsplit(s3_server.endpoint).port
    assert port is not None
    # A silent server is given up soon, so that no test takes the minutes that a user's network may.
    patience = {"timeout": "3s", "client_max_retries": "1", "retry_timeout": "10s"}
    with Proxy(port) as proxy:
        yield Place(proxy, settings.tables_uri, {**direct, **patience, "aws_endpoint": proxy.endpoint}, direct)


def expected(place: Place, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[object, ...]]]:
    """What a writer on a good network makes of the same log."""
    uri = f"{place.uri}-good"
    writer = TableWriter.open(uri, place.direct, MODEL, WIDTH, settings=Settings(), now=NOW)
    writer.apply(BEFORE, (), NOW)
    writer.apply(BATCH, (), NOW)
    return snapshot(uri, place.direct)


def to_the_end(writer: TableWriter, batch: list[Writable]) -> list[Outcome]:
    """As the pipeline does: a bad system is tried again."""
    for _ in range(20):
        try:
            return [ack.outcome for ack in writer.apply(batch, (), NOW)]
        except TransientError:
            continue
    raise AssertionError("20 attempts failed")


@pytest.mark.parametrize("table", TABLES)
def test_an_answer_that_is_lost_after_the_commit_makes_no_row_twice_and_no_wrong_ack(
    place: Place, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = expected(place, monkeypatch)
    writer = place.writer()
    writer.apply(BEFORE, (), NOW)
    place.proxy.set(Mode.DROP_AFTER_REQUEST, matching=place.manifest_of(table), times=1)
    outcomes = to_the_end(writer, BATCH)
    assert place.proxy.lost == 1, "the commit's answer was lost"
    assert outcomes in (
        [Outcome.INDEXED, Outcome.DELETED, Outcome.INDEXED, Outcome.INDEXED],
        [
            Outcome.UNCHANGED,
            Outcome.DELETED,
            Outcome.UNCHANGED,
            Outcome.UNCHANGED,
        ],  # it had landed
    )
    assert place.rows() == good
    assert to_the_end(writer, BATCH) == [Outcome.UNCHANGED, Outcome.DELETED, Outcome.UNCHANGED, Outcome.UNCHANGED]
    assert place.rows() == good


@pytest.mark.parametrize("mode", [Mode.DROP, Mode.RESET, Mode.HALF_OPEN])
def test_a_network_that_fails_in_a_batch_stops_the_writer_only_for_as_long_as_it_fails(
    place: Place, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = expected(place, monkeypatch)
    writer = replace(place, options={**place.options, "client_max_retries": "0"}).writer()
    writer.apply(BEFORE, (), NOW)
    place.proxy.set(mode)
    with pytest.raises(TransientError):
        writer.apply(BATCH, (), NOW)
    place.proxy.set(Mode.PASS)
    assert to_the_end(writer, BATCH)[0] is Outcome.INDEXED
    assert place.rows() == good


def test_many_lost_answers_in_a_row_still_end_in_the_same_tables(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    good = expected(place, monkeypatch)
    writer = place.writer()
    writer.apply(BEFORE, (), NOW)
    place.proxy.set(Mode.DROP_AFTER_REQUEST, matching=b"/_versions/", times=7)
    for _ in range(40):
        try:
            writer.apply(BATCH, (), NOW)
        except ShoalError:
            continue
        if place.proxy.mode is Mode.PASS:
            break
    assert place.proxy.lost == 7
    assert place.rows() == good

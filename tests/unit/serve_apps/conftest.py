"""Fakes of what stands behind REST: an index that answers what it is told to, an embedder, a log."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from fastapi import FastAPI

from shoal.errors import TransientError
from shoal.records import Vector
from shoal.serve_apps import examples, examples_flow
from shoal.serve_apps.collection_search import Defaults
from shoal.serve_apps.commands import Commands
from shoal.serve_apps.cost import Costs
from shoal.serve_apps.dead_letter_service import DeadLetters
from shoal.serve_apps.document_service import DocumentService
from shoal.serve_apps.pushing import Pusher
from shoal.serve_apps.query_vectors import QueryVectors
from shoal.serve_apps.raw_files import RawFiles
from shoal.serve_apps.request_frame import Limits
from shoal.serve_apps.reranking import Reranker
from shoal.serve_apps.rest import create_rest
from shoal.serve_apps.search_service import SearchService
from shoal.serve_apps.trail_search import TrailSearch
from shoal.settings import Settings, load
from shoal.store.cadence import rhythm
from shoal.store.documents import Facts
from shoal.store.facets import Facets
from shoal.store.feeds import Catalogue, Feed
from shoal.store.reading import Freshness
from shoal.store.requests import AsOf, Hit, SearchPage, SearchRequest
from tests.fixtures.letters import FakeLetters, a_dead_letter

HASH = "a" * 64
COMMITTED = datetime(2025, 1, 20, 14, 30, 4, tzinfo=UTC)


def a_hit(**metadata: Any) -> Hit:
    document = {
        "id": "prod:nyiso_load:load.json",
        "data_source": "NYISO",
        "dataset": "nyiso_load",
        "sha256_hash": HASH,
        "collected_at": datetime(2025, 1, 20, 14, 30, tzinfo=UTC),
        "warnings": ["a"],
    }
    return Hit(metadata={**document, **metadata})


def a_ranked_hit(text: str = "hourly load, MW") -> Hit:
    chunk = {
        "id": "prod:nyiso_load:load.json#0",
        "metadata_id": "prod:nyiso_load:load.json",
        "chunk_index": 0,
        "content_summary": text,
        "content_schema": "{}",
        "api_endpoint": "https://example.org/load",
        "auth_method": "api_key",
    }
    return Hit(metadata=a_hit().metadata, chunk=chunk, score=0.8, distance=0.4)


@dataclass
class FakeDocuments:
    """The documents of a collection, as the store tells of them."""

    facts: Facts = field(default_factory=lambda: Facts("hash:4", 4, "float32"))
    rows: list[dict[str, Any]] = field(default_factory=list)
    pieces: list[dict[str, Any]] = field(default_factory=list)
    tombstones: dict[str, datetime] = field(default_factory=dict)
    api_vectors: dict[str, Vector] = field(default_factory=dict)

    async def row(self, document_id: str, version: str | None = None) -> dict[str, Any] | None:
        return next((row for row in self.rows if row["id"] == document_id and version in (None, row["version"])), None)

    async def versions(self, document_id: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["id"] == document_id]

    async def api_vector(self, document_id: str) -> Vector | None:
        return self.api_vectors.get(document_id)

    async def chunks(self, document_id: str, version: str | None, first: int, limit: int) -> list[dict[str, Any]]:
        return [piece for piece in self.pieces if first <= piece["chunk_index"] < first + limit]

    async def stored(self, sha256: str, of_id: str, version: str, digest: Any) -> dict[str, Any] | None:
        found = (row for row in self.rows if row["sha256_hash"] == sha256 and row["version"] == version)
        return next((row for row in found if digest(row["id"]) == of_id), None)

    async def deleted_at(self, document_id: str) -> datetime | None:
        return self.tombstones.get(document_id)


@dataclass
class FakeIndex:
    documents: FakeDocuments = field(default_factory=FakeDocuments)
    model: str = "hash:4"
    hits: tuple[Hit, ...] = (a_hit(),)
    cursor: str | None = None
    as_of: AsOf | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    fixed: list[dict[str, Any]] = field(default_factory=list)
    requests: list[SearchRequest] = field(default_factory=list)
    asked_fixes: list[tuple[Any, ...]] = field(default_factory=list)
    catalogue: Catalogue | Exception | None = None
    error: Exception | None = None
    facets: Facets | None = None

    async def search(self, request: SearchRequest) -> SearchPage:
        if self.error:
            raise self.error
        self.requests.append(request)
        return SearchPage(
            request.mode,
            self.hits[: request.limit],
            self.cursor,
            Freshness(7, COMMITTED),
            unindexed_rows={"vector": 3, "keyword": None},
            facets=self.facets,
            as_of=self.as_of,
        )

    async def by_hash(self, sha256: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["sha256_hash"] == sha256]

    async def similar_apis(self, vector: Vector, limit: int) -> list[Hit]:
        return list(self.hits[:limit])

    async def fixes(self, *asked: Any) -> list[dict[str, Any]]:
        self.asked_fixes.append(asked)
        return self.fixed

    async def job(self, command_id: str) -> dict[str, Any] | None:
        return self.jobs.get(command_id)

    async def freshness(self) -> Freshness:
        return Freshness(7, COMMITTED)

    async def unindexed_rows(self, kind: str) -> dict[str, int | None]:
        legs = {
            "metadata": {"hash": 1, "schema": 2},
            "fixes": {"error": None},
            "vectors": {"vector": 3, "keyword": None},
        }
        return legs[kind]

    async def counts(self) -> dict[str, int]:
        return {"documents": 1, "chunks": 2}

    async def feeds(self) -> Catalogue | None:
        if isinstance(self.catalogue, Exception):
            raise self.catalogue
        return self.catalogue


@dataclass
class FakeEmbedder:
    texts: list[str] = field(default_factory=list)
    paying: list[str] = field(default_factory=list)
    error: Exception | None = None
    hangs: bool = False

    async def __call__(self, model: str, text: str, collection: str) -> Vector:
        self.texts.append(text)
        self.paying.append(collection)
        if self.hangs:
            await asyncio.Event().wait()
        if self.error:
            raise self.error
        return np.ones(4, dtype=np.float32) / 2


@dataclass
class FakeLog:
    """A log producer; `on_send` is what the writer does with a command once it is durable."""

    sent: list[dict[str, Any]] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)
    error: Exception | None = None
    opened: int = 0
    on_send: Any = None

    def open(self) -> FakeLog:
        self.opened += 1
        return self

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]] = ()
    ) -> None:
        self.topics.append(topic)
        self.keys.append(key)
        self.sent.append(orjson.loads(value or b"null"))

    def flush(self, timeout_s: float) -> None:
        if self.error:
            raise self.error
        if self.on_send:
            self.on_send(self.sent[-1])


@dataclass
class Stand:
    """Everything a test may turn."""

    index: FakeIndex = field(default_factory=FakeIndex)
    embedder: FakeEmbedder = field(default_factory=FakeEmbedder)
    log: FakeLog = field(default_factory=FakeLog)
    status: Any = None
    indexes: Any = None
    tables_error: Exception | None = None
    defaults: Defaults = field(default_factory=Defaults)
    reranker: Reranker | None = None
    settings: Settings | None = None
    letters: FakeLetters = field(default_factory=FakeLetters)
    limits: Limits | None = None
    dead_letters: DeadLetters | None = None

    def service(self) -> SearchService:
        async def open_index() -> FakeIndex:
            if self.tables_error:
                raise self.tables_error
            return self.index

        def read_status() -> Any:
            if isinstance(self.status, Exception):
                raise self.status
            return self.status

        def read_indexes() -> Any:
            assert threading.current_thread() is not threading.main_thread()
            if isinstance(self.indexes, Exception):
                raise self.indexes
            return self.indexes

        vectors = QueryVectors(self.embedder, deadline_s=0.05)
        return SearchService(
            open_index,
            vectors,
            Commands(self.log.open, "commands"),
            read_status,
            self.defaults,
            self.reranker,
            read_indexes,
        )

    def app(self, costs: Costs | None = None) -> FastAPI:
        assert self.settings is not None
        settings, service = self.settings, self.service()
        commands = Commands(self.log.open, "commands")
        documents = DocumentService(service.index, service.lag, commands, RawFiles(settings), Pusher(settings))
        self.dead_letters = DeadLetters(settings, lambda _: self.letters, lambda _: self.log.open())
        return create_rest(
            service, costs=costs, documents=documents, dead_letters=self.dead_letters, limits=self.limits,
            audit=TrailSearch(settings),
        )  # fmt: skip

    def no_tables(self) -> None:
        self.tables_error = TransientError("no tables yet", 1.0)


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(settings=load(data_dir=tmp_path))


@pytest.fixture
async def http(stand: Stand) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(stand.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as client:
        yield client


@pytest.fixture
def ranked() -> Any:
    return a_ranked_hit


@pytest.fixture
def letter() -> Any:
    return a_dead_letter


@pytest.fixture
def client_of() -> Any:
    """A client of a stand that a test has changed."""

    def client(stand: Stand) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(stand.app(), raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://shoal")

    return client


@pytest.fixture
def limits() -> Any:
    return Limits


@pytest.fixture
def filled(stand: Any, letter: Any) -> Any:
    """A stand that has what the examples name."""
    row = {
        "id": examples.ID, "version": "20250120T143000Z", "sha256_hash": examples.SHA256, "superseded_at": None,
        "chunk_count": 1,
    }  # fmt: skip
    stand.index.documents.rows, stand.index.rows = [row], [row]
    now = datetime.now(UTC)
    usual = rhythm([now.timestamp() - 3600 * n for n in range(9, -1, -1)])
    stand.index.catalogue = Catalogue(
        now, (Feed("prod", "a", "NYISO", 1, 1, {}, now, now, now, usual, now.timestamp()),)
    )
    job = examples_flow.JOB[200]["content"]["application/json"]["example"]
    stand.index.jobs = {job["job_id"]: {**job, "result": None, "commit_sequence": 412}}
    stand.index.fixed = [{"scraper_name": "nyiso_load_forecast", "error_type": "KeyError"}]
    stand.index.facets = Facets({}, 1, True)
    stand.letters.found = [letter(0)]
    stand.status = {"at": now.isoformat(), "health": "ok"}
    return stand

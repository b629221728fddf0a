"""`shoal eval DIR`: how well the search finds what people judged relevant, on any test set of the BEIR layout.

The set goes through what a scrape goes through: the extraction pool, the chunker, the model of new collections, the
table writer with its upkeep, and the search core of REST and MCP. Only the log and the network are left out. The
tables lie in a directory of their own, which goes at the end; the embeddings stay in a cache beside it, so that an
interrupted run goes on where it was and a second one is fast. Nothing of a running Shoal is touched.

Figures on stdout, progress on stderr. Fails with ConfigurationError for a set that can't be read.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from shoal.actors.extraction import ExtractionPool
from shoal.cluster.beir import Document, TestSet, load
from shoal.cluster.output import Exit, Format, emit_json, emit_rows, say
from shoal.cluster.relevance import CUTOFF, MEASURES, measured
from shoal.documents.context import Context
from shoal.embeddings.cache import EmbeddingCache
from shoal.embeddings.embedding_model import EmbeddingModel
from shoal.embeddings.models import create_model
from shoal.embeddings.service import EmbeddingService
from shoal.errors import BadDocument, ConfigurationError
from shoal.records import SCRAPER_COLLECTION, Announcement, Embedded, Fetched, Outcome, Position, Vector
from shoal.serve_apps.collection_search import Defaults
from shoal.settings import Settings
from shoal.store.requests import Mode, SearchRequest
from shoal.store.search import SearchIndex
from shoal.store.writing import TableWriter

MODES: tuple[Mode, ...] = ("keyword", "vector", "hybrid")
BATCH_DOCUMENTS = 200
"""Documents extracted, embedded and committed together: some thousand chunks held at most, and few commits."""
SEARCHES_AT_ONCE = 4
QUERIES_PER_EMBED = 64
PROGRESS_S = 5.0
_REPORTED_MAX = 5  # documents that could not be read, by name
# Every document is "collected" then: the day stands in its text, and embeddings are cached by text.
_COLLECTED = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Indexed:
    """What became of the corpus."""

    documents: int = 0
    chunks: int = 0
    refused: list[str] = field(default_factory=list)


def evaluate(settings: Settings, directory: Path, *, keep: bool, form: Format) -> int:
    """Runs the set and prints its figures. Returns the exit code; raises ConfigurationError, TransientError."""
    test_set = load(directory)
    with own_directory(settings.home / "eval", test_set.name, keep=keep) as place:
        # The service's place and rules are not ours: every document here is old, and would expire at once.
        own = settings.model_copy(update={"lancedb_path": str(place), "retention": {}})
        figures = asyncio.run(figures_of(test_set, own, place))
    if form is Format.json:
        emit_json({"set": test_set.name, "modes": figures})
    else:
        emit_rows([{"mode": mode, **of_mode} for mode, of_mode in figures.items()], ("mode", *MEASURES))
    return Exit.OK


async def figures_of(test_set: TestSet, settings: Settings, place: Path) -> dict[str, dict[str, float]]:
    """Mode -> measure -> mean over the judged queries, with the tables made at `place`."""
    say(f"{test_set.name}: {len(test_set.queries)} judged queries, tables at {place}")
    model = create_model(settings)
    cache = EmbeddingCache(settings.home / "eval" / "embeddings.sqlite", settings.embedding_cache_bytes_max)
    service = EmbeddingService(model, cache)
    try:
        indexed = await _index(test_set, settings, place, model, service)
        _report(test_set, indexed)
        rankings = await _ask(test_set, place, service, Defaults.of(settings))
    finally:
        await service.close()
    return {
        mode: {name: round(value, 4) for name, value in measured(rankings[mode], test_set.judgments).items()}
        for mode in MODES
    }


@contextmanager
def own_directory(root: Path, name: str, *, keep: bool) -> Iterator[Path]:
    """A new directory for one run's tables. What runs that were killed left behind goes first."""
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob("tables-*-*"):
        owner = old.name.split("-")[1]
        if owner.isdecimal() and len(owner) < 10 and not psutil.pid_exists(int(owner)):
            shutil.rmtree(old, ignore_errors=True)
    shown = "".join(c if c.isalnum() else "_" for c in name)[:40]
    place = Path(tempfile.mkdtemp(prefix=f"tables-{os.getpid()}-{shown}-", dir=root))
    try:
        yield place
    finally:
        if keep:
            kept = root / place.name.replace(f"tables-{os.getpid()}-", "kept-", 1)
            place.rename(kept)
            say(f"the tables are kept at {kept}: look at them with LANCEDB_PATH={kept} shoal up")
        else:
            shutil.rmtree(place, ignore_errors=True)


async def _index(
    test_set: TestSet, settings: Settings, place: Path, model: EmbeddingModel, service: EmbeddingService
) -> Indexed:
    done = Indexed()
    started = said = time.monotonic()
    seen: set[str] = set()
    pool = ExtractionPool(settings, model.name, processes=max(1, settings.fetchers))
    writer = await asyncio.to_thread(
        TableWriter.open, str(place), {}, model.name, model.width, settings=settings, now=datetime.now(UTC)
    )
    try:
        documents = test_set.documents()
        while batch := list(islice(documents, BATCH_DOCUMENTS)):
            _refuse_twice(test_set, seen, batch)
            offset = len(seen) - len(batch)
            fetched = await asyncio.gather(
                *(_extracted(pool, test_set.name, one, offset + at, done) for at, one in enumerate(batch))
            )
            embedded = await asyncio.gather(*(_embedded(service, model, one) for one in fetched if one is not None))
            for one, ack in zip(embedded, await asyncio.to_thread(_written, writer, embedded), strict=True):
                if ack is None:
                    done.documents += 1
                    done.chunks += len(one.vectors) if one.vectors is not None else 0
                else:
                    done.refused.append(ack)
            if time.monotonic() - said > PROGRESS_S:
                said = time.monotonic()
                say(f"{done.documents} documents, {done.chunks} chunks, {said - started:.0f} s")
    finally:
        pool.close()
    if not done.documents:
        raise ConfigurationError(f"{test_set.corpus} has no document that can be indexed")
    return done


def _refuse_twice(test_set: TestSet, seen: set[str], batch: Sequence[Document]) -> None:
    for one in batch:
        if one.key in seen:
            raise ConfigurationError(f"{test_set.corpus} has two documents with the _id {one.key[:100]!r}")
        seen.add(one.key)


async def _extracted(pool: ExtractionPool, name: str, one: Document, offset: int, done: Indexed) -> Fetched | None:
    data = one.text.encode()
    # Its number for a name: an id of the set is no name that a person gave, and one of digits is not embedded.
    file = f"{offset}{one.suffix}"
    try:
        extraction = await pool.extract(data, Context(file, None, None, "", "", "", _COLLECTED))
    except BadDocument as error:
        done.refused.append(f"{one.key[:100]}: {error}")
        return None
    announcement = Announcement(
        position=Position("eval", name, 0, offset, offset),
        collection=SCRAPER_COLLECTION,
        document_id=f"prod:{name}:{one.key}",
        version="1",
        location=None,
        content=None,
        dataset=name,
        environment="prod",
        urn=one.key,
        data_source="EVAL",
        data_type="other",
        scraper_name=name,
        collected_at=_COLLECTED,
    )
    digest = hashlib.sha256(data).hexdigest()
    return Fetched(announcement, sha256=digest, size_bytes=len(data), extraction=extraction)


async def _embedded(service: EmbeddingService, model: EmbeddingModel, fetched: Fetched) -> Embedded:
    assert fetched.extraction is not None
    texts = [chunk.text for chunk in fetched.extraction.chunks]
    return Embedded(fetched, model=model.name, vectors=await service.embed(texts) if texts else None)


def _written(writer: TableWriter, batch: Sequence[Embedded]) -> list[str | None]:
    """Commits the batch and does the upkeep that is due. Per document None, or why it was refused."""
    now = datetime.now(UTC)
    acks = writer.apply(batch, (), now) if batch else []
    while writer.maintain(now) is not None:
        pass
    return [None if ack.outcome is Outcome.INDEXED else str(ack.failure or ack.outcome) for ack in acks]


def _report(test_set: TestSet, indexed: Indexed) -> None:
    say(f"{indexed.documents} documents in {indexed.chunks} chunks are indexed")
    for line in indexed.refused[:_REPORTED_MAX]:
        say(f"not indexed: {line}")
    if len(indexed.refused) > _REPORTED_MAX:
        say(f"and {len(indexed.refused) - _REPORTED_MAX} more")


async def _ask(
    test_set: TestSet, place: Path, service: EmbeddingService, defaults: Defaults
) -> dict[Mode, dict[str, list[str]]]:
    """Mode -> query -> the ids of the first documents, ranked as a service with these settings ranks."""
    rankings: dict[Mode, dict[str, list[str]]] = {mode: {} for mode in MODES}
    index = await SearchIndex.open(str(place), {})
    room = asyncio.Semaphore(SEARCHES_AT_ONCE)

    async def ask(mode: Mode, query: str, vector: Vector) -> None:
        text = test_set.queries[query]
        async with room:
            page = await index.search(
                SearchRequest(
                    mode=mode, query=text, vector=vector, limit=CUTOFF, fusion=defaults.fusion, boosts=defaults.boosts
                )
            )
        rankings[mode][query] = [str(hit.metadata["urn"]) for hit in page.hits]

    try:
        async for queries, vectors in _query_vectors(test_set, service):
            tasks = [ask(mode, query, vectors[at]) for at, query in enumerate(queries) for mode in MODES]
            await asyncio.gather(*tasks)
            say(f"{len(rankings['hybrid'])} of {len(test_set.queries)} queries asked")
    finally:
        await index.close()
    return rankings


async def _query_vectors(test_set: TestSet, service: EmbeddingService) -> AsyncIterator[tuple[list[str], Any]]:
    names = list(test_set.queries)
    for start in range(0, len(names), QUERIES_PER_EMBED):
        part = names[start : start + QUERIES_PER_EMBED]
        yield part, await service.embed([test_set.queries[name] for name in part], kind="query")

"""The embedder's class without Ray: in which lane each text waits, and who pays."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shoal import tracing
from shoal.actors.embedder import Embedder
from shoal.embeddings.hash_model import HashModel
from shoal.embeddings.purposes import Purpose
from shoal.errors import DeadReason
from shoal.records import Command, Fetched, Progress
from shoal.settings import Settings, load
from shoal.store.writing import TableWriter
from tests.fixtures.documents import COLLECTED_AT, document, position


@pytest.fixture
async def embedder(tmp_path: Path) -> AsyncIterator[Embedder]:
    made = Embedder(load(data_dir=tmp_path, embedding_provider="hash"), "hash:8", 8)
    yield made
    await made._service.close()


@pytest.fixture
def asked(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], str, Purpose]]:
    seen: list[tuple[tuple[str, ...], str, Purpose]] = []
    real = embedder._service.embed

    async def embed(texts: Any, kind: Any = "document", purpose: Any = None, **more: Any) -> Any:
        if texts:
            seen.append((tuple(texts), kind, purpose))
        return await real(texts, kind, purpose, **more)

    monkeypatch.setattr(embedder._service, "embed", embed)
    return seen


def fetched(**announced: Any) -> Fetched:
    made = document("prod:load:a", 1, content="wind", chunks=1).fetched
    return replace(made, announcement=replace(made.announcement, **announced))


async def test_live_documents_and_backfills_wait_in_lanes_of_their_own(embedder: Embedder, asked: list[Any]) -> None:
    for lane, flags in (("live", {}), ("backfill", {"is_backfill": True})):
        asked.clear()
        _, embedded = await embedder.embed(fetched(**flags))
        purpose = Purpose(lane, "scraper", "NYISO", "nyiso_load")
        assert asked == [(("wind part 0",), "document", purpose), (("wind",), "query", purpose)]
        assert np.array_equal(embedded.vectors, HashModel(8).embed(["wind part 0"]))


async def test_a_commands_text_waits_with_the_queries(embedder: Embedder, asked: list[Any]) -> None:
    body = orjson.dumps({"scraper_name": "x", "error_type": "Timeout"}).decode()
    at = fetched().announcement.collected_at
    await embedder.embed_command(Command(position(1), "c", "fix", "scraper", body, "me", at))
    assert asked == [(("Timeout",), "query", Purpose("query", "scraper"))]


async def test_a_commands_text_is_embedded_in_the_trace_of_who_asked(embedder: Embedder) -> None:
    exporter = InMemorySpanExporter()
    tracing.configure(Settings(_env_file=None), "test", exporter)
    caller, at = f"00-{'a' * 32}-{'b' * 16}-01", fetched().announcement.collected_at
    body = orjson.dumps({"error_type": "Timeout"}).decode()
    try:
        await embedder.embed_command(Command(position(1), "c", "fix", "scraper", body, "me", at, trace=caller))
    finally:
        tracing.stop()
    (embed,) = [span for span in exporter.get_finished_spans() if span.name == "embed"]
    assert (f"{embed.context.trace_id:032x}", f"{embed.parent.span_id:016x}") == ("a" * 32, "b" * 16)


async def test_a_lost_cache_costs_no_new_embeddings_of_what_is_unchanged_and_a_copy_trusts_no_table(
    tmp_path: Path,
) -> None:
    paid: list[str] = []

    class Counted(HashModel):
        def embed(self, texts: Any, kind: Any = "document") -> Any:
            paid.extend(text for text in texts if kind == "document")
            return super().embed(texts, kind)

    async def embedded(*brought: Fetched) -> list[Any]:
        paid.clear()
        shutil.rmtree(settings.home / "cache", ignore_errors=True)
        made = Embedder(settings, "hash:8", 8)
        made._service._model = made._service._caller._model = Counted(8)
        try:
            return [(await made.embed(each))[1] for each in brought]
        finally:
            await made.__ray_shutdown__()

    settings = load(data_dir=tmp_path, embedding_provider="hash")
    old = document("prod:load:a", 1, content="wind", chunks=3).fetched
    first = await embedded(old)
    assert len(paid) == 3
    writer = TableWriter.open(settings.tables_uri, {}, "hash:8", 8, settings=settings, now=COLLECTED_AT)
    writer.apply(first, (Progress("cluster", "topic", 0, 2),), COLLECTED_AT)
    writer.close()
    longer = document("prod:load:a", 2, version="v2", content="wind", chunks=5).fetched
    again, newer = await embedded(old, longer)
    assert paid == ["wind part 3", "wind part 4"]
    np.testing.assert_allclose(again.vectors, first[0].vectors, atol=1e-6)
    np.testing.assert_allclose(newer.vectors[:3], first[0].vectors, atol=1e-6)
    await embedded(replace(old, announcement=replace(old.announcement, is_replay=True)))
    assert len(paid) == 3


async def test_one_over_long_chunk_makes_its_document_bad_and_no_other(embedder: Embedder) -> None:
    long = fetched()
    assert long.extraction is not None
    chunk = long.extraction.chunks[0]
    chunks = (chunk, replace(chunk, index=1, text="word " * 300, token_count=300))
    failure, embedded = await embedder.embed(replace(long, extraction=replace(long.extraction, chunks=chunks)))
    assert failure is not None
    assert failure.reason is DeadReason.EMBEDDING_REJECTED
    assert "text 2 of 2: has 300 tokens; hash:8 takes 256" in failure.message
    assert embedded.vectors is None
    assert (await embedder.embed(fetched()))[0] is None

"""The embedder's class without Ray: in which lane each text waits, and who pays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from shoal.actors.embedder import Embedder
from shoal.embeddings.hash_model import HashModel
from shoal.embeddings.purposes import Purpose
from shoal.errors import DeadReason
from shoal.records import Command, Fetched
from shoal.settings import load
from tests.fixtures.documents import document, position


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

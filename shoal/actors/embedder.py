"""The embedder: the one actor that decides every call of the ingest side to the embedding provider.

Batches texts of many documents into one request through `EmbeddingService` (cache, limits, retries). What its cache
lacks is looked for in the tables first, so a lost disk costs no new embeddings of what is unchanged. It only
decides and batches; vectors leave as float32 rows beside their document. A text that the provider refuses
makes its document bad, never its batch.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from functools import partial

import orjson
import ray

from shoal import tracing
from shoal.actors.half_price import open_lane
from shoal.actors.lease import LeaseKeeper
from shoal.actors.logs import configure_logging
from shoal.actors.pipeline import EMBEDDED_KIND
from shoal.actors.pulse import Pulse
from shoal.actors.spending import open_keeper
from shoal.embeddings.cache import EmbeddingCache
from shoal.embeddings.models import create_model
from shoal.embeddings.purposes import Purpose
from shoal.embeddings.service import EmbeddingService
from shoal.errors import BadDocument
from shoal.faults import reach
from shoal.log_format import about
from shoal.metrics import EmbedderStatistics
from shoal.records import Announcement, Command, Embedded, EmbeddedCommand, Failure, Fetched
from shoal.settings import Settings
from shoal.store.known_vectors import KnownVectors

FIX_TEXT_FIELDS = ("error_type", "error_message", "summary")


class Embedder:
    """Plain class; `EmbedderActor` is its Ray shell."""

    def __init__(self, settings: Settings, model: str, width: int) -> None:
        configure_logging(settings)
        self._started = time.monotonic()
        cache = EmbeddingCache(settings.home / "cache" / "embeddings.sqlite", settings.embedding_cache_bytes_max)
        self._spending = open_keeper(settings)
        self._service = EmbeddingService(
            create_model(settings, model, width=width, on_charges=self._spending.charged), cache,
            on_charges=self._spending.charged, may_spend=self._spending.gate(model),
        )  # fmt: skip
        self._half_price = open_lane(settings, model, width, cache, self._spending)
        self._known = KnownVectors(settings, model)
        self._model, self._width = model, width
        self._lease = LeaseKeeper("embedder", settings.lease_s)
        self._pulse = Pulse()

    @ray.method(num_returns=2)
    async def embed(self, fetched: Fetched) -> tuple[Failure | None, Embedded]:
        """Why the document's texts were refused (or None), and what to write either way."""
        self._pulse.follow_loop()
        document, trace = fetched.announcement.document_id, fetched.announcement.trace
        with about(document=document, trace=tracing.trace_id(trace)), tracing.span("embed", trace):
            return await self._embed(fetched)

    async def _embed(self, fetched: Fetched) -> tuple[Failure | None, Embedded]:
        extraction = fetched.extraction
        assert extraction is not None, "a failed document has nothing to embed"
        announcement = fetched.announcement
        purpose = purpose_of(announcement)
        # A copy is sent to mend what the tables hold: what it is to replace is no source for it.
        stored = None if announcement.is_replay else partial(self._known.of, announcement.document_id)
        try:
            vectors, api_vectors = await asyncio.gather(
                self._service.embed(
                    [chunk.text for chunk in extraction.chunks],
                    purpose=purpose,
                    token_counts=[chunk.token_count for chunk in extraction.chunks],
                    elsewhere=stored,
                ),
                # As a query is: both sides of similar-apis are the same kind of text, and may be cut.
                self._service.embed([extraction.api_text] if extraction.api_text else [], "query", purpose),
            )
        except BadDocument as error:
            failure = Failure(error.reason, error.message, "embed")
            return failure, Embedded(replace(fetched, extraction=None, failure=failure))
        reach("embedder.after_call")
        return None, Embedded(fetched, self._model, vectors, api_vectors[0] if len(api_vectors) else None)

    async def embed_command(self, command: Command) -> EmbeddedCommand:
        """A fix is found again by what went wrong; other commands carry no vector."""
        if command.kind != EMBEDDED_KIND:
            return EmbeddedCommand(command)
        body = orjson.loads(command.body)
        text = " ".join(str(body[name]) for name in FIX_TEXT_FIELDS if body.get(name))
        if not text.strip():
            return EmbeddedCommand(command)
        # A query's text may be cut, a chunk's may not; and like a query's, somebody waits for it.
        with about(trace=tracing.trace_id(command.trace)), tracing.span("embed", command.trace):
            vectors = await self._service.embed([text], "query", Purpose("query", command.collection))
        return EmbeddedCommand(command, self._model, vectors[0])

    @ray.method(concurrency_group="health")
    async def statistics(self) -> EmbedderStatistics:
        self._lease.renew()
        return replace(
            self._service.statistics(),
            width=self._width,
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._started,
            stalled_s=self._pulse.stalled_s(),
            spend=self._spending.statistics(),
            half_price=self._half_price.statistics() if self._half_price is not None else None,
        )

    async def __ray_shutdown__(self) -> None:
        await self._known.close()
        if self._half_price is not None:  # before the cache, which it fills
            await self._half_price.close()
        await self._service.close()
        await asyncio.to_thread(self._spending.close)


def purpose_of(announcement: Announcement) -> Purpose:
    """Whom a document is embedded for, and how urgently."""
    return Purpose(
        "backfill" if announcement.is_backfill else "live",
        announcement.collection,
        announcement.data_source,
        announcement.dataset,
    )


# "health" has an event loop of its own: statistics answer while work blocks.
EmbedderActor = ray.remote(concurrency_groups={"health": 2})(Embedder)  # type: ignore[call-overload]

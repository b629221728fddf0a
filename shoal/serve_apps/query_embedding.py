"""QueryEmbedder: questions into vectors for every REST and MCP replica; a Serve deployment of its own (apps.py).

So that the weights (and a provider's limits) are held once and scale apart from HTTP. It is the embedder of
ingest, `EmbeddingService`, with its own cache in memory. The model is the collection's, named in each call, so
it serves whatever the tables were made with; loading happens at the first call, off the event loop. It fails
with what the service raises: TransientError when late (the caller falls back to keywords), else our errors.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import numpy as np

from shoal.embeddings.cache import EmbeddingCache
from shoal.embeddings.models import create_model, default_model_name
from shoal.embeddings.purposes import Purpose
from shoal.embeddings.service import EmbeddingService
from shoal.errors import ConfigurationError, ShoalError
from shoal.records import Vector
from shoal.serve_apps.query_vectors import DEADLINE_S, Embed
from shoal.serve_apps.spending import open_keeper
from shoal.settings import Settings

CACHE_BYTES_MAX = 64 * 1024 * 1024
"""Some ten thousand questions at 1536 floats; agents ask the same ones over and over."""
MODELS_MAX = 2
"""A collection has one model; a second stands while tables are made anew with another. Each holds its weights."""

ASKED = Purpose("query")


class QueryEmbedder:
    """One per replica; made on its event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._services: dict[str, EmbeddingService] = {}
        self._spending = open_keeper(settings)
        self._loading = asyncio.Lock()
        # The model that new collections get is most likely the one: the first question shall not be the slow one.
        self._warming = asyncio.create_task(self._warm_up())

    async def embed(self, model: str, text: str) -> Vector:
        """Unit vector of `text` by the model of that name."""
        service = self._services.get(model) or await self._load(model)
        # A copy: a row of a batch would take the whole batch with it when pickled.
        return np.array((await service.embed([text], "query", ASKED))[0], dtype=np.float32)

    async def close(self) -> None:
        """Ends its threads; for tests, since a replica simply ends."""
        await self._warming
        for service in self._services.values():
            await service.close()
        await asyncio.to_thread(self._spending.close)

    async def _warm_up(self) -> None:
        """A failure here is no reason to refuse service: the first question will say what it is."""
        with contextlib.suppress(ShoalError):
            await self.embed(default_model_name(self._settings), "warm up")

    async def _load(self, name: str) -> EmbeddingService:
        async with self._loading:
            if (service := self._services.get(name)) is not None:
                return service
            if len(self._services) >= MODELS_MAX:
                raise ConfigurationError(f"this replica already holds {MODELS_MAX} models; restart it to load {name}")
            model = await asyncio.to_thread(create_model, self._settings, name)
            if model.limiter is not None:
                model.limiter.take_share(self._settings.embedding_query_share)  # the rest is the embedder's
            cache = EmbeddingCache(None, CACHE_BYTES_MAX)
            service = EmbeddingService(
                model, cache, linger_s=0.0, give_up_s=DEADLINE_S,
                on_charges=self._spending.charged, may_spend=self._spending.gate(name),
            )  # fmt: skip
            self._services[name] = service
            return service


def embed_through(handle: Any) -> Embed:
    """`Embed` over a Serve handle of QueryEmbedder; our errors come back as what they were, not as Ray's."""

    async def embed(model: str, text: str) -> Vector:
        try:
            vector: Vector = await handle.embed.remote(model, text)
        except Exception as error:  # a RayTaskError, named by its cause, so that this module needs no Ray
            if isinstance(cause := getattr(error, "cause", None), ShoalError):
                raise cause from None
            raise
        return vector

    return embed

"""QueryEmbedder: questions into vectors for every REST and MCP replica; a Serve deployment of its own (apps.py).

So that the weights (and a provider's limits) are held once and scale apart from HTTP. It is the embedder of
ingest, `EmbeddingService`, with its own cache in memory. The model is the collection's, named in each call, so
it serves whatever the tables were made with; loading happens at the first call, off the event loop. It fails
with what the service raises: TransientError when late (the caller falls back to keywords), else our errors.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from typing import Any

import numpy as np

from shoal import tracing
from shoal.embeddings.cache import EmbeddingCache
from shoal.embeddings.models import create_model, default_model_name
from shoal.embeddings.purposes import Purpose
from shoal.embeddings.service import EmbeddingService
from shoal.errors import ShoalError
from shoal.metrics import EmbedderStatistics
from shoal.records import Vector
from shoal.serve_apps.query_vectors import DEADLINE_S, Embed
from shoal.serve_apps.spending import open_keeper
from shoal.settings import Settings

CACHE_BYTES_MAX = 64 * 1024 * 1024
"""Some ten thousand questions at 1536 floats; agents ask the same ones over and over."""
MODELS_MAX = 2
"""A collection has one model; a second stands while tables are made anew with another. Each holds its weights. A third
takes the place of the one that was asked longest ago: it costs a second to load, a refusal would cost the answer."""


class _Held:
    """A model in use; `calls`: questions it is being asked now."""

    def __init__(self, service: EmbeddingService) -> None:
        self.service, self.calls, self.is_leaving = service, 0, False


class QueryEmbedder:
    """One per replica; made on its event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._held: OrderedDict[str, _Held] = OrderedDict()  # the one asked last stands last
        self._spending = open_keeper(settings)
        self._loading = asyncio.Lock()
        # The model that new collections get is most likely the one: the first question shall not be the slow one.
        self._warming = asyncio.create_task(self._warm_up())

    async def embed(self, model: str, text: str, collection: str = "", trace: str | None = None) -> Vector:
        """Unit vector of `text` by the model of that name; `collection` pays. `trace`: the caller's traceparent."""
        with tracing.span("embed question", trace) if trace else contextlib.nullcontext():
            return await self._embed(model, text, collection)

    async def _embed(self, model: str, text: str, collection: str) -> Vector:
        held = self._held.get(model) or await self._load(model)
        if model in self._held:
            self._held.move_to_end(model)
        held.calls += 1
        try:
            vectors = await held.service.embed([text], "query", Purpose("query", collection))
        finally:
            held.calls -= 1
            await self._close_left(held)
        # A copy: a row of a batch would take the whole batch with it when pickled.
        return np.array(vectors[0], dtype=np.float32)

    def statistics(self) -> list[EmbedderStatistics]:
        """One for each model that is held."""
        return [held.service.statistics() for held in self._held.values()]

    async def close(self) -> None:
        """Ends its threads; for tests, since a replica simply ends."""
        await self._warming
        for held in self._held.values():
            await held.service.close()
        await asyncio.to_thread(self._spending.close)

    async def _close_left(self, held: _Held) -> None:
        """Closes a model that lost its place, once nobody waits for its answer."""
        if held.is_leaving and not held.calls:
            await held.service.close()

    async def _warm_up(self) -> None:
        """A failure here is no reason to refuse service: the first question will say what it is."""
        with contextlib.suppress(ShoalError):
            await self.embed(default_model_name(self._settings), "warm up")

    async def _load(self, name: str) -> _Held:
        async with self._loading:
            if (held := self._held.get(name)) is not None:
                return held
            model = await asyncio.to_thread(create_model, self._settings, name, on_charges=self._spending.charged)
            if model.limiter is not None:
                model.limiter.take_share(self._settings.embedding_query_share)  # the rest is the embedder's
            cache = EmbeddingCache(None, CACHE_BYTES_MAX)
            service = EmbeddingService(
                model, cache, linger_s=0.0, give_up_s=DEADLINE_S,
                on_charges=self._spending.charged, may_spend=self._spending.gate(name),
            )  # fmt: skip
            held = self._held[name] = _Held(service)
            while len(self._held) > MODELS_MAX:
                _, least = self._held.popitem(last=False)
                least.is_leaving = True
                await self._close_left(least)
            return held


def embed_through(handle: Any) -> Embed:
    """`Embed` over a Serve handle of QueryEmbedder; our errors come back as what they were, not as Ray's."""

    async def embed(model: str, text: str, collection: str) -> Vector:
        try:
            trace = tracing.header()
            asked = (model, text, collection) if trace is None else (model, text, collection, trace)
            vector: Vector = await handle.embed.remote(*asked)
        except Exception as error:  # a RayTaskError, named by its cause, so that this module needs no Ray
            if isinstance(cause := getattr(error, "cause", None), ShoalError):
                raise cause from None
            raise
        return vector

    return embed

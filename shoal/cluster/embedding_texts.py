"""Texts into vectors for a command of its own process: a model's service behind plain calls.

The same service and cache file as the embedder's, so what one has paid for the other need not; the provider's limits
are kept by each for itself, from what its answers say is left (another user of the same key is nothing new to it).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from shoal.actors.spending import open_keeper
from shoal.embeddings.cache import EmbeddingCache
from shoal.embeddings.models import EmbeddingModel
from shoal.embeddings.purposes import Charge, Purpose
from shoal.embeddings.service import EmbeddingService
from shoal.embeddings.texts import Kind
from shoal.records import SCRAPER_COLLECTION, Matrix
from shoal.settings import Settings

FIX_TEXT_FIELDS = ("error_type", "error_message", "summary")
"""As the embedder actor reads a fix."""


class Embedder:
    """For one thread."""

    def __init__(self, settings: Settings, model: EmbeddingModel) -> None:
        self._model = model
        cache = EmbeddingCache(settings.home / "cache" / "embeddings.sqlite", settings.embedding_cache_bytes_max)
        self._keeper = open_keeper(settings)
        self._runner = asyncio.Runner()
        self._service = self._runner.run(_made(model, cache, self._keeper.charged))

    @property
    def tokens_max(self) -> int:
        """Of one document's text."""
        return self._model.max_input_tokens

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return self._model.count_tokens(text)

    def embed(self, texts: Sequence[str], kind: Kind) -> Matrix:
        """Raises as `EmbeddingService.embed` does."""
        return self._runner.run(self._service.embed(texts, kind, Purpose("backfill", SCRAPER_COLLECTION)))

    def close(self) -> None:
        self._runner.run(self._service.close())
        self._runner.close()
        self._keeper.close()


async def _made(
    model: EmbeddingModel, cache: EmbeddingCache, charged: Callable[[Sequence[Charge]], None]
) -> EmbeddingService:
    return EmbeddingService(model, cache, on_charges=charged)

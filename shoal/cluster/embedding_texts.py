"""Texts into vectors for a command of its own process: a model's service behind plain calls.

The same service and cache file as the embedder's, so what one has paid for the other need not; the same ledger, and
the same budget: where that is spent, `embed` raises, and whoever asks again later goes on. The provider's limits are
kept by each process for itself, from what its answers say is left: this one yields to the embedder's live documents,
so where both have work it gets about what the lane of backfills gets (limiter.yield_to_live). While no answer tells
what is left, it takes a tenth of the limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from shoal.actors.spending import open_keeper
from shoal.embeddings.cache import EmbeddingCache
from shoal.embeddings.embedding_model import EmbeddingModel
from shoal.embeddings.lanes import SHARES
from shoal.embeddings.models import create_model
from shoal.embeddings.purposes import Purpose
from shoal.embeddings.service import EmbeddingService
from shoal.embeddings.spend_keeping import SpendKeeper
from shoal.embeddings.texts import Kind
from shoal.records import SCRAPER_COLLECTION, Matrix
from shoal.settings import Settings

FIX_TEXT_FIELDS = ("error_type", "error_message", "summary")
"""As the embedder actor reads a fix."""


UNTOLD_SHARE = SHARES["backfill"]
"""Of the limits while no answer has told what is left: the embedder and the queries have theirs."""
KNOWN_S = 30.0
"""How long the ledger may take to tell what was spent, where there is a budget."""


class Embedder:
    """For one thread."""

    def __init__(self, settings: Settings, name: str, width: int) -> None:
        """The model `name` with vectors of `width`. Raises ConfigurationError."""
        cache = EmbeddingCache(settings.home / "cache" / "embeddings.sqlite", settings.embedding_cache_bytes_max)
        self._keeper = open_keeper(settings)
        self._model = create_model(settings, name, width=width, on_charges=self._keeper.charged)
        if self._model.limiter is not None:
            self._model.limiter.take_share(UNTOLD_SHARE)
            self._model.limiter.yield_to_live()
        self._keeper.await_known(KNOWN_S)
        self._runner = asyncio.Runner()
        self._service = self._runner.run(_made(self._model, cache, self._keeper))

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


async def _made(model: EmbeddingModel, cache: EmbeddingCache, keeper: SpendKeeper) -> EmbeddingService:
    return EmbeddingService(model, cache, on_charges=keeper.charged, may_spend=keeper.gate(model.name))

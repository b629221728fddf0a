"""Whether all that embedding needs is on this machine: `python -m shoal.embeddings.offline`, with no network.

The image's build runs it where there is no network at all, so that an image that would fetch a model, a tokenizer or a
table of tokens at its first use is never made.
"""

from __future__ import annotations

import asyncio

from shoal.embeddings.cl100k import count
from shoal.embeddings.models import create_model, default_model_name
from shoal.embeddings.purposes import Purpose
from shoal.embeddings.service import EmbeddingService
from shoal.errors import ShoalError
from shoal.settings import load


async def vector_width() -> int:
    """Embeds one text with the local model and counts its tokens as OpenAI would; returns the vector's length.

    Raises ShoalError or OSError where something is missing."""
    from shoal.embeddings.cache import EmbeddingCache

    settings = load(embedding_provider="local")
    count("hourly load forecast")
    service = EmbeddingService(create_model(settings, default_model_name(settings)), EmbeddingCache(None, 1024 * 1024))
    try:
        vectors = await service.embed(["hourly load forecast"], "query", Purpose("query", ""))
    finally:
        await service.close()
    return len(vectors[0])


def main() -> None:
    try:
        width = asyncio.run(vector_width())
    except (ShoalError, OSError) as error:
        raise SystemExit(f"not offline-ready: {error}") from None
    print(f"offline-ready: a vector of {width}")  # noqa: T201 - what the build shows


if __name__ == "__main__":
    main()

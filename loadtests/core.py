"""How many questions a second the search core alone answers in process: what a service can at best give.

The mix of `users`, without HTTP, JSON, routing or embedding (each question's vector is made before the clock starts).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import numpy as np

from loadtests.texts import SOURCES, questions, sha256, topics
from shoal.embeddings.models import create_model
from shoal.settings import Settings
from shoal.store.filters import Equals
from shoal.store.requests import SearchRequest
from shoal.store.search import SearchIndex
from shoal.store.writing import storage_options

CALLERS = 32
LIMIT = 10
WEIGHTS = {"hash": 20, "filter": 20, "vector": 20 + 15, "hybrid": 15, "similar": 10}
"""Of `users`: MCP's search is one by meaning."""


async def throughput(settings: Settings, seconds: float, documents: int) -> float:
    """Questions a second by `CALLERS` callers who ask again at once."""
    model = create_model(settings)
    pool = questions()[:64]
    vectors = np.asarray(model.embed(pool), np.float32)
    specs = np.asarray(model.embed([topic.text for topic in topics()[:40]]), np.float32)
    index = await SearchIndex.open_current(settings, storage_options(settings))
    rng = Random(1)

    def search(**fields: Any) -> Awaitable[Any]:
        return index.search(SearchRequest(limit=LIMIT, **fields))

    def numbered() -> int:
        return rng.randrange(len(pool))

    def hybrid(at: int) -> Awaitable[Any]:
        return search(mode="hybrid", query=pool[at], vector=vectors[at])

    asks: dict[str, Callable[[], Awaitable[Any]]] = {
        "hash": lambda: index.by_hash(sha256(rng.randrange(documents))),
        "filter": lambda: search(mode="sql", filters=Equals("data_source", rng.choice(SOURCES))),
        "vector": lambda: search(mode="vector", vector=vectors[numbered()]),
        "hybrid": lambda: hybrid(numbered()),
        "similar": lambda: index.similar_apis(specs[rng.randrange(len(specs))], 5),
    }
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    for ask in asks.values():  # warm
        await ask()
    done, began = 0, time.perf_counter()

    async def call() -> None:
        nonlocal done
        while time.perf_counter() - began < seconds:
            await asks[rng.choices(kinds, weights)[0]]()
            done += 1

    await asyncio.gather(*(call() for _ in range(CALLERS)))
    took_s = time.perf_counter() - began
    await index.close()
    return done / took_s

"""Query latency: serial GETs over one kept connection, as one impatient client sees them.

Four kinds in turn, so that all meet the same machine: by filter, by hash, by meaning with a query text that the
service has embedded before, and with one it has never seen. An answer that is not 200, or that fell back to
keywords, raises RuntimeError: its time would be of something else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import httpx

SEARCH = "/api/v1/scrapes/search"
LIMIT = 20  # documents per page
KNOWN_TEXTS = (
    "day ahead prices by zone",
    "load forecast for tomorrow",
    "generation by fuel type",
    "planned outages of power plants",
    "wind and solar forecast",
)
_WORDS = (
    ("hourly", "daily", "five minute", "historical", "current"),
    ("wind", "solar", "nuclear", "hydro", "battery", "coal", "gas", "import", "export", "peak"),
    ("output", "capacity", "demand", "price", "outage", "forecast", "schedule", "reserve"),
)
NEW_TEXTS_MAX = len(list(product(*_WORDS)))


def percentile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that at least `fraction` of `values` don't exceed (nearest rank). `values` not empty."""
    ordered = sorted(values)
    return ordered[max(0, -(-round(fraction * 1000) * len(ordered) // 1000) - 1)]


def measure(url: str, count: int) -> dict[str, dict[str, float]]:
    """p50 and p95 in ms of `count` searches, as many of each kind; `count` is at least 4."""
    with httpx.Client(base_url=url, timeout=30) as client:
        rows = _get(client, SEARCH, {"limit": 100})["results"]
        if not rows:
            raise RuntimeError("nothing was indexed, so there is nothing to search for")
        sources = sorted({row["data_source"] for row in rows})
        hashes = sorted({row["sha256_hash"] for row in rows if row["sha256_hash"]})
        new_texts = [" ".join(words) for words in product(*_WORDS)]
        for text in KNOWN_TEXTS:
            _get(client, SEARCH, {"query": text, "limit": LIMIT})

        def search(**parameters: str) -> None:
            _get(client, SEARCH, {"limit": LIMIT, **parameters})

        kinds: dict[str, Callable[[int], object]] = {
            "filter": lambda i: search(data_source=sources[i % len(sources)]),
            "hash": lambda i: _get(client, f"/api/v1/scrapes/{hashes[i % len(hashes)]}", {}),
            "meaning_known_text": lambda i: search(query=KNOWN_TEXTS[i % len(KNOWN_TEXTS)]),
            "meaning_new_text": lambda i: search(query=new_texts[i]),
        }
        took_ms: dict[str, list[float]] = {kind: [] for kind in kinds}
        for i in range(max(1, min(count // len(kinds), NEW_TEXTS_MAX))):
            for kind, ask in kinds.items():
                began = time.perf_counter()
                ask(i)
                took_ms[kind].append(1000 * (time.perf_counter() - began))
    return {
        kind: {"count": len(times), "p50_ms": percentile(times, 0.5), "p95_ms": percentile(times, 0.95)}
        for kind, times in took_ms.items()
    }


def _get(client: httpx.Client, path: str, parameters: dict[str, Any]) -> dict[str, Any]:
    response = client.get(path, params=parameters)
    if response.status_code != 200:
        raise RuntimeError(f"GET {response.url} answered {response.status_code}: {response.text[:300]}")
    body: dict[str, Any] = response.json()
    if body.get("warnings"):
        raise RuntimeError(f"GET {response.url} did not do what was asked: {body['warnings']}")
    return body

"""The asking side of `make bench-store`: the search core in this process, and the same questions put to Lance as such.

Times of single answers are wall-clock and so the neighbours' too; CPU time is this process's own, all threads of
Lance included. Recall is against an exact scan of the same version.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import lancedb

from bench.corpus import SOURCES, sha256
from bench.queries import percentile
from shoal.records import Matrix, Vector
from shoal.store.filters import Equals
from shoal.store.requests import SearchRequest
from shoal.store.search import SearchIndex

LIMIT = 10
SETTINGS = ((5, 0), (5, 5), (20, 0), (20, 5), (20, 10), (50, 10))
"""(partitions probed, refine factor); 0: ranked by the quantised distances."""
CONCURRENCY = (1, 2, 8, 32)
_EXACT_CHUNKS = 400  # hold the ten best documents: one has at most so many chunks in a tenth of it


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. `began` is as time.time() tells."""

    began: float
    took_ms: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Of `count` answers one after another; CPU-milliseconds of one on average."""

    count: int
    p50_ms: float
    p95_ms: float
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class Probed:
    """One way to search the chunks: recall@10 against the exact scan, and what it costs."""

    probes: int
    refine: int
    recall: float
    latency: Latency


@dataclass(frozen=True, slots=True)
class Saturated:
    """So many callers, each asking again as soon as it is answered. `qps_by_cpu`: what idle cores would give."""

    callers: int
    qps: float
    qps_by_cpu: float
    p95_ms: float
    cpu_ms: float


def latency(samples: Sequence[Sample], cpu_s: float) -> Latency:
    """Raises ValueError where there are none."""
    took = [sample.took_ms for sample in samples]
    if not took:
        raise ValueError("nothing was asked")
    return Latency(len(took), percentile(took, 0.5), percentile(took, 0.95), 1000 * cpu_s / len(took))


class Questions:
    """The same questions for every look at one place."""

    def __init__(
        self, uri: str, vectors: Matrix, texts: Sequence[str], refresh_interval_s: float | None = None
    ) -> None:
        self._uri, self._vectors, self._texts = uri, vectors, texts
        self._refresh_interval_s = refresh_interval_s
        self._index: SearchIndex
        self._table: Any

    async def open(self) -> None:
        self._index = await SearchIndex.open(self._uri, {}, refresh_interval_s=self._refresh_interval_s)
        self._connection = await lancedb.connect_async(self._uri)
        self._table = await self._connection.open_table("scraper_vectors")

    async def close(self) -> None:
        await self._index.close()
        self._table.close()
        self._connection.close()

    # --- the search core ----------------------------------------------------------------------

    def kinds(self) -> dict[str, Callable[[int], Awaitable[Any]]]:
        """By name, how to ask the nth question of that kind."""

        def request(at: int, **fields: Any) -> Awaitable[Any]:
            return self._index.search(SearchRequest(limit=LIMIT, **fields))

        vectors, texts = self._vectors, self._texts
        return {
            "vector": lambda at: request(at, mode="vector", vector=vectors[at % len(vectors)]),
            "keyword": lambda at: request(at, mode="keyword", query=texts[at % len(texts)]),
            "hybrid": lambda at: request(
                at, mode="hybrid", query=texts[at % len(texts)], vector=vectors[at % len(vectors)]
            ),
            "filter": lambda at: request(at, mode="sql", filters=Equals("data_source", SOURCES[at % len(SOURCES)])),
            "hash": lambda at: self._index.by_hash(sha256(at)),
        }

    async def serial(self, kind: str, count: int) -> Latency:
        """`count` questions of a kind, one after another, after one that warms up."""
        ask = self.kinds()[kind]
        await ask(0)
        began = time.process_time()
        samples = [await _timed(ask, at) for at in range(count)]
        return latency(samples, time.process_time() - began)

    async def until(self, is_done: Callable[[], bool]) -> tuple[list[Sample], float]:
        """Vector questions for as long as something else goes on, and the CPU-seconds they took."""
        ask, samples, began = self.kinds()["vector"], list[Sample](), time.process_time()
        while not is_done():
            samples.append(await _timed(ask, len(samples)))
        return samples, time.process_time() - began

    async def saturated(self, callers: int, count: int, cores: int) -> Saturated:
        """`count` vector questions by so many callers."""
        ask, samples, numbers = self.kinds()["vector"], list[Sample](), iter(range(count))

        async def call() -> None:
            for at in numbers:
                samples.append(await _timed(ask, at))

        began, began_cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(call() for _ in range(callers)))
        took_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
        seen = latency(samples, cpu_s)
        return Saturated(callers, count / took_s, cores * count / cpu_s, seen.p95_ms, seen.cpu_ms)

    async def core_recall(self, count: int, start: int = 0) -> float:
        """recall@10 of the search core's documents, against an exact look at the chunks of the newest version. A
        writer that commits meanwhile may make the two differ by what it wrote."""
        await self._table.checkout_latest()
        shares = []
        for vector in islice(cycle(self._vectors), start % len(self._vectors), start % len(self._vectors) + count):
            rows = await self._chunks(vector, _EXACT_CHUNKS, None, ["metadata_id"])
            exact = list(dict.fromkeys(row["metadata_id"] for row in rows))[:LIMIT]
            page = await self._index.search(SearchRequest(mode="vector", vector=vector, limit=LIMIT))
            if exact:
                shares.append(len(set(exact) & {hit.metadata["id"] for hit in page.hits}) / len(exact))
        return sum(shares) / len(shares) if shares else 1.0

    # --- Lance as such ------------------------------------------------------------------------

    async def exact(self, count: int) -> Latency:
        """The exact scan for the ten nearest chunks."""
        return (await self._probed(None, count))[1]

    async def probe(self, count: int) -> list[Probed]:
        """Every one of SETTINGS."""
        await self._table.checkout_latest()
        truth, _ = await self._probed(None, count)
        found = []
        for probes, refine in SETTINGS:
            answers, took = await self._probed((probes, refine), count)
            shared = sum(len(one & other) for one, other in zip(truth, answers, strict=True))
            found.append(Probed(probes, refine, shared / (LIMIT * len(truth)), took))
        return found

    async def _probed(self, how: tuple[int, int] | None, count: int) -> tuple[list[set[str]], Latency]:
        await self._chunks(self._vectors[0], LIMIT, how, ["id"])
        answers, samples, began_cpu = list[set[str]](), list[Sample](), time.process_time()
        for vector in islice(cycle(self._vectors), count):
            began, clock = time.time(), time.perf_counter()
            rows = await self._chunks(vector, LIMIT, how, ["id"])
            samples.append(Sample(began, 1000 * (time.perf_counter() - clock)))
            answers.append({row["id"] for row in rows})
        return answers, latency(samples, time.process_time() - began_cpu)

    async def _chunks(
        self, vector: Vector, limit: int, how: tuple[int, int] | None, columns: list[str]
    ) -> list[dict[str, Any]]:
        query = self._table.query().nearest_to(vector).column("content_embedding").distance_type("cosine").limit(limit)
        if how is None:
            query = query.bypass_vector_index()
        else:
            query = query.nprobes(how[0])
            query = query.refine_factor(how[1]) if how[1] else query
        rows: list[dict[str, Any]] = (await query.select([*columns, "_distance"]).to_arrow()).to_pylist()
        return rows


async def _timed(ask: Callable[[int], Awaitable[Any]], at: int) -> Sample:
    began, clock = time.time(), time.perf_counter()
    await ask(at)
    return Sample(began, 1000 * (time.perf_counter() - clock))

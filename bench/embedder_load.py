"""What bench/embedder.py runs: a service under load against the fake provider, and two clients side by side.

The provider is a process of its own (tests/fixtures/openai_server.py) that enforces an account's limits; what was
accepted, refused and left is asked of it, not of us. Its tokens are quarters of characters, and the texts are of words
that are a token and four characters each, so that it and we count alike without its spending a core on that.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
from pydantic import SecretStr

from shoal.embeddings.models import create_model, model_width
from shoal.embeddings.openai_model import OpenAIModel
from shoal.embeddings.service import EmbeddingService
from shoal.errors import ShoalError
from shoal.settings import Settings
from tests.fixtures.parts import ServerProcess, accepts_connections, free_ports

MODEL = "text-embedding-3-small"
WIDTH = 1536
LATENCY_S, LATENCY_PER_KILOTOKEN_S = 0.15, 0.005  # a query: 0.15 s; a batch of 30,000 tokens: 0.3 s
DOCUMENTS, CHUNKS, CHUNK_TOKENS = 64, 16, 800  # under way at once, texts of each, tokens of a text
QUERY_TOKENS, QUERIES_PER_S = 12, 8.0
BATCH_WITHIN_S = 10.0
SETTLED_S = 5.0  # by then the limits have been told; the share is counted from here

# Three letters and a space before them: one token of cl100k_base, four characters.
_LETTERS = (
    " the and for are but not you all any can had her was one our out day get has him his how man new now old see two"
    " way who boy did its let put say she too use"
)
_WORDS = [_LETTERS[at : at + 4] for at in range(0, len(_LETTERS), 4)]


def text(rng: random.Random, tokens: int) -> str:
    """A text that nobody has had before, for all that 40 words in a row can tell."""
    return "".join(rng.choices(_WORDS, k=tokens))


@dataclass(frozen=True, slots=True)
class Account:
    """What the provider enforces, and who else uses the key."""

    requests_per_minute: float
    tokens_per_minute: float
    rival: tuple[float, float] | None = None  # tokens a minute, seconds between two takings

    def arguments(self) -> list[str]:
        told = ["--limits", str(self.requests_per_minute), str(self.tokens_per_minute)]
        return told + (["--rival", *map(str, self.rival)] if self.rival else [])


class Provider:
    """The fake one, as a process."""

    def __init__(self, directory: Path, arguments: Sequence[str]) -> None:
        (self.port,) = free_ports(1)
        words = [str(self.port), "--width", str(WIDTH), "--count", "quarters", "--vectors", "bytes", *arguments]
        self._process = ServerProcess(
            [sys.executable, "-m", "tests.fixtures.openai_server", *words], directory / "provider.log"
        )
        self._process.wait_until(lambda: accepts_connections(self.port), 60)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def counts(self) -> dict[str, Any]:
        told: dict[str, Any] = httpx.get(f"http://127.0.0.1:{self.port}/counts", timeout=30).json()
        return told

    def close(self) -> None:
        self._process.kill()


@contextlib.asynccontextmanager
async def serving(arguments: Sequence[str]) -> AsyncIterator[tuple[EmbeddingService, Provider]]:
    """A service with the limits of a fresh configuration (tier 1) and no cache, and a provider of its own."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-embedder-") as directory:
        provider = await asyncio.to_thread(Provider, Path(directory), arguments)
        try:
            settings = Settings(openai_api_key=SecretStr("sk-bench"), openai_base_url=provider.url)
            service = EmbeddingService(create_model(settings, f"openai:{MODEL}"), None)
            try:
                yield service, provider
            finally:
                await service.close()
        finally:
            provider.close()


# --- the limit ------------------------------------------------------------------------------


async def under_limits(
    account: Account,
    seconds: float,
    *,
    settled_s: float = SETTLED_S,
    documents: int = DOCUMENTS,
    queries: bool = False,
) -> dict[str, float | None]:
    """A backlog that never ends, for so long. `share` is of what the provider refilled since it settled: what was
    drawn from the bucket that was full at the start is not counted as used."""
    latency = ["--latency", str(LATENCY_S), "--latency-per-kilotoken", str(LATENCY_PER_KILOTOKEN_S)]
    async with serving([*account.arguments(), *latency]) as (service, provider):
        idle = await _queries(service, 10 * settled_s / SETTLED_S) if queries else []
        began = await asyncio.to_thread(provider.counts)
        ended = asyncio.Event()
        work = [asyncio.create_task(_documents(service, i, ended)) for i in range(documents)]
        try:
            busy = asyncio.create_task(_queries(service, seconds)) if queries else None
            settled = await _counts_after_a_batch(provider, began["at"] + settled_s)
            minute = await _counts_at(provider, began["at"] + 60) if seconds > 60 else None
            last = await _counts_after_a_batch(provider, began["at"] + seconds)
            latencies = await busy if busy is not None else []
        finally:
            ended.set()
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
    limit = account.tokens_per_minute
    refilled = (last["at"] - settled["at"]) * limit / 60
    drawn = max(0.0, settled["left"]["tokens"] - last["left"]["tokens"])
    ours = _since(settled, last, "tokens")
    requests = _since(began, last, "answer") + _since(began, last, "refused")
    figures: dict[str, float | None] = {
        "share": (ours + _since(settled, last, "rival_tokens") - drawn) / refilled,
        "refused_share": _since(began, last, "refused") / max(1, requests),
        "requests": requests,
        "left": last["left"]["tokens"] / limit,
    }
    if minute is not None:
        figures["first_minute"] = _since(began, minute, "tokens") / limit
    if account.rival is not None:
        figures["ours"] = ours / refilled
        figures["rival_refused_share"] = _since(began, last, "rival_refused") / max(
            1, _since(began, last, "rival_refused") + _since(began, last, "rival_requests")
        )
    if queries:
        gap_s = 60 * OpenAIModel.batch_tokens_max / limit  # between two full batches of documents
        figures["query_p99_s"], figures["query_idle_p99_s"] = (_quantile(some, 0.99) for some in (latencies, idle))
        figures["query_added_p99_s"] = added = _quantile(latencies, 0.99) - _quantile(idle, 0.99)
        figures["query_added_p99_vs_batch_gap"] = max(0.0, added) / gap_s
        figures["queries"] = float(len(latencies))
    return figures


async def _documents(service: EmbeddingService, seed: int, ended: asyncio.Event) -> None:
    rng = random.Random(seed)
    while not ended.is_set():
        with contextlib.suppress(ShoalError):  # the provider's own count of refusals is what is judged
            await service.embed([text(rng, CHUNK_TOKENS) for _ in range(CHUNKS)])


async def _queries(service: EmbeddingService, seconds: float) -> list[float]:
    """Seconds of each answer; they are asked one after the other in even time, whatever became of those before."""
    rng, until = random.Random(7), time.monotonic() + seconds
    ask = _asking(service)
    latencies: list[float] = []

    async def one() -> None:
        began = time.monotonic()
        await ask([text(rng, QUERY_TOKENS)])
        latencies.append(time.monotonic() - began)

    asked = []
    while time.monotonic() < until:
        asked.append(asyncio.create_task(one()))
        await asyncio.sleep(1 / QUERIES_PER_S)
    await asyncio.gather(*asked)
    return latencies


def _asking(service: EmbeddingService) -> Callable[[list[str]], Awaitable[Any]]:
    """`embed` for a query: its lane is said where the service has lanes."""
    embed: Any = service.embed
    more = {}
    if "purpose" in inspect.signature(embed).parameters:
        from shoal.embeddings.purposes import Purpose

        more["purpose"] = Purpose(lane="query")
    return lambda texts: embed(texts, "query", **more)


async def _counts_at(provider: Provider, at: float) -> dict[str, Any]:
    await asyncio.sleep(max(0.0, at - time.monotonic()))  # both clocks are this machine's monotonic one
    return await asyncio.to_thread(provider.counts)


async def _counts_after_a_batch(provider: Provider, at: float) -> dict[str, Any]:
    """As soon after `at` as a batch of documents was accepted. An interval that begins and ends anywhere counts a batch
    too many or too few, which at tier 1 is a fortieth of all."""
    before = counts = await _counts_at(provider, at)
    while _since(before, counts, "tokens") < QUERY_TOKENS * 50 and counts["at"] < at + BATCH_WITHIN_S:
        before = counts
        await asyncio.sleep(0.02)
        counts = await asyncio.to_thread(provider.counts)
    return counts


def _since(before: dict[str, Any], after: dict[str, Any], name: str) -> float:
    return float(after.get(name, 0) - before.get(name, 0))


def _quantile(values: Sequence[float], q: float) -> float:
    return float(np.quantile(values, q))


# --- CPU time --------------------------------------------------------------------------------


async def cpu_of_clients(count: int) -> dict[str, float | None]:
    """CPU-milliseconds of this process per 1,000 embeddings of 200 tokens, by Shoal and by a bare HTTP client that
    posts and decodes; each twice, in turn, with no latency."""
    rng = random.Random(3)
    batches = [[text(rng, 200) for _ in range(128)] for _ in range(max(1, count // 128))]
    spent = {"shoal": 0.0, "bare": 0.0}
    # Limits that nobody reaches: without any the configured ones hold, and it would mostly wait.
    async with serving(Account(1e9, 1e9).arguments()) as (service, provider):
        await service.embed(["warm up the encoding and the connection"])
        for _ in range(2):
            began = time.process_time()
            _bare(provider.url, batches)
            spent["bare"] += time.process_time() - began
            began = time.process_time()
            await asyncio.gather(*(service.embed(batch) for batch in batches))
            spent["shoal"] += time.process_time() - began
    thousands = 2 * len(batches) * 128 / 1000
    shoal_ms, bare_ms = (1000 * spent[who] / thousands for who in ("shoal", "bare"))
    return {"cpu_ms_per_1000": shoal_ms, "bare_cpu_ms_per_1000": bare_ms, "cpu_vs_bare": shoal_ms / bare_ms}


def _bare(url: str, batches: Sequence[Sequence[str]]) -> None:
    with httpx.Client(timeout=60) as client:
        for batch in batches:
            body = orjson.dumps({"model": MODEL, "input": batch, "encoding_format": "base64"})
            answer = client.post(f"{url}/embeddings", content=body, headers={"content-type": "application/json"})
            rows = orjson.loads(answer.content)["data"]
            np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows])


async def local_model(count: int) -> dict[str, float | None]:
    """Chunks a second of the local model through the service, and of the plain loop of its libraries: batches of 32 in
    the order they come, padded to the longest, every option as it is by default. In turn, twice. And by how much the
    event loop that the service runs on was late meanwhile."""
    import onnxruntime
    from tokenizers import Tokenizer

    from shoal.embeddings.local_model import PACKAGE_MODEL, model_directory

    rng = random.Random(5)
    # As a chunker leaves them: most are near the limit, the last of a document is anything.
    texts = [text(rng, 200 if rng.random() < 0.7 else rng.randrange(10, 200)) for _ in range(count)]
    with tempfile.TemporaryDirectory(prefix="shoal-bench-embedder-") as home:
        settings = Settings(data_dir=Path(home), embedding_provider="local")
        assert model_width(settings, f"local:{PACKAGE_MODEL}")
        service = EmbeddingService(create_model(settings, f"local:{PACKAGE_MODEL}"), None)
        (graph,) = (settings.home / "models").glob("*.onnx")
        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        tokenizer = Tokenizer.from_file(str(model_directory(settings, PACKAGE_MODEL) / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.enable_padding()

        def plain() -> None:
            for start in range(0, count, 32):
                encoded = tokenizer.encode_batch(texts[start : start + 32])
                ids = np.array([one.ids for one in encoded], np.int32)
                mask = np.array([one.attention_mask for one in encoded], np.int32)
                session.run(["vectors"], {"ids": ids, "mask": mask})

        spent, late = {"shoal": 0.0, "plain": 0.0}, list[float]()
        try:
            await service.embed(["warm up"])
            for _ in range(2):
                began = time.perf_counter()
                await asyncio.to_thread(plain)
                spent["plain"] += time.perf_counter() - began
                began = time.perf_counter()
                watch = asyncio.create_task(_lateness(late))
                await asyncio.gather(*(service.embed(texts[i : i + CHUNKS]) for i in range(0, count, CHUNKS)))
                spent["shoal"] += time.perf_counter() - began
                watch.cancel()
        finally:
            await service.close()
    ours, plains = (2 * count / spent[who] for who in ("shoal", "plain"))
    return {
        "chunks_per_s": ours,
        "plain_chunks_per_s": plains,
        "chunks_vs_plain": ours / plains,
        "loop_late_p50_s": _quantile(late, 0.5),
        "loop_late_p99_s": _quantile(late, 0.99),
    }


async def _lateness(late: list[float]) -> None:
    """By how many seconds this loop wakes its tasks too late, every 5 ms, until it is cancelled."""
    while True:
        due = time.perf_counter() + 0.005
        await asyncio.sleep(0.005)
        late.append(time.perf_counter() - due)

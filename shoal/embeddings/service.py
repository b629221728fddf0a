"""Texts in, vectors out, for many callers at once: the embedding side's one asyncio object per process.

Guarantee: each distinct text is looked up in the cache first and sent to the model at most once at a time,
batched with whatever else waits; what waits is bounded in texts and bytes (callers await room). A text that
the model refuses fails only the calls that hold it: a refused batch is halved until the culprit stands alone.
An unwell provider is retried with growing pauses for about `give_up_s`, then the callers get TransientError;
ConfigurationError reaches them at once. A cancelled caller harms nobody: its texts are embedded and cached.
It does not know any vendor, and keeps no vectors beyond their callers except in the cache.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from shoal.embeddings.batching import Batcher
from shoal.embeddings.cache import EmbeddingCache, cache_key
from shoal.embeddings.models import EmbeddingModel
from shoal.embeddings.purposes import Charge, Purpose
from shoal.embeddings.texts import Kind, check_texts
from shoal.errors import BadDocument, DeadReason, ShoalError, TransientError
from shoal.metrics import EmbedderStatistics
from shoal.records import Matrix, Vector

# Above: memory held by texts that wait, some seconds of a provider's work and minutes of a local model's.
# Below: batches that are not full.
QUEUED_TEXTS_MAX = 4096
QUEUED_BYTES_MAX = 32 * 1024 * 1024

Result = TypeVar("Result")

_BACKOFF_FIRST_S = 0.5
_BACKOFF_MAX_S = 16.0

_NOBODY = Purpose()

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Ask:
    """One distinct text on its way to the model."""

    key: bytes
    text: str
    kind: Kind
    tokens: int
    size_bytes: int
    purpose: Purpose
    answer: asyncio.Future[Vector]


class EmbeddingService:
    """Make one per actor or replica; `embed` is for any number of tasks of one event loop."""

    def __init__(
        self,
        model: EmbeddingModel,
        cache: EmbeddingCache | None,
        *,
        linger_s: float = 0.005,
        give_up_s: float = 60.0,
        queued_texts_max: int = QUEUED_TEXTS_MAX,
        queued_bytes_max: int = QUEUED_BYTES_MAX,
        on_charges: Callable[[Sequence[Charge]], None] | None = None,
        may_spend: Callable[[Purpose, int], ShoalError | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`linger_s`: how long a text waits for company while the model is free. `clock` and `sleep` are for tests.

        `on_charges`: told on the loop, after each request that was sent, failed or not, what each purpose had in it.
        `may_spend`: asked before a text of so many tokens is queued; an error it gives is raised to that caller.
        """
        self._model = model
        self._cache = cache
        self._give_up_s = give_up_s
        self._texts_max, self._bytes_max = queued_texts_max, queued_bytes_max
        self._on_charges, self._may_spend = on_charges, may_spend
        self._clock, self._sleep = clock, sleep
        # Documents and queries never share a call: a model may treat them differently.
        self._batchers: dict[Kind, Batcher[_Ask]] = {
            kind: Batcher(model.batch_inputs_max, model.batch_tokens_max, linger_s) for kind in ("query", "document")
        }
        self._in_flight: dict[bytes, asyncio.Future[Vector]] = {}
        self._queued_texts = self._queued_bytes = 0
        self._entrance, self._left = asyncio.Lock(), asyncio.Event()
        self._gathering, self._arrived = asyncio.Lock(), asyncio.Event()
        self._calls = ThreadPoolExecutor(model.concurrency, "embed")
        self._lookups = ThreadPoolExecutor(1, "embedding-cache")  # sqlite has one writer; so do we
        self._workers: list[asyncio.Task[None]] = []
        self._is_closed = False
        self._started = clock()
        self._texts = self._cache_hits = self._requests = self._tokens = 0
        self._last_error: str | None = None

    async def embed(self, texts: Sequence[str], kind: Kind = "document", purpose: Purpose = _NOBODY) -> Matrix:
        """Unit vectors of `texts`, shape (texts, width), in order.

        `purpose`: who pays. A text that several bring at once is paid by the first of them.
        Raises BadDocument(EMBEDDING_REJECTED) naming the first text that can't be embedded, TransientError,
        ConfigurationError, and what `may_spend` gives. Calling again after an error costs only what was not yet
        embedded.
        """
        if self._is_closed:
            raise TransientError("the embedder has been closed")
        if not self._workers:
            self._workers = [asyncio.create_task(self._work()) for _ in range(self._model.concurrency)]
        texts = check_texts(texts, kind)
        keys, cached = await self._aside(self._look_up, texts, kind)
        self._texts += len(texts)
        self._cache_hits += sum(key in cached for key in keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in cached}
        answers: dict[bytes, asyncio.Future[Vector]] = {}
        if missing:
            sizes = await self._aside(self._count, list(missing.values()), kind)
            for (key, text), tokens in zip(missing.items(), sizes, strict=True):
                answers[key] = await self._enqueue(key, text, kind, tokens, purpose)
            # Not gather: a cancelled caller must not cancel what others wait for.
            await asyncio.wait(answers.values(), return_when=asyncio.FIRST_EXCEPTION)
        vectors = np.empty((len(texts), self._model.width), np.float32)
        failed: dict[int, BaseException] = {}
        for i, key in enumerate(keys):
            if key in cached:
                vectors[i] = cached[key]
            elif answers[key].done():
                error = answers[key].exception()
                if error is None:
                    vectors[i] = answers[key].result()
                else:
                    failed[i] = error
        for i, error in failed.items():
            if isinstance(error, BadDocument):
                raise BadDocument(error.reason, f"text {i + 1} of {len(texts)}: {error.message}") from error
            raise copy.copy(error) from error  # several callers get it: each raises its own
        return vectors

    def statistics(self) -> EmbedderStatistics:
        """What was asked since the start. `requests` and `tokens` are of calls to the model, failed ones included."""
        return EmbedderStatistics(
            model=self._model.name,
            width=self._model.width,
            pid=os.getpid(),
            uptime_s=self._clock() - self._started,
            texts=self._texts,
            cache_hits=self._cache_hits,
            requests=self._requests,
            tokens=self._tokens,
            queued_texts=self._queued_texts,
            last_error=self._last_error,
        )

    async def close(self) -> None:
        """Ends the workers; who still waits gets TransientError. The model and the cache are closed too."""
        if self._is_closed:
            return
        self._is_closed = True
        self._left.set()
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for future in self._in_flight.values():
            _fail(future, TransientError("the embedder is shutting down"))
        self._calls.shutdown(wait=False, cancel_futures=True)
        if self._cache is not None:
            await asyncio.get_running_loop().run_in_executor(self._lookups, self._cache.close)
        self._lookups.shutdown(wait=False)
        self._model.close()

    async def _aside(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Runs what would hold up the loop in the lookup thread."""
        if self._is_closed:
            raise TransientError("the embedder is shutting down")
        return await asyncio.get_running_loop().run_in_executor(self._lookups, function, *arguments)

    # --- before the queue ---------------------------------------------------------------------

    def _look_up(self, texts: Sequence[str], kind: Kind) -> tuple[list[bytes], dict[bytes, Vector]]:
        keys = [cache_key(self._model.name, self._model.width, kind, text) for text in texts]
        return keys, self._cache.get_many(keys, self._model.width) if self._cache else {}

    def _count(self, texts: Sequence[str], kind: Kind) -> list[int]:
        counts = [self._model.count_tokens(text) for text in texts]
        limit = self._model.max_input_tokens
        if kind == "document" and max(counts) > limit:
            raise BadDocument(
                DeadReason.EMBEDDING_REJECTED, f"a text of {max(counts)} tokens; {self._model.name} takes {limit}"
            )
        return [min(count, limit) for count in counts]

    async def _enqueue(
        self, key: bytes, text: str, kind: Kind, tokens: int, purpose: Purpose
    ) -> asyncio.Future[Vector]:
        size = len(text.encode())
        async with self._entrance:  # first come, first served
            while self._queued_texts and (
                self._queued_texts >= self._texts_max or self._queued_bytes + size > self._bytes_max
            ):
                if self._is_closed:
                    raise TransientError("the embedder is shutting down")
                self._left.clear()
                await self._left.wait()
            if key in self._in_flight:  # another caller brought the same text
                return self._in_flight[key]
            if self._is_closed:
                raise TransientError("the embedder is shutting down")
            if self._may_spend is not None and (refusal := self._may_spend(purpose, tokens)) is not None:
                raise refusal
            answer: asyncio.Future[Vector] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(
                lambda future: future.cancelled() or future.exception()
            )  # seen, though nobody asks
            self._in_flight[key] = answer
            self._queued_texts += 1
            self._queued_bytes += size
            self._batchers[kind].add(_Ask(key, text, kind, tokens, size, purpose, answer), tokens, self._clock())
            self._arrived.set()
            return answer

    # --- after it -----------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            batch = await self._next_batch()
            try:
                await self._embed_batch(batch)
            except Exception as error:
                # A bug, ours or the model's. Unknown errors are the system's fault, not the documents'.
                self._give_all(batch, TransientError(f"embedding failed: {type(error).__name__}: {error}"))
            finally:
                for ask in batch:
                    self._in_flight.pop(ask.key, None)
                    self._queued_texts -= 1
                    self._queued_bytes -= ask.size_bytes
                    _fail(ask.answer, TransientError("the embedder is shutting down"))
                self._left.set()

    async def _next_batch(self) -> list[_Ask]:
        """Whatever is due, queries first."""
        async with self._gathering:
            while True:
                now = self._clock()
                for batcher in self._batchers.values():
                    batch, _ = batcher.take(now)
                    if batch:
                        return batch
                due = [at for batcher in self._batchers.values() if (at := batcher.due_at()) is not None]
                self._arrived.clear()
                try:
                    async with asyncio.timeout(min(due) - now if due else None):
                        await self._arrived.wait()
                except TimeoutError:
                    pass

    async def _embed_batch(self, batch: list[_Ask]) -> None:
        try:
            vectors = await self._call(batch)
        except BadDocument as error:
            if len(batch) == 1:
                self._give_all(batch, error)
                return
            middle = len(batch) // 2
            await self._embed_batch(batch[:middle])
            await self._embed_batch(batch[middle:])
        except ShoalError as error:
            self._give_all(batch, error)
        else:
            for ask, vector in zip(batch, vectors, strict=True):
                if not ask.answer.done():
                    ask.answer.set_result(vector)
            if self._cache is not None:
                rows = {ask.key: vector for ask, vector in zip(batch, vectors, strict=True)}
                # Shielded: what was paid for is kept also when the service is closed right now.
                await asyncio.shield(
                    asyncio.get_running_loop().run_in_executor(self._lookups, self._cache.put_many, rows)
                )

    async def _call(self, batch: list[_Ask]) -> Matrix:
        """One batch through the model, however often it takes. Raises ShoalError."""
        texts, tokens = [ask.text for ask in batch], sum(ask.tokens for ask in batch)
        give_up_at = self._clock() + self._give_up_s
        attempt = 0
        while True:
            await self._admitted(tokens)
            self._requests += 1
            self._tokens += tokens
            has_failed = True
            try:
                vectors = await asyncio.get_running_loop().run_in_executor(
                    self._calls, self._model.embed, texts, batch[0].kind
                )
                has_failed = False
                return vectors
            except TransientError as error:
                self._last_error = str(error)
                backoff = min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2**attempt) * random.uniform(0.5, 1.0)  # noqa: S311
                pause = max(backoff, error.retry_after_s or 0.0)
                if self._clock() + pause > give_up_at:
                    raise TransientError(error.message, pause) from error
                attempt += 1
            finally:
                self._charge(batch, has_failed)
            await self._sleep(pause)

    def _charge(self, batch: Sequence[_Ask], has_failed: bool) -> None:
        if self._on_charges is None:
            return
        parts: dict[Purpose, list[int]] = {}
        for ask in batch:
            parts.setdefault(ask.purpose, []).append(ask.tokens)
        charges = [
            Charge(self._model.name, purpose, int(i == 0), len(tokens), sum(tokens), has_failed)
            for i, (purpose, tokens) in enumerate(parts.items())
        ]
        try:
            self._on_charges(charges)
        except Exception:  # a bug in the books must not cost the vectors that were just paid
            _log.exception("a request to %s could not be booked", self._model.name)

    async def _admitted(self, tokens: int) -> None:
        """Returns when the provider's limits have room for one request of `tokens`."""
        limiter = self._model.limiter
        while limiter is not None and (wait := limiter.acquire(tokens, self._clock())):
            if wait > self._give_up_s:
                raise TransientError(f"{self._model.name} asked for a pause of {wait:.0f} s", wait)
            await self._sleep(wait)

    def _give_all(self, batch: Sequence[_Ask], error: ShoalError) -> None:
        self._last_error = str(error)
        for ask in batch:
            _fail(ask.answer, error)


def _fail(future: asyncio.Future[Vector], error: ShoalError) -> None:
    if not future.done():
        future.set_exception(error)

"""Texts in, vectors out, for many callers at once: the embedding side's one asyncio object per process.

Guarantee: each distinct text is looked up in the cache first and sent to the model at most once, batched with
whatever else waits in its lane; what waits is bounded in texts and bytes per lane (callers await room). Lanes share
what the model takes by `lanes.SHARES`, queries first, and one request more than the model's concurrency is kept for
queries: a query waits for no document, neither for room, nor for a place, nor for the provider's limits, which it
enters ahead of the batch that waits there. A cancelled caller harms nobody: its texts are embedded and cached.
It does not know any vendor, and keeps no vectors beyond their callers except in the cache.
"""

from __future__ import annotations

import asyncio
import copy
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from shoal import tracing
from shoal.embeddings.batching import Batcher
from shoal.embeddings.cache import EmbeddingCache, cache_key
from shoal.embeddings.calling import Ask, Caller
from shoal.embeddings.concurrency import Concurrency
from shoal.embeddings.embedding_model import EmbeddingModel
from shoal.embeddings.entrance import Entrance
from shoal.embeddings.lanes import LANES, FairShares
from shoal.embeddings.lately import Lately
from shoal.embeddings.purposes import Charge, Lane, Purpose
from shoal.embeddings.texts import Kind, check_texts
from shoal.embeddings.turnstile import Turnstile
from shoal.errors import BadDocument, DeadReason, ShoalError, TransientError
from shoal.metrics import EmbedderStatistics
from shoal.records import Matrix, Vector

# Of each lane. Above: memory held by texts that wait, some seconds of a provider's work and minutes of a local
# model's. Below: batches that are not full.
QUEUED_TEXTS_MAX = 4096
QUEUED_BYTES_MAX = 32 * 1024 * 1024

_KINDS: tuple[Kind, ...] = ("query", "document")
_NOBODY = Purpose()
# A count from elsewhere is taken as it is below this share of the limit, and made again above: what was counted may
# have been the text without what the model adds to it.
_COUNT_AGAIN = 0.9

# Requests under way to a provider. Above: threads and connections that no tier's limits can feed (10M tokens a minute
# in requests of 60k that take 5 s are 14). Below: a slow provider is not used to the full.
CONCURRENCY_MAX = 32

# Texts whose end is remembered, some 100 bytes each. Fewer cost a lookup for each text of a call that has waited while
# so many others were finished; more are never asked for.
FINISHED_KEYS = 32_768

Result = TypeVar("Result")
Elsewhere = Callable[[Sequence[str]], Awaitable[Mapping[str, Vector]]]
"""Asked for texts that the cache lacks: those whose unit vectors by the same model are known, with them."""


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
        """`linger_s`: how long a document's text waits for company while the model is free; a query's doesn't.

        `queued_…_max`: of each lane. `on_charges`: told on the loop, after each request that was sent, failed or not,
        what each purpose had in it. `may_spend`: asked before a text of so many tokens is queued; an error it gives is
        raised to that caller. `clock` and `sleep` are for tests.
        """
        self._model = model
        self._cache = cache
        self._may_spend = may_spend
        self._clock = clock
        # Documents and queries never share a call: a model may treat them differently.
        self._batchers: dict[tuple[Lane, Kind], Batcher[Ask]] = {
            (lane, kind): Batcher(model.batch_inputs_max, model.batch_tokens_max, 0.0 if lane == "query" else linger_s)
            for lane in LANES
            for kind in _KINDS
        }
        self._entrances = {lane: Entrance(queued_texts_max, queued_bytes_max) for lane in LANES}
        self._shares = FairShares()
        self._turnstile = Turnstile(model.limiter, self._shares, give_up_s, clock, sleep)
        self._in_flight: dict[bytes, Ask] = {}
        self._finished = Lately(FINISHED_KEYS)
        self._arrived = asyncio.Event()
        self._gathering = {is_reserved: asyncio.Lock() for is_reserved in (False, True)}
        # A model of this machine says how much it takes; a provider is tried.
        self._concurrency: Concurrency | None = None
        self._places = model.concurrency
        if model.limiter is not None:
            self._places = max(model.concurrency, CONCURRENCY_MAX)
            self._concurrency = Concurrency(model.concurrency, self._places)
        self._running, self._freed = 0, asyncio.Event()
        self._calls = ThreadPoolExecutor(self._places + 1, "embed")
        self._lookups = ThreadPoolExecutor(1, "embedding-cache")  # sqlite has one writer; so do we
        self._counting = ThreadPoolExecutor(1, "tokens")  # apart: no query waits for the tokens of a long document
        self._caller = Caller(
            model,
            self._turnstile,
            self._calls,
            self._concurrency,
            give_up_s=give_up_s,
            on_charges=on_charges,
            clock=clock,
            sleep=sleep,
        )
        self._width: int | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._is_closed = False
        self._started = clock()
        self._texts = self._cache_hits = self._reused = 0

    async def embed(
        self,
        texts: Sequence[str],
        kind: Kind = "document",
        purpose: Purpose = _NOBODY,
        *,
        token_counts: Sequence[int] | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> Matrix:
        """Unit vectors of `texts`, shape (texts, width), in order.

        `purpose`: the lane they wait in, and who pays. A text that several bring at once is paid by the first of them
        and waits in the fastest of their lanes. `token_counts`: of each text, where the caller knows them: counting
        costs more than all else here. `elsewhere`: asked for what the cache lacks.

        Raises BadDocument(EMBEDDING_REJECTED) naming the first text that can't be embedded, TransientError,
        ConfigurationError, and what `may_spend` gives. Calling again after an error costs only what was not yet
        embedded.
        """
        if self._is_closed:
            raise TransientError("the embedder has been closed")
        if not self._workers:
            self._workers = [asyncio.create_task(self._work(i == 0)) for i in range(1 + self._places)]
        texts = check_texts(texts, kind)
        if self._width is None:  # of some models only their provider knows it
            self._width = await self._aside(self._counting, lambda: self._model.width)
        width = self._width
        keys = [cache_key(self._model.name, width, kind, text) for text in texts]
        since = self._finished.count
        known = await self._aside(self._lookups, self._look_up, keys)
        self._texts += len(texts)
        self._cache_hits += sum(key in known for key in keys)
        missing: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            if key not in known:
                missing.setdefault(key, i)
        if missing and elsewhere is not None:
            known |= await self._reuse({texts[i]: key for key, i in missing.items()}, elsewhere)
            missing = {key: i for key, i in missing.items() if key not in known}
        answers: dict[bytes, asyncio.Future[Vector]] = {}
        if missing:
            asked = [(i, texts[i], token_counts[i] if token_counts is not None else None) for i in missing.values()]
            counts = await self._aside(self._counting, self._count, asked, kind, len(texts))
            for (key, i), tokens in zip(missing.items(), counts, strict=True):
                answers[key] = await self._join(key, texts[i], kind, tokens, purpose, since)
            # Not gather: a cancelled caller must not cancel what others wait for.
            await asyncio.wait(answers.values(), return_when=asyncio.FIRST_EXCEPTION)
        vectors = np.empty((len(texts), width), np.float32)
        failed: dict[int, BaseException] = {}
        for i, key in enumerate(keys):
            if key in known:
                vectors[i] = known[key]
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
        queued: dict[str, int] = {lane: entrance.texts for lane, entrance in self._entrances.items()}
        return EmbedderStatistics(
            model=self._model.name,
            width=self._width or 0,
            pid=os.getpid(),
            uptime_s=self._clock() - self._started,
            texts=self._texts,
            cache_hits=self._cache_hits,
            reused=self._reused,
            requests=self._caller.requests,
            failed_requests=self._caller.failed_requests,
            tokens=self._caller.tokens,
            queued_texts=sum(queued.values()),
            queued_by_lane=queued,
            queued_bytes=sum(entrance.size_bytes for entrance in self._entrances.values()),
            request_failures=dict(self._caller.failures.copy()),
            durations=self._caller.durations.counts(),
            running=self._running,
            running_max=self._concurrency.allowed if self._concurrency is not None else self._places,
            unwell_s=self._caller.unwell_s,
            last_error=self._caller.last_error,
        )

    async def close(self) -> None:
        """Ends the workers; who still waits gets TransientError. The model and the cache are closed too."""
        if self._is_closed:
            return
        self._is_closed = True
        for entrance in self._entrances.values():
            entrance.close()
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for ask in self._in_flight.values():
            ask.fail(TransientError("the embedder is shutting down"))
        self._calls.shutdown(wait=False, cancel_futures=True)
        self._counting.shutdown(wait=False, cancel_futures=True)
        if self._cache is not None:
            await asyncio.get_running_loop().run_in_executor(self._lookups, self._cache.close)
        self._lookups.shutdown(wait=False)
        self._model.close()

    async def _aside(self, threads: ThreadPoolExecutor, function: Callable[..., Result], *arguments: object) -> Result:
        """Runs what would hold up the loop in a thread."""
        if self._is_closed:
            raise TransientError("the embedder is shutting down")
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)

    # --- before the queue ---------------------------------------------------------------------

    def _look_up(self, keys: Sequence[bytes]) -> dict[bytes, Vector]:
        return self._cache.get_many(keys, self._model.width) if self._cache else {}

    async def _reuse(self, wanted: Mapping[str, bytes], elsewhere: Elsewhere) -> dict[bytes, Vector]:
        """By key, what is known elsewhere of `wanted` (text -> key); kept in the cache."""
        found = await elsewhere(list(wanted))
        good = {
            wanted[text]: vector
            for text, vector in found.items()
            if text in wanted and vector.shape == (self._model.width,) and abs(float(vector @ vector) - 1) < 1e-3
        }
        self._reused += len(good)
        if good and self._cache is not None:
            await self._aside(self._lookups, self._cache.put_many, good)
        return good

    def _count(self, asked: Sequence[tuple[int, str, int | None]], kind: Kind, of: int) -> list[int]:
        limit = self._model.max_input_tokens
        counts = []
        for i, text, known in asked:
            count = known if known is not None and known < _COUNT_AGAIN * limit else self._model.count_tokens(text)
            if kind == "document" and count > limit:
                raise BadDocument(
                    DeadReason.EMBEDDING_REJECTED,
                    f"text {i + 1} of {of}: has {count} tokens; {self._model.name} takes {limit}",
                )
            counts.append(min(count, limit))
        return counts

    async def _join(
        self, key: bytes, text: str, kind: Kind, tokens: int, purpose: Purpose, since: int
    ) -> asyncio.Future[Vector]:
        """The answer to a text that was not in the cache when `since` texts were finished."""
        if key in self._in_flight:  # another caller brought the same text
            return self._shared(key, purpose.lane)
        size, entrance, is_queued = len(text.encode()), self._entrances[purpose.lane], False
        await entrance.enter(size)
        try:
            while key not in self._in_flight and self._finished.may_hold(key, since):
                since = self._finished.count
                if key in (found := await self._aside(self._lookups, self._look_up, [key])):
                    answer: asyncio.Future[Vector] = asyncio.get_running_loop().create_future()
                    answer.set_result(found[key])
                    return answer
            if key in self._in_flight:
                return self._shared(key, purpose.lane)
            if self._is_closed:
                raise TransientError("the embedder is shutting down")
            if self._may_spend is not None and (refusal := self._may_spend(purpose, tokens)) is not None:
                raise refusal
            answer = asyncio.get_running_loop().create_future()
            answer.add_done_callback(
                lambda future: future.cancelled() or future.exception()
            )  # seen, though nobody asks
            self._in_flight[key] = Ask(
                key, text, kind, tokens, size, purpose, purpose.lane, purpose.lane, answer, tracing.header()
            )
            self._put(self._in_flight[key])
            is_queued = True
            return answer
        finally:
            if not is_queued:
                entrance.leave(size)

    def _shared(self, key: bytes, lane: Lane) -> asyncio.Future[Vector]:
        """The answer that somebody waits for already; in the faster of the two lanes from now on."""
        ask = self._in_flight[key]
        if LANES.index(lane) < LANES.index(ask.lane) and self._batchers[ask.lane, ask.kind].withdraw(ask):
            ask.lane = lane
            self._put(ask)
        return ask.answer

    def _put(self, ask: Ask) -> None:
        if not any(self._batchers[ask.lane, kind] for kind in _KINDS):
            self._shares.began(ask.lane)
        self._batchers[ask.lane, ask.kind].add(ask, ask.tokens, self._clock())
        self._arrived.set()

    # --- after it -----------------------------------------------------------------------------

    async def _work(self, is_reserved: bool) -> None:
        """A place for one request at a time; the reserved one is for queries."""
        while True:
            batch = await self._gathered(is_reserved)
            self._running += not is_reserved
            try:
                await self._caller.answer(batch, self._keep, has_passed=True)
            finally:
                self._running -= not is_reserved
                self._freed.set()
                self._finish(batch)

    async def _gathered(self, is_reserved: bool) -> list[Ask]:
        """The next batch, which may be sent now."""
        lanes: Sequence[Lane] = ("query",) if is_reserved else LANES
        async with self._gathering[is_reserved]:
            while True:
                if not is_reserved:
                    await self._place_free()
                batch, tokens = await self._next_batch(lanes)
                try:
                    await self._turnstile.passed(batch[0].lane, tokens)
                    return batch
                except ShoalError as error:
                    self._caller.last_error = str(error)
                    for ask in batch:
                        ask.fail(error)
                    self._finish(batch)

    async def _place_free(self) -> None:
        while self._running >= (self._concurrency.allowed if self._concurrency is not None else self._places):
            self._freed.clear()
            await self._freed.wait()

    async def _next_batch(self, lanes: Sequence[Lane]) -> tuple[list[Ask], int]:
        """What is due in the lane whose turn it is, and its tokens."""
        while True:
            now = self._clock()
            due = [
                (at, lane, kind)
                for lane in lanes
                for kind in _KINDS
                if (at := self._batchers[lane, kind].due_at()) is not None
            ]
            ready = {lane for at, lane, _ in due if at <= now}
            if ready:
                turn = self._shares.first(ready)
                _, lane, kind = min(each for each in due if each[1] == turn)
                return self._batchers[lane, kind].take(now)
            self._arrived.clear()
            try:
                async with asyncio.timeout(min(due)[0] - now if due else None):
                    await self._arrived.wait()
            except TimeoutError:
                pass

    async def _keep(self, batch: Sequence[Ask], vectors: Matrix) -> None:
        if self._cache is not None:
            rows = {ask.key: vector for ask, vector in zip(batch, vectors, strict=True)}
            # Shielded: what was paid for is kept also when the service is closed right now.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._lookups, self._cache.put_many, rows))

    def _finish(self, batch: Sequence[Ask]) -> None:
        for ask in batch:
            self._in_flight.pop(ask.key, None)
            self._finished.add(ask.key)
            self._entrances[ask.entered].leave(ask.size_bytes)
            ask.fail(TransientError("the embedder is shutting down"))

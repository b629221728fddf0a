"""Batches through the model: sent when the provider allows, retried while it is unwell, halved where it refuses.

Guarantee: a vector reaches its caller only after the whole answer was held against what was asked (shape, finite,
length 1); a text that the model refuses fails alone: a refused batch is halved until the culprit stands by itself. An
unwell provider is retried with growing pauses for about `give_up_s`, then the callers get TransientError;
ConfigurationError reaches them at once. Every request is booked. It queues nothing and caches nothing: `service` does.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from shoal import tracing
from shoal.embeddings.concurrency import Concurrency
from shoal.embeddings.embedding_model import EmbeddingModel
from shoal.embeddings.purposes import Charge, Lane, Purpose
from shoal.embeddings.texts import Kind
from shoal.embeddings.turnstile import Turnstile
from shoal.errors import BadDocument, QuotaError, ShoalError, ThrottledError, TransientError
from shoal.histograms import Durations
from shoal.records import Matrix, Vector

_BACKOFF_FIRST_S = 0.5
_BACKOFF_MAX_S = 16.0
LINKS_MAX = 100  # of a span: OpenTelemetry keeps 128

_log = logging.getLogger(__name__)

Kept = Callable[[Sequence["Ask"], Matrix], Awaitable[None]]


@dataclass(slots=True, eq=False)
class Ask:
    """One distinct text on its way to the model. `entered`: the lane whose room it takes; `lane`: the one it waits in,
    which is a faster one where a caller there brought the same text later."""

    key: bytes
    text: str
    kind: Kind
    tokens: int
    size_bytes: int
    purpose: Purpose
    entered: Lane
    lane: Lane
    answer: asyncio.Future[Vector]
    trace: str | None = None  # of who brought it first

    def fail(self, error: ShoalError) -> None:
        """The caller gets `error`, unless it has its answer."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Caller:
    """Sends batches; counts what was sent. `threads` runs the model, which blocks; `concurrency` hears how it went."""

    def __init__(
        self,
        model: EmbeddingModel,
        turnstile: Turnstile,
        threads: Executor,
        concurrency: Concurrency | None,
        *,
        give_up_s: float,
        on_charges: Callable[[Sequence[Charge]], None] | None,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._model, self._turnstile, self._threads = model, turnstile, threads
        self._concurrency = concurrency
        self._give_up_s, self._on_charges = give_up_s, on_charges
        self._clock, self._sleep = clock, sleep
        self.requests = self.failed_requests = self.tokens = 0
        self.failures: Counter[str] = Counter()  # requests by why they failed
        self.durations = Durations()
        self.last_error: str | None = None
        self._unwell_since: float | None = None

    @property
    def unwell_s(self) -> float:
        """Since when every request has failed for the provider's reasons; 0 where the last one was answered."""
        return self._clock() - self._unwell_since if self._unwell_since is not None else 0.0

    async def answer(self, batch: Sequence[Ask], keep: Kept, *, has_passed: bool) -> None:
        """Every ask gets its vector or its error; `keep` is awaited with what was embedded. Texts of one kind and one
        lane. `has_passed`: the turnstile, for the first request."""
        try:
            vectors = await self._called(batch, has_passed)
        except BadDocument as error:
            if len(batch) == 1:
                self._fail(batch, error)
                return
            middle = len(batch) // 2
            await self.answer(batch[:middle], keep, has_passed=False)
            await self.answer(batch[middle:], keep, has_passed=False)
        except ShoalError as error:
            self._fail(batch, error)
        except Exception as error:
            # A bug, ours or the model's. Unknown errors are the system's fault, not the documents'.
            self._fail(batch, TransientError(f"embedding failed: {type(error).__name__}: {error}"))
        else:
            for ask, vector in zip(batch, vectors, strict=True):
                if not ask.answer.done():
                    ask.answer.set_result(vector)
            await keep(batch, vectors)

    async def _called(self, batch: Sequence[Ask], has_passed: bool) -> Matrix:
        """One batch through the model, however often it takes. Raises ShoalError."""
        tokens = sum(ask.tokens for ask in batch)
        give_up_at = self._clock() + self._give_up_s
        attempt = 0
        while True:
            if not has_passed or attempt:
                await self._turnstile.passed(batch[0].lane, tokens)
            try:
                return await self._sent(batch, tokens)
            except TransientError as error:
                self.last_error = str(error)
                backoff = min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2**attempt) * random.uniform(0.5, 1.0)  # noqa: S311
                pause = max(backoff, error.retry_after_s or 0.0)
                if self._clock() + pause > give_up_at:
                    raise TransientError(error.message, pause) from error
                attempt += 1
            await self._sleep(pause)

    async def _sent(self, batch: Sequence[Ask], tokens: int) -> Matrix:
        self.requests += 1
        self.tokens += tokens
        has_failed, sent_at = True, self._clock()
        try:
            texts, kind = [ask.text for ask in batch], batch[0].kind
            links = list(dict.fromkeys(ask.trace for ask in batch))[:LINKS_MAX]
            with tracing.span("provider request", links=links, shoal__texts=len(texts), shoal__tokens=tokens):
                vectors = await asyncio.get_running_loop().run_in_executor(
                    self._threads, self._model.embed, texts, kind
                )
            self._check(vectors, len(texts))
            has_failed = False
            self._unwell_since = None
            if self._concurrency is not None:
                self._concurrency.answered(self._clock() - sent_at, tokens, self._clock())
            return vectors
        except BadDocument:  # it answered
            self._unwell_since = None
            self.failures["refused_text"] += 1
            raise
        except ShoalError as error:
            self.failures[_cause(error)] += 1
            if self._concurrency is not None and isinstance(error, TransientError):
                self._concurrency.refused(self._clock())
            if self._unwell_since is None:
                self._unwell_since = self._clock()
            raise
        finally:
            self.failed_requests += has_failed
            self.durations.observe("stage.provider_request", self._clock() - sent_at)
            self._book(batch, has_failed)

    def _check(self, vectors: Matrix, count: int) -> None:
        """The last look before a vector is used, whatever model it is of: a wrong one in a table is never found."""
        if vectors.shape != (count, self._model.width):
            raise TransientError(f"{self._model.name} gave {vectors.shape} for {count} texts of {self._model.width}")
        lengths = np.einsum("ij,ij->i", vectors, vectors)
        if not (np.abs(lengths - 1) < 1e-3).all():  # nor is a NaN less than anything
            raise TransientError(f"{self._model.name} gave vectors that are not of length 1")

    def _book(self, batch: Sequence[Ask], has_failed: bool) -> None:
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

    def _fail(self, batch: Sequence[Ask], error: ShoalError) -> None:
        self.last_error = str(error)
        for ask in batch:
            ask.fail(error)


def _cause(error: ShoalError) -> str:
    """throttled (less often, please), quota (somebody must pay), unwell (it may come back), or misconfigured."""
    if isinstance(error, ThrottledError):
        return "throttled"
    if isinstance(error, QuotaError):
        return "quota"
    return "unwell" if isinstance(error, TransientError) else "misconfigured"

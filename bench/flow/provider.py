"""The embedding stage: the real batcher, limiter and concurrency before a modelled provider, or a modelled local model.

The provider keeps its account as tests/fixtures/openai_account.py does: two buckets of a minute's worth, refilled
steadily. A document's texts stay together in the batcher (one entry, its tokens; what is larger than a request is
split): the real one counts texts singly, up to 256 in a request, which its 30,000 tokens close first.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from bench.flow.engine import Cores, Engine, Level, Station
from bench.flow.figures import Figures, Tier
from shoal.embeddings.batching import Batcher
from shoal.embeddings.concurrency import Concurrency
from shoal.embeddings.limiter import RateLimiter
from shoal.embeddings.local_model import LocalModel
from shoal.embeddings.openai_model import OpenAIModel
from shoal.embeddings.service import CONCURRENCY_MAX
from shoal.settings import Settings
from tests.fixtures.openai_account import Account

LINGER_S = 0.005  # the service's own default
ON_THE_WAY_S = 0.02
_SETTINGS = Settings.model_fields
CONFIGURED = Tier(
    _SETTINGS["openai_requests_per_minute"].default, _SETTINGS["openai_tokens_per_minute"].default
)  # what is in force until the first answer tells


@dataclass(slots=True)
class _Piece:
    """Texts of one document that go together."""

    tokens: int
    done: Callable[[], None]


class Embedding(ABC):
    """What both kinds have in common: documents in, `done` once all their texts have vectors."""

    def __init__(self, engine: Engine, inputs_max: int, tokens_max: int) -> None:
        self.engine, self.tokens_max = engine, tokens_max
        self.batcher: Batcher[_Piece] = Batcher(inputs_max, tokens_max, LINGER_S)
        self.queue = Level()  # documents, from `add` to their vectors
        self.tokens = self.requests = self.refused = 0

    def add(self, tokens: int, done: Callable[[], None]) -> None:
        self.queue.add(1, self.engine.now)
        sizes = [self.tokens_max] * (tokens // self.tokens_max)
        sizes += [tokens % self.tokens_max] if tokens % self.tokens_max or not sizes else []
        left = len(sizes)

        def one() -> None:
            nonlocal left
            left -= 1
            if not left:
                self.queue.add(-1, self.engine.now)
                done()

        for size in sizes:
            self.batcher.add(_Piece(size, one), size, self.engine.now)
        self._turn()
        self.engine.after(LINGER_S, self._turn)

    @abstractmethod
    def utilisation(self) -> float:
        """Share of what it could do since `restart`."""

    def restart(self) -> None:
        self.queue.restart(self.engine.now)
        self.tokens = self.requests = self.refused = 0

    @abstractmethod
    def _turn(self) -> None:
        """Take the next batch, where there is one and it may be sent."""


class Provided(Embedding):
    """A provider with an account's limits."""

    def __init__(self, engine: Engine, figures: Figures, tier: Tier, rng: random.Random) -> None:
        super().__init__(engine, 256, OpenAIModel.batch_tokens_max)
        self._tier, self._rng = tier, rng
        self._latency_s = figures.seconds("provider_latency_ms")
        self._per_token_s = figures.seconds("provider_latency_per_kilotoken_ms") / 1000
        self._account = Account(*_limits(tier), engine.now)
        self._limiter = RateLimiter(*_limits(CONFIGURED), engine.now, share=0.9)
        self._concurrency = Concurrency(OpenAIModel.concurrency, CONCURRENCY_MAX)
        self._running = 0
        self._next: tuple[list[_Piece], int] | None = None  # taken, and waiting for the limits
        self._since = engine.now
        self._left = self._account.left["tokens"]

    def utilisation(self) -> float:
        """Of the tokens that the account was given in the time."""
        given = (self.engine.now - self._since) * self._tier.tokens_per_minute / 60
        self._account.headers(self.engine.now)
        drawn = max(0.0, self._left - self._account.left["tokens"])  # of what the bucket held at the start
        return (self.tokens - drawn) / given if given else 0.0

    def restart(self) -> None:
        super().restart()
        self._account.headers(self.engine.now)
        self._since, self._left = self.engine.now, self._account.left["tokens"]

    def _turn(self) -> None:
        while self._next is None and self._running < self._concurrency.allowed:
            batch, tokens = self.batcher.take(self.engine.now)
            if not batch:
                return
            self._next = batch, tokens
            self._pass()

    def _pass(self) -> None:
        assert self._next is not None
        batch, tokens = self._next
        wait = self._limiter.acquire(tokens, self.engine.now)
        if wait:
            self.engine.after(wait, self._pass)
            return
        self._next = None
        self._running += 1
        self._send(batch, tokens)
        self._turn()

    def _send(self, batch: list[_Piece], tokens: int) -> None:
        sent_at = self.engine.now
        self.engine.after(ON_THE_WAY_S, lambda: self._arrive(batch, tokens, sent_at))

    def _arrive(self, batch: list[_Piece], tokens: int, sent_at: float) -> None:
        now = self.engine.now
        refusal = self._account.admit(tokens, now)
        if refusal is not None:
            self.refused += 1
            wait = float(refusal.headers["retry-after-ms"]) / 1000
            self._limiter.throttled(refusal.headers, wait, now, sent_at=sent_at)
            self._concurrency.refused(now)
            self.engine.after(max(0.5, wait), lambda: self._again(batch, tokens))
            return
        self.requests += 1
        self.tokens += tokens
        headers = self._account.headers(now)
        took = (self._latency_s + self._per_token_s * tokens) * self._rng.uniform(0.7, 1.5)
        self.engine.after(took, lambda: self._answer(batch, tokens, headers, sent_at))

    def _again(self, batch: list[_Piece], tokens: int) -> None:
        wait = self._limiter.acquire(tokens, self.engine.now)
        if wait:
            self.engine.after(wait, lambda: self._again(batch, tokens))
        else:
            self._send(batch, tokens)

    def _answer(self, batch: list[_Piece], tokens: int, headers: dict[str, str], sent_at: float) -> None:
        now = self.engine.now
        self._limiter.answered(headers, now, sent_at=sent_at, tokens=tokens, used=tokens)
        self._concurrency.answered(now - sent_at, tokens, now)
        self._running -= 1
        for piece in batch:
            piece.done()
        self._turn()


class Local(Embedding):
    """The local model: one batch at a time, on as many cores as there are."""

    def __init__(self, engine: Engine, figures: Figures, cores: Cores) -> None:
        super().__init__(engine, LocalModel.batch_inputs_max, LocalModel.batch_tokens_max)
        self._per_token_s = figures.seconds("local_model_cpu_per_kilotoken_ms") / 1000
        self._longest = 1 / (cores.servers * figures.value("local_model_parallel")) if cores.servers > 1 else 1.0
        self.model = Station(engine, "local model", cores.servers, cores)
        self._is_busy = False

    def utilisation(self) -> float:
        return self.model.utilisation()

    def restart(self) -> None:
        super().restart()
        self.model.restart()

    def _turn(self) -> None:
        if self._is_busy:
            return
        batch, tokens = self.batcher.take(self.engine.now)
        if not batch:
            return
        self._is_busy, left = True, self.model.servers
        self.requests += 1
        self.tokens += tokens

        def part() -> None:
            nonlocal left
            left -= 1
            if not left:
                self._is_busy = False
                for piece in batch:
                    piece.done()
                self._turn()

        # Threads do not end together: texts differ in length.
        whole_s = tokens * self._per_token_s
        self.model.submit(whole_s * self._longest, part)
        for _ in range(self.model.servers - 1):
            self.model.submit(whole_s * (1 - self._longest) / (self.model.servers - 1), part)


def _limits(tier: Tier) -> tuple[float, float]:
    return tier.requests_per_minute, tier.tokens_per_minute

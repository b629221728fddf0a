"""How much of a provider's limits is used, in virtual time: the arithmetic of `make bench-embedder` without its clock.

Clients that always have more to send, each waiting as told, against an account as the fake provider keeps it.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from shoal.embeddings.limiter import RateLimiter
from shoal.embeddings.openai_model import OpenAIModel
from tests.fixtures.openai_account import Account

TIERS = [(3_000, 1_000_000), (5_000, 5_000_000), (10_000, 10_000_000)]
CONFIGURED = TIERS[0]
ON_THE_WAY_S, LATE_S = 0.02, 0.01  # of a request; of whoever was told to wait


@dataclass
class Load:
    """`users` of one key, each a process with a limiter and `workers`; a rival takes a share without asking anybody."""

    limits: tuple[float, float]
    latency_s: float = 0.3
    users: int = 1
    workers: int = 8
    batch_tokens: int = OpenAIModel.batch_tokens_max
    rival: float = 0.0
    rival_every_s: float = 4.0
    queries_per_s: float = 0.0
    yielding: int | None = None  # the user that yields to the others
    accepted: list[tuple[float, int, int]] = field(default_factory=list)  # when, by which user, tokens
    refused: int = 0
    rival_tokens: int = 0
    rival_refused: int = 0
    query_waits: list[float] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        self.rng = random.Random(1)
        self.account = Account(*self.limits, 0.0)
        self.limiters = [RateLimiter(*CONFIGURED, 0.0, share=0.9) for _ in range(self.users)]
        if self.yielding is not None:
            self.limiters[self.yielding].yield_to_live()
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.numbers = itertools.count()
        for user in range(self.users):
            for worker in range(self.workers):
                self.at(0.0, lambda now, user=user, worker=worker: self.ask(user, worker, self.batch(), now))  # type: ignore[misc]
        if self.rival:
            self.at(self.rival_every_s, self.take)
        if self.queries_per_s:
            self.at(1.0, self.query)
        while self.events[0][0] < seconds:
            now, _, event = heapq.heappop(self.events)
            event(now)
        self.account.headers(seconds)

    def at(self, when: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self.events, (when, next(self.numbers), event))

    def batch(self) -> int:
        return self.rng.randint(int(0.85 * self.batch_tokens), self.batch_tokens)

    def ask(self, user: int, worker: int, tokens: int, now: float) -> None:
        wait = self.limiters[user].acquire(tokens, now, who=worker)
        if wait:
            self.at(now + wait + self.rng.uniform(0, LATE_S), lambda then: self.ask(user, worker, tokens, then))
        else:
            self.at(now + ON_THE_WAY_S, lambda then: self.arrive(user, worker, tokens, now, then))

    def arrive(self, user: int, worker: int, tokens: int, sent_at: float, now: float) -> None:
        refusal, limiter = self.account.admit(tokens, now), self.limiters[user]
        if refusal is not None:
            self.refused += 1
            wait = float(refusal.headers["retry-after-ms"]) / 1000
            self.at(now, lambda then: limiter.throttled(refusal.headers, wait, then, sent_at=sent_at))
            self.at(now + max(0.5, wait), lambda then: self.ask(user, worker, tokens, then))
            return
        headers = self.account.headers(now)
        self.accepted.append((now, user, tokens))

        def answer(then: float) -> None:
            limiter.answered(headers, then, sent_at=sent_at)
            self.ask(user, worker, self.batch(), then)

        self.at(now + self.latency_s * self.rng.uniform(0.7, 1.5), answer)

    def take(self, now: float) -> None:
        tokens = int(self.rival * self.limits[1] * self.rival_every_s / 60)
        if self.account.admit(tokens, now) is None:
            self.rival_tokens += tokens
        else:
            self.rival_refused += 1
        self.at(now + self.rival_every_s, self.take)

    def query(self, now: float) -> None:
        wait = self.limiters[0].acquire(12, now, is_urgent=True)
        self.query_waits.append(wait)
        if not wait:
            self.account.admit(12, now)
        self.at(now + self.rng.expovariate(self.queries_per_s), self.query)

    def tokens(self, since: float, until: float, user: int | None = None) -> int:
        return sum(tokens for at, by, tokens in self.accepted if since <= at < until and (user is None or by == user))

    def used(self, seconds: float) -> float:
        """Of all that was refilled: by everybody, without what the bucket held at the start."""
        refilled = self.limits[1] * seconds / 60
        drawn = self.limits[1] - self.account.left["tokens"]
        return (self.tokens(0, seconds) + self.rival_tokens - drawn) / refilled


@pytest.mark.parametrize("limits", TIERS)
def test_a_backlog_uses_the_limit_and_neither_its_first_minute_nor_any_is_above_it(limits: tuple[int, int]) -> None:
    load = Load(limits)
    load.run(180)
    assert load.refused == 0
    assert load.tokens(60, 180) >= 0.95 * 2 * limits[1]
    for since in range(120):
        # The requests' ways to the provider are equally long here; else a minute there is not quite one of ours.
        assert load.tokens(since, since + 60) <= limits[1]


@pytest.mark.parametrize("limits", TIERS)
def test_slow_answers_cost_nothing_but_their_own_wait(limits: tuple[int, int]) -> None:
    load = Load(limits, latency_s=3.0, workers=24)
    load.run(180)
    assert load.refused == 0
    assert load.tokens(60, 180) >= 0.95 * 2 * limits[1]


@pytest.mark.parametrize("limits", [TIERS[0], TIERS[2]])
@pytest.mark.parametrize(("rival", "every_s"), [(0.3, 1.0), (0.3, 8.0), (0.7, 4.0)])
def test_a_rival_gets_what_it_takes_and_we_the_rest(limits: tuple[int, int], rival: float, every_s: float) -> None:
    load = Load(limits, rival=rival, rival_every_s=every_s)
    load.run(180)
    assert (load.refused, load.rival_refused) == (0, 0)
    assert load.used(180) >= 0.95


@pytest.mark.parametrize(("limits", "users"), [(TIERS[0], 2), (TIERS[1], 3)])
def test_users_of_one_key_share_it_evenly(limits: tuple[int, int], users: int) -> None:
    load = Load(limits, users=users)
    load.run(180)
    assert load.refused == 0
    assert load.used(180) >= 0.95
    parts = [load.tokens(0, 180, user) for user in range(users)]
    assert max(parts) <= 1.15 * min(parts)


@pytest.mark.parametrize("limits", TIERS)
def test_a_backfill_of_another_process_yields_to_live_documents(limits: tuple[int, int]) -> None:
    load = Load(limits, users=2, yielding=1)
    load.run(240)
    assert load.refused == 0
    assert load.used(240) >= 0.95
    live, backfill = (load.tokens(60, 240, user) for user in range(2))
    assert 0.1 <= backfill / (live + backfill) <= 0.35


@pytest.mark.parametrize("limits", TIERS)
def test_a_backfill_of_another_process_uses_what_nobody_else_does(limits: tuple[int, int]) -> None:
    load = Load(limits, yielding=0)
    load.run(180)
    assert load.refused == 0
    assert load.tokens(60, 180) >= 0.9 * 2 * limits[1]


def test_a_rival_that_leaves_nothing_does_not_end_us() -> None:
    load = Load(TIERS[1], rival=1.5, rival_every_s=0.5)
    load.run(300)
    assert load.tokens(120, 300) > 0


@pytest.mark.parametrize("limits", TIERS)
def test_queries_beside_a_backlog_do_not_wait(limits: tuple[int, int]) -> None:
    load = Load(limits, queries_per_s=10)
    load.run(180)
    assert load.refused == 0
    assert max(load.query_waits) == 0
    assert load.tokens(60, 180) >= 0.95 * 2 * limits[1]

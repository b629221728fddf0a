"""The limiter against a provider that counts, tells, throttles and changes its mind; clients are killed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.embeddings.limiter import BURST, RateLimiter
from tests.properties.profiles import examples

RETRY_AFTER_MAX_S = 20.0
SHARE_MIN = 0.05
LIMITS = st.sampled_from([(60.0, 6_000.0), (600.0, 60_000.0), (3_000.0, 1_000_000.0), (500.0, 3_000.0)])


class Provider:
    """Counts as OpenAI documents it: a bucket of a minute's worth of requests and one of tokens, refilled steadily."""

    def __init__(self, limits: tuple[float, float]) -> None:
        self.limits = self.levels = limits

    def fill(self, seconds: float) -> None:
        pairs = zip(self.levels, self.limits, strict=True)
        self.levels = tuple(min(limit, level + seconds * limit / 60) for level, limit in pairs)  # type: ignore[assignment]

    def take(self, tokens: float) -> bool:
        requests_left, tokens_left = self.levels
        if requests_left < 1 - 1e-6 or tokens_left < tokens - 1e-3:
            return False
        self.levels = (requests_left - 1, tokens_left - tokens)
        return True

    def headers(self) -> dict[str, str]:
        told = {}
        for kind, level, limit in zip(("requests", "tokens"), self.levels, self.limits, strict=True):
            told[f"x-ratelimit-limit-{kind}"] = f"{limit:.0f}"
            told[f"x-ratelimit-remaining-{kind}"] = f"{max(0, math.floor(level))}"
            told[f"x-ratelimit-reset-{kind}"] = f"{(limit - level) * 60 / limit:.3f}s"
        return told


@dataclass
class Answer:
    """On its way back; what it tells is as old as it is."""

    headers: dict[str, str]
    is_refusal: bool
    retry_after_s: float | None = None


class LimiterMachine(RuleBasedStateMachine):
    @initialize(limits=LIMITS, caution=st.sampled_from([0.3, 1.0]))
    def begin(self, limits: tuple[float, float], caution: float) -> None:
        self.provider = Provider(limits)
        self.configured = (limits[0] * caution, limits[1] * caution)
        self.highest = limits  # that was ever told
        self.now, self.lives, self.debt = 0.0, 0, 0.0
        self.is_steady = True  # alone at the provider, whose limits are those we were told
        self.grants: list[tuple[float, int, int]] = []  # when, tokens, in which life
        self.live()

    def live(self) -> None:
        self.limiter = RateLimiter(*self.configured, self.now)
        self.answers: list[Answer] = []
        self.paused_until = -math.inf
        self.lives += 1

    @precondition(lambda self: self.lives < 5)
    @rule()
    def kill(self) -> None:
        """The embedder dies; the next one knows what is configured and begins with a full burst."""
        self.live()

    @rule(seconds=st.sampled_from([0.001, 0.1, 1.0, 5.0, 61.0]) | st.floats(0, 10))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.provider.fill(seconds)

    @rule(share=st.floats(0.0001, 1), count=st.integers(1, 30), patient=st.booleans())
    def ask(self, share: float, count: int, patient: bool) -> None:
        """Requests of up to a whole burst, one after the other; a patient client waits as told."""
        tokens = max(1, math.floor(share * BURST * min(self.configured[1], self.provider.limits[1])))
        for _ in range(count):
            wait = self.limiter.acquire(tokens, self.now)
            if wait > 0 and patient:
                self.time_passes(wait)
                wait = self.limiter.acquire(tokens, self.now)
                assert wait == 0, "waiting as told is enough where nothing else happened"
            if wait > 0:
                return
            self.granted(tokens)

    @rule(times=st.floats(1.01, 5))
    def ask_for_more_than_a_burst(self, times: float) -> None:
        tokens = math.ceil(times * BURST * self.provider.limits[1])
        if self.limiter.acquire(tokens, self.now) == 0:
            self.debt += tokens
            self.is_steady = False
            self.granted(tokens)

    def granted(self, tokens: int) -> None:
        assert self.now >= self.paused_until - 1e-6, "who was asked to pause pauses"
        self.grants.append((self.now, tokens, self.lives))
        is_taken = self.provider.take(tokens)
        if self.is_steady:
            assert is_taken, "alone and within the limits told, nothing is ever refused"
        self.answers.append(Answer(self.provider.headers(), not is_taken))

    @precondition(lambda self: self.answers)
    @rule(data=st.data(), retry_after_s=st.none() | st.floats(0.001, RETRY_AFTER_MAX_S), greedy=st.booleans())
    def hear(self, data: st.DataObject, retry_after_s: float | None, greedy: bool) -> None:
        """Answers come in any order; right after one, no more is granted than it says is left."""
        answer = self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1)))
        if answer.is_refusal:
            self.limiter.throttled(answer.headers, retry_after_s, self.now)
            self.paused_until = max(self.paused_until, self.now + (retry_after_s or 1.0))
        else:
            self.limiter.answered(answer.headers, self.now)
        if not greedy:
            return
        limit = float(answer.headers["x-ratelimit-limit-tokens"])
        left = min(BURST * limit, float(answer.headers["x-ratelimit-remaining-tokens"]))
        piece, total = max(1, math.floor(limit * 0.015)), 0
        while self.limiter.acquire(piece, self.now) == 0:
            self.granted(piece)
            total += piece
            assert total <= left + 1e-3, "the headers are believed"

    @rule()
    def converse(self) -> None:
        """Whole bursts, each answered before the next is asked for: an answer gives nothing back."""
        for _ in range(5):
            tokens = max(1, math.floor(BURST * min(self.configured[1], self.provider.limits[1])))
            if self.limiter.acquire(tokens, self.now) == 0:
                self.granted(tokens)
                answer = self.answers.pop()
                if not answer.is_refusal:
                    self.limiter.answered(answer.headers, self.now)

    @rule(times=st.integers(1, 5), retry_after_s=st.none() | st.floats(0.001, RETRY_AFTER_MAX_S))
    def refused_again_and_again(self, times: int, retry_after_s: float | None) -> None:
        """By a provider that tells nothing but to wait."""
        for _ in range(times):
            self.limiter.throttled({}, retry_after_s, self.now)
        self.paused_until = max(self.paused_until, self.now + (retry_after_s or 1.0))

    @rule(share=st.floats(0, 1))
    def another_client_of_the_key(self, share: float) -> None:
        self.is_steady = False
        requests, tokens = self.provider.levels
        self.provider.levels = (requests * share, tokens * share)

    @rule(limits=LIMITS)
    def the_account_changes(self, limits: tuple[float, float]) -> None:
        self.is_steady = False
        self.provider.limits = limits
        self.provider.fill(0)
        self.highest = (max(self.highest[0], limits[0]), max(self.highest[1], limits[1]))

    @invariant()
    def no_span_of_time_grants_more_than_bursts_and_the_rate(self) -> None:
        if not getattr(self, "grants", None):
            return
        requests = tokens = 0.0
        for at, size, life in reversed(self.grants[-200:]):  # every span that ends now
            requests, tokens = requests + 1, tokens + size
            bursts, seconds = 1 + self.lives - life, self.now - at
            for used, limit in ((requests, self.highest[0]), (tokens, self.highest[1])):
                # A request above a burst is let through when its bucket is full: its excess is the debt.
                assert used <= bursts * BURST * limit + seconds * limit / 60 + self.debt + 1e-3

    def teardown(self) -> None:
        """Whatever was told: who waits as told gets a request through, in bounded time and few attempts."""
        if not hasattr(self, "limiter"):
            return
        slowest = min(limit for limit in (self.configured[1], *(6_000.0, 3_000.0)))
        bound = 60.0 + RETRY_AFTER_MAX_S + 10 + (BURST * self.highest[1] + self.debt) * 60 / (slowest * SHARE_MIN)
        waited = 0.0
        for _ in range(4):
            wait = self.limiter.acquire(1, self.now + waited)
            if wait == 0:
                assert waited <= bound
                return
            waited += wait
        raise AssertionError(f"still to wait {wait} s after {waited} s")


TestAProviderIsNeverAskedForMoreThanItGivesAndNeverGivenUp = LimiterMachine.TestCase
TestAProviderIsNeverAskedForMoreThanItGivesAndNeverGivenUp.settings = examples(80)

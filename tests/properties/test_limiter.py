"""The limiter against a provider that counts, tells, throttles and changes its mind; clients are killed."""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.embeddings.limiter import BURST, RATE_MIN, URGENT_BURST, WINDOW_S, RateLimiter
from tests.properties.profiles import examples

RETRY_AFTER_MAX_S = 20.0
REQUEST_MAX = 0.03  # of a minute's tokens, in one ordinary request
LIMITS = st.sampled_from([(60.0, 6_000.0), (600.0, 60_000.0), (3_000.0, 1_000_000.0), (500.0, 3_000.0)])
ODD = st.sampled_from(["", "0", "-1", "nan", "inf", "1e999", "many", "1m", "6m0s", f"{'9' * 400}d", "17", "1e-9"])
HEADERS = [f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")]


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
    sent_at: float
    tokens: int
    is_refusal: bool


class LimiterMachine(RuleBasedStateMachine):
    @initialize(limits=LIMITS, caution=st.sampled_from([0.3, 1.0]), share=st.sampled_from([0.1, 0.9, 1.0]))
    def begin(self, limits: tuple[float, float], caution: float, share: float) -> None:
        self.provider = Provider(limits)
        self.configured, self.share = (limits[0] * caution, limits[1] * caution), share
        self.highest = limits  # that was ever told
        self.largest = 0.0  # of all requests, as a share of the limit it was granted under
        self.now, self.lives, self.refunded = 0.0, 0, 0
        self.is_steady = True  # alone at the provider, whose limits are those we were told
        self.live()

    def live(self) -> None:
        self.limiter = RateLimiter(*self.configured, self.now, share=self.share)
        self.grants: list[tuple[float, int]] = []  # when, tokens; of this life
        self.answers: list[Answer] = []
        self.paused_until = -math.inf
        self.lives += 1

    @precondition(lambda self: self.lives < 4)
    @rule()
    def kill(self) -> None:
        """The embedder dies; the next one knows what is configured and begins with a full burst."""
        self.live()

    @rule(seconds=st.sampled_from([0.001, 0.1, 1.0, 5.0, 61.0]) | st.floats(0, 10))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.provider.fill(seconds)

    @rule(part=st.floats(0.0001, 1), count=st.integers(1, 30), patient=st.booleans(), urgent=st.booleans())
    def ask(self, part: float, count: int, patient: bool, urgent: bool) -> None:
        """One request after the other; a patient client waits as told."""
        tokens = max(1, math.floor(part * REQUEST_MAX * min(self.configured[1], self.provider.limits[1])))
        for _ in range(count):
            for _ in range(20 if patient else 1):
                wait = self.limiter.acquire(tokens, self.now, is_urgent=urgent, who=("client", tokens))
                if wait == 0:
                    self.granted(tokens, is_urgent=urgent)
                    break
                if patient:
                    self.time_passes(wait)
            else:
                self.limiter.withdraw(("client", tokens))
                return

    @rule(times=st.floats(0.2, 3))
    def ask_for_very_much(self, times: float) -> None:
        tokens = math.ceil(times * self.provider.limits[1])
        if self.limiter.acquire(tokens, self.now) == 0:
            self.is_steady = False
            self.granted(tokens)

    @rule(seconds=st.floats(0, 1000), tokens=st.integers(1, 1000))
    def the_clock_steps_back(self, seconds: float, tokens: int) -> None:
        self.is_steady = False
        if self.limiter.acquire(tokens, self.now - seconds) == 0:
            self.granted(tokens)

    def granted(self, tokens: int, *, is_urgent: bool = False) -> None:
        assert self.now >= self.paused_until - 1e-6, "who was asked to pause pauses"
        limits = self.limiter.limits
        self.grants.append((self.now, tokens))
        inside = [size for at, size in self.grants if at > self.now - WINDOW_S + 1e-6]
        assert len(inside) <= limits[0] or len(inside) == 1, "requests of a minute"
        assert sum(inside) <= limits[1] or len(inside) == 1, "tokens of a minute"
        self.largest = max(self.largest, tokens / limits[1], 1 / limits[0])
        is_taken = self.provider.take(tokens)
        if self.is_steady:
            assert is_taken, "alone and within the limits told, nothing is ever refused"
        self.answers.append(Answer(self.provider.headers(), self.now, tokens, not is_taken))

    @precondition(lambda self: self.answers)
    @rule(data=st.data(), retry_after_s=st.none() | st.floats(0.001, RETRY_AFTER_MAX_S), timed=st.booleans(),
          greedy=st.booleans())  # fmt: skip
    def hear(self, data: st.DataObject, retry_after_s: float | None, timed: bool, greedy: bool) -> None:
        """Answers come in any order; right after one, no more is granted than it says is left."""
        answer = self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1)))
        sent_at = answer.sent_at if timed else None
        if answer.is_refusal:
            self.limiter.throttled(answer.headers, retry_after_s, self.now, sent_at=sent_at)
            self.paused_until = max(self.paused_until, self.now + (1.0 if retry_after_s is None else retry_after_s))
        else:
            self.limiter.answered(answer.headers, self.now, sent_at=sent_at)
        if not greedy:
            return
        limit = float(answer.headers["x-ratelimit-limit-tokens"])
        left = float(answer.headers["x-ratelimit-remaining-tokens"])
        if timed:
            left += (self.now - answer.sent_at) * limit / 60
        piece, total = max(1, math.floor(limit * 0.015)), 0
        while self.limiter.acquire(piece, self.now) == 0:
            self.granted(piece)
            total += piece
            assert total <= left + 1e-3, "the headers are believed"

    @precondition(lambda self: self.grants)
    @rule(data=st.data())
    def never_sent(self, data: st.DataObject) -> None:
        """A grant is given back; the provider has counted it all the same, so it is the provider that is given less."""
        at, tokens = self.grants.pop(data.draw(st.integers(0, len(self.grants) - 1)))
        self.is_steady = False
        self.refunded += 1
        self.limiter.refund(tokens, at, self.now)

    @rule(told=st.dictionaries(st.sampled_from(HEADERS), ODD), refused=st.booleans())
    def a_storm_of_odd_headers(self, told: dict[str, str], refused: bool) -> None:
        self.is_steady = False
        if refused:
            self.limiter.throttled(told, 0.0, self.now)
        else:
            self.limiter.answered(told, self.now)
        limits = self.limiter.limits
        self.highest = (max(self.highest[0], limits[0]), max(self.highest[1], limits[1]))

    @rule(times=st.integers(1, 5), retry_after_s=st.none() | st.floats(0.001, RETRY_AFTER_MAX_S))
    def refused_again_and_again(self, times: int, retry_after_s: float | None) -> None:
        """By a provider that tells nothing but to wait."""
        for _ in range(times):
            self.limiter.throttled({}, retry_after_s, self.now)
        self.paused_until = max(self.paused_until, self.now + (1.0 if retry_after_s is None else retry_after_s))

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
    def grants_come_evenly(self) -> None:
        """No span of time has more than the bursts, the rate, and the one debt that was left."""
        if not getattr(self, "grants", None) or self.refunded:
            return
        requests = tokens = 0.0
        for at, size in reversed(self.grants[-200:]):  # every span that ends now
            requests, tokens, seconds = requests + 1, tokens + size, self.now - at
            for used, limit in ((requests, self.highest[0]), (tokens, self.highest[1])):
                at_once = max(2.0, (BURST + URGENT_BURST + 2 * self.largest) * limit)
                assert used <= at_once + 2 + seconds * limit / 60 + 1e-3

    def teardown(self) -> None:
        """Whatever was told: who waits as told gets a request through, in bounded time."""
        if not hasattr(self, "limiter"):
            return
        owed_s = (BURST + URGENT_BURST + 2 * self.largest + 1) * 60 / RATE_MIN
        bound = WINDOW_S + RETRY_AFTER_MAX_S + 60 + owed_s + 60 / min(1.0, self.limiter.limits[0] * RATE_MIN)
        waited = 0.0
        while wait := self.limiter.acquire(1, self.now + waited, who="the last"):
            waited += wait
            assert waited <= bound


TestAProviderIsNeverAskedForMoreThanItGivesAndNeverGivenUp = LimiterMachine.TestCase
TestAProviderIsNeverAskedForMoreThanItGivesAndNeverGivenUp.settings = examples(80)


@examples(40)
@given(
    st.lists(st.integers(1, 90_000), min_size=2, max_size=6),
    st.integers(0, 60),
    st.floats(0, 0.3),
)
def test_whoever_waits_is_passed_by_each_other_at_most_once(sizes: list[int], queries: int, late_s: float) -> None:
    """Clients of all sizes that always want more, polling as told in the order that is worst for the last of them."""
    limiter = RateLimiter(3_000, 1_000_000, 0.0)
    numbers = itertools.count()
    polls = [(0.0, client, next(numbers)) for client in range(len(sizes))]
    passed: dict[int, list[int]] = {}  # who was told to wait -> how often each other was granted since
    grants = 0
    while grants < 60:
        now, client, _ = heapq.heappop(polls)
        if queries:
            queries -= 1
            limiter.acquire(10, now, is_urgent=True)
        wait = limiter.acquire(sizes[client], now, who=client)
        if wait == 0:
            grants += 1
            passed.pop(client, None)
            for times in passed.values():
                times[client] += 1
                assert times[client] <= 1
        else:
            passed.setdefault(client, [0] * len(sizes))
        heapq.heappush(polls, (now + (wait + late_s if wait else 0.0), client, next(numbers)))


@examples(40)
@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 90_000), st.booleans()), min_size=1, max_size=150),
    st.sampled_from([0.05, 1.0]),
)
def test_no_minute_has_more_than_the_limit_and_the_first_one_neither(
    asks: list[tuple[float, int, bool]], scale: float
) -> None:
    limiter, now = RateLimiter(600, 1_000_000, 0.0), 0.0
    grants: list[tuple[float, int]] = []
    for pause, tokens, urgent in asks:
        now += pause * scale
        for _ in range(30):
            wait = limiter.acquire(tokens, now, is_urgent=urgent, who="one")
            if wait == 0:
                grants.append((now, tokens))
                break
            now += wait
    for at, _ in grants:
        minute = [tokens for other, tokens in grants if at - WINDOW_S + 1e-6 < other <= at]
        assert sum(minute) <= 1_000_000
        assert len(minute) <= 600

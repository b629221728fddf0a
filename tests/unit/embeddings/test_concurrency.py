"""The number of requests under way follows what the provider bears."""

from __future__ import annotations

import heapq
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.embeddings.concurrency import Concurrency


class Provider:
    """Serves `places` requests of `latency_s` at once; others queue there. Callers always have more to send."""

    def __init__(self, places: int, latency_s: float) -> None:
        self.places, self.latency_s = places, latency_s
        self.now, self.answered = 0.0, 0
        self.under_way: list[tuple[float, float, int]] = []  # answered at, sent at, number
        self.free_at: list[float] = []  # of each place that is taken
        self.numbers = itertools.count()

    def send(self) -> None:
        begins = self.now if len(self.free_at) < self.places else max(self.now, heapq.heappop(self.free_at))
        heapq.heappush(self.free_at, begins + self.latency_s)
        heapq.heappush(self.under_way, (begins + self.latency_s, self.now, next(self.numbers)))

    def run(self, concurrency: Concurrency, seconds: float, demand: int = 1000) -> float:
        """Answers per second."""
        began, answered, until = self.now, self.answered, self.now + seconds
        while self.now < until:
            while len(self.under_way) < min(demand, concurrency.allowed):
                self.send()
            self.now, sent_at, _ = heapq.heappop(self.under_way)
            self.answered += 1
            concurrency.answered(self.now - sent_at, 60_000, self.now)
        return (self.answered - answered) / (self.now - began)


def test_it_grows_to_what_the_provider_serves_at_once_and_not_far_beyond() -> None:
    concurrency, provider = Concurrency(4, 64), Provider(places=12, latency_s=0.5)
    provider.run(concurrency, 30)
    assert provider.run(concurrency, 60) >= 0.95 * 12 / 0.5
    assert 12 <= concurrency.allowed <= 27  # SLOW times as many, and a step


def test_a_slow_provider_of_many_places_is_used_up_to_the_bound() -> None:
    concurrency, provider = Concurrency(4, 16), Provider(places=100, latency_s=10)
    provider.run(concurrency, 120)
    assert concurrency.allowed == 16


def test_places_that_nobody_uses_are_not_added() -> None:
    concurrency, provider = Concurrency(4, 64), Provider(places=100, latency_s=0.2)
    provider.run(concurrency, 60, demand=2)
    assert concurrency.allowed == 4


def test_refusals_shrink_it_once_in_a_round_and_answers_bring_it_back_one_by_one() -> None:
    concurrency, provider = Concurrency(16, 16), Provider(places=100, latency_s=0.5)
    provider.run(concurrency, 5)
    for _ in range(50):
        concurrency.refused(provider.now)
    assert concurrency.allowed == 11
    provider.run(concurrency, 1.2)
    assert 12 <= concurrency.allowed <= 14
    provider.run(concurrency, 10)
    assert concurrency.allowed == 16


def test_a_provider_that_refuses_everything_is_asked_by_one_at_a_time() -> None:
    concurrency = Concurrency(16, 16)
    for second in range(20):
        concurrency.refused(float(second))
    assert concurrency.allowed == 1


def test_a_provider_that_lost_places_gets_fewer_requests() -> None:
    concurrency, provider = Concurrency(4, 32), Provider(places=32, latency_s=0.5)
    provider.run(concurrency, 30)
    assert concurrency.allowed == 32
    provider.places, provider.free_at = 4, []
    provider.run(concurrency, 30)
    assert concurrency.allowed <= 10


def test_a_provider_that_became_slower_for_good_is_measured_by_what_it_is_now() -> None:
    concurrency, provider = Concurrency(4, 32), Provider(places=100, latency_s=0.2)
    provider.run(concurrency, 30)
    provider.latency_s = 2.0
    provider.run(concurrency, 60)
    assert concurrency.allowed < 32
    provider.run(concurrency, 240)
    assert concurrency.allowed == 32


def test_a_big_request_that_takes_longer_than_a_small_one_is_no_trouble() -> None:
    concurrency, now = Concurrency(4, 8), 0.0
    for _ in range(200):
        for latency_s, tokens in ((0.05, 20), (1.0, 60_000), (1.0, 60_000), (1.0, 60_000)):
            concurrency.answered(latency_s, tokens, now)
        now += 0.76  # four at once
    assert concurrency.allowed >= 4


@pytest.mark.parametrize(("start", "maximum"), [(0, 4), (5, 4), (-1, -1)])
def test_a_start_outside_the_bound_is_refused(start: int, maximum: int) -> None:
    with pytest.raises(ValueError, match="from 1 to its maximum"):
        Concurrency(start, maximum)


events = st.lists(
    st.tuples(st.floats(-5, 100), st.none() | st.floats() | st.floats(0, 60), st.integers(-1, 300_000)), max_size=80
)


@given(st.integers(1, 20), st.integers(0, 20), events)
def test_it_stays_within_its_bounds_whatever_it_is_told(
    start: int, more: int, told: list[tuple[float, float | None, int]]
) -> None:
    concurrency, now = Concurrency(start, start + more), 0.0
    for seconds, latency_s, tokens in told:
        now += seconds
        if latency_s is None:
            concurrency.refused(now)
        else:
            concurrency.answered(latency_s, tokens, now)
        assert 1 <= concurrency.allowed <= start + more

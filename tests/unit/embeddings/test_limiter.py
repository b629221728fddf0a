"""The limiter never grants more than the account's limits, and never starves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.embeddings.limiter import BURST, RateLimiter, duration_s

RPM, TPM = 600.0, 60_000.0


def granted(limiter: RateLimiter, tokens: int, now: float) -> float:
    """Waits as told until `tokens` are granted; the moment of the grant."""
    for _ in range(3):
        wait = limiter.acquire(tokens, now)
        if wait == 0:
            return now
        now += wait
    raise AssertionError(f"still told to wait {wait} s after waiting as told")


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 6000)), min_size=1, max_size=40))
def test_no_window_of_time_grants_more_than_burst_and_rate(asks: list[tuple[float, int]]) -> None:
    limiter, now, grants = RateLimiter(RPM, TPM, 0.0), 0.0, []
    for pause, tokens in asks:
        now = granted(limiter, tokens, now + pause)
        grants.append((now, tokens))
    for i, (start, _) in enumerate(grants):
        for j in range(i, len(grants)):
            seconds = grants[j][0] - start
            window = grants[i : j + 1]
            assert sum(tokens for _, tokens in window) <= TPM * BURST + seconds * TPM / 60 + 1e-3
            assert len(window) <= RPM * BURST + seconds * RPM / 60 + 1e-3


@settings(max_examples=60)
@given(st.lists(st.integers(6001, 200_000), min_size=1, max_size=10))
def test_a_request_above_the_burst_is_granted_in_the_end_and_leaves_a_debt(sizes: list[int]) -> None:
    limiter, now, total = RateLimiter(RPM, TPM, 0.0), 0.0, 0
    for tokens in sizes:
        now = granted(limiter, tokens, now)
        assert total <= now * TPM / 60 + 1e-3  # what went before is paid
        total += tokens


def test_waiting_as_told_is_enough_and_waiting_less_is_not() -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    assert limiter.acquire(6000, 0.0) == 0
    wait = limiter.acquire(3000, 0.0)
    assert wait == pytest.approx(3000 / (TPM * 0.95) * 60)
    assert limiter.acquire(3000, wait * 0.9) > 0
    assert limiter.acquire(3000, wait) == 0


def test_a_refused_request_takes_nothing() -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    limiter.acquire(6000, 0.0)
    waits = {limiter.acquire(6000, 0.0) for _ in range(50)}
    assert len(waits) == 1


def test_the_limits_in_the_headers_replace_the_configured_ones() -> None:
    limiter = RateLimiter(3, 1000, 0.0)
    limiter.answered({"x-ratelimit-limit-requests": "6000", "x-ratelimit-limit-tokens": "600000"}, 0.0)
    assert sum(granted(limiter, 1000, 60.0 + i * 0.02) >= 0 for i in range(50)) == 50
    lowered = RateLimiter(RPM, TPM, 0.0)
    lowered.answered({"x-ratelimit-limit-tokens": "600"}, 0.0)
    assert lowered.acquire(60, 0.0) == 0
    assert lowered.acquire(60, 0.0) > 5


def test_another_client_of_the_same_key_is_seen_by_what_remains() -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    limiter.answered({"x-ratelimit-remaining-tokens": "100", "x-ratelimit-reset-tokens": "59s"}, 0.0)
    assert limiter.acquire(100, 0.0) == 0
    assert limiter.acquire(100, 0.0) > 0


def test_an_empty_bucket_is_waited_for_but_not_until_it_is_full() -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    limiter.answered({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 0.0)
    assert limiter.acquire(1, 0.0) == 10
    soon = RateLimiter(RPM, TPM, 0.0)
    soon.answered({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s"}, 0.0)
    assert soon.acquire(1, 0.0) == 2


HEADERS = [f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")]
ODD = st.sampled_from(["", "0", "-1", "nan", "inf", "1e999", "many", "1m", "٣s"])


@given(st.dictionaries(st.sampled_from(HEADERS), ODD | st.text(max_size=8)))
def test_odd_headers_neither_crash_nor_stop_the_flow(headers: dict[str, str]) -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    limiter.answered(headers, 0.0)
    assert granted(limiter, 10, 3600.0) < 3700


def test_a_throttled_account_pauses_as_long_as_asked_then_goes_slower_and_recovers() -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    limiter.throttled({}, 20.0, 0.0)
    assert limiter.acquire(1, 0.0) == 20
    assert granted(limiter, 6000, 20.0) == 20
    slow = limiter.acquire(6000, 20.0)
    assert slow == pytest.approx(6000 / (TPM * 0.95 * 0.7) * 60)
    for _ in range(100):
        limiter.answered({}, 20.0)
    assert limiter.acquire(6000, 20.0) == pytest.approx(6000 / (TPM * 0.95) * 60)


def test_a_clock_that_steps_back_grants_nothing_extra() -> None:
    limiter = RateLimiter(RPM, TPM, 100.0)
    limiter.acquire(6000, 100.0)
    assert limiter.acquire(6000, 40.0) == pytest.approx(6000 / (TPM * 0.95) * 60)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1), ("6m0s", 360), ("12ms", 0.012), ("1h0m3s", 3603), ("1m2.5s", 62.5),
        ("7", 7), ("0.5", 0.5), ("1m", 60), ("2d", 172800), ("1m5ms", 60.005),
    ],
)  # fmt: skip
def test_durations_are_read_as_the_provider_writes_them(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "1x", "-1s", "s", "1s1h", "nan"])
def test_what_is_no_duration_is_none(text: str) -> None:
    assert duration_s(text) is None

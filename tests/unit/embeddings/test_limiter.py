"""The limiter uses an account's limits to the full, never grants more, and never starves."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.embeddings.limiter import RATE_MIN, RateLimiter, duration_s

RPM, TPM = 600.0, 60_000.0  # a thousand tokens a second, and at once 1,200


def told(*, limit: float = TPM, remaining: float = TPM, kind: str = "tokens") -> dict[str, str]:
    """Headers of a provider whose bucket is filled steadily."""
    return {
        f"x-ratelimit-limit-{kind}": f"{limit:.0f}",
        f"x-ratelimit-remaining-{kind}": f"{remaining:.0f}",
        f"x-ratelimit-reset-{kind}": f"{(limit - remaining) * 60 / limit:.3f}s",
    }


def granted(limiter: RateLimiter, tokens: int, now: float, *, is_urgent: bool = False) -> float:
    """Waits as told until `tokens` are granted; the moment of the grant."""
    for _ in range(100):
        wait = limiter.acquire(tokens, now, is_urgent=is_urgent, who="the only one")
        if wait == 0:
            return now
        now += wait
    raise AssertionError(f"still told to wait {wait} s after waiting as told")


def used(
    limiter: RateLimiter, seconds: float, now: float, *, tokens: int = 200, headers: Mapping[str, str] | None = None
) -> float:
    """Tokens per minute of who always wants more and is told `headers` each time; a debt may stand at either end."""
    until, total = now + seconds, 0
    while (now := granted(limiter, tokens, now)) < until:
        total += tokens
        limiter.answered(headers or {}, now)
    return total * 60 / seconds


def test_alone_and_told_so_nearly_all_of_the_limit_is_used() -> None:
    limiter = RateLimiter(RPM, TPM, 0.0, share=0.9)
    used(limiter, 60, 0.0, headers=told())
    assert 0.97 * TPM <= used(limiter, 600, 60.0, headers=told()) <= TPM


def test_a_provider_that_tells_nothing_is_asked_for_our_share_only() -> None:
    limiter = RateLimiter(RPM, TPM, 0.0, share=0.9)
    used(limiter, 60, 0.0)
    assert used(limiter, 600, 60.0) == pytest.approx(0.88 * TPM, rel=0.02)  # the window's headroom is in it
    limiter.take_share(0.1)
    assert used(limiter, 600, 720.0) == pytest.approx(0.098 * TPM, rel=0.03)


def test_what_was_told_long_ago_is_not_believed() -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    limiter.answered(told(remaining=0), 0.0)
    assert limiter.acquire(10_000, 1.0) == 5.0  # and then asks again: it would be 9
    assert granted(limiter, 10_000, 1.0) == pytest.approx(10, abs=0.1)
    limiter.answered(told(remaining=0) | {"x-ratelimit-reset-tokens": "6m0s"}, 20.0)
    assert granted(limiter, 10_000, 20.0) == pytest.approx(35, abs=0.1)


def test_a_request_leaves_a_debt_and_waiting_as_told_pays_it() -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    assert limiter.acquire(4200, 0.0) == 0
    wait = limiter.acquire(100, 0.0)
    assert wait == pytest.approx(3)
    assert limiter.acquire(100, wait * 0.9) == pytest.approx(0.3)
    assert limiter.acquire(100, wait) == 0


def test_a_refused_request_takes_nothing() -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    limiter.acquire(4000, 0.0)
    waits = {limiter.acquire(4000, 0.0) for _ in range(50)}
    assert len(waits) == 1


@pytest.mark.parametrize("urgent", [False, True])
def test_a_request_above_a_whole_minute_goes_when_nothing_else_did(urgent: bool) -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    limiter.acquire(1, 0.0)
    assert granted(limiter, int(3 * TPM), 0.0, is_urgent=urgent) == 60
    assert granted(limiter, 1, 60.0) == pytest.approx(240, abs=2)  # what it took is paid first


def test_who_gave_up_waiting_holds_up_nobody() -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    limiter.acquire(2200, 0.0)
    assert limiter.acquire(10, 0.0, who="first") == pytest.approx(1)
    assert limiter.acquire(10, 1.0, who="second") > 0, "the first one is waited for, a little"
    limiter.withdraw("first")
    assert limiter.acquire(10, 1.0, who="second") == 0
    limiter.acquire(1200, 1.0, who="third")
    limiter.acquire(10, 1.0, who="gone")
    assert granted(limiter, 10, 1.0) < 4


def test_what_was_never_sent_is_given_back() -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    limiter.acquire(int(TPM * 0.9), 0.0)
    limiter.refund(int(TPM * 0.9), 0.0, 0.0)
    assert limiter.acquire(1, 0.0) == 0
    limiter.refund(500, 0.0, 0.0)  # no such grant
    limiter.acquire(int(TPM * 0.9), 0.0)
    limiter.refund(int(TPM * 0.9), 0.0, 100.0)  # long out of the window
    assert used(limiter, 60, 100.0) <= TPM


def test_tokens_that_were_estimated_and_not_used_are_given_back() -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    assert limiter.acquire(4200, 0.0) == 0
    limiter.answered({}, 0.0, sent_at=0.0, tokens=4200, used=3200)
    assert limiter.acquire(1, 0.0) == pytest.approx(2)
    limiter.answered({}, 2.0, sent_at=0.0, tokens=3200, used=4200)
    assert limiter.acquire(1, 2.0) == pytest.approx(1)


@pytest.mark.parametrize("junk", [1, 10**9])
def test_a_usage_that_can_not_be_is_believed_by_half(junk: int) -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    assert limiter.acquire(4000, 0.0) == 0
    limiter.answered({}, 0.0, sent_at=0.0, tokens=4000, used=junk)
    assert limiter.acquire(1, 0.0) == pytest.approx(2.8 - 2 if junk == 1 else 2.8 + 2)


def test_the_limits_in_the_headers_replace_the_configured_ones_up_and_down() -> None:
    limiter = RateLimiter(3, 1000, 0.0)
    limiter.answered(told(limit=6000, remaining=6000, kind="requests") | told(limit=600_000, remaining=600_000), 0.0)
    assert limiter.limits == (6000, 600_000)
    assert used(limiter, 60, 0.0, headers=told(limit=600_000, remaining=600_000)) >= 0.97 * 600_000
    limiter.answered(told(limit=600, remaining=600), 60.0)
    assert used(limiter, 600, 300.0, tokens=50) <= 600


def test_what_remains_is_not_exceeded_and_counts_what_is_on_its_way() -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    limiter.answered(told(remaining=100), 0.0)
    assert limiter.acquire(100, 0.0) == 0
    assert limiter.acquire(100, 0.0) == pytest.approx(0.1)
    limiter = RateLimiter(RPM, TPM, 0.0)
    assert limiter.acquire(1000, 0.5) == 0
    limiter.answered(told(remaining=1500), 0.5, sent_at=0.0)  # a second's half of refill, and that grant
    assert limiter.acquire(1001, 0.5) > 0
    assert limiter.acquire(1000, 0.5) == 0


@pytest.mark.parametrize(
    ("remaining", "part", "urgent"),
    [(1.0, 1, False), (0.85, 1, False), (0.6, 0.5, False), (0.35, RATE_MIN, False), (0.0, RATE_MIN, False),
     (0.6, 1, True), (0.25, 1, True), (0.15, 0.5, True), (0.0, RATE_MIN, True)],
)  # fmt: skip
def test_ingest_goes_slower_the_less_is_left_and_queries_much_later(
    remaining: float, part: float, urgent: bool
) -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    limiter.acquire(6_100 if urgent else 1_300, 0.0, is_urgent=urgent)  # more by 100 than what may be had at once
    limiter.answered(told(remaining=remaining * TPM), 0.0)
    assert limiter.acquire(1, 0.0, is_urgent=urgent) == pytest.approx(0.1 / part)


def test_a_query_overtakes_a_backlog_and_finds_room_in_a_minute_that_is_used_up() -> None:
    limiter, waits = RateLimiter(RPM, TPM, 0.0), []
    now = 0.0
    while now < 120:
        now = granted(limiter, 3000, now)
        limiter.answered(told(), now)
        assert limiter.acquire(3000, now, who="backlog") > 0
        waits += [limiter.acquire(20, now, is_urgent=True) for _ in range(3)]
    assert max(waits) == 0


def test_two_users_of_one_key_share_it_evenly_and_none_is_refused() -> None:
    level, now, both = TPM, 0.0, [RateLimiter(RPM, TPM, 0.0), RateLimiter(RPM, TPM, 0.0)]
    taken = [0, 0]
    for step in range(6000):  # of 0.1 s
        now, level = step / 10, min(TPM, level + TPM / 600)
        for user, limiter in enumerate(both):
            if limiter.acquire(2000, now) == 0:
                assert level >= 2000
                level -= 2000
                taken[user] += 2000
                limiter.answered(told(remaining=level), now)
    assert taken[0] == pytest.approx(taken[1], rel=0.05)
    assert sum(taken) - (TPM - level) >= 0.97 * 10 * TPM  # of ten minutes, without what the full bucket held


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
    limiter.throttled({}, 10.0, 0.1)  # the same event: pauses no less and slows no more
    assert limiter.acquire(1, 0.1, who="the only one") == 19.9
    assert granted(limiter, 2200, 20.0) == 20
    assert limiter.acquire(1, 20.0, who="the only one") == pytest.approx(1 / 0.7)
    for second in range(21, 60):
        limiter.answered({}, float(second))
    assert granted(limiter, 2200, 100.0) == 100
    assert limiter.acquire(1, 100.0) == pytest.approx(1.0)


def test_a_refusal_that_tells_what_is_left_slows_less() -> None:
    limiter = RateLimiter(RPM, TPM, 0.0)
    limiter.throttled(told(), 0.0, 0.0)
    limiter.acquire(2200, 0.0)
    assert limiter.acquire(1, 0.0) == pytest.approx(1 / 0.9)


def test_a_clock_that_steps_back_grants_nothing_extra() -> None:
    limiter = RateLimiter(RPM, TPM, 100.0)
    limiter.acquire(2200, 100.0)
    assert limiter.acquire(2200, 40.0) == pytest.approx(1.0)


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

"""Circuit breakers: who may ask a system that fails for all, and when."""

from __future__ import annotations

from shoal.actors.breaker import FIRST_PAUSE_S, OPEN_AFTER, PAUSE_MAX_S, PROBE_S, Breakers
from shoal.errors import TransientError


def opened(now: float = 0.0) -> Breakers:
    breakers = Breakers()
    for number in range(OPEN_AFTER):
        breakers.failed("s3://b", f"k{number}", TransientError("503"), None, now)
    return breakers


def test_a_few_failures_between_successes_open_nothing() -> None:
    breakers = Breakers()
    for number in range(100):
        breakers.failed("s3://b", "bad", TransientError("403"), None, number)
        if number % (OPEN_AFTER - 1) == 0:
            breakers.succeeded("s3://b", "good")
    assert breakers.open(100) == {}
    assert breakers.wait_s("s3://b", "any", 100) == 0


def test_failures_in_a_row_make_everyone_wait_and_say_why() -> None:
    breakers = opened()
    assert breakers.wait_s("s3://b", "k", 0.1) > 0
    assert breakers.open(12.0) == {"s3://b": "503 (for 12 s)"}
    assert breakers.wait_s("s3://other", "k", 0.1) == 0, "other buckets go on"


def test_after_the_pause_one_probes_and_the_others_wait_for_it() -> None:
    breakers = opened()
    due = FIRST_PAUSE_S
    assert breakers.wait_s("s3://b", "first", due) == 0
    assert breakers.wait_s("s3://b", "second", due) > 0
    breakers.succeeded("s3://b", "first")
    assert breakers.wait_s("s3://b", "second", due) == 0
    assert breakers.open(due) == {}


def test_a_failing_probe_lengthens_the_pause_up_to_a_bound() -> None:
    breakers, now, pauses = opened(), FIRST_PAUSE_S, []
    for number in range(8):
        assert breakers.wait_s("s3://b", f"probe {number}", now) == 0
        breakers.failed("s3://b", f"probe {number}", TransientError("503"), None, now)
        began = now
        while breakers.wait_s("s3://b", f"probe {number + 1}", now):
            now += 0.25
        breakers.left("s3://b", f"probe {number + 1}")
        pauses.append(now - began)
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSE_MAX_S


def test_a_system_that_names_a_delay_is_obeyed() -> None:
    breakers = opened()
    assert breakers.wait_s("s3://b", "k", FIRST_PAUSE_S) == 0
    breakers.failed("s3://b", "k", TransientError("slow down"), 30.0, FIRST_PAUSE_S)
    assert breakers.wait_s("s3://b", "other", FIRST_PAUSE_S + 29) > 0
    assert breakers.wait_s("s3://b", "other", FIRST_PAUSE_S + 30) == 0


def test_a_delay_that_a_system_names_does_not_grow() -> None:
    breakers, now = opened(), FIRST_PAUSE_S
    for number in range(6):  # as one asks for an actor that is being begun again
        assert breakers.wait_s("s3://b", f"probe {number}", now) == 0
        breakers.failed("s3://b", f"probe {number}", TransientError("writer is down"), 0.5, now)
        now += 0.5
    assert breakers.wait_s("s3://b", "last", now) == 0


def test_a_key_that_failed_its_probe_lets_those_who_wait_go_first() -> None:
    breakers = opened()
    assert breakers.wait_s("s3://b", "bad", FIRST_PAUSE_S) == 0
    breakers.failed("s3://b", "bad", TransientError("403"), None, FIRST_PAUSE_S)
    later = FIRST_PAUSE_S + 3 * FIRST_PAUSE_S
    assert breakers.wait_s("s3://b", "good", later - 0.5) >= 0
    assert breakers.wait_s("s3://b", "bad", later) > 0
    assert breakers.wait_s("s3://b", "good", later) == 0


def test_a_probe_that_was_abandoned_or_never_answers_blocks_nobody() -> None:
    breakers = opened()
    assert breakers.wait_s("s3://b", "abandoned", FIRST_PAUSE_S) == 0
    breakers.left("s3://b", "abandoned")
    assert breakers.wait_s("s3://b", "silent", FIRST_PAUSE_S) == 0
    assert breakers.wait_s("s3://b", "next", FIRST_PAUSE_S + PROBE_S - 1) > 0
    assert breakers.wait_s("s3://b", "next", FIRST_PAUSE_S + PROBE_S) == 0


def test_a_breaker_that_nobody_waits_at_any_more_is_forgotten() -> None:
    breakers = Breakers()
    for bucket in range(50):  # names come from messages
        for number in range(OPEN_AFTER):
            breakers.failed(f"s3://typo{bucket}", f"k{number}", TransientError("no such bucket"), None, 0.0)
        for number in range(OPEN_AFTER):
            breakers.left(f"s3://typo{bucket}", f"k{number}")
    assert breakers.open(1.0) == {}
    assert breakers.error("s3://typo1") is None

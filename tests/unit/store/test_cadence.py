"""Cadence: a feed is measured against its own history."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.store.cadence import (
    ARRIVALS_MAX,
    ARRIVALS_MIN,
    BURST_S,
    FLOOR_S,
    arrivals_of,
    cadence,
    rhythm,
)

T0 = 1_700_000_000.0
HOUR_S, DAY_S = 3600.0, 86_400.0

times = st.lists(st.floats(T0, T0 + 90 * DAY_S), min_size=1, max_size=120)
gaps = st.lists(st.floats(2 * BURST_S, 3 * DAY_S), min_size=ARRIVALS_MIN - 1, max_size=60)


def after(start_s: float, gaps_s: list[float]) -> list[float]:
    found = [start_s]
    for gap_s in gaps_s:
        found.append(found[-1] + gap_s)
    return found


@settings(deadline=None)
@given(times, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(found: list[float], rng: random.Random) -> None:
    now_s = max(found) + HOUR_S
    shuffled = rng.sample(found, len(found))
    assert cadence(shuffled, now_s) == cadence(found, now_s)


@settings(deadline=None)
@given(times, st.floats(0, 90 * DAY_S), st.floats(0, 90 * DAY_S))
def test_what_is_overdue_stays_so_until_it_arrives_again(found: list[float], earlier: float, later: float) -> None:
    one, other = (cadence(found, max(found) + wait) for wait in sorted((earlier, later)))
    assert not one.overdue or other.overdue
    assert one.rhythm == other.rhythm


@settings(deadline=None)
@given(times)
def test_a_feed_that_just_arrived_is_not_overdue(found: list[float]) -> None:
    now = cadence(found, max(found))
    assert not now.overdue
    assert now.silent_s == 0
    assert not cadence(found, max(found) + FLOOR_S).overdue, "nor within the floor"


@settings(deadline=None)
@given(times)
def test_too_few_arrivals_tell_nothing(found: list[float]) -> None:
    known = cadence(found, max(found) + 365 * DAY_S)
    assert (known.rhythm is None) == (len(arrivals_of(found)) < ARRIVALS_MIN)
    assert (known.overdue is None) == (known.rhythm is None)


@settings(deadline=None)
@given(st.floats(2 * BURST_S, 7 * DAY_S), st.integers(ARRIVALS_MIN, 60))
def test_a_regular_feed_is_overdue_after_three_of_its_gaps_and_not_before(every_s: float, count: int) -> None:
    found = after(T0, [every_s] * (count - 1))
    bound_s = max(3 * every_s, FLOOR_S)
    assert not cadence(found, found[-1] + 0.99 * bound_s).overdue
    assert cadence(found, found[-1] + 1.01 * bound_s).overdue


@settings(deadline=None)
@given(gaps, st.lists(st.floats(0, BURST_S / 2), min_size=1, max_size=30))
def test_files_of_one_burst_are_one_arrival(gaps_s: list[float], spread_s: list[float]) -> None:
    starts = after(T0, gaps_s)
    single = cadence(starts, starts[-1] + HOUR_S).rhythm
    assert single is not None
    burst = cadence([at + s for at in starts for s in (0.0, *spread_s)], starts[-1] + HOUR_S).rhythm
    assert burst is not None
    assert burst.arrivals == single.arrivals
    assert burst.median_gap_s == pytest.approx(single.median_gap_s, abs=1)


@settings(deadline=None)
@given(st.lists(st.floats(2 * BURST_S, 3 * DAY_S), min_size=12, max_size=60), st.floats(30 * DAY_S, 300 * DAY_S))
def test_one_outage_in_a_long_history_does_not_make_the_feed_slower(gaps_s: list[float], outage_s: float) -> None:
    usual = rhythm(after(T0, gaps_s))
    with_outage = rhythm(after(T0, [*gaps_s[:6], outage_s, *gaps_s[6:]]))
    assert usual is not None
    assert with_outage is not None
    assert with_outage.overdue_after_s <= max(3 * max(gaps_s), FLOOR_S) + 1, "the outage itself is nowhere in the bound"


@settings(deadline=None)
@given(times, st.lists(st.floats(1.0, 900 * DAY_S), max_size=10))
def test_arrivals_from_the_future_count_for_nothing(found: list[float], ahead: list[float]) -> None:
    now_s = max(found)
    assert cadence([*found, *(now_s + by for by in ahead)], now_s) == cadence(found, now_s)


@settings(deadline=None)
@given(times)
def test_bursts_are_in_order_apart_and_lose_no_end(found: list[float]) -> None:
    arrivals = arrivals_of(found)
    assert arrivals == sorted(set(arrivals))
    assert arrivals[-1] == max(found)
    assert set(arrivals) <= set(found)


def test_a_file_each_half_minute_is_not_one_endless_burst() -> None:
    found = [T0 + 30 * n for n in range(200)]
    usual = cadence(found, found[-1]).rhythm
    assert usual is not None
    assert usual.median_gap_s == BURST_S


def test_nights_and_weekends_are_a_habit_and_no_silence() -> None:
    """An hourly feed of working hours, over three weeks: its nights and its weekends are longer than three hours."""
    open_hours = [day * DAY_S + hour * HOUR_S for day in range(19) if day % 7 < 5 for hour in range(8, 19)]
    found = [T0 + at for at in open_hours]
    friday_evening = found[-1]
    assert not cadence(found, friday_evening + 2.5 * DAY_S).overdue, "until Monday"
    assert cadence(found, friday_evening + 4 * DAY_S).overdue


def test_the_memory_of_a_feed_is_bounded() -> None:
    found = [T0 + n * HOUR_S for n in range(5 * ARRIVALS_MAX)]
    assert arrivals_of(found) == found[-ARRIVALS_MAX:]

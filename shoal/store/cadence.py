"""Cadence: how often a feed delivers, judged by its own history, and when its silence is longer than it should be.

Pure. Nobody configures an interval: each feed is measured against itself. Files that arrive within one minute are
one arrival. A silence counts as overdue when it is beyond all of: three usual gaps, half again the gap that one in
ten exceeds, a bit more than a gap that it had at least twice before (nights and weekends are a habit, one outage
is not), and a floor. With fewer than four arrivals nothing is said: false alarms teach people to look away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

BURST_S = 60.0
ARRIVALS_MIN = 4
RECENT_MAX = 50  # arrivals that say how often it comes now
ARRIVALS_MAX = 400  # arrivals that say which silences it is used to: two weekends of an hourly feed
FLOOR_S = 900.0  # nobody is woken for a quarter of an hour; restarts of a scraper take minutes
_MEDIANS, _P90S, _HABITS = 3.0, 1.5, 1.2


@dataclass(frozen=True, slots=True)
class Rhythm:
    """What is usual for a feed; seconds."""

    arrivals: int
    median_gap_s: float
    p90_gap_s: float
    overdue_after_s: float


@dataclass(frozen=True, slots=True)
class Cadence:
    """A feed at a moment. `rhythm` and `overdue` are None while too little is known."""

    last_s: float | None
    silent_s: float | None
    rhythm: Rhythm | None
    overdue: bool | None


def cadence(arrivals_s: Iterable[float], now_s: float) -> Cadence:
    """The cadence of a feed with these arrival times (seconds since 1970, in any order, repeats allowed) at `now_s`.
    Arrivals after `now_s` are a clock's mistake and count for nothing."""
    arrivals = arrivals_of(at_s for at_s in arrivals_s if at_s <= now_s)
    return judged(rhythm(arrivals), arrivals[-1] if arrivals else None, now_s)


def judged(usual: Rhythm | None, last_s: float | None, now_s: float) -> Cadence:
    """A feed with a known rhythm, at `now_s`."""
    silent_s = None if last_s is None else max(0.0, now_s - last_s)
    overdue = None if usual is None or silent_s is None else silent_s > usual.overdue_after_s
    return Cadence(last_s, silent_s, usual, overdue)


def arrivals_of(times_s: Iterable[float]) -> list[float]:
    """`times_s` in order, where what comes within `BURST_S` of a burst's first belongs to it; a burst stands at its
    last time. The newest `ARRIVALS_MAX`. Not chained: a file each half minute is an arrival each minute."""
    bursts: list[list[float]] = []
    for at_s in sorted(times_s):
        if bursts and at_s - bursts[-1][0] < BURST_S:
            bursts[-1][1] = at_s
        else:
            bursts.append([at_s, at_s])
    return [last_s for _, last_s in bursts[-ARRIVALS_MAX:]]


def rhythm(arrivals_s: list[float]) -> Rhythm | None:
    """Of arrivals as `arrivals_of` gives them; None where they are too few."""
    if len(arrivals_s) < ARRIVALS_MIN:
        return None
    gaps = [later - earlier for earlier, later in pairwise(arrivals_s)]
    recent = sorted(gaps[-(RECENT_MAX - 1) :])
    median, p90 = _quantile(recent, 0.5), _quantile(recent, 0.9)
    habit = sorted(gaps)[-2]
    after = max(_MEDIANS * median, _P90S * p90, _HABITS * habit, FLOOR_S)
    return Rhythm(len(arrivals_s), round(median, 1), round(p90, 1), round(after, 1))


def _quantile(ordered: list[float], share: float) -> float:
    """Nearest rank: always a gap that there was."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

"""Reads columns of times as scrapers meet them: ISO 8601, day-first, month-first, named months, epochs and others.

The others are ASP.NET's dates and those in Korean, Japanese and Chinese. A column is read as a whole, since
`03/04/2025` alone says nothing: the order that all values allow wins, and where both do, the one under which the
values lie closer together. Times without a zone stay without one. Never raises; what is no column of times gives
None.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median

_TIME = r"(?:[ T,;]+(\d{1,2})[:h.](\d{2})(?::(\d{2})(?:[.,]\d+)?)?\s*([AaPp])?\.?(?:[Mm]\.?)?)?"
_ZONE = r"(?:\s*(?:Z|[A-Z]{2,5}|\(?(?:UTC|GMT)?[+-]\d{1,2}:?\d{0,2}\)?))?"
_NUMERIC = re.compile(rf"(\d{{1,4}})([/.\-])(\d{{1,2}})\2(\d{{1,4}})\.?{_TIME}{_ZONE}", re.ASCII)
_NAMED = re.compile(
    rf"(?:[A-Za-z]{{3,9}},?\s+)?(?:(\d{{1,2}})(?:st|nd|rd|th)?[\s\-/]+([A-Za-z]{{3,9}})\.?|([A-Za-z]{{3,9}})\.?\s+(\d{{1,2}})(?:st|nd|rd|th)?)"
    rf"[,\s\-/]+(\d{{4}}|\d{{2}})(?:\s+-\s+Interval)?{_TIME}{_ZONE}",
    re.ASCII,
)
# 2023년 09월 01일(금) 00시 05분, 2023年9月1日 0時5分
_EAST_ASIAN = re.compile(
    r"(\d{4})\s?[년年]\s?(\d{1,2})\s?[월月]\s?(\d{1,2})\s?[일日]\s?(?:[(（][^)）]{1,3}[)）])?"
    r"(?:\s*(오전|오후|午前|午後)?\s*(\d{1,2})\s?[시時时点](?:\s?(\d{1,2})\s?[분分])?(?:\s?(\d{1,2})\s?[초秒])?)?"
)
_YEAR_MONTH = re.compile(r"(\d{4})-(\d{2})", re.ASCII)
_COMPACT = re.compile(
    r"((?:19|20)\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?:[T ]?([01]\d|2[0-4])([0-5]\d)([0-5]\d)?)?Z?", re.ASCII
)
_ASP = re.compile(r"/Date\((-?\d{9,14})(?:[+-]\d{4})?\)/", re.ASCII)
_ISO_START = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_CLOCK = re.compile(r"(?:[01]?\d|2[0-4]):[0-5]\d(?::[0-5]\d)?", re.ASCII)
_MONTHS = {
    m: i + 1 for i, m in enumerate(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"])
}
_SHORT_YEAR_PIVOT = 70
# Epochs of 1990 to 2100; shorter numbers are quantities.
_EPOCH_S = (631_152_000, 4_102_444_800)

_STEPS = (
    (60, "1-minute"), (120, "2-minute"), (240, "4-minute"), (300, "5-minute"), (600, "10-minute"), (900, "15-minute"),
    (1200, "20-minute"), (1800, "half-hourly"), (3600, "hourly"), (7200, "2-hourly"), (10800, "3-hourly"),
    (21600, "6-hourly"), (43200, "12-hourly"), (86400, "daily"), (604800, "weekly"),
    (2_629_800, "monthly"), (7_889_400, "quarterly"), (31_557_600, "yearly"),
)  # fmt: skip


def parse_times(values: Sequence[str]) -> list[datetime] | None:
    """`values` as times, in order; None unless nearly all (95 %) are. Values are stripped and not empty."""
    if not values or len(values[0]) > 48 or len(values[0]) < 6:
        return None
    for parse in (_iso, _numeric, _named, _compact, _asp, _east_asian):
        first = parse(values[:1])
        if first is None:
            continue
        times = parse(values)
        if times is not None:
            return times
    return None


def parse_epochs(values: Sequence[int | float]) -> tuple[list[datetime], str] | None:
    """Numbers as seconds or milliseconds since 1970, and which; None unless all lie in 1990 to 2100."""
    low, high = min(values), max(values)
    for scale, unit in ((1, "epoch s"), (1000, "epoch ms")):
        if _EPOCH_S[0] * scale <= low and high <= _EPOCH_S[1] * scale:
            return [datetime.fromtimestamp(value / scale, UTC) for value in values], unit
    return None


def is_clock(value: str) -> bool:
    """A time of day without a date, like 00:30."""
    return _CLOCK.fullmatch(value) is not None


def show(time: datetime) -> str:
    """ISO 8601 to the minute, or the date alone at midnight without a zone's shift."""
    if time.hour == time.minute == time.second == 0:
        return time.date().isoformat()
    text = time.isoformat(timespec="seconds" if time.second else "minutes")
    return text.replace("+00:00", "Z")


def step(times: Sequence[datetime]) -> str | None:
    """The usual distance of the distinct times, in words like `hourly`, or None where there is none."""
    distinct = sorted({_seconds(time) for time in times})
    if len(distinct) < 3:
        return None
    gaps = [b - a for a, b in pairwise(distinct)]
    usual = median(gaps)
    if sum(abs(gap - usual) <= 0.15 * usual for gap in gaps) < 0.6 * len(gaps):
        return None
    for seconds, name in _STEPS:
        if abs(usual - seconds) <= 0.04 * seconds:
            return name
    return None


def comparable(time: datetime) -> datetime:
    """`time` with a zone, so that any two compare."""
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _seconds(time: datetime) -> float:
    return comparable(time).timestamp()


def _iso(values: Sequence[str]) -> list[datetime] | None:
    found: list[datetime] = []
    missed = 0
    for value in values:
        try:
            if not _ISO_START.match(value):
                raise ValueError
            found.append(datetime.fromisoformat(value))
        except ValueError:
            if (match := _YEAR_MONTH.fullmatch(value)) and 1 <= int(match[2]) <= 12 and 1900 <= int(match[1]) <= 2100:
                found.append(datetime(int(match[1]), int(match[2]), 1))
                continue
            if found and (retry := _numeric([value])):  # 2025-01-20 24:00
                found += retry
                continue
            missed += 1
            if missed > max(0, len(values) // 20):
                return None
    return found or None


def _numeric(values: Sequence[str]) -> list[datetime] | None:
    parts: list[tuple[int, int, int, int, int, int, bool]] = []
    missed = 0
    for value in values:
        match = _NUMERIC.fullmatch(value)
        if match is None:
            missed += 1
            if missed > len(values) // 20:
                return None
            continue
        a, _, b, c, hour, minute, second, half = match.groups()
        h = int(hour or 0)
        if half:
            h = h % 12 + (12 if half in "Pp" else 0)
        parts.append((int(a), int(b), int(c), h, int(minute or 0), int(second or 0), len(a) == 4))
    if not parts:
        return None
    if parts[0][6]:
        return _built((y, m, d, h, mi, s) for y, m, d, h, mi, s, _ in parts)
    month_first = _built((_year(c), a, b, h, mi, s) for a, b, c, h, mi, s, _ in parts)
    day_first = _built((_year(c), b, a, h, mi, s) for a, b, c, h, mi, s, _ in parts)
    if month_first and day_first:
        return month_first if _span(month_first) <= _span(day_first) else day_first
    return month_first or day_first


def _named(values: Sequence[str]) -> list[datetime] | None:
    rows = []
    missed = 0
    for value in values:
        match = _NAMED.fullmatch(value)
        month = _MONTHS.get((match[2] or match[3])[:3].lower()) if match else None
        if match is None or month is None:
            missed += 1
            if missed > len(values) // 20:
                return None
            continue
        hour = int(match[6] or 0)
        if match[9]:
            hour = hour % 12 + (12 if match[9] in "Pp" else 0)
        day = int(match[1] or match[4])
        rows.append((_year(int(match[5])), month, day, hour, int(match[7] or 0), int(match[8] or 0)))
    return _built(iter(rows))


def _compact(values: Sequence[str]) -> list[datetime] | None:
    matches = [_COMPACT.fullmatch(value) for value in values]
    if not all(matches):
        return None
    return _built(tuple(int(part or 0) for part in match.groups()) for match in matches if match)


def _asp(values: Sequence[str]) -> list[datetime] | None:
    matches = [_ASP.fullmatch(value) for value in values]
    if not all(matches):
        return None
    epochs = parse_epochs([int(match[1]) for match in matches if match])
    return epochs[0] if epochs else None


def _east_asian(values: Sequence[str]) -> list[datetime] | None:
    rows = []
    missed = 0
    for value in values:
        match = _EAST_ASIAN.fullmatch(value)
        if match is None:
            missed += 1
            if missed > len(values) // 20:
                return None
            continue
        year, month, day, half, hour, minute, second = match.groups()
        h = int(hour or 0)
        if half:
            h = h % 12 + (12 if half in ("오후", "午後") else 0)
        rows.append((int(year), int(month), int(day), h, int(minute or 0), int(second or 0)))
    return _built(rows)


def _built(rows: Iterable[Sequence[int]]) -> list[datetime] | None:
    times = []
    try:
        for year, month, day, hour, minute, second in rows:
            if not 1900 <= year <= 2200:
                return None
            late = hour == 24  # hour ending 24
            time = datetime(year, month, day, 0 if late else hour, minute, min(second, 59))
            times.append(time + timedelta(days=1) if late else time)
    except (ValueError, OverflowError):
        return None
    return times or None


def _year(year: int) -> int:
    return year if year >= 100 else year + (1900 if year >= _SHORT_YEAR_PIVOT else 2000)


def _span(times: Sequence[datetime]) -> timedelta:
    return max(times) - min(times)

"""One column of scalars in, one FieldProfile out: the type, the range, the sample of values, the unit.

Shared by the JSON reader, tables and spreadsheets. Counts are of all values given; ranges of numbers too; what
costs more per value (times, distinct text) is read from at most `SAMPLE_MAX` values spread over the column with
both ends in it. Never raises.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from html import unescape
from typing import TypeVar, cast

from shoal.documents import times
from shoal.documents.charset import repair_mojibake
from shoal.documents.content import FieldProfile
from shoal.documents.words import split_words, unit_of

_T = TypeVar("_T")

SAMPLE_MAX = 3000  # times and texts read per column: 3 ms of work; fewer would miss rare enum values
VALUES_MAX = 24  # an enum of at most this many is kept whole
EXAMPLES_MAX = 6
TIMES_SHOWN = 8
VALUE_CHARS_MAX = 72
PROSE_CHARS_MIN = 40
PROSE_WORDS_MIN = 6  # names of companies have five
_NO_TIME = ("0001-01-01", "/Date(-62135")  # .NET's way to say that there is none

# Checked in lower case. ND is "no data" and "no disponible".
_MISSING_TEXT = "- -- --- n/a na n.a. nan nd n.d. null none nil #n/a .. ... ? undefined x *"
_MISSING = frozenset(["", *_MISSING_TEXT.split()])
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?(?:\d{1,3}(?:[. ]\d{3})+|\d+)(?:,\d+)?", re.ASCII)
_NUMBER_START = re.compile(r"[-+(]?[.\d]")
_DECORATION = re.compile(r"^[($€£¥\s]+|[)%€£\s]+$")
_TAG = re.compile(r"<[^<>]{0,300}>")
_LETTERS = re.compile(r"[^\W\d_]")
_TIME_WORDS_TEXT = """
time date datetime timestamp ts epoch fecha hora momento instante created updated modified start end begin from
to at period interval day last expires published x t
"""
_TIME_WORDS = frozenset(_TIME_WORDS_TEXT.split())
_IDENTIFIER = re.compile(r"(?=[^\s]{16,}$)(?=.*\d)[0-9A-Za-z_\-+/=.:{}#]+$")


@dataclass(frozen=True, slots=True)
class Column:
    """A profile, and the texts of the column that are worth quoting.

    The profile of times holds its first distinct times as values, from which the step of a series can be read.
    """

    profile: FieldProfile
    prose: tuple[str, ...] = ()


def profile(path: str, values: Sequence[object], *, count: int | None = None, name: str | None = None) -> Column:
    """The profile of `values` (str, int, float, bool or None). `count` where `values` is a sample of more.

    `name` is the last word of the path, for units and the meaning of bare numbers.
    """
    name = path if name is None else name
    total = len(values) if count is None else count
    kinds = set(map(type, values))
    numbers: list[float] = []
    texts: list[str] = []
    booleans = 0
    if kinds <= {int, float}:
        numbers = cast("list[float]", list(values))
    elif kinds == {str}:
        texts = cast("list[str]", list(values))
    else:
        for value in values:
            if isinstance(value, bool):
                booleans += 1
            elif isinstance(value, (int, float)):
                numbers.append(value)
            elif isinstance(value, str):
                texts.append(value)
    unit = unit_of(name)
    columns = []
    if numbers:
        columns.append(_of_numbers(path, numbers, total, name, unit))
    if texts:
        column = _of_texts(path, texts, total, name, unit)
        if column is not None:
            columns.append(column)
    if booleans:
        columns.append(Column(FieldProfile(path, "boolean", total)))
    if not columns:
        return Column(FieldProfile(path, "null", total))
    if len(columns) == 1:
        return columns[0]
    first, rest = columns[0], columns[1:]
    kinds_text = "|".join(dict.fromkeys(column.profile.type for column in columns))
    merged = FieldProfile(
        path,
        kinds_text,
        total,
        first.profile.low,
        first.profile.high,
        tuple(value for column in rest for value in column.profile.values),
        first.profile.unit,
    )
    return Column(merged, tuple(text for column in columns for text in column.prose))


def spread(values: Sequence[_T], most: int) -> Sequence[_T]:
    """At most `most` of `values`, evenly spread, the first and the last among them."""
    n = len(values)
    if n <= most:
        return values
    stride = (n - 1) / (most - 1)
    return [values[round(i * stride)] for i in range(most)]


def is_prose(text: str) -> bool:
    """Several words, mostly letters: a sentence somebody wrote, not a code or a number."""
    if len(text) < PROSE_CHARS_MIN:
        return False
    sample = text[:400]
    return sample.count(" ") >= PROSE_WORDS_MIN - 1 and len(_LETTERS.findall(sample)) > 0.6 * len(sample)


def show_number(value: float) -> str:
    """Few digits, no exponent where a person would write none."""
    if isinstance(value, int):
        return str(value) if abs(value) < 10**15 else _exponent(value)
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return (
        f"{value:.4g}"
        if abs(value) < 1000
        else f"{value:.1f}".removesuffix(".0")
        if abs(value) < 1e15
        else _exponent(value)
    )


def to_numbers(texts: Sequence[str]) -> list[float] | None:
    """Texts as numbers: plain, with thousands separators, with a decimal comma, with a currency or percent sign.

    None unless all are. The reading holds for the whole column: `1.234` beside `1,5` is a thousand.
    """
    try:
        numbers = list(map(float, texts))
        return [number for number in numbers if math.isfinite(number)] or None
    except ValueError:
        pass
    bare = [_DECORATION.sub("", text).replace("\u2212", "-").replace("\xa0", " ") for text in texts]
    if all(_THOUSANDS.fullmatch(text) or _plain(text) for text in bare):
        return [float(text.replace(",", "")) for text in bare]
    if all(_DECIMAL_COMMA.fullmatch(text) for text in bare):
        return [float(text.replace(".", "").replace(" ", "").replace(",", ".")) for text in bare]
    return None


def is_missing(text: str) -> bool:
    return len(text) <= 9 and text.strip().lower() in _MISSING


def _of_numbers(path: str, numbers: list[float], total: int, name: str, unit: str | None) -> Column:
    finite = [n for n in numbers if isinstance(n, int) or math.isfinite(n)] if _any_float(numbers) else numbers
    if not finite:
        return Column(FieldProfile(path, "number", total))
    low, high = min(finite), max(finite)
    named_time = any(word in _TIME_WORDS for word in split_words(name))
    if low > 6e8 and (named_time or low > 6e11):
        sample = spread(finite, SAMPLE_MAX)
        if (epochs := times.parse_epochs(sample)) is not None:
            return _of_times(path, epochs[0], total, epochs[1])
    if named_time and low >= 19_000_101 and high <= 22_001_231 and all(isinstance(n, int) for n in finite[:50]):
        dates = times.parse_times([str(n) for n in spread(finite, SAMPLE_MAX)])
        if dates is not None:
            return _of_times(path, dates, total, None)
    kind = "integer" if all(type(n) is int or n == int(n) for n in finite[:500]) else "number"
    distinct = len(set(finite)) if len(finite) <= 2000 else None
    return Column(FieldProfile(path, kind, total, show_number(low), show_number(high), (), unit, distinct))


def _of_times(path: str, found: list[datetime], total: int, unit: str | None) -> Column:
    moments = [times.comparable(moment) for moment in found]
    low, high = min(moments), max(moments)
    by_moment = dict(zip(moments, found, strict=True))
    shown = (times.show(by_moment[low]), times.show(by_moment[high]))
    first = tuple(dict.fromkeys(times.show(moment) for moment in found[:400]))[:TIMES_SHOWN]
    return Column(FieldProfile(path, "date-time", total, *shown, first, unit, len(by_moment)))


def _of_texts(path: str, texts: list[str], total: int, name: str, unit: str | None) -> Column | None:
    sample = [text.strip() for text in spread(texts, SAMPLE_MAX)]
    present = [text for text in sample if not is_missing(text) and not text.startswith(_NO_TIME)]
    if not present:
        return None
    if (found := _times_of(present, name)) is not None:
        return _of_times(path, found, total, None)
    if len(present[0]) <= 40 and (numbers := _numbers_of(texts if len(texts) <= 50_000 else sample)) is not None:
        if all("%" in text for text in present[:5]):
            unit = unit or "%"
        return _of_numbers(path, numbers, total, name, unit)
    if len(present) > 4 and (mixed := _mostly_numbers(path, present, total, name, unit)) is not None:
        return mixed
    lowered = {text.lower() for text in present[:50]}
    if lowered <= {"true", "false", "yes", "no"}:
        return Column(FieldProfile(path, "boolean", total))
    if all(times.is_clock(text) for text in present[:200]):
        clocks = sorted(text.zfill(5) for text in present if times.is_clock(text))
        return Column(FieldProfile(path, "string", total, clocks[0], clocks[-1], (), "time of day"))
    counts = Counter(present)
    few = len(counts) <= VALUES_MAX
    usual = counts if few else [text for text, _ in counts.most_common(4 * EXAMPLES_MAX)]
    plain = [shown for text in usual if (shown := _shown(text)) and (few or _tells(shown))]
    values = tuple(dict.fromkeys(plain))[
        : VALUES_MAX if few else EXAMPLES_MAX if len(counts) > 200 else 2 * EXAMPLES_MAX
    ]
    prose = tuple(dict.fromkeys(said for text in counts if is_prose(text) and is_prose(said := readable(text))))
    distinct = len(counts) if len(texts) <= SAMPLE_MAX else None
    return Column(FieldProfile(path, "string", total, None, None, values, unit, distinct), prose[:200])


def _mostly_numbers(path: str, present: list[str], total: int, name: str, unit: str | None) -> Column | None:
    """A column of numbers with a few words in it (notes, totals, a second header)."""
    probe = spread(present, 40)
    if sum(_NUMBER_START.match(str(text)) is not None for text in probe) < 0.5 * len(probe):
        return None
    numbers: list[float] = []
    words: Counter[str] = Counter()
    for text in present:
        found = to_numbers([text]) if len(text) < 32 else None
        if found:
            numbers += found
        else:
            words[text] += 1
    if len(numbers) < 0.6 * len(present) or len(words) > 12:
        return None
    column = _of_numbers(path, numbers, total, name, unit)
    values = tuple(shown for text in words if (shown := _shown(text)))[:EXAMPLES_MAX]
    return Column(replace(column.profile, type=f"{column.profile.type}|string", values=values))


def _times_of(present: list[str], name: str) -> list[datetime] | None:
    first = present[0]
    if not first[:1].isdigit() and not first[:1].isalpha() and not first.startswith("/Date("):
        return None
    if first.isdigit() and not (len(first) in (8, 12, 14) and _says_time(name)):
        return None
    return times.parse_times(present)


def _says_time(name: str) -> bool:
    """A bare 20250120 is a date only under a name that says so, in the languages of the feeds we know."""
    words = split_words(name)
    return any(word in _TIME_WORDS for word in words) or any(sign in name for sign in "日付時年月")


def _numbers_of(texts: Sequence[str]) -> list[float] | None:
    try:
        numbers = list(map(float, texts))
        return [number for number in numbers if math.isfinite(number)] or None
    except ValueError:
        pass
    present = [text for text in map(str.strip, texts) if not is_missing(text)]
    if present and (numbers_or_none := to_numbers(present)) is not None:
        return numbers_or_none
    return None


def readable(text: str) -> str:
    """`text` without markup, and with double encoding undone."""
    text = repair_mojibake(text)
    return " ".join(unescape(_TAG.sub(" ", text)).split()) if "<" in text else text


def _tells(text: str) -> bool:
    """Of very many values only words are worth an example, numbers of devices are not."""
    return not text.isascii() or sum(map(str.isalpha, text)) >= 0.4 * len(text)


def _shown(text: str) -> str | None:
    if is_prose(text):
        return None
    text = readable(text)
    if not text or _IDENTIFIER.match(text):
        return None
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 1] + "…"


def _plain(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _any_float(numbers: Sequence[float]) -> bool:
    return any(type(number) is float for number in numbers)


def _exponent(value: float) -> str:
    try:
        return f"{float(value):.3g}"
    except OverflowError:
        return f"{'-' if value < 0 else ''}1e{int(abs(value)).bit_length() * 30103 // 100000}"

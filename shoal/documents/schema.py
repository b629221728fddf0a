"""Field profiles as JSON to store (`content_schema`) and as readable lines to embed.

Lines are grouped: fields under one parent path share its name, and long runs of like columns (hours, borders,
plants) become one line with the names and the common range, since a hundred ranges tell less than one. Both forms
are bounded. Pure; never raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache

import orjson

from shoal.documents import times
from shoal.documents.charset import clean
from shoal.documents.content import FieldProfile
from shoal.documents.words import split_words

SCHEMA_BYTES_MAX = 16_000
NAMES_SHOWN = 14
VALUES_SHOWN_CHARS = 200
RUN_MIN = 4  # shorter runs of like columns are listed one by one
MANY_FIELDS = 48  # from here on any neighbours of one type are a run

_CODE = re.compile(r"[A-Z]\d{2}|[A-Z]|P(?:T?\d+[A-Z])+")
_DIGITS = re.compile(r"\d+")
# JSON: the last key, or the position in a row ("$.demand[][1]"). XML: the last of names joined by slashes, which a
# column called "02/25/2025" or "Load / MW" isn't. Sheets and members of archives stand before " > ".
_XML_PATH = re.compile(r"(?:[A-Za-z_@][\w.:\-]*(?:\[\])?/)+(?P<name>[A-Za-z_@][\w.:\-@]*(?:\[\])?)$")
MEMBER = " > "
_STARTS = frozenset({"start", "begin", "from", "since", "beginning"})
_ENDS = frozenset({"end", "stop", "until", "to", "ending"})
_PER_DAY = {
    24: "hourly",
    25: "hourly",
    23: "hourly",
    48: "half-hourly",
    96: "15-minute",
    288: "5-minute",
    1440: "1-minute",
}
_NUMBER_TYPES = frozenset({"number", "integer"})
_UPKEEP_TEXT = """
created updated modified changed lastchanged published generated generation posted expires inserted publish
transaction creation load file report
"""
_UPKEEP = frozenset(_UPKEEP_TEXT.split())


def schema_json(fields: Sequence[FieldProfile], records: int | None) -> str | None:
    """The fields as compact JSON of at most 16 KB; where they are more, samples go first, then the last fields."""
    if not fields:
        return None
    for values_max, fields_max in ((12, 400), (3, 400), (0, 200), (0, 100), (0, 50), (0, 20)):
        entries = [_entry(field, values_max) for field in fields[:fields_max]]
        document: dict[str, object] = {"fields": entries}
        if records is not None:
            document["records"] = records
        if len(fields) > fields_max:
            document["fields_left_out"] = len(fields) - fields_max
        encoded = orjson.dumps(document)
        if len(encoded) <= SCHEMA_BYTES_MAX:
            return encoded.decode()
    return None


def field_lines(fields: Sequence[FieldProfile], chars_max: int) -> list[str]:
    """One line per field or run of like fields that has something to tell; beyond `chars_max` names alone."""
    telling = [field for field in fields if _tells(field)] or [
        field for field in fields[:12] if field.type not in ("object", "array", "null")
    ]
    by_place: dict[str, list[FieldProfile]] = {}
    for field in telling:
        by_place.setdefault(parent(field), []).append(field)
    lines: list[str] = []
    seen: set[str] = set()
    used = 0
    for place, group in by_place.items():
        label = f"In {place}:\n" if place else ""
        for run in _runs(group, many=len(telling) > MANY_FIELDS):
            line = clean(_run_line(run) if len(run) > 1 else _field_line(run[0]))
            if line in seen:
                continue
            seen.add(line)
            if used + len(line) > chars_max:
                named = {name for line in lines for name in line.split(":", 1)}
                rest = [name for field in telling if (name := own_name(field)) not in named]
                return [*lines, f"Further fields: {_listed(rest, 24)}."[:400]] if rest else lines
            lines.append(label + line)
            used += len(lines[-1]) + 1
            label = ""
    return lines


def collapsed(values: Sequence[str]) -> list[str]:
    """Values that differ in their digits alone (hours, block numbers) as the first and the last."""
    if len(values) > 6 and len({_DIGITS.sub("#", value) for value in values}) == 1:
        ordered = sorted(values, key=lambda value: (len(value), value))
        return [f"{ordered[0]} to {ordered[-1]}"]
    return list(values)


def is_code(values: Sequence[str]) -> bool:
    """A01, B04: a code of a code list tells nothing by itself."""
    return all(_CODE.fullmatch(value) for value in values)


def own_name(field: FieldProfile) -> str:
    """The last part of a field's path: its key, column or element."""
    return _parted(field.path)[1][:80]


def parent(field: FieldProfile) -> str:
    """What the field belongs to, by its last two names: `data[] history`, a sheet's name, '' at the root."""
    above = _parted(field.path)[0]
    return "/".join(above.split("/")[-2:])[-80:]


@lru_cache(maxsize=2048)
def _parted(path: str) -> tuple[str, str]:
    above, _, path = path.rpartition(MEMBER)
    inner, name = "", path
    if path.startswith("$"):
        parts = [part for part in path[1:].replace("{*}", "[]").split(".") if part.strip("[]")]
        name = parts[-1] if parts else path.strip("$.") or "value"
        inner = ".".join(parts[:-1])
        position = re.fullmatch(r"(.*?)(?:\[\])*\[(\d+)\]", name)
        name = f"{position[1]} {position[2]}".strip() if position else name.replace("[]", "") or "value"
        inner = inner.replace("[].", "[] ")
    elif (match := _XML_PATH.fullmatch(path)) is not None:
        name, inner = match["name"].strip("[]"), path[: match.start("name")].rstrip("/")
    return clean(MEMBER.join(part for part in (above, inner) if part)), clean(name)


def period(fields: Sequence[FieldProfile], records: int | None) -> tuple[str | None, str | None, str | None]:
    """From, to and step of the data: those of the times that are not about the file's upkeep."""
    dated = [field for field in fields if field.type == "date-time" and field.low and field.high]
    data = [field for field in dated if not _is_upkeep(own_name(field))] or dated
    if not data:
        named = times.parse_times([name for field in fields if (name := own_name(field))[:1].isdigit()])
        if named is not None and len(named) > 2:  # a column per date
            return times.show(min(named)), times.show(max(named)), times.step(named)
        return None, None, None
    most = max(field.distinct or 1 for field in data)
    best = max((field for field in data if (field.distinct or 1) >= 0.9 * most), key=lambda field: field.count)
    low, high = best.low, best.high
    if _STARTS & set(split_words(own_name(best))):  # the end of the period is in a field of its own
        ends = [f.high for f in data if _ENDS & set(split_words(own_name(f))) and f.count == best.count and f.high]
        high = max([high or "", *ends[:1]])
    step = _step(best)
    if step in (None, "daily") and best.distinct and records and "T" not in (best.low or ""):
        step = _PER_DAY.get(round(best.count / best.distinct), step)  # dates beside hours
    return low, high, step


def _is_upkeep(name: str) -> bool:
    return bool(_UPKEEP & set(split_words(name))) or "更新" in name


def _step(field: FieldProfile) -> str | None:
    try:
        moments = [datetime.fromisoformat(value) for value in field.values]
        low, high = (times.comparable(datetime.fromisoformat(text or "")) for text in (field.low, field.high))
    except ValueError:
        return None
    if field.distinct and field.distinct > 3:
        even = (high - low) / (field.distinct - 1)
        named = times.step([low, low + even, low + 2 * even])
        if named is not None:
            return named
    return times.step(moments) if moments else None


def _entry(field: FieldProfile, values_max: int) -> dict[str, object]:
    entry: dict[str, object] = {"path": clean(field.path)[:200], "type": field.type, "count": field.count}
    for key, value in (("unit", field.unit), ("low", field.low), ("high", field.high), ("distinct", field.distinct)):
        if value is not None:
            entry[key] = value if not isinstance(value, str) else clean(value)
    if field.values and values_max and field.type != "date-time":
        entry["values"] = [clean(value)[:80] for value in field.values[:values_max]]
    return entry


def _tells(field: FieldProfile) -> bool:
    if field.low is not None:
        return not (field.low == field.high == "0")
    return bool(field.values) and not is_code(field.values)


def _runs(fields: Sequence[FieldProfile], *, many: bool) -> Iterator[list[FieldProfile]]:
    """Neighbours that are alike, as one list where there are enough of them."""
    run: list[FieldProfile] = []
    for field in fields:
        if run and not _alike(run[-1], field, many):
            yield from [run] if len(run) >= RUN_MIN else ([single] for single in run)
            run = []
        run.append(field)
    yield from [run] if len(run) >= RUN_MIN else ([single] for single in run)


def _alike(a: FieldProfile, b: FieldProfile, many: bool) -> bool:
    if a.unit != b.unit:
        return False
    numbers = a.type in _NUMBER_TYPES and b.type in _NUMBER_TYPES
    if not numbers and not (a.type == b.type == "date-time"):
        return False
    if many and numbers:
        return True
    one, other = own_name(a), own_name(b)
    pattern = _DIGITS.sub("#", one)
    if pattern != one and pattern == _DIGITS.sub("#", other):
        return True
    first, second = split_words(one), split_words(other)
    return len(first) > 1 and len(second) > 1 and first[0] == second[0] and len(one) > 3


def _field_line(field: FieldProfile) -> str:
    name = own_name(field)
    unit = f" {field.unit}" if field.unit and field.unit not in name and not field.unit.startswith("epoch") else ""
    if field.low is not None and field.high is not None:
        spread = field.low if field.low == field.high else f"{field.low} to {field.high}"
        kind = {"integer": "", "number": "", "date-time": ""}.get(field.type, "" if unit else f"{field.type} ")
        extra = f", also {_listed(field.values, 6)}" if field.values and field.type != "date-time" else ""
        return f"{name}: {kind}{spread}{unit}{extra}"
    if field.values:
        of = f"{field.distinct} values, " if field.distinct and field.distinct > len(field.values) else ""
        return f"{name}: {of}{_listed(collapsed(field.values), 16)}"
    return f"{name}: {field.type}{unit}"


def _run_line(run: Sequence[FieldProfile]) -> str:
    ranges = [(field.low, field.high) for field in run if field.low is not None and field.high is not None]
    names = _listed([own_name(field) for field in run], NAMES_SHOWN)
    unit = f" {run[0].unit}" if run[0].unit else ""
    if not ranges:
        return f"{names}: {run[0].type}{unit}"
    key = (lambda text: text) if run[0].type == "date-time" else _number
    low, high = min((low for low, _ in ranges), key=key), max((high for _, high in ranges), key=key)
    return f"{names} ({len(run)} fields): {low} to {high}{unit}"


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return 0.0


def _listed(names: Sequence[str], most: int) -> str:
    """Names in a row: all of them, or the first and the last."""
    names = list(dict.fromkeys(names))
    if len(names) > most:
        names = [*names[: most - 1], "…", names[-1]]
    text = ""
    for name in names:
        if len(text) + len(name) > VALUES_SHOWN_CHARS and text:
            return text + ", …"
        text += (", " if text else "") + name[:80]
    return text

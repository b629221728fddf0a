"""Reads JSON into field profiles: nested series, maps whose keys are data, arrays with header rows, prose.

All values at one path are profiled together (`$.series[].points[].v`: number -8.8 to 30.1), from a sample spread
over every array, so a 10 MB time series costs as much as a small one once it is parsed. Objects whose keys are data
(dates, ids, plant names) collapse to `{*}`. Strings that are prose become sections. Raises BadDocument
EXTRACTION_FAILED for what `json_parsing` refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import orjson

from shoal.documents import times
from shoal.documents.content import Content, FieldProfile, Section
from shoal.documents.json_parsing import parse_json
from shoal.documents.profiles import Column, is_prose, profile, readable, spread
from shoal.documents.words import known_unit

# Values looked at per path, and per document in all: about 0.2 s of Python at most.
VALUES_PER_PATH_MAX = 6000
VALUES_MAX = 250_000
FIELDS_MAX = 400
DEPTH_MAX = 24
KEYS_MAX = 300  # more distinct keys at one place are data, not names
KEY_CHARS_MAX = 80
INNER_TEXT_BYTES_MAX = 64 * 1024 * 1024
PROSE_CHARS_MAX = 24_000
RECORDS_CHARS_MAX = 80_000  # of articles in an array: some 80 chunks
RECORD_SECTIONS_MAX = 200

_URL = re.compile(r"https?://[^\s\"'<>\\]{4,300}")
_COLUMN_KEYS = ("columns", "headers", "header", "cols", "columnNames", "column_names", "fields", "labels")
_ROW_KEYS = ("data", "rows", "values", "records", "results", "aaData", "items")
_TITLE_KEYS = ("title", "name", "headline", "label", "short_name", "description", "dataset", "report", "help")
_DATA_KEY = re.compile(
    r"\d[\d.:/\- T+Z]*|[0-9a-f]{8,}(?:-[0-9a-f]{4,})*|[A-Z0-9_\-]*\d{3,}[A-Z0-9_\-]*"
    r"|(?=.*\d)(?=.*[A-Z])[A-Za-z0-9+/=]{40,}"
)
_LINK_HINT = re.compile(r"api|swagger|openapi|docs|graphql|rest/|/v\d", re.I)


def read_json(text: str) -> Content:
    """The fields, prose and title of the JSON in `text`."""
    value, warnings = parse_json(text)
    walk = _Walk()
    walk.visit("$", "$", [value], 1, 0)
    if value in ({}, []):
        warnings.append("the JSON is empty")
    return Content(
        file_format="JSON",
        sections=tuple(walk.sections(value)),
        fields=tuple(column.profile for column in walk.fields),
        title=_title(value),
        records=walk.records,
        warnings=tuple(warnings + walk.warnings),
        links=tuple(walk.links),
    )


class _Walk:
    """Visits all values of one path at a time; `fields` are in the order of the document."""

    def __init__(self) -> None:
        self.fields: list[Column] = []
        self.warnings: list[str] = []
        self.links: dict[str, None] = {}
        self.records: int | None = None
        self._budget = VALUES_MAX
        self._inner_bytes = 0
        self._prose: list[tuple[str, tuple[str, ...]]] = []

    def visit(self, path: str, name: str, values: Sequence[Any], count: int, depth: int) -> None:
        """`values` at `path`, a sample of `count`; `name` is the last key, for units and the meaning of numbers."""
        if depth > DEPTH_MAX:
            self._warn("deeper levels of the JSON are not described")
            return
        dicts: list[dict[str, Any]] = []
        lists: list[list[Any]] = []
        scalars: list[Any] = []
        for value in values:
            kind = type(value)
            if kind is dict:
                dicts.append(value)
            elif kind is list:
                lists.append(value)
            elif value is not None:
                scalars.append(value)
        self._budget -= len(values)
        if len(values) and not (dicts or lists or scalars):
            self._add(Column(FieldProfile(path, "null", count)))
        if scalars:
            self._scalars(path, name, scalars, count, depth)
        if dicts:
            self._objects(path, name, dicts, count, depth)
        if lists:
            self._arrays(path, name, lists, depth)

    def _scalars(self, path: str, name: str, scalars: list[Any], count: int, depth: int) -> None:
        first = scalars[0]
        if type(first) is str and len(first) > 20 and first.lstrip()[:1] in ("{", "["):
            inner = [value for text in scalars[:50] if (value := self._inner(text)) is not None]
            if inner:
                self.visit(path, name, inner, len(inner), depth + 1)
                return
        for text in scalars[:20]:
            if type(text) is str and "://" in text and len(self.links) < 20:
                self.links.update((url, None) for url in _URL.findall(text[:2000]) if _LINK_HINT.search(url))
        column = profile(path, scalars, count=count, name=name)
        if column.prose:
            self._prose.append((path, column.prose))
        self._add(column)

    def _inner(self, text: Any) -> Any:
        if type(text) is not str or self._inner_bytes + len(text) > INNER_TEXT_BYTES_MAX:
            return None
        self._inner_bytes += len(text)
        try:
            value = orjson.loads(text)
        except (orjson.JSONDecodeError, UnicodeEncodeError):
            return None
        return value if isinstance(value, (dict, list)) else None

    def _objects(self, path: str, name: str, dicts: list[dict[str, Any]], count: int, depth: int) -> None:
        children: dict[str, list[Any]] = {}
        for item in dicts:
            for key, value in item.items():
                seen = children.get(key)
                if seen is None:
                    children[key] = [value]
                else:
                    seen.append(value)
        if (columns := _header_beside(dicts)) is not None:
            key, names = columns
            rows = [row for item in dicts for row in item.get(key) or () if isinstance(row, list)]
            self._note_records(len(rows))
            self._rows(f"{path}.{key}[]", names, rows, depth + 1)
            del children[key]
        if len(children) > 2 and _keys_are_data(children):
            merged = [value for group in children.values() for value in group]
            keys = profile(f"{path}{{*}}", [key[:200] for key in children], name=name).profile
            if keys.type not in ("integer", "number"):  # mere row numbers tell nothing
                kind = "date-time" if keys.type == "date-time" else "object"
                self._add(Column(replace(keys, type=kind, count=len(children), distinct=len(children))))
            self._note_records(len(children))
            self.visit(f"{path}{{*}}", name, spread(merged, self._room()), len(merged), depth + 1)
            return
        for key, group in list(children.items())[:KEYS_MAX]:
            shown = _key(key)
            factor = count / max(1, len(dicts))
            is_text = key in ("$", "#text", "_text")  # XML turned to JSON: the element's own text
            place, last = (path, name) if is_text else (f"{path}.{shown}", shown)
            self.visit(place, last, group, round(len(group) * factor), depth + 1)
            if len(self.fields) >= FIELDS_MAX:
                self._warn(f"more than {FIELDS_MAX} fields: the rest are not described")
                return

    def _arrays(self, path: str, name: str, lists: list[list[Any]], depth: int) -> None:
        total = sum(map(len, lists))
        longest = max(map(len, lists))
        if longest > 1 and any(isinstance(item, (dict, list)) for item in lists[0][:3]):
            self._note_records(total)
        if longest == 0:
            self._add(Column(FieldProfile(f"{path}[]", "array", 0)))
            return
        room = self._room()
        each = max(2, room // len(lists))
        taken = lists if len(lists) <= room // 2 else spread(lists, room // 2)
        items = [item for inner in taken for item in spread(inner, each)]
        names = _header_row(lists[0]) if len(lists) == 1 else None
        if names is not None:
            self._rows(f"{path}[]", names, [row for row in items if isinstance(row, list)][1:], depth + 1)
            return
        if _is_positional(items):
            self._rows(f"{path}[]", [str(i) for i in range(len(items[0]))], items, depth + 1, total)
            return
        self.visit(f"{path}[]", name, items, total, depth + 1)

    def _rows(self, path: str, names: Sequence[str], rows: Sequence[list[Any]], depth: int, count: int = 0) -> None:
        """Rows of positions: each position is a column, named by the header where there is one."""
        rows = spread(rows, self._room())
        for i, name in enumerate(names):
            column = [row[i] for row in rows if len(row) > i]
            shown = _key(name)
            step = f"[{shown}]" if shown.isdigit() else f".{shown}"
            self.visit(path.removesuffix("[]") + "[]" + step, shown, column, max(count, len(column)), depth + 1)

    def _room(self) -> int:
        """How many values of the next path may be looked at."""
        return max(4, min(VALUES_PER_PATH_MAX, self._budget // 4))

    def _add(self, column: Column) -> None:
        if len(self.fields) < FIELDS_MAX:
            self.fields.append(column)

    def _note_records(self, count: int) -> None:
        self.records = max(self.records or 0, count)

    def _warn(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)

    def sections(self, value: Any) -> Iterator[Section]:
        """Prose found at any path; where records are articles of prose, one section per record."""
        records = _prose_records(value)
        if records is not None:
            yield from records
            return
        left = PROSE_CHARS_MAX
        lines: list[str] = []
        seen: set[str] = set()
        for path, texts in self._prose:
            label = path.rsplit(".", 1)[-1].strip("[]$")
            for text in texts[:12]:
                if left <= 0:
                    break
                if text in seen:
                    continue
                seen.add(text)
                text = " ".join(text.split())
                line = f"{label}: {text[:2000]}" if label and len(text) < 400 else text[:2000]
                lines.append(line)
                left -= len(line)
        if lines:
            yield Section("\n".join(lines))


def _key(key: str) -> str:
    return key if len(key) <= KEY_CHARS_MAX else key[: KEY_CHARS_MAX - 1] + "…"


def _keys_are_data(children: dict[str, list[Any]]) -> bool:
    """Dates, ids and numbers are data; so are very many keys whose values have one shape."""
    keys = list(children)
    sample = spread(keys, 60)
    if all(_DATA_KEY.fullmatch(str(key)[:60]) for key in sample):
        return True
    if len(keys) > 8 and times.parse_times([str(key) for key in sample]) is not None:
        return True
    if len(keys) <= 50:
        return False
    shapes = {_shape(group[0]) for group in spread(list(children.values()), 60)}
    shapes.discard("null")
    if len(shapes) > 1:
        return False
    if len(keys) > KEYS_MAX:
        return True
    # Sibling series of numbers (one key per border or plant) keep their names, objects of one shape don't.
    return next(iter(shapes), "null") not in ("number", "string")


def _shape(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(sorted(value)[:6]) + "}"
    if isinstance(value, list):
        return "[]"
    if value is None:
        return "null"
    return "number" if isinstance(value, (int, float)) else "string"


def _is_positional(items: Sequence[Any]) -> bool:
    """Rows of one width whose places differ in kind, or few enough places to tell them apart."""
    if len(items) < 2 or not all(isinstance(item, list) for item in items[:50]):
        return False
    widths = {len(item) for item in items if isinstance(item, list)}
    if len(widths) != 1 or not 2 <= (width := widths.pop()) <= 64:
        return False
    if any(isinstance(cell, (dict, list)) for cell in items[0]):
        return False
    kinds = {type(cell) for cell in items[0] if cell is not None}
    return width <= 12 or len(kinds) > 1


def _header_row(rows: list[Any]) -> list[str] | None:
    """The first row of an array of arrays, where it names the columns of the others."""
    if len(rows) < 2 or not all(isinstance(row, list) for row in rows[:20]):
        return None
    first, second = rows[0], rows[1]
    if not 2 <= len(first) <= 500 or len(first) != len(second):
        return None
    if not all(isinstance(cell, str) and cell.strip() for cell in first) or len(set(first)) != len(first):
        return None
    values = [cell for row in rows[1:20] for cell in row]
    if any(isinstance(cell, (int, float)) for cell in values):
        return first if not any(_numeric(cell) for cell in first) else None
    numeric = [_numeric(cell) for cell in values if isinstance(cell, str)]
    return first if any(numeric) and not any(_numeric(cell) for cell in first) else None


def _numeric(text: str) -> bool:
    return text[:1].isdigit() or text[:2].lstrip("-")[:1].isdigit()


def _header_beside(dicts: list[dict[str, Any]]) -> tuple[str, list[str]] | None:
    """{"columns": [...], "rows": [[...]]}: the key of the rows and the names. Also Socrata's meta.view.columns."""
    if len(dicts) != 1:
        return None
    item = dicts[0]
    for row_key in _ROW_KEYS:
        rows = item.get(row_key)
        if not (isinstance(rows, list) and rows and isinstance(rows[0], list)):
            continue
        view = item.get("meta", {}).get("view", {}) if isinstance(item.get("meta"), dict) else {}
        candidates = [item.get(key) for key in _COLUMN_KEYS]
        if isinstance(view, dict):
            candidates.append(view.get("columns"))
        for columns in candidates:
            names = _names(columns)
            if names is not None and len(names) == len(rows[0]):
                return row_key, names
    return None


def _names(columns: Any) -> list[str] | None:
    if not isinstance(columns, list) or not 1 <= len(columns) <= 500:
        return None
    names = [
        next((c[k] for k in ("name", "fieldName", "title", "label", "data") if isinstance(c.get(k), str)), None)
        if isinstance(c, dict)
        else c
        for c in columns
    ]
    return [str(name) for name in names] if all(isinstance(name, str) for name in names) else None


def _title(value: Any) -> str | None:
    """What the document calls itself: a title-like string near its top."""
    level: list[Any] = [value]
    for _ in range(3):
        dicts = [item for item in level if isinstance(item, dict)]
        for item in dicts[:1]:
            for key in _TITLE_KEYS[:2] if len(level) > 1 else _TITLE_KEYS:
                title = item.get(key)
                if isinstance(title, str) and 3 < len(title.strip()) <= 160 and known_unit(title) is None:
                    return " ".join(title.split())
        level = [child for item in dicts for child in list(item.values())[:50] if isinstance(child, dict)]
    return None


def _prose_records(value: Any) -> list[Section] | None:
    """Articles, products, notices: an array of objects in which one key holds long prose."""
    arrays = [value] if isinstance(value, list) else list(value.values())[:50] if isinstance(value, dict) else []
    for array in arrays:
        if not (isinstance(array, list) and array and isinstance(array[0], dict)):
            continue
        sample = [item for item in array[:20] if isinstance(item, dict)]
        long = [
            key
            for key in sample[0]
            if sum(isinstance(i.get(key), str) and len(i[key]) > 200 and is_prose(i[key]) for i in sample)
            > len(sample) / 2
        ]
        if not long:
            continue
        sections: list[Section] = []
        left = RECORDS_CHARS_MAX
        for item in array[:RECORD_SECTIONS_MAX]:
            if not isinstance(item, dict) or left <= 0:
                continue
            heading = next((item[k] for k in _TITLE_KEYS if isinstance(item.get(k), str) and k not in long), None)
            texts = [readable(text[:8000]) for key in long if isinstance(text := item.get(key), str)]
            left -= sum(map(len, texts))
            sections.append(Section("\n".join(texts), heading[:160] if heading else None))
        return sections
    return None

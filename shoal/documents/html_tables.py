"""HTML tables as people read them: a grid, its headings, its rows in words, its numbers as profiles.

A table that lays out a page (tables within, one column, form fields) is not a table of data: `read_table` says
None and the walker goes inside. Small and wordy tables become one readable line per row, complete; a wall of
numbers becomes a line about its columns, a few rows, and a `FieldProfile` per column. Spans are resolved within
bounds; it never raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from selectolax.lexbor import LexborNode

from shoal.documents.charset import clean
from shoal.documents.content import FieldProfile
from shoal.documents.profiles import is_missing, profile, to_numbers
from shoal.documents.times import is_clock, parse_times

ROWS_MAX = 20_000
COLUMNS_MAX = 120  # wider ones are matrices; their further columns say nothing new
SPAN_MAX = 120  # colspan and rowspan are the page's claim
CELL_CHARS_MAX = 2_000
SHORT_ROWS_MAX = 14  # at most this many rows of numbers are still read as rows
NAMES_CHARS_MAX = 1500
SHOWN_ROWS = 3  # of a long table of numbers
PROFILED_MAX = 40

_BRACKET = re.compile(r"\[[^\]]{0,12}\]|\([^)]{0,12}\)")


@dataclass(frozen=True, slots=True)
class Table:
    """What a data table says. `lines` are readable rows; `is_complete` when none is left out."""

    headers: tuple[str, ...]
    lines: tuple[str, ...]
    fields: tuple[FieldProfile, ...]
    rows: int
    is_complete: bool


def read_table(node: LexborNode, name: str | None) -> Table | None:
    """The data of one `<table>`, or None where it only lays out the page. `name` is its caption or heading."""
    if _has_nested(node):
        return None
    grid, header_rows = _grid(node)
    grid = _trimmed(grid)
    if len(grid) < 2 or max(map(len, grid), default=0) < 2:
        return None
    headers, body = _split(grid, header_rows)
    if not body:
        return None
    width = max(len(headers), max(map(len, body)))
    columns = [[row[i] if i < len(row) else "" for row in body] for i in range(min(width, COLUMNS_MAX))]
    numeric = [_is_data(column) for column in columns]
    wall = sum(numeric) * 2 >= len(columns) and len(body) > SHORT_ROWS_MAX
    lines = [_line(headers, row) for row in (body[:SHOWN_ROWS] if wall else body)]
    if wall and not numeric[0]:  # what the rows are about is words: plants, zones, states
        names = [text for text in dict.fromkeys(columns[0]) if text and not _is_value(text)]
        if len(names) * 2 > len(body):
            lines.append(f"Rows: {', '.join(names)}"[:NAMES_CHARS_MAX])
    fields: list[FieldProfile] = []
    if any(numeric):
        for i, column in enumerate(columns[:PROFILED_MAX]):
            label = headers[i] if i < len(headers) and headers[i] else f"column {i + 1}"
            values = [text for text in column if not is_missing(text)]
            if values and (numeric[i] or len(body) > SHORT_ROWS_MAX):
                path = f"{name} > {label}" if name else label
                fields.append(replace(profile(label, values, name=label).profile, path=path))
    return Table(tuple(headers), tuple(line for line in lines if line), tuple(fields), len(body), not wall)


def _has_nested(node: LexborNode) -> bool:
    found = node.css("table")
    return any(table.mem_id != node.mem_id for table in found)


def _grid(node: LexborNode) -> tuple[list[list[str]], int]:
    """Rows of cell texts with spans resolved, and how many leading rows are headings."""
    grid: list[list[str]] = []
    pending: dict[int, tuple[str, int]] = {}  # column -> (text, rows it still covers)
    headings = 0
    for row in _rows(node):
        if len(grid) >= ROWS_MAX:
            break
        texts: list[str] = []
        is_heading = True
        cells = list(_cells(row))
        for cell in cells:
            _fill(texts, pending)
            text = cell_text(cell)
            is_heading = is_heading and cell.tag == "th"
            down = _span(cell, "rowspan")
            for _ in range(min(_span(cell, "colspan"), COLUMNS_MAX - len(texts))):
                if down > 1:
                    pending[len(texts)] = (text, down - 1)
                texts.append(text)
        _fill(texts, pending)
        in_head = row.parent is not None and row.parent.tag == "thead"
        if cells and (is_heading or in_head) and headings == len(grid):
            headings += 1
        grid.append(texts)
    return grid, headings


def _fill(texts: list[str], pending: dict[int, tuple[str, int]]) -> None:
    while (spanned := pending.get(len(texts))) is not None and len(texts) < COLUMNS_MAX:
        text, rows = spanned
        if rows > 1:
            pending[len(texts)] = (text, rows - 1)
        else:
            del pending[len(texts)]
        texts.append(text)


def _rows(node: LexborNode) -> Iterator[LexborNode]:
    for child in children(node):
        if child.tag == "tr":
            yield child
        elif child.tag in ("thead", "tbody", "tfoot"):
            yield from (row for row in children(child) if row.tag == "tr")


def _cells(row: LexborNode) -> Iterator[LexborNode]:
    return (cell for cell in children(row) if cell.tag in ("td", "th"))


def children(node: LexborNode) -> Iterator[LexborNode]:
    """The child nodes of `node`, in order."""
    child = node.child
    while child is not None:
        yield child
        child = child.next


def cell_text(cell: LexborNode) -> str:
    """The text of one cell on one line."""
    for script in cell.css("script, style, noscript"):
        script.decompose()
    return " ".join(clean((cell.text(separator=" ") or "")[: 4 * CELL_CHARS_MAX]).split())[:CELL_CHARS_MAX]


def _span(cell: LexborNode, name: str) -> int:
    value = cell.attributes.get(name) or "1"
    return min(SPAN_MAX, max(1, int(value))) if value.isdecimal() and len(value) < 6 else 1


def _trimmed(grid: list[list[str]]) -> list[list[str]]:
    """Without empty rows, and without columns that are empty throughout (spacers of old layouts)."""
    rows = [row for row in grid if any(row)]
    if not rows:
        return []
    used = [i for i in range(max(map(len, rows))) if any(i < len(row) and row[i] for row in rows)]
    return [[row[i] if i < len(row) else "" for i in used] for row in rows]


def _split(grid: list[list[str]], headings: int) -> tuple[list[str], list[list[str]]]:
    """Headings (several rows joined per column) and the body. Old pages mark no headings: then the first row is
    one if it holds only words above a body with numbers."""
    if headings == 0:
        title = 1 if len(set(grid[0])) == 1 and len(grid) > 2 else 0  # one cell across: a caption inside
        first = grid[title]
        words = sum(1 for text in first if text and not _is_value(text))
        filled = sum(1 for text in first if text)
        below = [text for row in grid[title + 1 : title + 6] for text in row if text]
        values = sum(map(_is_value, below))
        if filled >= 2 and words == filled and values * 3 >= len(below) > 0:
            headings = title + 1
    headings = min(headings, len(grid) - 1, 4)
    columns = []
    for i in range(max(map(len, grid))):
        parts = dict.fromkeys(row[i] for row in grid[:headings] if i < len(row) and row[i] and len(set(row)) > 1)
        columns.append(" ".join(parts)[:160])
    return (columns if any(columns) else []), grid[headings:]


def _line(headers: list[str], row: list[str]) -> str:
    if len(row) == 2 and not any(headers):
        return f"{row[0]}: {row[1]}" if row[1] else row[0]
    parts: list[str] = []
    previous = None
    for i, text in enumerate(row):
        if not text or text == previous:
            continue
        header = headers[i] if i < len(headers) else ""
        text = text.removeprefix(f"{header} ")  # small screens repeat the heading in the cell
        parts.append(f"{header}: {text}" if header and header != text else text)
        previous = text if len(text) > 20 else None  # a long text repeated is one cell across columns
    return "; ".join(parts)


def _is_value(text: str) -> bool:
    bare = _BRACKET.sub("", text).strip()
    if sum(c.isdigit() for c in bare) * 2 >= len(bare) > 0:  # "00:05 64,756", "12 (+3)"
        return True
    return is_missing(text) or to_numbers([bare]) is not None or is_clock(bare) or parse_times([bare]) is not None


def _is_data(column: list[str]) -> bool:
    sample = [text for text in column[:200] if not is_missing(text)]
    return bool(sample) and sum(map(_is_value, sample)) * 10 >= len(sample) * 7

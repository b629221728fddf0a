"""Finds the tables in rows of cells: where each begins, what its columns are called and hold.

Real files stack several tables, begin with a preamble, mark rows by kind ("C", "H", "D"), put units in a row of
their own, or have no header. Preambles and notes are kept as lines, columns become profiles. Serves delimited text
(csv_reader.py) and sheets (spreadsheets.py). Never raises: rows that are no table become notes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from shoal.documents import times
from shoal.documents.profiles import Column, is_missing, profile
from shoal.documents.words import known_unit, unit_of

Row = Sequence[str]

COLUMNS_MAX = 400
NOTES_MAX = 40
NOTE_CHARS_MAX = 300
TABLES_MAX = 30
_KIND_ROWS = frozenset({"C", "H", "I", "D", "T", "S"})
_COMMENT = ("#", "//", "%", "!")
_NUMBERISH = re.compile(r"[-+−(]?[$€£]?\d[\d.,\s]*(?:[eE][-+]?\d+)?%?\)?|[-+]?\.\d+(?:[eE][-+]?\d+)?", re.ASCII)


@dataclass(slots=True)
class Table:
    """One table: its columns, how many rows it has, the lines of words that stood before it."""

    columns: list[Column] = field(default_factory=list)
    rows: int = 0
    notes: list[str] = field(default_factory=list)
    has_header: bool = True


def describe_rows(rows: Sequence[Row]) -> list[Table]:
    """The tables in rows of cells, in order. Cells are text; empty cells are ''."""
    marked = _marked_blocks(rows)
    if marked is not None:
        return marked[:TABLES_MAX]
    tables: list[Table] = []
    notes: list[str] = []
    for block in _blocks(rows):
        table = _table(block)
        if table is None:
            notes += [line for row in block if (line := _line(row))]
            continue
        table.notes = (notes + table.notes)[:NOTES_MAX]
        notes = []
        tables.append(table)
        if len(tables) >= TABLES_MAX:
            break
    if notes:
        if not tables:
            tables.append(Table())
        tables[-1].notes = (tables[-1].notes + notes)[:NOTES_MAX]
    return tables


def note_lines(table: Table) -> list[str]:
    return [note[:NOTE_CHARS_MAX] for note in table.notes[:NOTES_MAX] if note.strip()]


def _marked_blocks(rows: Sequence[Row]) -> list[Table] | None:
    """Files that say what each row is by a letter: C comment, H or I header, D data, T trailer (ISO-NE, AEMO)."""
    marks = [row[0].strip() for row in rows if row and row[0].strip()]
    head = marks[:40]
    if len(head) < 3 or not set(head) <= _KIND_ROWS or len(set(head)) < 2 or "D" not in marks[:4000]:
        return None
    tables: list[Table] = []
    notes: list[str] = []
    header: Row | None = None
    data: list[Row] = []

    def close() -> None:
        nonlocal notes, data
        if data:
            tables.append(_marked_table(header, data, notes))
            notes, data = [], []

    for row in rows:
        mark, cells = (row[0].strip() if row else ""), row[1:]
        if mark in ("H", "I"):
            close()
            header = cells
            if mark == "I" and len(cells) > 3:  # AEMO: report, sub-report and version stand before the columns
                notes.append(" ".join(cells[:2]).replace("_", " "))
        elif mark == "D":
            data.append(cells)
        elif mark == "C" and not data and (line := _line(cells)):
            notes.append(line)
    close()
    return tables or None


def _marked_table(header: Row | None, data: list[Row], notes: list[str]) -> Table:
    """Rows of data that hold words or dates where numbers follow are a better header than the one marked so."""
    for i in range(min(3, len(data) - 1), 0, -1):
        cells = [kind for cell in data[i - 1] if (kind := _kind(cell))]
        if len(cells) > 1 and "number" not in cells and "number" in map(_kind, data[i]):
            header, data = data[i - 1], data[i:]
            break
    names = [cell.strip() for cell in header or ()]
    # A "column" that repeats its own name in every row is a label of the table.
    labels = {i for i, name in enumerate(names) if name and all(len(r) > i and r[i].strip() == name for r in data[:50])}
    if labels:
        names = [name for i, name in enumerate(names) if i not in labels]
        data = [[cell for i, cell in enumerate(row) if i not in labels] for row in data]
    return _built(names or None, [], data, [[note] for note in notes])


def _blocks(rows: Sequence[Row]) -> list[list[Row]]:
    """Runs of rows between blank rows; a change of width that lasts begins a block as well."""
    blocks: list[list[Row]] = []
    current: list[Row] = []
    for row in rows:
        if not any(row) or not any(cell.strip() for cell in row):
            # A blank row right below a header belongs to it.
            if len(current) > 3 or (current and _is_data(current[-1])):
                blocks.append(current)
                current = []
            continue
        if len(row) == 1 and row[0].startswith(_COMMENT):
            row = (row[0].lstrip("#/%! "),)
        current.append(row)
    if current:
        blocks.append(current)
    if len(blocks) > 200:  # sparse sheets: gaps don't part tables
        return [[row for block in blocks for row in block]]
    return [part for block in blocks for part in _split_by_width(block)]


def _split_by_width(block: list[Row]) -> list[list[Row]]:
    """Stacked tables without a blank row between: the header of the second has words where numbers were."""
    parts: list[list[Row]] = []
    start = 0
    for i in range(1, len(block) - 1):
        width, before = _width(block[i]), _width(block[i - 1])
        if width == before or i - start < 2 or _is_data(block[i]):
            continue
        if _is_data(block[i - 1]) and _is_data(block[i + 1]) and len(parts) < TABLES_MAX and width > 1:
            parts.append(block[start:i])
            start = i
    parts.append(block[start:])
    return parts


def _table(block: Sequence[Row]) -> Table | None:
    """The table in a block, its header found; None where the block is lines of words."""
    if not block:
        return None
    width = Counter(_width(row) for row in block[:400]).most_common(1)[0][0]
    first_data = next((i for i, row in enumerate(block) if _is_data(row) and _fits(row, block, i, width)), None)
    if first_data is None:
        widths = [_width(row) for row in block]
        # No numbers at all: names in the first row, words in the others, which may leave cells open at their end.
        width = max(width, widths[0])
        if len(block) < 2 or width < 2 or sum(max(2, width // 2) <= w <= width for w in widths) < 0.6 * len(block):
            return None
        start = widths.index(width)
        head = block[start]
        if start + 1 >= len(block) or not _names_columns(head):
            return None
        return _built(head, [], block[start + 1 :], block[:start])
    above = list(block[:first_data])
    header_at = next((i for i in range(len(above) - 1, -1, -1) if _names_columns(above[i])), None)
    units: Row | None = None
    if header_at is not None and header_at > 0 and _is_units(above[header_at]) and _names_columns(above[header_at - 1]):
        units, header_at = above[header_at], header_at - 1
    if header_at is None:
        if first_data == 0 and _sequence_header(block):
            return _built(block[0], [], block[1:], [])
        if width < 2 and len(block) < 3:
            return None
        return _built(None, [], block[first_data:], above)
    groups = above[header_at - 1] if header_at > 0 and _is_groups(above[header_at - 1], above[header_at]) else None
    notes = above[: header_at - 1 if groups is not None else header_at]
    if units is None and header_at + 1 < len(above) and _is_units(above[header_at + 1]):
        units = above[header_at + 1]
    header = _grouped(groups, above[header_at]) if groups is not None else above[header_at]
    return _built(header, units or [], block[first_data:], notes)


def _built(header: Row | None, units: Row, data: Sequence[Row], notes: Sequence[Row]) -> Table:
    width = max([len(header or ()), *(len(row) for row in data[:1000])])
    width = min(width, COLUMNS_MAX)
    names = _column_names(header, width)
    columns: list[Column] = []
    by_place = list(_transposed(data, width))
    for i, name in enumerate(names):
        cells = by_place[i]
        if name is None and (not any(cells) or (header is not None and columns)):
            continue  # a header names what counts; only a first column without a name holds labels
        label = name or ("row" if header is not None else f"column {i + 1}")
        if i < len(units) and (unit := known_unit(units[i])) and unit_of(label) is None:
            label = f"{label} ({unit})"
        columns.append(profile(label, [cell for cell in cells if cell], count=len(data), name=label))
    lines = [line for row in notes if (line := _line(row))]
    return Table(columns, len(data), lines, header is not None)


def _column_names(header: Row | None, width: int) -> list[str | None]:
    names: list[str | None] = []
    seen: Counter[str] = Counter()
    for i in range(width):
        name = " ".join(header[i].split())[:80] if header is not None and i < len(header) else ""
        if name:
            seen[name] += 1
            if seen[name] > 1:
                name = f"{name} {seen[name]}"
        names.append(name or None)
    return names


def _transposed(data: Sequence[Row], width: int) -> list[list[str]]:
    if all(len(row) == width for row in data):
        return [list(column) for column in zip(*data, strict=True)] or [[] for _ in range(width)]
    return [[row[i] for row in data if len(row) > i] for i in range(width)]


def _width(row: Row) -> int:
    """Cells up to the last that is not empty."""
    n = len(row)
    while n and not row[n - 1]:
        n -= 1
    return n


def _kind(cell: str) -> str:
    cell = cell.strip()
    if is_missing(cell):
        return ""
    if len(cell) > 40:
        return "text"
    if _NUMBERISH.fullmatch(cell):
        return "number"
    if cell[:1].isdigit() and (times.is_clock(cell) or times.parse_times([cell]) is not None):
        return "time"
    if cell[:1].isalpha() and len(cell) > 8 and any(ch.isdigit() for ch in cell) and times.parse_times([cell]):
        return "time"
    return "text"


def _is_data(row: Row) -> bool:
    """Some cell is a number, or a time beside other cells; headers have words only."""
    kinds = [kind for cell in row[:60] if (kind := _kind(cell))]
    values = sum(kind != "text" for kind in kinds)
    return values > 0 and (values >= 0.34 * len(kinds) or "number" in kinds[-3:])


def _fits(row: Row, block: Sequence[Row], i: int, width: int) -> bool:
    """A first row of data is followed by more of its kind, not by the header of a wider table."""
    if i + 1 >= len(block):
        return True
    if _sequence_header([row, block[i + 1]]):
        return False
    following = block[i + 1]
    return _is_data(following) or _width(row) == width


def _names_columns(row: Row) -> bool:
    cells = [cell.strip() for cell in row if cell.strip()]
    if len(cells) < 1 or (len(cells) == 1 and len(row) > 2):
        return False
    words = sum(_kind(cell) == "text" and len(cell) <= 120 for cell in cells)
    return words >= 0.5 * len(cells) or _ascending(cells)


def _sequence_header(block: Sequence[Row]) -> bool:
    """`Fecha,Planta,00,01,...,23` is a header though most of it is numbers: they ascend by one, below they don't."""
    if len(block) < 2:
        return False
    first, second = ([cell.strip() for cell in row] for row in block[:2])
    return _ascending(first) and not _ascending(second) and len(first) >= len(second) - 1


def _ascending(cells: Sequence[str]) -> bool:
    numbers = [int(cell) for cell in cells if cell.isascii() and cell.isdigit() and len(cell) <= 4]
    if len(numbers) < 5 or len(numbers) < 0.5 * len(cells):
        return False
    return all(b - a == 1 for a, b in pairwise(numbers))


def _is_units(row: Row) -> bool:
    cells = [cell.strip() for cell in row if not is_missing(cell.strip())]
    return bool(cells) and sum(known_unit(cell) is not None for cell in cells) >= 0.5 * len(cells)


def _is_groups(row: Row, header: Row) -> bool:
    """A row above the header that repeats or leaves open: ",,,Solar,Solar,Wind,Wind"."""
    cells = [cell.strip() for cell in row]
    filled = [cell for cell in cells if cell]
    return (
        len(filled) >= 2
        and len(row) >= 0.6 * len(header)
        and (len(filled) < len(cells) or len(set(filled)) < len(filled))
        and all(_kind(cell) == "text" and len(cell) < 60 for cell in filled)
        and len(set(filled)) < len([cell for cell in header if cell.strip()])
    )


def _grouped(groups: Row, header: Row) -> list[str]:
    names = []
    current = ""
    filled = [cell.strip() for cell in groups]
    repeats = any(a and a == b for a, b in pairwise(filled))  # so an empty cell means none
    for i, name in enumerate(header):
        if i < len(groups) and (filled[i] or repeats):
            current = filled[i]
        elif i >= len(groups) and repeats:
            current = ""
        names.append(f"{current} {name.strip()}".strip() if current != name.strip() else name.strip())
    return names


def _line(row: Row) -> str:
    """A row of words as a line: its cells, without a wall of numbers."""
    cells = [" ".join(cell.split()) for cell in row[:40] if cell.strip()]
    numbers = sum(bool(_NUMBERISH.fullmatch(cell)) for cell in cells)
    if len(cells) > 6 and numbers > 0.5 * len(cells):
        return ""
    return ", ".join(cells)[: 2 * NOTE_CHARS_MAX]

"""Reads delimited text: finds the separator, parses what can be parsed, hands the rows to `tables`.

Long files are read at both ends with a warning; damaged quoting is split at the separators. Never raises: text that
is no table (prose, code, a single column without numbers) gives None.
"""

from __future__ import annotations

import csv
from collections import Counter

from shoal.documents.content import Content, Section
from shoal.documents.tables import COLUMNS_MAX, NOTES_MAX, Table, describe_rows, note_lines

TEXT_CHARS_MAX = 16_000_000  # parsed in full; of longer files the head and the tail (0.3 s of csv)
TAIL_CHARS = 1_000_000
_DELIMITERS = (",", ";", "\t", "|")
_PROBE_LINES = 200
_COMMENT = ("#", "//", "%", "!")


def read_csv(text: str, *, name: str = "") -> Content | None:
    """The tables of delimited text, or None where it is none (prose, a single column without numbers)."""
    warnings: list[str] = []
    clipped, total_lines = _clipped(text)
    if clipped is not text:
        warnings.append("only the head and the tail of this long table were read")
    delimiter = find_delimiter(clipped, certain=name.lower().endswith((".csv", ".tsv", ".psv")))
    if delimiter is None:
        return None
    rows, broken = _parsed(clipped, delimiter)
    if broken:
        warnings.append("quoting in the table is damaged; it was split at its separators")
    tables = describe_rows(rows)
    if not any(table.columns for table in tables):
        return None
    records = sum(table.rows for table in tables)
    if clipped is not text:
        records = max(records, total_lines)
    return Content(
        file_format="CSV",
        sections=tuple(_sections(tables)),
        fields=tuple(column.profile for table in tables for column in table.columns),
        title=_title(tables),
        records=records,
        warnings=tuple(warnings),
    )


def find_delimiter(text: str, *, certain: bool) -> str | None:
    """The separator that gives the most rows of one width above one; None where no separator does so.

    `certain`: the file is called a table, so weaker evidence is enough.
    """
    lines = [line for line in text[:400_000].splitlines() if line.strip()]
    if len(lines) > _PROBE_LINES:  # a preamble may be long: look at the head and at the middle
        half = _PROBE_LINES // 2
        middle = len(lines) // 2
        lines = lines[:half] + lines[middle : middle + half]
    lines = [line[:20_000] for line in lines if not line.startswith(_COMMENT)]
    best: tuple[float, str] | None = None
    for delimiter in _DELIMITERS:
        if not any(delimiter in line for line in lines):
            continue
        try:
            widths = Counter(len(row) for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
        except csv.Error:
            widths = Counter(line.count(delimiter) + 1 for line in lines)
        regular = sum(n for width, n in widths.items() if width > 1 and n > 1)
        width, usual = max(((w, n) for w, n in widths.items() if w > 1), key=lambda wn: (wn[1], wn[0]), default=(1, 0))
        share = max(usual, 0.9 * regular) / max(1, sum(widths.values()))
        score = share * (1 + min(width, 20) / 40)
        if delimiter == "," and _decimal_commas(lines):
            score *= 0.5
        if best is None or score > best[0] + 1e-9:
            best = (score, delimiter)
    if best is None:
        if certain and len(lines) > 1:  # a single column
            return ","
        return None
    if certain or (best[0] > 0.85 and len(lines) > 2 and not _is_text(lines, best[1])):
        return best[1]
    return None


def _sections(tables: list[Table]) -> list[Section]:
    lines: list[str] = []
    prose: list[str] = []
    for table in tables:
        lines += note_lines(table)
        for column in table.columns:
            prose += [text[:1000] for text in column.prose[:6]]
    lines = list(dict.fromkeys(lines))[:NOTES_MAX] + list(dict.fromkeys(prose))[:NOTES_MAX]
    return [Section("\n".join(lines))] if lines else []


def _title(tables: list[Table]) -> str | None:
    for note in tables[0].notes[:3] if tables else []:
        if len(note.split()) >= 2 and sum(ch.isalpha() for ch in note) > 0.6 * len(note.replace(" ", "")):
            return note[:160]
    return None


def _clipped(text: str) -> tuple[str, int]:
    if len(text) <= TEXT_CHARS_MAX + TAIL_CHARS:
        return text, 0
    head = text[: text.rfind("\n", 0, TEXT_CHARS_MAX) + 1 or TEXT_CHARS_MAX]
    tail_start = text.find("\n", len(text) - TAIL_CHARS) + 1 or len(text)
    return head + text[tail_start:], text.count("\n")


def _parsed(text: str, delimiter: str) -> tuple[list[list[str]], bool]:
    try:
        lines = text.splitlines(keepends=True)
        rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
        # One stray quote can swallow the rest of the file into a cell.
        if not any(len(cell) > 20_000 for row in rows[-3:] for cell in row):
            return [row[:COLUMNS_MAX] for row in rows] if any(len(r) > COLUMNS_MAX for r in rows[:5]) else rows, False
    except csv.Error:
        pass
    return [line.split(delimiter)[:COLUMNS_MAX] for line in text.splitlines()], True


def _decimal_commas(lines: list[str]) -> bool:
    """`1,5;2,7`: where a line has semicolons or tabs as well, its commas are decimal."""
    return sum(";" in line or "\t" in line for line in lines) > 0.7 * len(lines)


def _is_text(lines: list[str], delimiter: str) -> bool:
    """Prose and code have commas too: a table's cells are short and its words few."""
    cells = [cell for line in lines[:60] for cell in line.split(delimiter)]
    wordy = sum(cell.count(" ") > 6 or len(cell) > 120 for cell in cells)
    code = sum(line.rstrip().endswith(("{", "}", ");", "=>", "*/")) for line in lines)
    return wordy > 0.25 * len(cells) or code > 0.2 * len(lines)

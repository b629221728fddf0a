"""What the command line prints: data on stdout as a table or JSON, diagnostics on stderr, exit codes.

One place decides how a value looks, so that every command offers the same `-o`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from enum import IntEnum, StrEnum
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shoal.redaction import printable

CELL_CHARS_MAX = 120
COLUMN_CHARS_MIN = 34  # up to here a column is shown whole
_OBEYED = re.compile("[\x7f-\x9f]")  # control characters that JSON need not escape, and some terminals obey


class Exit(IntEnum):
    """Exit codes, the same for every command (shown by `shoal --help`)."""

    OK = 0
    FAILED = 1  # the answer is no: a check failed, a tally does not add up
    USAGE = 2  # wrong arguments or settings
    UNREACHABLE = 3  # the service, the broker or a store can't be reached now
    TIMEOUT = 4  # not finished within --timeout
    INTERRUPTED = 130


class Format(StrEnum):
    table = "table"
    json = "json"


PIPED_WIDTH = 150  # columns where stdout is no terminal: Rich would guess 80 and cut names

out = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
err = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """A line of progress or advice, on stderr; it may quote what others wrote."""
    err.print(printable(message), markup=False, soft_wrap=True)


def emit_json(value: Any) -> None:
    """`value` on stdout as indented JSON, without characters that a terminal would obey."""
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode()
    # Only texts can hold them, where an escape means the same.
    sys.stdout.write(_OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def emit_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, fold: bool = False) -> None:
    """`rows` on stdout as a table of `columns`; cells are plain text, cut to fit, or folded."""
    out.print(table_of(rows, columns, fold=fold))


def table_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, fold: bool = False) -> Table:
    """What `emit_rows` prints."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    cells = [[cell(row.get(column)) for column in columns] for row in rows]
    for place, column in enumerate(columns):
        # The last column gives way where the line is full; the others only when they are very long.
        longest = max((len(line[place]) for line in [columns, *cells]), default=0)
        width = None if fold or place == len(columns) - 1 else min(longest, COLUMN_CHARS_MIN)
        table.add_column(column, overflow="fold" if fold else "ellipsis", no_wrap=not fold, min_width=width)
    for line in cells:
        table.add_row(*map(Text, line))
    return table


def emit_pairs(pairs: Mapping[str, Any]) -> None:
    """Name and value, one a line, aligned."""
    width = max((len(name) for name in pairs), default=0)
    for name, value in pairs.items():
        out.print(Text(f"{name:<{width}}  {cell(value, 400)}"))


def cell(value: Any, chars_max: int = CELL_CHARS_MAX) -> str:
    """One line of text; indexed text is shown without its control characters."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"

"""The lines of a page to its sections: complete where it is text, few where it is data and navigation.

A page whose tables of numbers and lists of links outweigh its sentences is read for what it is about: all
sentences, code and tables of words stay, and what tables say of themselves; of rows of numbers and of short labels
only some. It becomes one section, so that its many small parts share chunks. Any other page keeps every line under
the breadcrumb of its heading. Pure; never raises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from shoal.documents.content import Section

ROWS_CHARS_MAX = 160  # of one table of numbers; its columns and ranges are told as fields
NAMES_CHARS_MAX = 400  # what the rows left out are about
LABELS_CHARS_MAX = 300  # short lines: buttons, captions, values beside a map
LINKS_CHARS_MAX = 600
SENTENCE_WORDS_MIN = 8
SENTENCE_CHARS_MIN = 24  # in scripts without blanks, or with long words
DATA_TO_TEXT = 2  # so many times more of data and links than of sentences make a page one of data


class Kind(Enum):
    """What a line is: running text, text to be kept whole (code, words of a table), a row of numbers, a menu."""

    TEXT = "text"
    WHOLE = "whole"
    ROW = "row"
    LINKS = "links"


@dataclass(frozen=True, slots=True)
class Line:
    text: str
    kind: Kind = Kind.TEXT
    table: int = 0  # which one, of a ROW


@dataclass(frozen=True, slots=True)
class Block:
    """The lines under one heading, which is the breadcrumb `A > B`."""

    heading: str | None
    lines: Sequence[Line]


def digest(blocks: Sequence[Block], tabled: int) -> list[Section]:
    """The sections of a page. `tabled` counts the characters of its tables of numbers, read or not."""
    lines = [line for block in blocks for line in block.lines]
    said = sum(len(line.text) for line in lines if _is_sentence(line))
    links = sum(len(line.text) for line in lines if line.kind is Kind.LINKS)
    if tabled + links <= DATA_TO_TEXT * said:
        return [Section("\n".join(line.text for line in block.lines), block.heading) for block in blocks]
    text = "\n".join(_told(blocks))
    return [Section(text)] if text else []


def _told(blocks: Sequence[Block]) -> Iterator[str]:
    """The lines of a page of data that tell what it is about; its headings stand among them."""
    left = {Kind.TEXT: LABELS_CHARS_MAX, Kind.LINKS: LINKS_CHARS_MAX}
    shown: Counter[int] = Counter()
    for block in blocks:
        telling = any(line.kind is not Kind.LINKS and (line.kind is not Kind.TEXT or _is_sentence(line))
                      for line in block.lines)  # fmt: skip
        out: list[str] = []
        names: dict[str, None] = {}
        for line in block.lines:
            if line.kind is Kind.ROW:
                shown[line.table] += len(line.text)
                if shown[line.table] <= ROWS_CHARS_MAX or shown[line.table] == len(line.text):
                    out.append(line.text[: 2 * ROWS_CHARS_MAX])
                else:
                    names[_name(line.text)] = None
            elif _is_sentence(line):
                out.append(line.text)
            elif telling or line.kind is Kind.LINKS:  # labels alone are buttons and menus
                kept = line.text[: left[line.kind]]
                left[line.kind] -= len(kept)
                if kept:
                    out.append(kept)
        if told := [name for name in names if sum(map(str.isalpha, name)) > sum(map(str.isdigit, name))]:
            out.append(f"Rows: {', '.join(told)}"[:NAMES_CHARS_MAX])
        if out:
            leaf = block.heading.rsplit(" > ", 1)[-1] if block.heading else ""
            if leaf and leaf != out[0]:
                yield leaf
            yield from out


def _is_sentence(line: Line) -> bool:
    if line.kind is not Kind.TEXT:
        return line.kind is Kind.WHOLE
    letters = sum(map(str.isalpha, line.text))
    if letters < 0.5 * len(line.text):
        return False
    return len(line.text.split()) >= SENTENCE_WORDS_MIN or (not line.text.isascii() and letters >= SENTENCE_CHARS_MIN)


def _name(row: str) -> str:
    """What a row is about: its first cell that has letters, without its heading."""
    cells = [cell.rsplit(": ", 1)[-1].strip() for cell in row.split(";")]
    return next((cell for cell in cells[:3] if any(map(str.isalpha, cell))), "")[:60]

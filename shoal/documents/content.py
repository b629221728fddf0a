"""What a format reader hands to the pipeline: prose to chunk, fields to describe, nothing else.

Plain frozen values shared by every reader in this room. A reader promises that all text is bounded, free of
control characters and NULs, and that no wall of numbers is in it: numbers become `FieldProfile` ranges.
A reader doesn't render `fields` into `sections`, nor the announcement's words: `description.describe` does that
for every format, so sections hold only what the file says in words (titles, notes, prose, headings).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Section:
    """A piece of prose or description to be chunked; chunks don't cross sections of level <= 2."""

    text: str
    heading: str | None = None  # breadcrumb "A > B"


@dataclass(frozen=True, slots=True)
class FieldProfile:
    """One column, JSON path or XML element path, and what was seen in it.

    `type` is one of string, number, integer, boolean, date-time, object, array, null; "a|b" for mixes.
    `low` and `high` are the range of numbers or times, as text. `values` is a sample or the enum, bounded in
    count and length.
    """

    path: str  # "$.series[].points[].v", "Load (MW)", "OASISReport/REPORT_ITEM/REPORT_DATA/VALUE"
    type: str
    count: int
    low: str | None = None
    high: str | None = None
    values: tuple[str, ...] = ()
    unit: str | None = None
    distinct: int | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """What a format reader returns. `file_format`: JSON CSV XML HTML MARKDOWN TEXT CODE XLSX XLS ODS PDF PICKLE ZIP"""

    file_format: str
    sections: tuple[Section, ...]
    fields: tuple[FieldProfile, ...] = ()
    title: str | None = None
    charset: str | None = None
    records: int | None = None
    warnings: tuple[str, ...] = ()
    links: tuple[str, ...] = ()  # urls found that tell of an API, bounded

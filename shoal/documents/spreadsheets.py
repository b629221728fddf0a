"""Reads xls, xlsx and ods through calamine: each sheet's tables, notes and columns. No macro is run.

xlsx and ods are zips: what they unfold to is counted beforehand, since the reader itself has no bound. Sheets, rows
and cells are bounded. Raises BadDocument: TOO_LARGE, EXTRACTION_FAILED (damaged, encrypted), UNSUPPORTED_FORMAT
for an old Office file that is no workbook.
"""

from __future__ import annotations

import io
from datetime import date, datetime, time, timedelta

from python_calamine import CalamineError, CalamineWorkbook

from shoal.documents import archives
from shoal.documents.content import Content, FieldProfile, Section
from shoal.documents.profiles import show_number
from shoal.documents.schema import MEMBER
from shoal.documents.tables import COLUMNS_MAX, describe_rows, note_lines
from shoal.errors import BadDocument, DeadReason

SHEETS_MAX = 40
ROWS_MAX = 100_000
CELLS_MAX = 3_000_000
FIELDS_MAX = 400


def read_spreadsheet(data: bytes, file_format: str, bytes_max: int) -> Content:
    """`file_format` is XLS, XLSX or ODS; `bytes_max` bounds what a zipped workbook unfolds to."""
    if file_format != "XLS":
        archives.unfolded_size(data, bytes_max)
    try:
        workbook = CalamineWorkbook.from_filelike(io.BytesIO(data))
        names = list(workbook.sheet_names)
    except (CalamineError, OSError, ValueError) as error:
        if file_format == "XLS":
            raise BadDocument(
                DeadReason.UNSUPPORTED_FORMAT, f"an old Office file that is no readable workbook: {str(error)[:120]}"
            ) from None
        raise _failed(error) from None
    except BaseException as error:  # a Rust panic is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise _failed(error) from None
    sections: list[Section] = []
    fields: list[FieldProfile] = []
    warnings: list[str] = []
    records = 0
    title: str | None = None
    left = CELLS_MAX
    for name in names[:SHEETS_MAX]:
        rows, cut = _rows(workbook, name, left)
        if cut:
            warnings.append(f"sheet {name}: {cut}")
        left -= sum(map(len, rows))
        tables = describe_rows(rows)
        lines = [line for table in tables for line in note_lines(table)]
        records += sum(table.rows for table in tables)
        prefix = f"{name}{MEMBER}" if len(names) > 1 else ""
        for table in tables:
            for column in table.columns:
                fields.append(_prefixed(column.profile, prefix))
                lines += [text[:600] for text in column.prose[:4]]
        lines = list(dict.fromkeys(lines))[:40]
        if title is None and lines and len(lines[0].split()) > 1:
            title = lines[0][:160]
        label = f"Sheet {name}" if len(names) > 1 else ""
        if lines or label:
            body = "\n".join(lines)[:1100]
            sections.append(Section(f"{label}: {body}" if label and body else body or label))
        if left <= 0:
            warnings.append("further sheets were not read")
            break
    return Content(
        file_format=file_format,
        sections=tuple(sections),
        fields=tuple(fields[:FIELDS_MAX]),
        title=title,
        records=records or None,
        warnings=tuple(warnings),
    )


def _rows(workbook: CalamineWorkbook, name: str, cells_max: int) -> tuple[list[list[str]], str | None]:
    try:
        sheet = workbook.get_sheet_by_name(name)
        if sheet.width * min(sheet.height, ROWS_MAX) > cells_max * 4:
            return [], "too many cells; not read"
        raw = sheet.to_python(nrows=ROWS_MAX)
    except (CalamineError, OSError, ValueError) as error:
        return [], f"not readable: {str(error)[:120]}"
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return [], "not readable"
    cut = f"only the first {ROWS_MAX} rows were read" if sheet.height > ROWS_MAX else None
    return [[_text(cell) for cell in row[:COLUMNS_MAX]] for row in raw], cut


def _text(cell: object) -> str:
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float):
        return repr(int(cell)) if cell.is_integer() and abs(cell) < 1e15 else repr(cell)
    if isinstance(cell, int):
        return show_number(cell)
    if isinstance(cell, datetime):
        return cell.isoformat(sep=" ", timespec="seconds")
    if isinstance(cell, (date, time)):
        return cell.isoformat()
    if isinstance(cell, timedelta):
        minutes = int(cell.total_seconds()) // 60
        return f"{minutes // 60:02d}:{minutes % 60:02d}"
    return "" if cell is None else str(cell)


def _prefixed(field: FieldProfile, prefix: str) -> FieldProfile:
    if not prefix:
        return field
    return FieldProfile(
        prefix + field.path, field.type, field.count, field.low, field.high, field.values, field.unit, field.distinct
    )


def _failed(error: BaseException) -> BadDocument:
    return BadDocument(DeadReason.EXTRACTION_FAILED, f"the workbook can't be read: {str(error)[:160]}")

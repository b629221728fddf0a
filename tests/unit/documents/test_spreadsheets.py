"""Workbooks: sheets as sections, several tables, units; damaged and oversized ones."""

from __future__ import annotations

import io
from datetime import datetime

import openpyxl
import pytest

from shoal.documents.spreadsheets import read_spreadsheet
from shoal.errors import BadDocument, DeadReason

HOUR_1, HOUR_2 = datetime(2025, 1, 20, 1), datetime(2025, 1, 20, 2)


def workbook(sheets: dict[str, list[list[object]]]) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    body = io.BytesIO()
    book.save(body)
    return body.getvalue()


def test_sheets_give_fields_with_their_name_and_titles_as_notes():
    data = workbook(
        {
            "Load": [["Daily load report"], [], ["Time", "Load (MW)"], [HOUR_1, 5.5], [HOUR_2, 7]],
            "Prices": [["Hour", "Price"], [1, 40], [2, 42]],
        }
    )
    content = read_spreadsheet(data, "XLSX", 1 << 20)
    fields = {field.path: (field.low, field.high) for field in content.fields}
    assert fields["Load > Time"] == ("2025-01-20T01:00", "2025-01-20T02:00")
    assert fields["Load > Load (MW)"] == ("5.5", "7")
    assert fields["Prices > Price"] == ("40", "42")
    assert content.title == "Daily load report"
    assert "Sheet Load: Daily load report" in content.sections[0].text


def test_a_single_sheet_needs_no_name():
    content = read_spreadsheet(workbook({"Sheet1": [["unit", "fuel"], ["T_DINORW", "PS"]]}), "XLSX", 1 << 20)
    assert [field.path for field in content.fields] == ["unit", "fuel"]


def test_a_workbook_that_unfolds_past_the_bound_is_too_large():
    data = workbook({"Load": [[i, i * 1.5] for i in range(3000)]})
    with pytest.raises(BadDocument) as caught:
        read_spreadsheet(data, "XLSX", 10_000)
    assert caught.value.reason is DeadReason.TOO_LARGE


def test_a_damaged_workbook_is_extraction_failed():
    with pytest.raises(BadDocument) as caught:
        read_spreadsheet(workbook({"Load": [[1]]})[:-400], "XLSX", 1 << 20)
    assert caught.value.reason is DeadReason.EXTRACTION_FAILED

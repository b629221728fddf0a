"""Words for what names leave unsaid: operators, regions, abbreviations, other languages."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from shoal.documents.content import FieldProfile
from shoal.documents.description import heading
from shoal.documents.market import meanings, places
from shoal.documents.pipeline import Context, Limits, TokenBudget, extract_document
from shoal.documents.profiles import profile
from shoal.documents.schema import field_lines, own_name, parent, period, schema_json
from shoal.documents.words import split_words, unit_of


@pytest.mark.parametrize(
    ("source", "dataset", "expected"),
    [
        ("NYISO", "nyiso_load_forecast", ["New York ISO, New York state"]),
        ("JP-CG", "jyukyu2_chugoku", ["Chugoku", "Japan"]),
        ("ENTSOE", "be_outages", ["European transmission system operators ENTSO-E", "Belgium"]),
        ("IN", "in_ka_default", ["Karnataka", "India"]),
        ("JAO-AUCTIONS", "no_data", ["Joint Allocation Office, European cross-border capacity"]),
        ("OPENNEM", "opennem_au_sa", ["South Australia", "OpenNEM, Australia"]),
        ("JAO", "if1_fr_gb", ["Joint Allocation Office, European cross-border capacity", "France", "Great Britain"]),
        ("ACME", "in_store_sales", []),
    ],
)
def test_places_are_named_in_full(source, dataset, expected):
    assert places(source, dataset) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SystemLoadBtmPv", "system load btm pv"),
        ("forecast_load_mw", "forecast load mw"),
        ("dayaheadhourlydemand", "day ahead hourly demand"),
        ("genfuelmix", "gen fuel mix"),
        ("dateTimeUtc", "date time utc"),
        ("需要[30分kWh]", "需要 30分kwh"),
        ("information", "information"),
        ("HTTPResponseCode", "http response code"),
    ],
)
def test_names_are_split_into_words(name, expected):
    assert " ".join(split_words(name)) == expected


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("Load (MW)", "MW"),
        ("price [EUR/MWh]", "EUR/MWh"),
        ("forecast_load_mw", "MW"),
        ("エリア需要〔MWh〕", "MWh"),
        ("総需要量(ｋＷｈ)", "kWh"),
        ("使用率(%)", "%"),
        ("zone", None),
        ("sum(x)", None),
    ],
)
def test_units_are_read_from_names(name, unit):
    assert unit_of(name) == unit


def test_foreign_and_short_words_get_their_meaning():
    assert meanings(["eolica", "エリア需要", "lmp"], 9) == ["wind", "demand", "area", "locational marginal price"]


def numbers(path: str, low: str = "1", high: str = "2") -> FieldProfile:
    return FieldProfile(path, "number", 5, low, high)


def test_like_columns_become_one_line_with_the_common_range():
    lines = field_lines([numbers(f"$[].border_{name}", high=str(at)) for at, name in enumerate("ABCDEFGHIJ", 3)], 2000)
    assert len(lines) == 1
    assert "(10 fields): 1 to 12" in lines[0]
    assert "border_A, border_B" in lines[0]


def test_lines_stay_within_their_bound_and_name_what_is_left():
    fields = [FieldProfile(f"name{chr(97 + i)} {i * 37}x", "string", 5, values=(f"value {i}",)) for i in range(26)]
    lines = field_lines(fields, 300)
    assert sum(map(len, lines)) < 300 + 420
    assert lines[-1].startswith("Further fields: ")


@pytest.mark.parametrize(
    ("path", "place", "name"),
    [
        ("$.data.actual[].LoadMw", "data.actual[]", "LoadMw"),
        ("$[].zone", "", "zone"),
        ("$.demand[][1]", "", "demand 1"),
        ("$.days{*}.mw", "days[]", "mw"),
        ("Report/Item[]/VALUE", "Report/Item[]", "VALUE"),
        ("02/25/2025", "", "02/25/2025"),
        ("Load / MW", "", "Load / MW"),
        ("Sheet 1 > Load (MW)", "Sheet 1", "Load (MW)"),
    ],
)
def test_a_path_parts_into_place_and_name(path, place, name):
    field = numbers(path)
    assert (parent(field), own_name(field)) == (place, name)


def test_the_period_is_that_of_the_data_not_of_the_upkeep():
    stamp = FieldProfile("$.created_at", "date-time", 24, "2024-12-31", "2025-03-01", distinct=24)
    hours = FieldProfile("$.hour", "date-time", 24, "2025-01-20", "2025-01-20T23:00", ("2025-01-20",), distinct=24)
    assert period([stamp, hours], 24) == ("2025-01-20", "2025-01-20T23:00", "hourly")


def test_the_end_of_a_period_may_be_in_a_field_of_its_own():
    start = FieldProfile("start", "date-time", 2, "2025-01-20", "2025-01-21", distinct=2)
    end = FieldProfile("end", "date-time", 2, "2025-01-21", "2025-01-22", distinct=2)
    assert period([start, end], 2)[:2] == ("2025-01-20", "2025-01-22")


def test_schema_is_json_of_at_most_16_kb_however_many_fields():
    fields = [
        FieldProfile(f"field {i} with a rather long name of its own", "string", 5, values=("v" * 70,))
        for i in range(400)
    ]
    schema = schema_json(fields, 7)
    assert schema is not None
    assert len(schema.encode()) <= 16_000
    assert json.loads(schema)["fields_left_out"] == 300
    assert json.loads(schema)["records"] == 7


def test_no_fields_have_no_schema():
    assert schema_json([], None) is None


@pytest.mark.parametrize(
    ("source", "dataset", "expected"),
    [
        ("HYDROQUEBEC", "consumption", "Hydro-Québec, Quebec, Canada: "),
        ("OPENNEM", "opennem_au_sa", "South Australia, OpenNEM, Australia: "),
        ("ISONE", "morning_report", "ISONE ("),
    ],
)
def test_a_source_that_its_full_name_already_says_is_not_repeated(context, source, dataset, expected):
    assert heading(replace(context, data_source=source, dataset=dataset)).startswith(expected)


@pytest.mark.parametrize("missing", ["ND", "n.d.", "N/A", "-"])
def test_marks_of_missing_values_don_t_hide_numbers(missing):
    found = profile("Demanda", ["1,564", missing, "340", missing, "2,759"]).profile
    assert (found.type, found.low, found.high) == ("integer", "340", "2759")


@pytest.mark.parametrize(
    ("name", "dataset", "text", "summaries"),
    [
        ("17.txt", "", "Notes\n\nWhy wind matters to the grid.", 0),
        ("17.txt", "nyiso_load", "Notes\n\nWhy wind matters to the grid.", 1),
        ("notes.txt", "", "Notes\n\nWhy wind matters to the grid.", 1),
        ("17.html", "", "<html><title>Tides</title><body><p>Only the title names them.</p></body></html>", 1),
        ("17.txt", "", "---", 1),
    ],
)
def test_prose_has_a_summary_only_where_it_says_more_than_the_text(name, dataset, text, summaries):
    context = Context(name, None, None, "", "", dataset, datetime(2025, 1, 20, tzinfo=UTC))
    found = extract_document(text.encode(), context, Limits(10_000, 50), TokenBudget(len, 2_000, 0))
    assert sum("collected 20 January 2025" in chunk.text for chunk in found.chunks) == summaries
    if text != "---":
        assert any("matters" in chunk.text or "Only" in chunk.text for chunk in found.chunks)

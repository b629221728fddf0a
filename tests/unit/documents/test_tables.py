"""Tables as operators really publish them: preambles, stacked tables, marked rows, units, commas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.documents.csv_reader import find_delimiter, read_csv
from shoal.documents.tables import describe_rows


def fields(text: str, name: str = "x.csv") -> dict[str, tuple[str, str | None, str | None]]:
    content = read_csv(text, name=name)
    assert content is not None
    return {field.path: (field.type, field.low, field.high) for field in content.fields}


def test_names_units_and_ranges_come_from_a_plain_table():
    content = read_csv("Time Stamp,Load (MW)\n01/20/2025 00:05,12.5\n01/20/2025 00:10,-3\n", name="x.csv")
    assert content is not None
    assert [(f.path, f.unit) for f in content.fields] == [("Time Stamp", None), ("Load (MW)", "MW")]
    assert content.records == 2
    assert (content.fields[1].low, content.fields[1].high) == ("-3", "12.5")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_separator_is_found(delimiter):
    text = "\n".join(
        delimiter.join(row) for row in (["day", "zone", "mw"], ["2025-01-20", "W", "1"], ["2025-01-21", "N", "2"])
    )
    assert fields(text, name="x")["mw"] == ("integer", "1", "2")


def test_decimal_commas_beside_semicolons_are_numbers():
    assert fields("Zeit;Last\n20.01.2025;1.234,5\n21.01.2025;987,25\n")["Last"] == ("number", "987.2", "1234.5")


def test_a_preamble_is_kept_as_notes_and_the_header_found_below_it():
    preamble = "Sistema Nacional\nFecha de Consulta: 01/01/2025\n\n"
    content = read_csv(f"{preamble}Dia,Hora,Eolica\n01/01/2025,1,5\n02/01/2025,2,7\n", name="x.csv")
    assert content is not None
    assert [field.path for field in content.fields] == ["Dia", "Hora", "Eolica"]
    assert content.sections[0].text.startswith("Sistema Nacional")
    assert content.title == "Sistema Nacional"


def test_rows_marked_c_h_d_are_comments_headers_and_data():
    head = '"C","Seven Day Wind Forecast"\n"H","","","Day 1"\n"D","Date","Hour Ending","02/25/2025"\n'
    text = head + '"D",,01,205\n"D",,02,221\n"T","2 lines"\n'
    content = read_csv(text, name="x.csv")
    assert content is not None
    assert content.title == "Seven Day Wind Forecast"
    assert content.records == 2
    assert [(f.path, f.low, f.high) for f in content.fields][-2:] == [
        ("Hour Ending", "1", "2"),
        ("02/25/2025", "205", "221"),
    ]


def test_rows_marked_i_and_d_drop_the_labels_that_repeat_in_every_row():
    data = "D,DEMAND,FORECAST,1,NSW1,8525\nD,DEMAND,FORECAST,1,QLD1,8526\nC,END OF REPORT,4\n"
    text = "C,NEMP,REPORT\nI,DEMAND,FORECAST,1,REGION,MW\n" + data
    content = read_csv(text, name="x.csv")
    assert content is not None
    assert [field.path for field in content.fields] == ["REGION", "MW"]


def test_stacked_tables_are_told_apart():
    text = "updated,for\n20250416,20250417\ndate,slot,demand\n20250417,1,500\n20250417,2,600\n20250417,3,700\n"
    content = read_csv(text, name="x.csv")
    assert content is not None
    assert [(field.path, field.count) for field in content.fields][-1] == ("demand", 3)
    assert all(field.path not in ("20250416", "500") for field in content.fields)


def test_units_in_a_row_of_their_own_go_to_their_columns():
    assert set(fields("date,demand,supply\n-,kWh,kWh\n2025-01-20,5,6\n2025-01-21,7,8\n")) == {
        "date",
        "demand (kWh)",
        "supply (kWh)",
    }


def test_a_row_of_groups_above_the_header_prefixes_its_names():
    header = ",,Solar,Solar,Wind,Wind,\ntime,demand,actual,curtailed,actual,curtailed,pumped\n"
    text = header + "2025/4/1 0:00,1,2,3,4,5,6\n2025/4/1 1:00,1,2,3,4,5,6\n"
    assert list(fields(text)) == [
        "time",
        "demand",
        "Solar actual",
        "Solar curtailed",
        "Wind actual",
        "Wind curtailed",
        "pumped",
    ]


def test_hours_as_column_names_are_a_header_though_they_are_numbers():
    hours = [f"{hour:02d}" for hour in range(24)]
    text = ",".join(["Fecha", "Planta", *hours]) + "\n7/25/2025,IHSA," + ",".join(["3.5"] * 24) + "\n"
    assert list(fields(text)) == ["Fecha", "Planta", *hours]


def test_a_table_without_a_header_gets_numbered_columns():
    assert list(fields("2025-01-20,5\n2025-01-21,6\n2025-01-22,7\n")) == ["column 1", "column 2"]


def test_missing_values_do_not_turn_numbers_into_text():
    assert fields("a,b\n1,2\nN/A,3\n-,4\n,5\n7,6\n")["a"] == ("integer", "1", "7")


def test_a_stray_quote_does_not_swallow_the_table():
    content = read_csv('a,b\n"1,2\n' + "3,4\n" * 20_000, name="x.csv")
    assert content is not None
    assert content.records is not None
    assert content.records > 19_000
    assert content.warnings


@pytest.mark.parametrize(
    "text",
    [
        "A sentence with a comma, and another one.\nIt goes on, over lines, as prose does.\nAnd ends here, at last.",
        "int main() {\n  int a, b;\n  return 0;\n}\nvoid f(int x, int y) {\n}\n",
        "one line",
    ],
)
def test_prose_and_code_are_no_table_unless_they_are_called_one(text):
    assert find_delimiter(text, certain=False) is None
    assert read_csv(text) is None


def test_a_table_of_names_only_has_the_first_row_as_header():
    assert list(fields("Name,Region\nMisiones,NEA\nCorrientes,NEA\n")) == ["Name", "Region"]


CELLS = st.one_of(
    st.sampled_from(["", "1", "12,5", "2025-01-20", "Load (MW)", "C", "D", "H", "01", "02", "N/A"]),
    st.text(max_size=12),
)


@given(st.lists(st.lists(CELLS, max_size=9), max_size=14))
def test_any_rows_give_tables_without_a_crash(rows):
    assert isinstance(describe_rows(rows), list)


@given(st.text(alphabet=st.sampled_from('ab1,;\t|"\n\r\0#-. '), max_size=200))
def test_any_text_is_a_table_or_none(text):
    content = read_csv(text, name="x.csv")
    assert content is None or content.fields

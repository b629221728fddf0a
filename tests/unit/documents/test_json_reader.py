"""JSON in the shapes that APIs give, and in those that attackers do."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.documents.content import FieldProfile
from shoal.documents.json_reader import read_json
from shoal.errors import BadDocument, DeadReason


def field(text: str, path: str) -> FieldProfile:
    found = {field.path: field for field in read_json(text).fields}
    assert path in found, sorted(found)
    return found[path]


def test_nested_series_are_profiled_by_path():
    series = [
        {"name": f"sensor {i}", "points": [{"t": f"2025-01-0{d}", "v": d * i} for d in (1, 2, 3)]} for i in (1, 2)
    ]
    text = json.dumps({"series": series})
    assert (field(text, "$.series[].points[].v").low, field(text, "$.series[].points[].v").high) == ("1", "6")
    assert field(text, "$.series[].points[].t").type == "date-time"
    assert field(text, "$.series[].name").values == ("sensor 1", "sensor 2")


def test_the_range_of_a_long_series_includes_both_ends():
    values = field(json.dumps({"v": list(range(100_000))}), "$.v[]")
    assert (values.low, values.high, values.count) == ("0", "99999", 100_000)


def test_keys_that_are_data_collapse():
    text = json.dumps({"data": {f"2025-01-{d:02d}": {"mw": d} for d in range(1, 29)}})
    assert field(text, "$.data{*}.mw").count == 28
    assert (field(text, "$.data{*}").low, field(text, "$.data{*}").high) == ("2025-01-01", "2025-01-28")


def test_many_sibling_objects_of_one_shape_collapse_but_named_series_do_not():
    plants = json.dumps({f"plant {chr(97 + i // 26)}{chr(97 + i % 26)}": {"mw": i, "fuel": "gas"} for i in range(80)})
    assert field(plants, "${*}.mw").count == 80
    borders = json.dumps([{f"border_{a}_{b}": 1 for a in "ABCDEFGH" for b in "IJKLMNOP"}])
    assert field(borders, "$[].border_A_I").count == 1


def test_a_header_row_names_the_columns_of_an_array_of_arrays():
    text = json.dumps({"data": [["time", "load"], ["2025-01-20", 5], ["2025-01-21", 6]]})
    assert field(text, "$.data[].load").high == "6"


def test_columns_beside_rows_name_them():
    text = json.dumps({"columns": [{"name": "time"}, {"name": "load"}], "rows": [["2025-01-20", 5], ["2025-01-21", 6]]})
    assert field(text, "$.rows[].load").low == "5"


def test_positions_in_rows_of_one_width_are_columns():
    text = json.dumps({"demand": [["2025-04-04T11:00+09:30", 10.2], ["2025-04-04T11:30+09:30", 10.4]]})
    assert field(text, "$.demand[][0]").type == "date-time"
    assert field(text, "$.demand[][1]").high == "10.4"


def test_json_within_a_string_is_read():
    text = json.dumps({"d": json.dumps([{"hora": 1, "demanda": 45755}])})
    assert field(text, "$.d[].demanda").low == "45755"


def test_numbers_and_times_written_as_strings_are_recognised():
    text = json.dumps([{"mw": "1.234,5", "at": "15/01/2025 10:00"}, {"mw": "987,25", "at": "16/01/2025 10:00"}])
    assert field(text, "$[].mw").type == "number"
    assert field(text, "$[].at").low == "2025-01-15T10:00"


def test_epochs_under_a_name_of_time_are_times_and_other_big_numbers_are_not():
    text = json.dumps({"timestamp": [1737381600, 1737385200], "pnode_id": [1709725933, 1709725934]})
    assert field(text, "$.timestamp[]").type == "date-time"
    assert field(text, "$.pnode_id[]").type == "integer"


def test_nan_is_read_with_a_warning():
    content = read_json('{"a": NaN, "b": [1, -Infinity]}')
    assert "not JSON" in content.warnings[0]


def test_json_lines_are_one_document():
    content = read_json('{"load": 1}\n{"load": 2}\n{"load": 3}\n')
    assert (content.records, content.fields[0].high) == (3, "3")


def test_numbers_of_400_digits_are_no_crash():
    content = read_json('{"a": ' + "9" * 400 + ', "b": [' + "1" * 5000 + ", 1e400, 2]}")
    assert {field.path for field in content.fields} == {"$.a", "$.b[]"}


def test_prose_is_quoted_and_numbers_are_not():
    content = read_json(
        json.dumps({"description": "Hourly net generation by balancing authority and energy source.", "v": [1.5] * 9})
    )
    assert "balancing authority" in content.sections[0].text
    assert "1.5" not in content.sections[0].text


def test_articles_get_a_section_each():
    body = (
        "The operator has issued a notice about planned maintenance of the northern interconnector, which will last. "
        * 3
    )
    content = read_json(json.dumps([{"title": f"Notice {i}", "body": body} for i in range(5)]))
    assert [section.heading for section in content.sections] == [f"Notice {i}" for i in range(5)]


def test_html_in_strings_is_shown_without_its_tags():
    text = json.dumps({"rows": [["<a name='x'></a><b>Nuclear</b>", 1], ["<b>Coal</b>", 2]]})
    assert field(text, "$.rows[][0]").values == ("Nuclear", "Coal")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000, "{", "[1, 2", "nonsense", "{'a': 1"]
)
def test_what_no_leniency_reads_is_extraction_failed(text):
    with pytest.raises(BadDocument) as caught:
        read_json(text)
    assert caught.value.reason is DeadReason.EXTRACTION_FAILED


def test_fields_keys_and_samples_are_bounded():
    wide = {"k" * 10_000: 1, **{f"name{i}x": f"{i}" * 500 for i in range(2000)}}
    content = read_json(orjson.dumps(wide).decode())
    assert len(content.fields) <= 400
    assert all(len(field.path) < 200 and all(len(value) <= 72 for value in field.values) for field in content.fields)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=40,
)


@given(JSON)
def test_any_json_is_described(value):
    assert read_json(json.dumps(value)).file_format == "JSON"

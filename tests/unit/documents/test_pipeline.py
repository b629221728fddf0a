"""The entrance: the right format, the right reason, and text that a question finds."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import zipfile
import zlib

import orjson
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.documents.pipeline import Context, Limits, TokenBudget, extract_document
from shoal.errors import BadDocument, DeadReason
from shoal.records import Extraction

LOAD = orjson.dumps(
    {
        "load": [
            {"ts": "2025-01-20T14:00:00Z", "zone": "WEST", "mw": 1500.5},
            {"ts": "2025-01-20T15:00:00Z", "zone": "NORTH", "mw": 700},
        ]
    }
)
ERROR_PAGE = b"<!DOCTYPE html><html><body><h1>503 Service Unavailable</h1><p>Please try again.</p></body></html>"
TABLE = b"Time Stamp,Zone,Load (MW)\n01/20/2025 14:00:00,WEST,1500\n01/20/2025 15:00:00,NORTH,700\n"
PACKERS = [gzip.compress, zlib.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress]


def reason(extract, data: bytes, **options) -> DeadReason:
    with pytest.raises(BadDocument) as caught:
        extract(data, **options)
    return caught.value.reason


def all_text(extraction: Extraction) -> str:
    return "\n".join(chunk.text for chunk in extraction.chunks)


def zipped(members: dict[str, bytes]) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return body.getvalue()


def test_first_chunk_says_in_words_whose_data_it_is_and_of_which_period(extract):
    first = extract(LOAD, name="load.json").chunks[0].text
    assert "New York ISO" in first
    assert "electricity demand forecast" in first
    assert "2025-01-20T14:00Z to 2025-01-20T15:00Z" in first
    assert "collected 20 January 2025" in first
    assert "WEST, NORTH" in first


def test_a_series_of_numbers_becomes_a_range_not_a_wall(extract):
    points = [{"t": f"2025-01-{1 + i // 24:02d}T{i % 24:02d}:00:00Z", "v": i + 0.25} for i in range(480)]
    extraction = extract(orjson.dumps({"series": points}), name="x.json")
    text = all_text(extraction)
    assert len(extraction.chunks) == 1
    assert "v: 0.25 to 479.2" in text
    assert "hourly" in text
    assert "100.25" not in text


def test_schema_has_types_units_and_ranges(extract):
    schema = json.loads(extract(TABLE, name="load.csv").schema)
    load = next(field for field in schema["fields"] if field["path"] == "Load (MW)")
    assert load == {**load, "type": "integer", "count": 2, "unit": "MW", "low": "700", "high": "1500"}
    assert schema["records"] == 2


@pytest.mark.parametrize(
    "data", [b"", b" \r\n\t", b"\0\0\0", b"\xef\xbb\xbf", gzip.compress(b""), gzip.compress(b"\n ")]
)
def test_nothing_but_white_space_is_empty(extract, data):
    assert reason(extract, data) is DeadReason.EMPTY


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"\x7fELF\x02\x01\x01\0\0\0",
        b"MZ\x90\x00\x03\x00",
        b"PAR1\x15\x04\x15",
        bytes(range(32)) * 40,
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    ],
)
def test_a_binary_no_reader_takes_is_unsupported_whatever_it_is_called(extract, data):
    assert reason(extract, data, name="load.json", content_type="application/json") is DeadReason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (LOAD[:-30], "load.json"),
        (b'[{"a": 1}, {"b"', "download"),
        (b"[" * 100_000, "deep.json"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "deep.json"),
        (gzip.compress(LOAD * 50)[:60], "load.json.gz"),
        (zipped({"a.csv": TABLE})[:50], "a.zip"),
        (b"%PDF-1.7 and so on", "report.pdf"),
        (pickle.dumps([{"load": "west"}])[:-4], "load.pkl"),
    ],
)
def test_a_damaged_file_of_a_known_format_is_extraction_failed(extract, data, name):
    assert reason(extract, data, name=name) is DeadReason.EXTRACTION_FAILED


@pytest.mark.parametrize("pack", PACKERS)
def test_a_bomb_is_too_large_and_costs_its_bound(extract, pack):
    assert reason(extract, pack(b"0" * 3_000_000), name="x.json") is DeadReason.TOO_LARGE


@pytest.mark.parametrize(
    "members",
    [
        {"a.csv": TABLE, "bomb.csv": b"0" * 3_000_000},
        {"xl/workbook.xml": b"<workbook/>", "xl/worksheets/sheet1.xml": b"0" * 3_000_000},
        {f"{i}.txt": b"" for i in range(10_001)},
    ],
    ids=["zip", "xlsx", "entries"],
)
def test_an_archive_over_its_bounds_is_too_large(extract, members):
    assert reason(extract, zipped(members), name="x.zip") is DeadReason.TOO_LARGE


@pytest.mark.parametrize("pack", PACKERS)
def test_a_compressed_body_is_read_as_what_is_inside(extract, pack):
    extraction = extract(pack(TABLE), name="load.csv.gz")
    assert extraction.file_format == "CSV"
    assert "WEST, NORTH" in all_text(extraction)


def test_all_members_of_a_gzip_are_read(extract):
    extraction = extract(gzip.compress(TABLE) + gzip.compress(b"01/20/2025 16:00:00,EAST,900\n"), name="load.csv.gz")
    assert "EAST" in all_text(extraction)


@pytest.mark.parametrize(
    ("data", "name", "content_type", "expected"),
    [
        (b'{"error": "no such report"}', "load.csv", "text/csv", "JSON"),
        (ERROR_PAGE, "load.json", "application/json", "HTML"),
        (b"The service is down for maintenance.", "load.json", "application/json", "TEXT"),
        (LOAD, "download", None, "JSON"),
        (b"callback(" + LOAD + b");", "load.js.txt", None, "JSON"),
        (json.dumps(LOAD.decode()).encode(), "load.json", None, "JSON"),
        (json.dumps(json.dumps([{"zone": "WEST", "mw": 1}])).encode(), "load.txt", None, "JSON"),
        (b'"[Note] this is no JSON", said the operator of the zone.', "note.txt", None, "TEXT"),
        (b'<?xml version="1.0"?><Report><Load unit="MW">12</Load></Report>', "load.txt", None, "XML"),
        (b"a;b;c\n1;2;3\n4;5;6\n7;8;9\n", "download", None, "CSV"),
        (b"# Load forecast\n\nPublished daily.\n\n## Zones\n\n- West\n- North\n", "notes.md", None, "MARKDOWN"),
        (b"This is a note about the forecast, which is published daily.", "note.txt", None, "TEXT"),
        (TABLE.decode().encode("utf-16"), "load.csv", None, "CSV"),
        (pickle.dumps([{"zone": "west"}]), "load.json", "application/json", "PICKLE"),
    ],
)  # fmt: skip
def test_content_wins_over_name_and_content_type(extract, data, name, content_type, expected):
    assert extract(data, name=name, content_type=content_type).file_format == expected


def test_relative_links_of_a_page_are_resolved_against_its_address(extract):
    page = b"<html><body><h1>Data</h1><p>All files of the day.</p><a href='files/load.csv'>Load</a></body></html>"
    assert "https://api.nyiso.com/v1/files/load.csv" in all_text(extract(page, name="page.html"))


def test_an_empty_json_array_is_a_document_with_a_warning(extract):
    extraction = extract(b"[]", name="load.json")
    assert extraction.warnings == ("the JSON is empty",)
    assert extraction.chunks


def test_chunks_beyond_the_bound_are_left_out_with_a_warning(extract):
    extraction = extract(b"The quick brown fox jumps over the lazy dog. " * 2000, name="story.txt", chunks_max=3)
    assert len(extraction.chunks) == 3
    assert any("chunks" in warning for warning in extraction.warnings)


def test_an_extraction_survives_pickling(extract):
    extraction = extract(LOAD, name="load.json")
    assert pickle.loads(pickle.dumps(extraction)) == extraction


def test_control_characters_and_direction_overrides_never_reach_the_text(extract):
    data = b'{"title": "evil \\u202e\\u0000\\u200b report on the load of the zone west", "load": 1}'
    extraction = extract(data, name="x.json")
    text = all_text(extraction) + (extraction.title or "") + (extraction.schema or "") + (extraction.api_text or "")
    assert not set(text) & set("\u202e\u0000\u200b")


def test_every_member_of_a_zip_is_named_and_readable_ones_described(extract):
    data = zipped(
        {"load.csv": TABLE, "../../etc/passwd": LOAD, "photo.png": b"\x89PNG\r\n\x1a\n", "in.zip": zipped({"x": b"1"})}
    )
    extraction = extract(data, name="all.zip")
    text = all_text(extraction)
    assert extraction.file_format == "ZIP"
    assert "Zip archive of 4 files" in text
    assert all(name in text for name in ("load.csv", "../../etc/passwd", "photo.png", "in.zip"))
    assert "Load (MW): 700 to 1500" in text
    assert {warning.split(":")[0] for warning in extraction.warnings} == {"member photo.png", "member in.zip"}


def test_an_encrypted_member_is_noted_and_the_others_described(extract):
    data = bytearray(zipped({"secret.csv": TABLE, "load.csv": TABLE}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    extraction = extract(bytes(data), name="all.zip")
    assert "member secret.csv is encrypted" in extraction.warnings
    assert "Load (MW)" in all_text(extraction)


def context_named(name: str, content_type: str | None, context: Context) -> Context:
    return Context(name, content_type, None, context.data_source, "load", "nyiso_load", context.collected_at)


NAMES = st.sampled_from(["x", "x.json", "x.csv", "x.xml", "x.html", "x.txt", "x.md", "x.zip", "x.xlsx", "x.json.gz"])
TEXT_PIECES = (
    b"{ } [ ] : , ; | # 12,5 1e999 NaN <a> </a> <?xml?> 2025-01-20 D, H, C, Load(MW) \xff\xfe \x82\xa0 \xed\xa0\x80"
)
PIECES = st.sampled_from(
    [*TEXT_PIECES.split(), b'"', b"\n", b"\t", b"\0", b"PK\x03\x04", b"\x1f\x8b\x08\0", b"%PDF-1.4", b"\x80\x04]\x94"]
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=400), st.lists(PIECES, max_size=60).map(b"".join)), name=NAMES)
def test_any_bytes_give_an_extraction_within_bounds_or_a_bad_document_that_is_no_crash(data, name, context, budget):
    try:
        extraction = extract_document(data, context_named(name, None, context), Limits(100_000, 20), budget)
    except BadDocument as error:
        if error.__cause__ is not None:  # a reader's own exception, which extract_document wraps: here it is a crash
            raise error.__cause__ from None
        return
    assert len(extraction.chunks) <= 20
    for chunk in extraction.chunks:
        assert budget.count(chunk.text) == chunk.token_count <= budget.max_tokens
        assert chunk.text.encode()
        assert "\0" not in chunk.text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=2000), pack=st.sampled_from(PACKERS[:4]), cut=st.floats(0, 1))
def test_a_cut_stream_is_never_taken_for_a_whole_one(data, pack, cut, context, budget):
    packed = pack(b"note: " + data)
    kept = packed[: int(cut * (len(packed) - 1))]
    if len(kept) < 12:
        return
    with pytest.raises(BadDocument) as caught:
        extract_document(kept, context_named("x", None, context), Limits(100_000, 20), budget)
    assert caught.value.reason in (DeadReason.EXTRACTION_FAILED, DeadReason.UNSUPPORTED_FORMAT)


def test_the_counter_of_the_budget_is_the_only_judge_of_length(context):
    by_characters = TokenBudget(len, 200, 0)
    extraction = extract_document(LOAD, context_named("x.json", None, context), Limits(100_000, 50), by_characters)
    assert len(extraction.chunks) > 1
    assert all(len(chunk.text) <= 200 for chunk in extraction.chunks)

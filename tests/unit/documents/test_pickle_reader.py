"""Pickles are listed and never loaded."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.documents import pickle_reader
from shoal.documents.pickle_reader import read_pickle
from shoal.documents.sniff import binary_format
from shoal.errors import BadDocument, DeadReason

EVENTS = [{"at": datetime(2025, 1, 20, tzinfo=UTC), "zoneKey": "IN-WE", "consumption": 63375.5 + n} for n in range(3)]


class Trap:
    """What a hostile pickle does: it runs a command when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_strings_and_numbers_are_told_and_classes_set_apart(extract):
    extraction = extract(pickle.dumps(EVENTS), name="result.txt")
    text = extraction.chunks[0].text
    assert extraction.file_format == "PICKLE"
    assert "with the strings at, zoneKey, IN-WE, consumption" in text
    assert "datetime.datetime" in text.split("Classes:")[1]
    assert "63375.5 to 63377.5" in text
    assert any("pickle" in warning for warning in extraction.warnings)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nothing_in_a_pickle_is_run(extract, tmp_path, protocol):
    mark = tmp_path / "ran"
    data = pickle.dumps([Trap(mark), "words"], protocol)
    assert extract(data, name="x").file_format == "PICKLE"
    assert not mark.exists()
    pickle.loads(data)
    assert mark.exists()  # the trap works


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_binary_protocol_is_recognised(protocol):
    for value in (EVENTS, {"a": 1}, "text", b"bytes", 1.5, (1, 2), None, True):
        assert binary_format(pickle.dumps(value, protocol)) == "PICKLE"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (json.dumps([{"zone": f"Z{n}", "mw": n} for n in range(40)]), "JSON"),
        (
            "<!doctype html><html><body><h1>Load</h1><p>" + "The load of the zone west. " * 20 + "</p></body></html>",
            "HTML",
        ),
        (b"<?xml version='1.0'?><Load>" + b"<Point zone='WEST' mw='1'/>" * 20 + b"</Load>", "XML"),
    ],
)
def test_a_pickled_response_is_read_as_what_it_is(extract, body, expected):
    extraction = extract(pickle.dumps({"status": 200, "body": body}), name="response.pkl")
    assert extraction.file_format == expected
    assert any("pickle" in warning for warning in extraction.warnings)


def test_prose_in_a_pickle_is_text(extract):
    prose = "The forecast of the load is published every day at noon for the following seven days."
    assert prose in "\n".join(chunk.text for chunk in extract(pickle.dumps({"note": prose}), name="x").chunks)


@pytest.mark.parametrize(
    "data",
    [pickle.dumps(EVENTS)[:-1], b"\x80\x04\x8c\xffshort", b"\x80\x04]\x94\xff\xff.", b"\x80\x04X\xff\xff\xff\x7fa."],
)
def test_a_damaged_pickle_is_refused(extract, data):
    with pytest.raises(BadDocument, match="damaged pickle") as caught:
        extract(data, name="x")
    assert caught.value.reason is DeadReason.EXTRACTION_FAILED


def test_a_long_pickle_is_listed_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(pickle_reader, "OPCODES_MAX", 50)
    content = read_pickle(pickle.dumps([f"word{n}x" for n in range(1000)]), lambda _: pytest.fail("no document in it"))
    assert "word3x" in content.sections[0].text
    assert "word900x" not in content.sections[0].text
    assert "only its beginning was listed" in content.warnings


@given(st.binary(max_size=300))
def test_any_opcodes_give_content_or_a_bad_document(data):
    def refuse(_: bytes):
        raise BadDocument(DeadReason.EXTRACTION_FAILED, "no document")

    with suppress(BadDocument):  # any other exception fails
        assert read_pickle(b"\x80\x04" + data, refuse).sections

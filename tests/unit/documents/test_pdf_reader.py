"""PDF: text under its headings, described where it has none, refused where it is locked or broken."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.documents import pdf_reader
from shoal.documents.pdf_reader import read_pdf
from shoal.errors import BadDocument, DeadReason


def pdf(*pages: list[str], info: str = "", trailer: str = "", outline: str = "") -> bytes:
    """A PDF written by hand: one line of text after the other on each page."""
    count = len(pages)
    kids = " ".join(f"{10 + 2 * n} 0 R" for n in range(count))
    objects = {
        1: f"<</Type/Catalog/Pages 2 0 R{'/Outlines 5 0 R' if outline else ''}>>",
        2: f"<</Type/Pages/Kids[{kids}]/Count {count}>>",
        3: "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        4: f"<<{info}>>",
    }
    if outline:
        objects[5] = "<</First 6 0 R/Last 6 0 R/Count 1>>"
        objects[6] = f"<</Title({outline})/Parent 5 0 R/Dest[10 0 R/Fit]>>"
    for n, lines in enumerate(pages):
        text = " ".join(f"({line}) Tj T*" for line in lines)
        stream = f"BT /F1 9 Tf 12 TL 50 780 Td {text} ET" if lines else ""
        objects[10 + 2 * n] = (
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents {11 + 2 * n} 0 R"
            "/Resources<</Font<</F1 3 0 R>>>>>>"
        )
        objects[11 + 2 * n] = f"<</Length {len(stream)}>>stream\n{stream}\nendstream"
    body = b"%PDF-1.4\n"
    offsets = {}
    for number, text in objects.items():
        offsets[number] = len(body)
        body += f"{number} 0 obj{text}endobj\n".encode("latin-1")
    start = len(body)
    size = max(objects) + 1
    body += f"xref\n0 {size}\n".encode()
    for number in range(size):
        entry = f"{offsets[number]:010d} 00000 n \n" if number in offsets else "0000000000 65535 f \n"
        body += entry.encode()
    body += f"trailer<</Size {size}/Root 1 0 R/Info 4 0 R{trailer}>>\nstartxref\n{start}\n%%EOF\n".encode()
    return body


def text_of(data: bytes) -> str:
    return "\n".join(section.text for section in read_pdf(data).sections)


def test_pages_give_their_text_under_their_first_lines():
    content = read_pdf(pdf(["Daily grid report", "Demand was high."], ["Outages of the day", "Two units tripped."]))
    assert content.file_format == "PDF"
    assert content.title == "Daily grid report"
    assert [section.heading for section in content.sections] == [
        "Daily grid report", "Daily grid report > Outages of the day",
    ]  # fmt: skip
    assert "PDF of 2 pages" in content.sections[0].text
    assert "Two units tripped." in content.sections[1].text


def test_metadata_is_told_and_a_tool_s_own_title_is_not():
    info = "/Title(Load forecast manual)/Author(Grid Office)/CreationDate(D:20250120143000Z)"
    content = read_pdf(pdf(["x"], info=info))
    assert content.title == "Load forecast manual"
    assert "Author: Grid Office. written 2025-01-20" in content.sections[0].text
    assert read_pdf(pdf(["Real title here"], info="/Title(Microsoft Word - a.docx)")).title == "Real title here"


def test_bookmarks_are_the_headings_of_their_pages():
    content = read_pdf(pdf(["intro", "Some words."], info="/Title(Manual)", outline="Chapter one"))
    assert content.sections[0].heading == "Manual > Chapter one"


def test_rows_of_numbers_become_the_words_in_them():
    text = text_of(pdf(["Power supply position", *(f"State {c} 1{i}50 0 30.{i} -3.3" for i, c in enumerate("ABCD"))]))
    assert "Table of 4 rows: State A, State B, State C, State D" in text
    assert "30.2" not in text


def test_heads_and_feet_of_pages_are_told_once():
    pages = [
        ["Operator Ltd. Confidential", f"Chapter {c}", f"Words of {c}.", f"Page {n}"] for n, c in enumerate("ABCD")
    ]
    text = text_of(pdf(*pages))
    assert text.count("Confidential") == 1
    assert text.count("Page ") == 1
    assert all(f"Words of {c}." in text for c in "ABCD")


def test_a_pdf_of_images_is_described_with_a_warning():
    content = read_pdf(pdf([], [], info="/Title(Scanned notice)"))
    assert content.sections[0].text == "PDF of 2 pages."
    assert content.title == "Scanned notice"
    assert content.warnings == ("the PDF has no text: its pages are images",)


def test_pages_beyond_the_bound_are_left_out_with_a_warning(monkeypatch):
    monkeypatch.setattr(pdf_reader, "PAGES_MAX", 2)
    content = read_pdf(pdf(["one word"], ["two words"], ["three words"]))
    assert "three words" not in "".join(section.text for section in content.sections)
    assert content.warnings == ("only the first 2 of 3 pages were read",)


@pytest.mark.parametrize("bound", ["PAGE_CHARS_MAX", "TEXT_CHARS_MAX"])
def test_characters_beyond_the_bound_are_left_out(monkeypatch, bound):
    monkeypatch.setattr(pdf_reader, bound, 20)
    assert "z" not in text_of(pdf(["a" * 30 + "z"]))


def test_no_page_is_begun_when_the_time_is_up(monkeypatch):
    monkeypatch.setattr(pdf_reader, "SECONDS_MAX", -1.0)
    assert "only the first 0 of 1 pages were read" in read_pdf(pdf(["words"])).warnings


def test_an_encrypted_pdf_is_refused_by_name():
    locked = "/ID[<00><00>]/Encrypt<</Filter/Standard/V 1/R 2/P -4/O<" + "41" * 32 + ">/U<" + "42" * 32 + ">>>"
    with pytest.raises(BadDocument, match="encrypted") as caught:
        read_pdf(pdf(["secret words"], trailer=locked))
    assert caught.value.reason is DeadReason.EXTRACTION_FAILED


@pytest.mark.parametrize("data", [b"%PDF-1.7 and so on", b"%PDF-", b"%PDF-1.4\n" + bytes(2000)])
def test_a_broken_pdf_is_refused(data):
    with pytest.raises(BadDocument, match="damaged") as caught:
        read_pdf(data)
    assert caught.value.reason is DeadReason.EXTRACTION_FAILED


GOOD = pdf(["Daily grid report", "Demand was high."], ["Second page of it"], outline="Part")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=30), st.integers(9, len(GOOD)))
def test_damage_gives_content_or_a_bad_document(changes, length):
    data = bytearray(GOOD)
    for at, byte in changes:
        data[at] = byte
    with suppress(BadDocument):  # any other exception fails
        assert read_pdf(bytes(data[:length])).sections

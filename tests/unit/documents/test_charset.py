"""Encodings as real feeds use them, declared, undeclared and wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.documents.charset import clean, decode, repair_mojibake

JAPANESE = "日付,時間コマ,エリア総需要量(kWh)\n2025/04/16,1,6608599\n"
RUSSIAN = "Производство электроэнергии по видам топлива и зонам за сутки, потребление и мощность"
SPANISH = "Información de Energía Generada; Año; ñandú"


@pytest.mark.parametrize(
    ("text", "encoding", "charset"),
    [
        (SPANISH, "utf-8", "utf-8"),
        (SPANISH, "cp1252", "cp1252"),
        ("Müller – Größe", "cp1252", "cp1252"),
        (JAPANESE, "cp932", "cp932"),
        (JAPANESE, "utf-16", "utf-16-le"),
        ("Load;Zone\n1;WEST", "utf-16-be", "utf-16-be"),
        (RUSSIAN, "cp1251", "cp1251"),
        ("전력 수급 현황 시간별 발전량 예측 자료 공개 시스템 안내 전력거래소", "cp949", "cp949"),
        (JAPANESE, "utf-8-sig", "utf-8"),
    ],
)
def test_the_encoding_is_found_without_a_declaration(text, encoding, charset):
    decoded = decode(text.encode(encoding))
    assert (decoded.text, decoded.charset, decoded.warnings) == (text, charset, ())


def test_utf_8_is_believed_over_a_wrong_declaration():
    assert decode(SPANISH.encode(), "iso-8859-1").text == SPANISH


def test_a_declaration_that_fits_is_believed_over_a_guess():
    assert decode("żółć".encode("iso8859-2"), "ISO-8859-2").text == "żółć"


@pytest.mark.parametrize("declared", ["no-such-charset", "base64", "zlib", "", "utf-8\0"])
def test_a_declaration_that_is_no_charset_is_ignored(declared):
    assert decode(b"load", declared).text == "load"


def test_what_is_not_valid_is_replaced_with_a_warning():
    decoded = decode(SPANISH.encode() + b" \xff\xfe " + SPANISH.encode())
    assert decoded.charset == "utf-8"
    assert "\ufffd" in decoded.text
    assert "not valid utf-8" in decoded.warnings[0]


def test_double_encoding_is_undone_and_other_text_left_alone():
    assert repair_mojibake("核能".encode().decode("latin-1")) == "核能"
    assert repair_mojibake("Energía") == "Energía"


@given(st.binary(max_size=300), st.sampled_from([None, "utf-8", "shift_jis", "utf-16", "x"]))
def test_any_bytes_decode_to_text_that_can_be_stored(data, declared):
    assert clean(decode(data, declared).text).encode() is not None


@given(st.text(max_size=200))
def test_cleaning_twice_changes_nothing_more(text):
    assert clean(clean(text)) == clean(text)

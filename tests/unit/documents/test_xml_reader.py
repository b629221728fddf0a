"""XML: what is said of market documents, feeds and plain records, and that no document does harm."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.documents.xml_reader import PATHS_MAX, read_xml
from shoal.errors import BadDocument, DeadReason

ENTSOE = b"""<?xml version="1.0" encoding="UTF-8"?>
<Publication_MarketDocument xmlns="urn:iec62325.351:tc57wg16:451-3:publicationdocument:7:0">
 <type>A44</type>
 <period.timeInterval><start>2023-05-06T22:00Z</start><end>2023-05-07T22:00Z</end></period.timeInterval>
 <TimeSeries><businessType>A62</businessType>
  <in_Domain.mRID codingScheme="A01">10YFR-RTE------C</in_Domain.mRID>
  <out_Domain.mRID codingScheme="A01">10YFR-RTE------C</out_Domain.mRID>
  <currency_Unit.name>EUR</currency_Unit.name><price_Measure_Unit.name>MWH</price_Measure_Unit.name>
  <Period><timeInterval><start>2023-05-06T22:00Z</start><end>2023-05-07T22:00Z</end></timeInterval>
   <resolution>PT60M</resolution>
   <Point><position>1</position><price.amount>-3.5</price.amount></Point>
   <Point><position>2</position><price.amount>106.78</price.amount></Point>
  </Period></TimeSeries>
</Publication_MarketDocument>"""

OASIS = b"""<?xml version="1.0"?><OASISReport xmlns="http://www.caiso.com/soa/OASISReport_v1.xsd"><MessagePayload><RTO>
<name>CAISO</name><REPORT_ITEM><REPORT_HEADER><SYSTEM>OASIS</SYSTEM><REPORT>PRC_LMP</REPORT><MKT_TYPE>DAM</MKT_TYPE>
<UOM>US$/MWh</UOM><SEC_PER_INTERVAL>3600</SEC_PER_INTERVAL></REPORT_HEADER>
<REPORT_DATA><DATA_ITEM>LMP_PRC</DATA_ITEM><RESOURCE_NAME>TH_NP15_GEN-APND</RESOURCE_NAME><VALUE>31.5</VALUE></REPORT_DATA>
<REPORT_DATA><DATA_ITEM>LMP_PRC</DATA_ITEM><RESOURCE_NAME>TH_NP15_GEN-APND</RESOURCE_NAME><VALUE>42.1</VALUE></REPORT_DATA>
</REPORT_ITEM></RTO></MessagePayload></OASISReport>"""


def _text(data: bytes) -> str:
    return "\n".join(section.text for section in read_xml(data, charset_hint=None).sections)


def _field(data: bytes, ending: str):
    return next(f for f in read_xml(data, charset_hint=None).fields if f.path.endswith(ending))


def test_a_market_document_says_in_words_what_its_codes_mean():
    content = read_xml(ENTSOE, charset_hint=None)
    text = content.sections[0].text
    for words in ("energy prices (A44)", "France", "hourly (PT60M)", "2023-05-06T22:00Z to 2023-05-07T22:00Z", "-3.5"):
        assert words in text
    assert content.title == "Price document, energy prices, France"
    assert content.records == 2


def test_a_price_has_the_currency_and_the_energy_unit():
    price = _field(ENTSOE, "price.amount")
    assert (price.low, price.high, price.unit) == ("-3.5", "106.8", "EUR/MWh")
    assert price.path == "Publication_MarketDocument/TimeSeries/Period/Point[]/price.amount"


def test_an_oasis_report_is_described_with_its_market_and_unit():
    assert "locational marginal prices" in _text(OASIS)
    assert "day-ahead market (DAM)" in _text(OASIS)
    assert _field(OASIS, "VALUE").unit == "US$/MWh"


def test_the_reason_of_an_error_document_is_kept():
    error = b"""<Acknowledgement_MarketDocument xmlns="urn:iec62325.351:tc57wg16:451-1:acknowledgementdocument:7:0">
    <mRID>1</mRID><Reason><code>999</code><text>No matching data found for Data item Day-ahead Prices</text></Reason>
    </Acknowledgement_MarketDocument>"""
    assert "No matching data found for Data item Day-ahead Prices" in _text(error)


def test_a_soap_envelope_is_taken_off_and_a_legend_names_the_values():
    data = b"""<soap:Envelope xmlns:soap="http://www.w3.org/2003/05/soap-envelope"><soap:Body><LoadResponse><series>
    <serie id="value1" name="Load [MW]"/></series><data><item date="2026-07-01T06:00:00+02:00" value1="7089"/>
    <item date="2026-07-01T06:15:00+02:00" value1="7375.2"/></data></LoadResponse></soap:Body></soap:Envelope>"""
    value = _field(data, "(Load [MW])")
    assert value.path == "LoadResponse/data/item[]/@value1 (Load [MW])"
    assert (value.unit, value.low, value.high) == ("MW", "7089", "7375.2")


def test_a_unit_beside_a_value_is_its_unit():
    assert _field(b'<r><v unit="MAW">1</v><v unit="MAW">5</v></r>', "v[]").unit == "MAW"


@pytest.mark.parametrize(
    "item", ["<rss><channel>%s</channel></rss>", '<feed xmlns="http://www.w3.org/2005/Atom">%s</feed>']
)
def test_each_item_of_a_feed_is_a_section(item: str):
    entry = "item" if "rss" in item else "entry"
    said = "<description>&lt;p&gt;Unit {i} is out of service today&lt;/p&gt;</description>"
    body = "".join(f"<{entry}><title>Notice {i}</title>{said.format(i=i)}</{entry}>" for i in range(3))
    feed = [s for s in read_xml((item % body).encode(), charset_hint=None).sections if s.heading]
    assert [section.heading for section in feed] == ["Notice 0", "Notice 1", "Notice 2"]
    assert "Unit 2 is out of service today" in feed[2].text
    assert "<p>" not in feed[2].text


def test_mixed_content_is_prose_in_reading_order():
    data = b"<doc><para>The <em>updated</em> forecast of load is published <b>every</b> hour.</para></doc>"
    assert "The updated forecast of load is published every hour." in _text(data)


def test_numbers_are_never_in_the_text():
    rows = "".join(f"<row><load>{10_000 + i}</load></row>" for i in range(500))
    content = read_xml(f"<report>{rows}</report>".encode(), charset_hint=None)
    assert sum(len(section.text) for section in content.sections) < 500
    assert (content.fields[0].count, content.fields[0].low, content.fields[0].high) == (500, "10000", "10499")


def test_more_values_than_are_kept_still_have_their_range():
    rows = "".join(f"<v>{i}</v>" for i in [7, -5, *range(120_000), 130_001, 3])
    field = read_xml(f"<r>{rows}</r>".encode(), charset_hint=None).fields[0]
    assert (field.count, field.low, field.high) == (120_004, "-5", "130001")


def test_names_that_are_data_do_not_flood_the_schema():
    rows = "".join(f"<id{i}>1</id{i}>" for i in range(3 * PATHS_MAX))
    content = read_xml(f"<r>{rows}</r>".encode(), charset_hint=None)
    assert len(content.fields) == PATHS_MAX
    assert any("left out" in warning for warning in content.warnings)


# --- hostile -------------------------------------------------------------------------------------------

LAUGHS = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True))
BOMB = f'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "haha">{LAUGHS}]>'


@pytest.mark.timeout(60)  # a hang, not a budget
@pytest.mark.parametrize(
    "data",
    [f"{BOMB}<l>&j;</l>", f'{BOMB}<l x="&j;"/>', "<a>" * 100_000, "<a>" * 400 + "x" + "</a>" * 400],
    ids=["entity bomb", "entity bomb in an attribute", "unclosed depth", "closed depth"],
)
def test_a_bomb_is_refused(data: str):
    with pytest.raises(BadDocument) as caught:
        read_xml(data.encode(), charset_hint=None)
    assert caught.value.reason == DeadReason.EXTRACTION_FAILED


def test_an_external_entity_is_not_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("the secret of this machine")
    data = f'<!DOCTYPE a [<!ENTITY x SYSTEM "{secret.as_uri()}">]><a><b>visible</b><c>&x;</c></a>'
    content = read_xml(data.encode(), charset_hint=None)
    assert "secret of this machine" not in repr(content)
    assert any("visible" in field.values for field in content.fields)


@pytest.mark.parametrize("data", [b"", b"hello", b"{}", b"<", b"\x00\x01", b"<!-- only a comment -->"])
def test_what_is_no_xml_is_refused(data: bytes):
    with pytest.raises(BadDocument):
        read_xml(data, charset_hint=None)


def test_a_truncated_document_is_read_as_far_as_it_goes_with_a_warning():
    content = read_xml(ENTSOE[:-100], charset_hint=None)
    assert any("damaged" in warning for warning in content.warnings)
    assert any(field.path.endswith("price.amount") for field in content.fields)


def test_bytes_that_do_not_match_the_declaration_are_read_as_what_they_are():
    content = read_xml(
        '<?xml version="1.0" encoding="utf-8"?><a><b>Énergie générée</b></a>'.encode("cp1252"), charset_hint=None
    )
    assert content.fields[0].values == ("Énergie générée",)
    assert any("encoding" in warning for warning in content.warnings)


@pytest.mark.parametrize("encoding", ["utf-16", "iso-8859-1", "shift_jis"])
def test_a_declared_encoding_is_obeyed(encoding: str):
    word = "Erzeugung" if encoding != "shift_jis" else "需要予測"
    data = f'<?xml version="1.0" encoding="{encoding}"?><a><b>{word}</b></a>'.encode(encoding)
    assert read_xml(data, charset_hint=None).fields[0].values == (word,)


def test_a_large_document_is_read():
    data = b"<r>" + b"<row><t>2025-01-01T00:00:00Z</t><v>12.5</v></row>" * 60_000 + b"</r>"
    assert read_xml(data, charset_hint=None).records == 60_000


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text(alphabet="<>/a&;![]CDAT\"'= \n1é", max_size=200).map(str.encode)))
def test_only_a_bad_document_is_ever_raised(data: bytes):
    try:
        content = read_xml(data, charset_hint=None)
    except BadDocument:
        return
    assert content.file_format == "XML"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(ENTSOE)), st.binary(max_size=6))
def test_a_document_damaged_anywhere_is_read_or_refused(at: int, noise: bytes):
    reason = DeadReason.EXTRACTION_FAILED
    try:
        read_xml(ENTSOE[:at] + noise + ENTSOE[at + len(noise) :], charset_hint="nonsense")
    except BadDocument as error:
        reason = error.reason
    assert reason == DeadReason.EXTRACTION_FAILED

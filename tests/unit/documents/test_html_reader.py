"""HTML: prose under headings, tables described, addresses noted, and no page that holds a worker."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.documents.html_guard import guard
from shoal.documents.html_reader import read_html
from shoal.errors import BadDocument, DeadReason


def _text(page: str, **more: str) -> str:
    return "\n".join(section.text for section in read_html(page, **more).sections)


def test_headings_become_breadcrumbs_and_no_sentence_is_lost():
    page = """<html><head><title>Data API</title></head><body><nav>Home About Contact</nav><main><h1>API guide</h1>
    <p>Welcome to the guide of our market data interface.</p><h2>Authentication</h2><p>Every request carries a key.</p>
    <h3>Header</h3><p>Send it as X-Api-Key.</p><h2>Paging</h2><ul><li>Use page</li><li>and size</li></ul>
    <pre>GET /v1/load?page=2</pre></main><footer>Imprint</footer><script>var x = 1;</script></body></html>"""
    content = read_html(page)
    assert [s.heading for s in content.sections] == [
        "API guide",
        "API guide > Authentication",
        "API guide > Authentication > Header",
        "API guide > Paging",
    ]
    text = _text(page)
    for words in ("Welcome to the guide", "carries a key", "X-Api-Key", "- Use page", "GET /v1/load?page=2"):
        assert words in text
    assert not any(junk in text for junk in ("Imprint", "Contact", "var x"))
    assert content.title == "Data API"


def test_a_wall_of_numbers_becomes_columns_with_units_and_ranges():
    rows = "".join(f"<tr><td>{h:02}:00 - {h:02}:15</td><td>{1000 + h}</td><td>{h / 2}</td></tr>" for h in range(24))
    content = read_html(f"<h1>DAM</h1><table><tr><th>Time Block<th>MCP (Rs./MWh)<th>MCV (MW)</tr>{rows}</table>")
    volume = next(f for f in content.fields if "MCV" in f.path)
    assert (volume.unit, volume.low, volume.high, volume.count) == ("MW", "0", "11.5", 24)
    text = "\n".join(s.text for s in content.sections)
    assert "24 rows with the columns Time Block, MCP (Rs./MWh), MCV (MW)" in text
    assert "1020" not in text
    assert content.records == 24


def test_a_page_of_data_keeps_its_sentences_and_few_of_its_labels_and_rows():
    menu = "".join(f"<li><a href='/p{i}'>Menu entry {i}</a></li>" for i in range(400))
    buttons = "".join(f"<div>Button {i}</div>" for i in range(200))
    tables = "".join(
        f"<h2>Plant group {n}</h2><table><tr><th>Plant</th><th>MW</th><th>Hz</th></tr>"
        + "".join(f"<tr><td>River {n} {'abcdefghij'[i]}</td><td>{n * i}.25</td><td>50</td></tr>" for i in range(10))
        + "</table>"
        for n in range(20)
    )
    sentence = "All values are measured at the terminals of the generators every five minutes."
    content = read_html(f"<body><h1>Plants</h1><p>{sentence}</p>{buttons}<ul>{menu}</ul>{tables}</body>")
    text = "\n".join(section.text for section in content.sections)
    assert sentence in text
    assert all(f"Plant group {n}" in text and f"River {n} j" in text for n in range(20))
    assert "380.25" not in text
    assert "Button 199" not in text
    assert len(content.sections) == 1
    assert len(text) < 12_000


def test_documentation_with_example_tables_and_menus_stays_complete():
    rows = "".join(f"<tr><td>field{i}</td><td>string</td><td>Meaning of it</td></tr>" for i in range(60))
    examples = "".join(f"<tr><td>{i}</td><td>{i * 2}</td></tr>" for i in range(8))
    menu = "".join(f"<li><a href='/p{i}'>Menu {i}</a></li>" for i in range(60))
    prose = "".join(
        f"<h2>Call {i}</h2><p>This call answers with the load of one zone and takes a date as parameter {i}.</p>"
        f"<p>Short note {i}.</p><pre>GET /v1/load/{i}</pre>"
        for i in range(30)
    )
    page = f"<body><h1>API</h1><ul>{menu}</ul>{prose}<table>{rows}</table><table>{examples}</table></body>"
    text = _text(page)
    assert all(f"Short note {i}." in text and f"GET /v1/load/{i}" in text for i in range(30))
    assert all(f"field{i};" in text for i in range(60))


def test_a_small_table_is_read_row_by_row():
    text = _text(
        "<table><tr><th>Tier<th>Units<th>Price<tr><td>1<td>0-150<td>3.2484<tr><td>2<td>151-400<td>4.2218</table>"
    )
    assert "Tier: 1; Units: 0-150; Price: 3.2484" in text
    assert "Tier: 2; Units: 151-400; Price: 4.2218" in text


def test_an_unmarked_first_row_of_words_is_the_heading():
    body = "".join(f"<tr><td>S{i}</td><td>{i}</td></tr>" for i in range(20))
    content = read_html(f"<table><tr><td>STATE</td><td>LOAD (MW)</td></tr>{body}</table>")
    assert [f.path for f in content.fields] == ["STATE", "LOAD (MW)"]
    assert "Rows: S0, S1" in content.sections[0].text or content.fields[0].values


def test_spans_repeat_their_cell_and_are_bounded():
    table = """<table><tr><th rowspan=2>Zone<th colspan=2>Load</tr><tr><th>low<th>high</tr>
    <tr><td>A<td>1<td>2<tr><td colspan=999999999>x</table>"""
    assert "Zone: A; Load low: 1; Load high: 2" in _text(table)


def test_a_table_that_lays_out_the_page_is_walked():
    inner = "<table><tr><td>a</td><td>1</td></tr></table>"
    page = f"<table><tr><td><p>Left text of the page</p></td><td>{inner}</td></tr></table>"
    assert "Left text of the page" in _text(page)


def test_addresses_of_data_are_noted_without_their_secrets():
    page = """<p>Downloads</p><a href="/files/load_2025.csv">Load 2025</a><a href="/about">About</a>
    <script>fetch("https://api.example.org/api/v2/load?api_key=SECRET123456&zone=A").then(draw)</script>"""
    content = read_html(page, base_url="https://www.example.org/data/")
    assert "https://www.example.org/files/load_2025.csv" in content.links
    assert "https://api.example.org/api/v2/load?api_key=REDACTED&zone=A" in content.links
    assert "SECRET123456" not in repr(content)
    assert not any("about" in link for link in content.links)


def test_a_page_drawn_by_scripts_tells_its_labels_and_fields():
    points = ",".join(f'{{"hour":{i},"windOutput":{i}}}' for i in range(30))
    page = (
        f'<html><body><script>chart({{title: {{text: "Generacion horaria"}}, data:[{points}]}})</script></body></html>'
    )
    text = _text(page)
    assert "Generacion horaria" in text
    assert "windOutput" in text


def test_a_directory_listing_is_summed_up():
    links = "".join(f'<a href="rtfuelmix_{d:08}.csv">rtfuelmix_{d:08}.csv</a> 12K\n' for d in range(20250101, 20250161))
    content = read_html(f"<title>Index of /public/csv</title><body><h1>Index of /public/csv</h1><pre>{links}</pre>")
    text = content.sections[0].text
    assert "60 files" in text
    assert "rtfuelmix_#.csv" in text
    assert len(text) < 3000
    assert content.records == 60


def test_a_form_tells_the_parameters_of_its_request():
    page = '<p>Generation by source</p><form action="/gpf.php"><input name=fecha_ini><input name=fecha_fin>'
    page += "<input type=hidden name=__X></form>"
    assert "Form: GET /gpf.php with fecha_ini, fecha_fin" in _text(page)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ('<meta charset="windows-1251"><p>Генерация электроэнергии в энергосистеме</p>'.encode("cp1251"), "Генерация"),
        (
            '<meta http-equiv=Content-Type content="text/html; charset=Shift_JIS"><p>発電機のグラフ</p>'.encode(
                "cp932"
            ),
            "発電機",
        ),
        ("<p>Erzeugung und Verbrauch in Österreich</p>".encode("cp1252"), "Österreich"),
        ("<p>Énergie</p>".encode("utf-16"), "Énergie"),
    ],
)
def test_the_charset_is_found(data: bytes, word: str):
    assert word in "\n".join(s.text for s in read_html(data).sections)


def test_a_drop_list_that_takes_the_whole_page_is_not_believed():
    page = '<div class="menu"><p>' + "All the matter of this page stands in here. " * 10 + "</p></div>"
    assert "All the matter of this page" in _text(page)


def test_malformed_markup_is_still_read():
    assert "SECOND" in _text("<p>FIRST<div>SECOND</p></span><table><td>CELL<b>x")


def test_an_empty_page_is_empty():
    with pytest.raises(BadDocument) as caught:
        read_html("<html><body>   </body></html>")
    assert caught.value.reason == DeadReason.EMPTY


# --- pathological ----------------------------------------------------------------------------------------

ATTRIBUTES = " ".join(f"a{i}=1" for i in range(50_000))
BOMBS = {
    "nested": "<div>" * 100_000,
    "nested and closed": "<div>" * 5_000 + "</div>" * 5_000,
    "upper case": "<DIV>" * 50_000,
    "self-closed divs": "<div/>" * 50_000,
    "nested tables": "<table><tr><td>" * 20_000,
    "attributes": f"<a {ATTRIBUTES}>x</a>",
    "quoted attributes": "<a " + "".join(f'x{i}=">"' for i in range(50_000)) + ">",
    "attributes between stray quotes": f'<a " {ATTRIBUTES} " >x</a>',
    "attributes by slash": "<a" + "".join(f"/x{i}" for i in range(50_000)) + ">",
    "body tags": "".join(f"<body a{i}=1>" for i in range(50_000)),
}
HEAVY = {
    "unclosed items": "<li>x" * 40_000,
    "unclosed formatting": "".join(f"<b id={i}>" for i in range(8_000)) + "<p>x" * 8_000,
    "unclosed anchors": "<a href=x><p>" * 20_000,
    "comments": "<!--" * 200_000,
    "brackets": "<" * 500_000,
    "quotes": '<a "' * 200_000,
    "scripts": "<script>" * 200_000,
    "end tags": "</p>" * 50_000,
    "spans": "<table>" + "<tr><td colspan=9999 rowspan=9999>x" * 3_000,
}


@pytest.mark.timeout(60)  # a hang, not a budget
@pytest.mark.parametrize("page", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_refused_before_it_is_parsed(page: str):
    with pytest.raises(BadDocument) as caught:
        read_html(f"<p>words</p>{page}")
    assert caught.value.reason == DeadReason.EXTRACTION_FAILED


@pytest.mark.timeout(60)
@pytest.mark.parametrize("page", HEAVY.values(), ids=HEAVY.keys())
def test_a_heavy_page_is_read(page: str):
    assert "words of the page" in "\n".join(s.text for s in read_html(f"<p>words of the page</p>{page}").sections)


def test_the_guard_leaves_ordinary_pages_alone():
    page = (
        b"<div><b>x</b><br><img src='a>b'><!-- <div> --><script>if (a<b) '<div>'</script><svg><path d='x'/></svg></div>"
    )
    assert guard(page) == (page, ())


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text(alphabet="<>/tabledivrhp=\"'- !&;1\n", max_size=300)))
def test_only_a_bad_document_is_ever_raised(data: bytes | str):
    try:
        content = read_html(data, base_url="http://[bad")
    except BadDocument:
        return
    assert "\x00" not in "".join(s.text for s in content.sections)


TAGS = (
    "<table> <tr> <td> <th colspan=3> <td rowspan=2> </td> </tr> </table> <h1> </h1> <p> <ul> <li> <a href=x.csv> </a> "
    "<form> <input name=a> <script> </script> <pre> </pre> <main> 12 word 2025-01-01 & <!-- -->"
)
TAG = st.sampled_from(TAGS.split())


@settings(max_examples=150, deadline=None)
@given(st.lists(TAG, max_size=60))
def test_any_soup_of_tags_is_read_or_refused(tags: list[str]):
    reason = None
    try:
        read_html(" ".join(tags))
    except BadDocument as error:
        reason = error.reason
    assert reason in (None, DeadReason.EMPTY)

"""Plain text, Markdown and code: structure kept, dumps and drawn tables described, nothing lost of prose."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shoal.documents.text_reader import TEXT_CHARS_MAX, read_text
from shoal.errors import BadDocument, DeadReason

GUIDE = """---
title: Guide of the data
---
# Data guide

Intro of the guide.

## Access

Use the key.

```python
# not a heading
get("/load")
```

Underlined
----------

Last words.
"""


def test_markdown_headings_are_breadcrumbs_and_fences_stay_whole():
    content = read_text(GUIDE, "guide.md")
    assert content.file_format == "MARKDOWN"
    assert content.title == "Guide of the data"
    assert [s.heading for s in content.sections] == ["Data guide", "Data guide > Access", "Data guide > Underlined"]
    assert '```python\n# not a heading\nget("/load")\n```' in content.sections[1].text
    assert content.sections[2].text == "Last words."


def test_markdown_is_known_by_its_marks_where_the_name_says_nothing():
    assert read_text("# One\n\n- a\n- b\n\n## Two\n\ntext\n", "README").file_format == "MARKDOWN"
    assert read_text("# a comment\nkey words\n", "notes.txt").file_format == "TEXT"


@pytest.mark.parametrize(
    ("name", "text", "language"),
    [
        ("scraper.py", "import re\n\n\ndef fetch():\n    return 1\n", "Python"),
        ("run", "#!/usr/bin/env python3\nx = 1\n", "Python"),
        ("run.txt", "#!/bin/bash\necho hi\n", "shell"),
        ("q.sql", "SELECT 1;\n", "SQL"),
    ],
)
def test_code_is_known_by_its_ending_or_its_shebang(name: str, text: str, language: str):
    content = read_text(text, name)
    assert content.file_format == "CODE"
    assert f"({language})" in (content.sections[0].heading or "")


def test_code_is_cut_at_definitions_and_kept_complete():
    body = "\n".join(f"def f{i}(x):\n" + "    x = x + 1  # a step\n" * 20 + "    return x\n" for i in range(5))
    sections = read_text(body, "a.py").sections
    assert [s.heading for s in sections] == [f"a.py (Python) > f{i}" for i in range(5)]
    assert sum(s.text.count("# a step") for s in sections) == 100


def test_a_dump_of_keys_and_values_is_described():
    content = read_text("Frequency: 49.94 Hz\nLoad (MW): 7451\nState: PUNJAB\nTime: 14:38:29\n", "x.txt")
    assert {f.path for f in content.fields} == {"Frequency", "Load (MW)", "State", "Time"}
    load = next(f for f in content.fields if f.path == "Load (MW)")
    assert (load.low, load.unit) == ("7451", "MW")
    assert "State: PUNJAB" in content.sections[0].text


def test_pairs_of_a_query_string_are_a_dump():
    content = read_text("g_power_1=96.1&amp;g_power_2=119.7&amp;&amp;state=running&amp;wind=5.1m/s", "x.txt")
    assert [f.path for f in content.fields][:2] == ["g_power_1", "g_power_2"]
    assert "state: running" in content.sections[0].text


def test_sentences_with_colons_are_prose():
    text = "Note: the plant stopped at noon because of the storm that came from the west over night.\n" * 5
    assert read_text(text, "x.txt").fields == ()


def test_a_drawn_table_becomes_columns():
    rows = "\n".join(f"NODE_{i:<8} {i * 1.5:>8.2f}  {i:>6}" for i in range(40))
    content = read_text(f"Daily report of nodes\n\nName           Price   Count\n{rows}\n\nEnd of report.\n", "r.txt")
    assert content.records == 40
    assert [f.path for f in content.fields] == ["Name", "Price", "Count"]
    price = content.fields[1]
    assert (price.low, price.high) == ("0", "58.5")
    text = content.sections[0].text
    assert "Daily report of nodes" in text
    assert "End of report." in text
    assert "NODE_30" not in text


def test_serialised_objects_are_told_by_their_keys_and_words():
    row = "{\\'Caption\\':\\'Generación por tipo de tecnología\\',\\'Value\\':12.5,\\'DataMember\\':null},"
    text = read_text(f"0|/*DX*/({{'id':0,'result':'[{row * 60}]'}})", "x.txt").sections[0].text
    assert "Generación por tipo de tecnología" in text
    assert "DataMember" in text
    assert text.count("12.5") == 0


def test_prose_is_kept_complete():
    text = "The first paragraph says what this is.\n\nThe second one says why.\n"
    content = read_text(text, "note.txt")
    assert content.sections[0].text == text.strip("\n")
    assert content.title == "The first paragraph says what this is."


def test_a_text_beyond_the_bound_is_cut_with_a_warning():
    content = read_text("word " * (TEXT_CHARS_MAX // 5 + 10), "x.txt")
    assert sum(len(s.text) for s in content.sections) <= TEXT_CHARS_MAX
    assert content.warnings


@pytest.mark.parametrize("text", ["", "  \n\t", "\x00\x01"])
def test_a_blank_text_is_empty(text: str):
    with pytest.raises(BadDocument) as caught:
        read_text(text, "x.txt")
    assert caught.value.reason == DeadReason.EMPTY


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet=st.one_of(st.sampled_from("#`-=:|&\t\n 1a.~{\"'"), st.characters()), max_size=300),
    st.sampled_from(["a.md", "a.txt", "a.py", "", "a"]),
)
def test_only_a_bad_document_is_ever_raised(text: str, name: str):
    try:
        content = read_text(text, name)
    except BadDocument:
        return
    said = "".join(section.text for section in content.sections)
    assert "\x00" not in said
    said.encode("utf-8")


def test_a_heading_without_text_is_not_lost():
    said = [(s.heading, s.text) for s in read_text("words here\n---\n# A\n## B\n# C\ntext", "a.md").sections]
    assert said == [(None, "words here"), ("A", "B"), ("C", "text")]


@settings(max_examples=300, deadline=None)
@example(["words here", "---", "# A", "```"])
@given(st.lists(st.sampled_from(["# A", "## B", "words here", "", "```", "---", "- item", "===", "~~~"]), max_size=30))
def test_markdown_loses_no_line_of_words(lines: list[str]):
    text = "\n".join(lines)
    if not text.strip():
        return
    sections = read_text(text, "a.md").sections
    kept = "\n".join(f"{section.heading or ''}\n{section.text}" for section in sections)
    assert "words here" in kept or "words here" not in lines or not sections

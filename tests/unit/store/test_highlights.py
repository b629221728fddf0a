"""Snippets: plain text out of the chunk, with true offsets, around what was asked for."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.store.highlights import SNIPPET_CHARS_MAX, snippet
from shoal.store.terms import places, share, terms_of

FILLER = "Nothing of note stands here, and so it goes on. " * 20


def marked(text: str, query: str) -> list[str]:
    shown = snippet(text, query)
    return [shown.text[start:end] for start, end in shown.spans]


@pytest.mark.parametrize(
    ("query", "text", "words"),
    [
        ("load", "Hourly loads and loading, unloaded", ["loads", "loading"]),
        ("forecasting", "a forecast of forecasters", ["forecast", "forecasters"]),
        ("Zurich CAFE", "Ein Café in Zürich", ["Café", "Zürich"]),
        ("prices", "Pricing and price", ["Pricing", "price"]),
        ("car", "carbonate and cars", ["cars"]),
        ("the load of it", "the load of it", ["load"]),
        ("MW", "in MW or mwh", ["MW"]),
        ('"quick brown" fox', "a quick brown dog", ["quick", "brown"]),
        ("天气", "北京天气预报", ["天气"]),
        ("foo_bar(x)", "call foo_bar(x) twice", ["foo_bar", "x"]),
        ("'; DROP TABLE --", "drop it on the table", ["drop", "table"]),
        ("", "some text", []),
        ("???", "some text", []),
    ],
)
def test_words_are_found_whatever_their_ending_case_and_accents(query: str, text: str, words: list[str]) -> None:
    assert marked(text, query) == words


def test_the_passage_with_most_different_words_wins_over_more_of_one() -> None:
    text = f"wind wind wind wind. {FILLER}The wind speed at Leipzig is hourly. {FILLER}"
    shown = snippet(text, "wind speed hourly")
    assert shown.text.startswith("The wind speed at Leipzig is hourly.")


def test_without_any_of_the_words_it_is_the_beginning() -> None:
    shown = snippet("  \n" + FILLER, "unheard-of")
    assert (shown.start, shown.spans) == (3, ())
    assert shown.text == FILLER[: len(shown.text)]
    assert SNIPPET_CHARS_MAX - 20 < len(shown.text) <= SNIPPET_CHARS_MAX


def test_markup_in_the_text_stays_text_and_none_is_added() -> None:
    text = "<script>alert('load')</script> & <b>load</b>"
    shown = snippet(text, "load")
    assert shown.text == text
    assert [text[start:end] for start, end in shown.spans] == ["load", "load"]


PIECES = ["wind", "winds", "load", "x", "Zürich", "天气预报", "\n", ".", "a" * 400, "\u0301", "<b>", "😀", " "]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=80).map(" ".join) | st.text(max_size=600)
QUERIES = st.sampled_from(["wind", "load zurich", "天气", "x wind", "", "aaaa"]) | st.text()


@given(TEXTS, QUERIES)
@example(" " * 400, "x")
@example("a" * 1000, "a" * 1000)
@example("wind" + " " * 700 + "load", "wind load")
def test_a_snippet_is_a_piece_of_the_text_with_spans_inside_it(text: str, query: str) -> None:
    shown = snippet(text, query)
    assert text[shown.start : shown.start + len(shown.text)] == shown.text
    assert len(shown.text) <= SNIPPET_CHARS_MAX
    ends = [0]
    for start, end in shown.spans:
        assert ends[-1] <= start < end <= len(shown.text)
        ends.append(end)
    fitting = [place for place in places(text, terms_of(query)) if place.end - place.start <= SNIPPET_CHARS_MAX // 2]
    assert bool(shown.spans) >= bool(fitting)


@given(st.text())
@example("load loads loading")
def test_every_word_of_a_text_occurs_in_it(text: str) -> None:
    terms = terms_of(text)
    assert share(text, terms) == (1.0 if terms else 0.0)
    assert share("", terms) == 0.0

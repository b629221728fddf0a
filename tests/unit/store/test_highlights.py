"""Snippets: plain text out of the chunk, with true offsets, around what was asked for."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.store import terms as terms_module
from shoal.store.highlights import SNIPPET_CHARS_MAX, _densest, snippet
from shoal.store.terms import Place, places, share, terms_of

FILLER = "Nothing of note stands here, and so it goes on. " * 20


def marked(text: str, query: str) -> list[str]:
    shown = snippet(text, terms_of(query))
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
    shown = snippet(text, terms_of("wind speed hourly"))
    assert shown.text.startswith("The wind speed at Leipzig is hourly.")


def test_without_any_of_the_words_it_is_the_beginning() -> None:
    shown = snippet("  \n" + FILLER, terms_of("unheard-of"))
    assert (shown.start, shown.spans) == (3, ())
    assert shown.text == FILLER[: len(shown.text)]
    assert SNIPPET_CHARS_MAX - 20 < len(shown.text) <= SNIPPET_CHARS_MAX


def test_markup_in_the_text_stays_text_and_none_is_added() -> None:
    text = "<script>alert('load')</script> & <b>load</b>"
    shown = snippet(text, terms_of("load"))
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
    shown = snippet(text, terms_of(query))
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


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), max_size=30), st.integers(8, 300))
def test_the_densest_passage_is_what_trying_all_of_them_finds(steps: list[tuple[int, int]], chars_max: int) -> None:
    at, found = 0, []
    for step, term in steps:
        at += step
        found.append(Place(at, at + 1, term))
    room = chars_max - min(60, chars_max // 4)
    best, answer = (0, 0), (0, 0)
    for first, place in enumerate(found):
        window = [one for one in found[first:] if one is place or one.end - place.start <= room]
        value = (len({one.term for one in window}), len(window))
        if value > best:
            best, answer = value, (first, first + len(window) - 1)
    assert _densest(found, chars_max) == answer


def test_the_work_grows_with_the_places_and_not_with_their_square() -> None:
    class Counted(list[Place]):
        looks = 0

        def __getitem__(self, at: object) -> object:  # type: ignore[override]
            assert isinstance(at, int), "a piece of the list is as many looks as it is long"
            Counted.looks += 1
            return super().__getitem__(at)

    found = Counted(Place(2 * at, 2 * at + 1, at % 26) for at in range(5_000))
    _densest(found, SNIPPET_CHARS_MAX)
    assert Counted.looks <= 4 * len(found)


def test_each_word_is_folded_once_however_often_it_stands_and_is_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    folded: list[str] = []
    plain = terms_module.fold
    terms = terms_of("wind speed hourly load solar")
    monkeypatch.setattr(terms_module, "fold", lambda word: folded.append(word) or plain(word))
    assert share("Solar wind at night", terms) == pytest.approx(0.4)
    assert folded == ["Solar", "wind", "at", "night"]
    folded.clear()
    assert len(places("wind x " * 1_000, terms)) == 1_000
    assert folded == ["wind", "x"]

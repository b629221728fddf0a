"""What is typed into the search box becomes words and phrases, whatever it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shoal.store.keywords import Keywords, parse_keywords

PASSAGE = "words " * 20


def test_quoted_words_are_a_phrase_and_the_rest_are_words() -> None:
    assert parse_keywords('outages "day ahead" of NYISO') == Keywords("outages   of NYISO", ("day ahead",))
    assert parse_keywords('"day ahead"') == Keywords("", ("day ahead",))


def test_a_quote_without_a_partner_or_without_words_is_nothing() -> None:
    assert parse_keywords('24" pipe') == Keywords("24  pipe")
    assert parse_keywords('"--" load') == Keywords("load")
    assert not parse_keywords('"" ?!')


def test_in_a_pasted_passage_quotes_are_punctuation() -> None:
    assert parse_keywords(PASSAGE + 'the "training" phase').phrases == ()
    assert "training" in parse_keywords(PASSAGE + 'the "training" phase').words
    assert parse_keywords('the "training" phase').phrases == ("training",)


def test_a_long_phrase_alone_stays_a_phrase() -> None:
    assert parse_keywords(f'"{PASSAGE.strip()}"').phrases == (PASSAGE.strip(),)


@hypothesis_settings(deadline=None)
@given(st.text(max_size=300))
def test_no_text_fails_and_no_word_of_it_is_lost(text: str) -> None:
    found = parse_keywords(text)
    kept = " ".join([found.words, *found.phrases])
    assert "\0" not in kept
    letters = {c for c in text if c.isalnum()}
    assert letters <= set(kept)
    assert bool(found) == any(c.isalnum() or c == "_" for c in text)

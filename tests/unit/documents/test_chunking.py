"""Chunks: within the budget, within the text, nothing lost."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.documents.chunking import JOINT, TokenBudget, chunk_sections
from shoal.documents.content import Section


def words(text: str) -> int:
    return len(text.split()) + 2


SENTENCES = " ".join(f"Sentence number {i} says something." for i in range(60))
TEXTS = st.text(alphabet=st.sampled_from("ab. \n。é\u0301日x"), max_size=300)


@given(
    st.lists(st.tuples(TEXTS, st.sampled_from([None, "A", "A > B", "h " * 80]), st.booleans()), max_size=6),
    st.integers(8, 60),
    st.integers(0, 10),
)
def test_every_letter_is_in_a_chunk_and_every_chunk_within_its_budget_and_the_text(parts, limit, overlap):
    sections = [(Section(text, heading), prose) for text, heading, prose in parts]
    joined = JOINT.join(text for text, _, _ in parts)
    chunks, _ = chunk_sections(sections, TokenBudget(len, limit, overlap), 10_000)
    covered: set[int] = set()
    for at, chunk in enumerate(chunks):
        assert chunk.index == at
        assert 0 <= chunk.char_start < chunk.char_end <= len(joined)
        assert chunk.text.endswith(joined[chunk.char_start : chunk.char_end])
        assert len(chunk.text) == chunk.token_count <= limit
        covered.update(range(chunk.char_start, chunk.char_end))
    lost = [joined[i] for i in range(len(joined)) if i not in covered]
    assert not any(map(str.isalnum, lost))


def test_prose_overlaps_by_whole_sentences_and_data_does_not():
    prose, _ = chunk_sections([(Section(SENTENCES), True)], TokenBudget(words, 40, 12), 99)
    data, _ = chunk_sections([(Section(SENTENCES), False)], TokenBudget(words, 40, 12), 99)
    assert all(b.char_start < a.char_end and b.text.startswith("Sentence") for a, b in pairwise(prose))
    assert all(b.char_start >= a.char_end for a, b in pairwise(data))


def test_a_heading_stands_above_each_of_its_chunks_and_counts():
    chunks, _ = chunk_sections([(Section(SENTENCES, "Guide > Loads"), True)], TokenBudget(words, 30, 0), 99)
    assert len(chunks) > 3
    assert all(chunk.text.startswith("Guide > Loads\n") and chunk.heading == "Guide > Loads" for chunk in chunks)
    assert all(chunk.token_count == words(chunk.text) <= 30 for chunk in chunks)


def test_sections_of_another_heading_never_share_a_chunk():
    sections = [(Section("one", "A"), True), (Section("two", "B"), True), (Section("three", "B"), True)]
    chunks, _ = chunk_sections(sections, TokenBudget(words, 99, 0), 9)
    assert [chunk.text for chunk in chunks] == ["A\none", "B\ntwo\n\nthree"]


def test_a_word_of_a_million_letters_is_split_though_the_model_takes_it_for_one_token():
    chunks, warnings = chunk_sections([(Section("a" * 1_000_000), False)], TokenBudget(words, 100, 0), 50)
    assert max(len(chunk.text) for chunk in chunks) <= 100 * 16
    assert warnings


def test_no_split_parts_a_letter_from_its_accent():
    text = "e\u0301" * 400
    chunks, _ = chunk_sections([(Section(text), False)], TokenBudget(len, 31, 0), 999)
    assert len(chunks) > 10
    assert not any(unicodedata.combining(chunk.text[0]) for chunk in chunks)


@pytest.mark.parametrize("text", ["", " \n ", "----- ,,,, ====="])
def test_text_without_a_letter_gives_no_chunk(text):
    assert chunk_sections([(Section(text), True)], TokenBudget(words, 50, 5), 9) == ((), ())


def test_a_heading_longer_than_the_chunk_leaves_room_for_the_text():
    chunks, _ = chunk_sections(
        [(Section("body words here", "very long heading " * 50), False)], TokenBudget(words, 20, 0), 9
    )
    assert "body words here" in chunks[0].text
    assert chunks[0].token_count <= 20

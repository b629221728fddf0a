"""Tokens are counted exactly, offline, and in bounded time."""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.embeddings import cl100k
from shoal.errors import ConfigurationError

DATA = Path(cl100k.__file__).parent / "data"


@pytest.mark.parametrize(
    ("text", "tokens"),
    # Counts by OpenAI's own cookbook ("How to count tokens with tiktoken", cl100k_base), and plain facts.
    [("antidisestablishmentarianism", 6), ("2 + 2 = 4", 7), ("お誕生日おめでとう", 9), ("", 0), ("<|endoftext|>", 7)],
)
def test_counts_are_those_that_openai_publishes(text: str, tokens: int) -> None:
    assert cl100k.count(text) == tokens


@given(st.text(max_size=300), st.integers(1, 50))
def test_a_truncated_text_is_a_beginning_within_the_limit(text: str, tokens_max: int) -> None:
    cut = cl100k.truncate(text, tokens_max)
    assert text.encode("utf-8", "surrogatepass").startswith(cut.encode("utf-8", "surrogatepass"))
    if cut != text:
        assert cl100k.count(cut) <= tokens_max


def test_long_texts_are_counted_in_pieces_almost_exactly() -> None:
    text = "The load forecast of zone N.Y.C. is 5123.4 MW. " * 5000
    assert len(text) > 3 * cl100k.PIECE_CHARS
    assert abs(cl100k.count(text) - len(cl100k._encoding().encode_ordinary(text))) <= 10


def test_the_shipped_ranks_are_the_ones_the_notice_names() -> None:
    ranks = lzma.decompress((DATA / "cl100k_base.tiktoken.xz").read_bytes())
    digest = hashlib.sha256(ranks).hexdigest()
    assert digest in (DATA / "NOTICE").read_text()


def test_damaged_ranks_are_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cl100k, "_RANKS_SHA256", "0" * 64)
    with pytest.raises(ConfigurationError, match="damaged"):
        cl100k._encoding.__wrapped__()

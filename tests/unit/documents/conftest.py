"""What tests of this room share: a context as announced, limits, and a token counter that needs no model."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import settings

from shoal.documents.pipeline import Context, Limits, TokenBudget, extract_document
from shoal.records import Extraction

Extract = Callable[..., Extraction]

# A busy machine is no failure: what bounds these tests is pytest-timeout.
settings.register_profile("documents", deadline=None, max_examples=80)
settings.load_profile("documents")


def count_words(text: str) -> int:
    """Words and punctuation marks, and long words by their length, as a wordpiece tokenizer does; two for the frame."""
    return 2 + sum(-(-len(word) // 8) for word in re.findall(r"\w+|[^\w\s]", text))


@pytest.fixture
def context() -> Context:
    return Context(
        name="load_20250120_14.json",
        content_type=None,
        source_url="https://api.nyiso.com/v1/load?zone=WEST",
        data_source="NYISO",
        data_type="load_forecast",
        dataset="nyiso_load_forecast",
        collected_at=datetime(2025, 1, 20, 14, 30, tzinfo=UTC),
    )


@pytest.fixture
def budget() -> TokenBudget:
    return TokenBudget(count_words, 250, 40)


@pytest.fixture
def extract(context: Context, budget: TokenBudget) -> Extract:
    """`extract(data, name=..., content_type=..., bytes_max=..., chunks_max=...)`."""

    def run(
        data: bytes, name: str = "file", content_type: str | None = None, bytes_max: int = 1 << 20, chunks_max: int = 50
    ) -> Extraction:
        named = Context(
            name,
            content_type,
            context.source_url,
            context.data_source,
            context.data_type,
            context.dataset,
            context.collected_at,
        )
        return extract_document(data, named, Limits(bytes_max, chunks_max), budget)

    return run

"""A command that embeds in its own process keeps to the budget, the ledger and the limits of the whole."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from shoal.cluster import embedding_texts
from shoal.cluster.embedding_texts import UNTOLD_SHARE, Embedder
from shoal.embeddings.hash_model import HashModel
from shoal.embeddings.limiter import RateLimiter
from shoal.embeddings.spend_book import SpendBook
from shoal.errors import TransientError
from shoal.settings import Settings
from shoal.spending import Counts

PAID = "openai:text-embedding-3-small"  # 0.02 dollars per million tokens


class PaidModel(HashModel):
    """Answers at once, under a name that has a price, within limits that are told by nobody."""

    def __init__(self) -> None:
        super().__init__(8)
        self.name = PAID
        self.limiter = RateLimiter(1e6, 1e6, 0.0)  # type: ignore[assignment]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> PaidModel:
    made = PaidModel()
    monkeypatch.setattr(embedding_texts, "create_model", lambda *_, **__: made)
    return made


def settings(directory: Path, limit_usd: float = 0.0) -> Settings:
    return Settings(data_dir=directory, embedding_provider="hash", budget_day_usd=limit_usd)


def spent(directory: Path) -> Counts:
    with contextlib.closing(SpendBook(directory / "ledger" / "spend.sqlite")) as book:
        return sum((line.counts for line in book.lines("")), Counts())


def test_what_it_embeds_is_booked_as_a_backfill_of_the_collection(tmp_path: Path, model: PaidModel) -> None:
    embedder = Embedder(settings(tmp_path), PAID, 8)
    assert embedder.embed(["one two", "three"], "document").shape == (2, 8)
    embedder.close()
    assert spent(tmp_path) == Counts(1, 0, 2, 3, 0)
    with contextlib.closing(SpendBook(tmp_path / "ledger" / "spend.sqlite")) as book:
        assert [(line.key.collection, line.key.lane) for line in book.lines("")] == [("scraper", "backfill")]


def test_a_budget_that_is_spent_ends_it_and_what_was_done_is_kept(tmp_path: Path, model: PaidModel) -> None:
    few = settings(tmp_path, limit_usd=1e-7)  # five tokens
    first = Embedder(few, PAID, 8)
    assert first.embed(["one two three"], "document").shape == (1, 8)
    first.close()
    again = Embedder(few, PAID, 8)  # knows what was spent before it pays for anything
    with pytest.raises(TransientError, match=r"the budget is spent.*SHOAL_BUDGET_DAY_USD"):
        again.embed(["four five"], "document")
    again.embed(["one two three"], "document")  # of the cache
    again.close()
    assert spent(tmp_path).tokens == 3


def test_it_takes_a_small_share_until_the_provider_tells_what_is_left(tmp_path: Path, model: PaidModel) -> None:
    limiter = model.limiter
    assert limiter is not None
    embedder = Embedder(settings(tmp_path), PAID, 8)
    taken = now = 0.0
    while now < 60:
        wait = limiter.acquire(1000, now)
        taken, now = (taken, now + wait) if wait else (taken + 1000, now)
    assert taken <= UNTOLD_SHARE * 1e6
    embedder.close()

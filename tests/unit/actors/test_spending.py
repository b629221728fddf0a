"""From a document that is embedded to the money in the ledger, and back to what may be spent: the real parts, but for
the provider and Kafka (the journal of the embedded broker is the log)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shoal.actors import embedder as embedder_module
from shoal.actors.embedder import Embedder
from shoal.embeddings.hash_model import HashModel
from shoal.errors import TransientError
from shoal.records import Fetched, Outcome
from shoal.serve_apps.cost import Costs
from shoal.settings import Settings, load
from shoal.store.spending import read_spend
from tests.fixtures.documents import document
from tests.fixtures.ledger import apply_log

PAID = "openai:text-embedding-3-small"
WIDTH = 8
HANG_S = 60.0


class PaidModel(HashModel):
    """Answers at once, under a name that has a price."""

    def __init__(self) -> None:
        super().__init__(WIDTH)
        self.name = PAID


@pytest.fixture(autouse=True)
def provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder_module, "create_model", lambda *_, **__: PaidModel())
    monkeypatch.setattr(embedder_module, "open_lane", lambda *_: None)


def settings(tmp_path: Path, limit_usd: float = 0.0) -> Settings:
    return load(data_dir=tmp_path, embedding_provider="hash", budget_day_usd=limit_usd)


def fetched(number: int, source: str = "NYISO") -> Fetched:
    made = document(f"prod:load:{number}", number, content=f"wind {number}", chunks=3).fetched
    return replace(made, announcement=replace(made.announcement, data_source=source))


async def end(embedder: Embedder) -> None:
    """A drain: the last charges are told."""
    await embedder.__ray_shutdown__()


async def test_the_ledger_holds_what_was_sent_once_and_the_next_embedder_goes_by_it(tmp_path: Path) -> None:
    """1. Documents are embedded, some twice. 2. The log is applied, and again. 3. Money and tokens are the requests'.
    4. An embedder with a budget below that refuses what is new, and gives what the cache holds."""
    first = Embedder(settings(tmp_path), PAID, WIDTH)
    for number, source in ((1, "NYISO"), (2, "CAISO"), (1, "NYISO")):
        await first.embed(fetched(number, source))
    told = await first.statistics()
    await end(first)
    assert Outcome.INDEXED in apply_log(settings(tmp_path), PAID, WIDTH)
    assert set(apply_log(settings(tmp_path), PAID, WIDTH)) == {Outcome.UNCHANGED}

    rows = read_spend(settings(tmp_path).tables_uri, {})
    assert sum(row.counts.tokens for row in rows) == told.tokens > 0
    assert sum(row.counts.requests for row in rows) == told.requests > 0
    assert {(row.key.model, row.key.data_source, row.key.lane) for row in rows} == {
        (PAID, "NYISO", "live"), (PAID, "CAISO", "live"),
    }  # fmt: skip
    costs = Costs(settings(tmp_path))
    report = costs.read({"by": "source"}, datetime.now(UTC))
    costs.close()
    assert report["total"]["usd"] == pytest.approx(told.tokens * 0.02 / 1e6, abs=1e-6)

    poor = Embedder(settings(tmp_path, limit_usd=told.tokens * 0.02 / 1e6), PAID, WIDTH)
    async with asyncio.timeout(HANG_S):
        while (spend := (await poor.statistics()).spend) is None or spend.level != "exhausted":
            assert spend is None or spend.last_error is None, spend
            await asyncio.sleep(0.01)  # its thread reads the ledger; bounded by HANG_S
    with pytest.raises(TransientError, match=r"the budget is spent.*SHOAL_BUDGET_DAY_USD"):
        await poor.embed(fetched(3))
    failure, embedded = await poor.embed(fetched(2, "CAISO"))
    assert failure is None
    assert embedded.vectors is not None
    await end(poor)
    assert (await poor.statistics()).requests == 0

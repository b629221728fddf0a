"""The half-price lane in the embedder's process: one thread, over the embedder's own cache and ledger."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime

from shoal.embeddings.batch_job import summary
from shoal.embeddings.batch_lane import BatchLane, notes_of
from shoal.embeddings.cache import EmbeddingCache
from shoal.embeddings.models import create_batch_provider
from shoal.embeddings.prices import BATCH_LANE, MILLION, Prices
from shoal.embeddings.spend_keeping import SpendKeeper
from shoal.metrics import BatchStatistics
from shoal.settings import Settings
from shoal.spending import day_of
from shoal.store.half_price_shelf import HalfPriceShelf

CLOSE_S = 5.0
"""How long a stop waits for the step under way, which is stored or made again anyway."""


class HalfPriceLane:
    """Begins at once; what it does shows in `statistics`."""

    def __init__(self, lane: BatchLane, model: str, prices: Prices) -> None:
        self._lane, self._model, self._prices = lane, model, prices
        self._thread = threading.Thread(target=lane.run, name="half-price", daemon=True)
        self._thread.start()

    def statistics(self) -> BatchStatistics | None:
        """Of the jobs that lie there; None where there is none."""
        states = self._lane.states()
        if not states:
            return None
        found = [summary(state) for state in states]
        tokens = sum(each.embedded_tokens for each in found)
        phases: dict[str, int] = {}
        for each in found:
            for phase, count in each.phases.items():
                phases[phase] = phases.get(phase, 0) + count
        return BatchStatistics(
            jobs=len(states),
            unfinished=sum(not state.is_ended for state in states),
            texts=sum(each.texts for each in found),
            embedded_texts=sum(each.embedded_texts for each in found),
            tokens=sum(each.tokens for each in found),
            embedded_tokens=tokens,
            missing_texts=sum(each.missing for each in found),
            saved_usd=saved_usd(self._prices, self._model, tokens),
            parts=phases,
            oldest_since=datetime.fromtimestamp(min(state.began_at for state in states), UTC).isoformat(),
            notes=notes_of(states),
        )

    async def close(self) -> None:
        """A request under way is not waited for: the thread ends with the process, and the state says where it was."""
        self._lane.close()
        await asyncio.to_thread(self._thread.join, CLOSE_S)


def saved_usd(prices: Prices, model: str, tokens: int) -> float | None:
    """What so many tokens cost less by the Batch API; None where nobody knows the price."""
    today = day_of(datetime.now(UTC))
    full, half = (prices.per_million(model, lane, today) for lane in ("backfill", BATCH_LANE))
    return None if full is None or half is None else tokens * (full - half) / MILLION


def open_lane(
    settings: Settings, model: str, width: int, cache: EmbeddingCache, keeper: SpendKeeper
) -> HalfPriceLane | None:
    """None where the model has no Batch API to be tried. Raises ConfigurationError."""
    provider = create_batch_provider(settings, model, width)
    if provider is None:
        return None
    lane = BatchLane(
        provider, width, cache, HalfPriceShelf(settings), settings.home / "half-price",
        charge=keeper.charged, may_spend=keeper.gate(model, BATCH_LANE),
        queue_tokens=settings.openai_batch_queue_tokens, give_up_s=3600 * settings.openai_batch_give_up_hours,
        poll_s=settings.openai_batch_poll_s,
    )  # fmt: skip
    return HalfPriceLane(lane, model, Prices.load(settings.prices))

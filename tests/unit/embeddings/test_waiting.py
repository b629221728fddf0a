"""How long a text waits for others, in virtual time: no backlog stands in a query's way, and no lane starves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from shoal.embeddings.cache import EmbeddingCache
from shoal.embeddings.hash_model import HashModel
from shoal.embeddings.lanes import SHARES
from shoal.embeddings.limiter import RateLimiter
from shoal.embeddings.purposes import Lane, Purpose
from shoal.embeddings.service import EmbeddingService
from shoal.embeddings.texts import Kind
from shoal.errors import TransientError
from tests.fixtures.virtual_time import run

LATENCY_S = 0.2
BACKLOG = 100_000
QUERY = Purpose("query")


class Provider(HashModel):
    """Takes LATENCY_S for each request; its vectors say nothing."""

    batch_inputs_max, batch_tokens_max, concurrency = 256, 60_000, 4

    def __init__(self, limits: tuple[int, int] | None = None, concurrency: int = 4) -> None:
        super().__init__(8)
        self.concurrency = concurrency
        self.limiter = RateLimiter(*limits, 0.0) if limits else None  # type: ignore[assignment]
        self.calls: list[list[str]] = []
        self.failing = False

    def count_tokens(self, text: str) -> int:
        return 200

    def embed(self, texts: Sequence[str], kind: Kind = "document") -> np.ndarray:
        self.calls.append(list(texts))
        if self.failing:
            raise TransientError("down")
        vectors = np.zeros((len(texts), self.width), np.float32)
        vectors[:, 0] = 1
        return vectors

    def takes_s(self, function: Callable[..., object], *_: object) -> float:
        return LATENCY_S if function == self.embed else 0.0


def tell(model: Provider, story: Callable[[EmbeddingService], object], **options: object) -> None:
    async def told() -> None:
        now = asyncio.get_running_loop().time
        service = EmbeddingService(model, EmbeddingCache(None, 1 << 30), clock=now, **options)  # type: ignore[arg-type]
        try:
            await story(service)  # type: ignore[misc]
        finally:
            await service.close()

    run(told(), model.takes_s)


async def brought(service: EmbeddingService, lane: Lane, count: int, each: int = 20) -> list[asyncio.Task[object]]:
    """Documents of `each` texts whose callers all wait at once."""
    purpose = Purpose(lane)
    tasks = [
        asyncio.create_task(service.embed([f"{lane} {n}" for n in range(first, first + each)], purpose=purpose))
        for first in range(0, count, each)
    ]
    await asyncio.sleep(1.0)
    return tasks  # type: ignore[return-value]


async def waits(service: EmbeddingService, count: int, apart_s: float) -> list[float]:
    now, dice, seconds = asyncio.get_running_loop().time, random.Random(5), []
    for n in range(count):
        await asyncio.sleep(dice.uniform(0, 2 * apart_s))
        before = now()
        await service.embed([f"question {n}"], "query", QUERY)
        seconds.append(now() - before)
    return seconds


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_query_waits_for_no_text_of_a_backlog_of_100k(concurrency: int) -> None:
    model = Provider(concurrency=concurrency)

    async def story(service: EmbeddingService) -> None:
        backlog = await brought(service, "backfill", BACKLOG)
        assert service.statistics().queued_by_lane == {"query": 0, "live": 0, "backfill": 4096}, "and the rest outside"
        assert await waits(service, 10, 0.05) == pytest.approx([LATENCY_S] * 10)
        assert not any(task.done() for task in backlog[-1000:]), "the backlog was running all the while"

    tell(model, story)


def test_a_query_waits_for_its_own_room_in_the_limits_only() -> None:
    # Tier 1 of OpenAI, of which the backlog takes all there is.
    per_minute = 1_000_000
    model = Provider((3_000, per_minute))

    async def story(service: EmbeddingService) -> None:
        backlog = await brought(service, "backfill", BACKLOG)
        await asyncio.sleep(20)  # what the limits allow at once is used up
        its_tokens_s = 200 * 60 / (per_minute * 0.95)
        added = [seconds - LATENCY_S for seconds in await waits(service, 25, 0.3)]
        assert max(added) <= its_tokens_s + 1e-6
        assert not any(task.done() for task in backlog[-1000:])

    tell(model, story)


def test_lanes_share_the_limits_as_they_are_said_to() -> None:
    model = Provider((3_000, 1_000_000))
    model.batch_inputs_max = 64  # type: ignore[misc]

    async def story(service: EmbeddingService) -> None:
        for lane in SHARES:
            await brought(service, lane, BACKLOG // 10)
        before = len(model.calls)
        await asyncio.sleep(120)
        texts = [text for call in model.calls[before:] for text in call]
        got = {lane: sum(text.startswith(lane) for text in texts) / len(texts) for lane in SHARES}
        assert got == pytest.approx(SHARES, abs=0.02)

    tell(model, story)


def test_a_live_document_overtakes_the_backfill() -> None:
    model = Provider((3_000, 1_000_000))

    async def story(service: EmbeddingService) -> None:
        await brought(service, "backfill", BACKLOG // 5)
        await asyncio.sleep(20)
        before = asyncio.get_running_loop().time()
        await service.embed([f"live {n}" for n in range(10)], purpose=Purpose("live"))
        # The tokens of two batches of the backfill: the last one sent, and the one that stands at the turnstile.
        batches_s = 2 * 256 * 200 * 60 / 1_000_000
        assert asyncio.get_running_loop().time() - before <= 1.05 * batches_s + 2 * LATENCY_S

    tell(model, story)


def test_a_text_that_a_faster_lane_brings_too_leaves_with_the_faster_one() -> None:
    model = Provider((3_000, 1_000_000))

    async def story(service: EmbeddingService) -> None:
        await brought(service, "backfill", 4000)
        queued = [text for text in (f"backfill {n}" for n in range(4000)) if all(text not in c for c in model.calls)]
        before = asyncio.get_running_loop().time()
        await service.embed(queued[-1:], purpose=Purpose("live"))
        assert asyncio.get_running_loop().time() - before < 8, "and not the minute that the rest takes"
        await asyncio.sleep(120)
        assert sum(queued[-1] in call for call in model.calls) == 1
        assert service.statistics().queued_texts == 0

    tell(model, story)


def test_a_query_is_refused_in_time_also_while_documents_wait_for_a_provider_that_is_down() -> None:
    model = Provider()
    model.failing = True

    async def story(service: EmbeddingService) -> None:
        await brought(service, "backfill", 10_000)
        before = asyncio.get_running_loop().time()
        with pytest.raises(TransientError, match="down"):
            await service.embed(["question"], "query", QUERY)
        assert asyncio.get_running_loop().time() - before <= 3
        assert service.statistics().unwell_s > 0
        model.failing = False
        await service.embed(["another question"], "query", QUERY)
        assert service.statistics().unwell_s == 0

    tell(model, story, give_up_s=2.0)


def test_a_provider_that_bears_more_requests_at_once_gets_them_and_a_model_of_this_machine_does_not() -> None:
    for limits, expected in (((1_000_000, 10**9), range(8, 33)), (None, range(4, 5))):
        model = Provider(limits)

        async def story(service: EmbeddingService, expected: range = expected) -> None:
            await brought(service, "backfill", BACKLOG // 10)
            await asyncio.sleep(1)
            assert service.statistics().running_max in expected

        tell(model, story)

"""The service before a provider that is unwell or lies: a right vector or an error, and nothing else is kept."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.embeddings.cache import EmbeddingCache
from shoal.embeddings.hash_model import HashModel
from shoal.embeddings.openai_model import OpenAIModel
from shoal.embeddings.service import EmbeddingService
from shoal.errors import ConfigurationError, ShoalError, TransientError
from shoal.settings import Settings
from tests.fixtures.openai_server import FakeOpenAI, Reply

WIDTH = 1536
TEXTS = [f"load of zone {n}" for n in range(6)]
Answer = Callable[[dict[str, Any]], Reply]


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    with closing(FakeOpenAI(WIDTH)) as server:
        yield server


def changed(fake: FakeOpenAI, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Answer:
    """A true answer whose rows were changed."""

    def answer(request: dict[str, Any]) -> Reply:
        body = fake.embeddings(request, as_lists=True)
        return Reply(body={**body, "data": change(body["data"])})

    return answer


def with_nan(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows[-1]["embedding"] = base64.b64encode(np.full(WIDTH, np.nan, "<f4").tobytes()).decode()
    return rows


WRONG: dict[str, tuple[Callable[[FakeOpenAI], Reply | Answer], type[ShoalError]]] = {
    "an error of the server": (lambda _: Reply(500, {"error": {"message": "x"}}), TransientError),
    "an overload": (lambda _: Reply(503, b"", {"retry-after": "2"}), TransientError),
    "a refusal for the rate": (lambda _: Reply(429, {"error": {"code": "rate_limit_exceeded"}}), TransientError),
    "half an answer": (lambda _: Reply(body=b'{"data": [{"index": 0, "emb'), TransientError),
    "another kind of page": (lambda _: Reply(body=b"<html>welcome</html>"), TransientError),
    "a vector too few": (lambda fake: changed(fake, lambda rows: rows[:-1]), TransientError),
    "a vector twice": (lambda fake: changed(fake, lambda rows: [*rows[:-1], rows[0]]), TransientError),
    "vectors of another width": (
        lambda fake: changed(fake, lambda rows: [{**row, "embedding": row["embedding"][:8]} for row in rows]),
        ConfigurationError,
    ),
}  # fmt: skip


class Told:
    """A service before `fake`, in time that passes only by sleeping."""

    def __init__(self, fake: FakeOpenAI, cache: Path) -> None:
        self.clock, self.cache = Clock(), EmbeddingCache(cache, 1 << 24)
        settings = Settings(openai_base_url=fake.url, openai_api_key="k")
        model = OpenAIModel(settings, "text-embedding-3-small", width=WIDTH, clock=self.clock)
        self.service = EmbeddingService(
            model, self.cache, linger_s=0.0, give_up_s=30.0, clock=self.clock, sleep=self.clock.sleep
        )

    async def right(self) -> None:
        """Every text gets its vector, whatever happened before."""
        np.testing.assert_allclose(await self.service.embed(TEXTS), HashModel(WIDTH).embed(TEXTS), atol=1e-6)


@pytest.mark.parametrize("name", WRONG)
async def test_what_goes_wrong_for_a_while_is_retried_or_told_and_never_kept(
    name: str, fake: FakeOpenAI, tmp_path: Path
) -> None:
    make, error = WRONG[name]
    told = Told(fake, tmp_path / "c.sqlite")
    # 1. It lasts: within the bound the callers are told, and nothing of it is in the cache.
    fake.script = [make(fake)] * 200
    with pytest.raises(error):
        await told.service.embed(TEXTS)
    while told.service.statistics().queued_texts:  # halves of a refused batch, whose caller has its error already
        await asyncio.sleep(0.01)
    statistics = told.service.statistics()
    assert 0 < statistics.requests == statistics.failed_requests < 20, "bounded"
    assert told.clock.now - 1000 <= 30
    assert statistics.last_error
    # 2. Once, then the truth: who asks again gets what is right.
    fake.script = [make(fake)] if error is TransientError else []
    await told.right()
    assert told.service.statistics().unwell_s == 0
    await told.service.close()


async def test_answers_in_another_order_are_put_right(fake: FakeOpenAI, tmp_path: Path) -> None:
    told = Told(fake, tmp_path / "c.sqlite")
    fake.script = [changed(fake, lambda rows: rows[::-1])]
    await told.right()
    await told.service.close()


async def test_a_vector_that_is_no_number_blames_no_text_that_is_taken_the_next_time(
    fake: FakeOpenAI, tmp_path: Path
) -> None:
    told = Told(fake, tmp_path / "c.sqlite")
    fake.script = [changed(fake, with_nan)]
    await told.right()
    assert told.service.statistics().failed_requests == 1
    await told.service.close()


async def test_a_connection_that_is_cut_or_refused_is_retried(fake: FakeOpenAI, tmp_path: Path) -> None:
    told = Told(fake, tmp_path / "c.sqlite")
    fake.close()
    with pytest.raises(TransientError, match="connection"):
        await told.service.embed(TEXTS)
    assert told.service.statistics().failed_requests == told.service.statistics().requests > 1
    await told.service.close()

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from shoal.errors import BadDocument, DeadReason, TransientError
from shoal.serve_apps import query_vectors
from shoal.serve_apps.deadlines import running
from shoal.serve_apps.index_provider import RETRY_S, IndexProvider
from shoal.serve_apps.query_vectors import QueryVectors


class Embedder:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def __call__(self, model: str, text: str, collection: str) -> Any:
        self.asked.append((model, text))
        await self.gate.wait()
        if self.error:
            raise self.error
        return np.ones(2, dtype=np.float32)


async def test_a_question_is_embedded_once_per_model() -> None:
    embedder = Embedder()
    vectors = QueryVectors(embedder)
    for model in ("a", "a", "b"):
        assert (await vectors.of(model, "load")).shape == (2,)
    assert embedder.asked == [("a", "load"), ("b", "load")]


async def test_equal_questions_at_once_are_one_call() -> None:
    embedder = Embedder()
    embedder.gate.clear()
    vectors = QueryVectors(embedder)
    asked = [asyncio.create_task(vectors.of("a", "load")) for _ in range(5)]
    while not embedder.asked:
        await asyncio.sleep(0)
    embedder.gate.set()
    await asyncio.gather(*asked)
    assert len(embedder.asked) == 1


async def test_the_memory_is_bounded_and_forgets_the_least_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_vectors, "REMEMBERED_MAX", 2)
    embedder = Embedder()
    vectors = QueryVectors(embedder)
    for text in ("1", "2", "1", "3", "1", "2"):
        await vectors.of("a", text)
    assert [text for _, text in embedder.asked] == ["1", "2", "3", "2"]


async def test_a_late_embedder_costs_one_caller_its_deadline_and_still_fills_the_memory() -> None:
    # 1. The embedder hangs; the caller gives up with TransientError.
    embedder = Embedder()
    embedder.gate.clear()
    vectors = QueryVectors(embedder, deadline_s=0.02)
    with pytest.raises(TransientError, match="no answer within"):
        await vectors.of("a", "load")
    assert vectors.last_error
    # 2. It answers after all; the next caller finds the vector without asking again.
    embedder.gate.set()
    await vectors.of("a", "load")
    assert len(embedder.asked) == 1
    assert vectors.last_error is None


async def test_questions_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_vectors, "PENDING_MAX", 1)
    embedder = Embedder()
    embedder.gate.clear()
    vectors = QueryVectors(embedder)
    first = asyncio.create_task(vectors.of("a", "1"))
    while not embedder.asked:
        await asyncio.sleep(0)
    with pytest.raises(TransientError, match="waiting"):
        await vectors.of("a", "2")
    embedder.gate.set()
    await first


async def test_a_refused_text_is_not_an_outage() -> None:
    embedder = Embedder()
    embedder.error = BadDocument(DeadReason.EMBEDDING_REJECTED, "blank")
    with pytest.raises(BadDocument):
        await QueryVectors(embedder).of("a", " ")


async def test_a_failure_is_not_remembered_as_an_answer() -> None:
    embedder = Embedder()
    embedder.error = RuntimeError("actor died")
    vectors = QueryVectors(embedder)
    with pytest.raises(TransientError):
        await vectors.of("a", "load")
    assert not await vectors.answers("a")
    embedder.error = None
    assert await vectors.answers("a")
    assert (await vectors.of("a", "load")) is not None


async def test_the_index_is_opened_once_for_many_and_asked_again_only_after_a_while() -> None:
    opened = 0
    now = 0.0
    missing = True

    class Index:
        is_left = False

        async def close(self) -> None: ...

    index = Index()

    async def open_index() -> Index:
        nonlocal opened
        opened += 1
        await asyncio.sleep(0)
        if missing:
            raise TransientError("no tables yet", 1.0)
        return index

    provider = IndexProvider(open_index, clock=lambda: now)
    outcomes = await asyncio.gather(*(provider() for _ in range(5)), return_exceptions=True)
    assert all(isinstance(one, TransientError) for one in outcomes)
    assert opened == 1
    missing, now = False, RETRY_S + 0.1
    assert await asyncio.gather(*(provider() for _ in range(5))) == [index] * 5
    assert opened == 2


async def test_a_request_with_little_time_left_waits_half_of_it_at_most() -> None:
    async def never(*_: object) -> Any:
        await asyncio.Event().wait()

    vectors = QueryVectors(never, deadline_s=3600.0)
    with running(0.05), pytest.raises(TransientError, match="no answer within 0"):
        await vectors.of("hash:4", "load")

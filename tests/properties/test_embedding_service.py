"""Any callers, any bad texts, any hiccups of the provider: everybody gets what is theirs, and no text is lost; a
failing batch is halved until the culprits stand alone."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.embeddings.cache import EmbeddingCache
from shoal.embeddings.hash_model import HashModel
from shoal.embeddings.service import EmbeddingService
from shoal.embeddings.texts import Kind
from shoal.errors import BadDocument, DeadReason, TransientError
from tests.properties.profiles import examples

TEXTS = [" ".join(["word"] * (1 + number % 7)) + f" {number}" for number in range(14)]
CALLS = st.lists(
    st.tuples(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=10), st.sampled_from(["document", "query"])),
    min_size=1,
    max_size=8,
)


class PickyModel(HashModel):
    """Refuses batches with a bad text in them, without saying which, and hiccups when told."""

    def __init__(self, bad: frozenset[str], hiccups: list[bool], inputs_max: int, tokens_max: int) -> None:
        super().__init__(16)
        self.batch_inputs_max, self.batch_tokens_max = inputs_max, tokens_max
        self.bad, self.hiccups = bad, hiccups
        self.calls: list[tuple[Kind, list[str]]] = []
        self.paid: Counter[tuple[Kind, str]] = Counter()
        self.condemned: set[tuple[Kind, str]] = set()
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str], kind: Kind = "document") -> np.ndarray:
        with self._lock:
            self.calls.append((kind, list(texts)))
            if self.hiccups and self.hiccups.pop():
                raise TransientError("overloaded", 0.5)
            if not self.bad.isdisjoint(texts):
                if len(texts) == 1:
                    self.condemned.add((kind, texts[0]))
                raise BadDocument(DeadReason.EMBEDDING_REJECTED, "one of these")
            self.paid.update((kind, text) for text in texts)
            return super().embed(texts, kind)


@given(
    calls=CALLS,
    bad=st.frozensets(st.sampled_from(TEXTS), max_size=3),
    hiccups=st.lists(st.booleans(), max_size=20),
    inputs_max=st.integers(1, 9),
    tokens_max=st.integers(1, 60),
    cancelled=st.integers(0, 7),
)
@examples(60)
def test_every_caller_gets_its_own_and_only_culprits_are_refused(
    calls: list[tuple[list[str], Kind]],
    bad: frozenset[str],
    hiccups: list[bool],
    inputs_max: int,
    tokens_max: int,
    cancelled: int,
) -> None:
    model = PickyModel(bad, hiccups, inputs_max, tokens_max)
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        await asyncio.sleep(0)

    async def story() -> list[np.ndarray | BaseException]:
        cache = EmbeddingCache(None, 1024 * 1024)
        service = EmbeddingService(
            model, cache, linger_s=0.0, give_up_s=1e9, queued_texts_max=6, clock=lambda: now, sleep=sleep
        )
        tasks = [asyncio.create_task(service.embed(texts, kind)) for texts, kind in calls]
        await asyncio.sleep(0)
        for task in tasks[cancelled : cancelled + 1]:
            task.cancel()
        async with asyncio.timeout(30):  # a hang guard
            results = await asyncio.gather(*tasks, return_exceptions=True)
            while service.statistics().queued_texts:  # the rest of those that failed early
                await asyncio.sleep(0.001)
            await service.close()
        return results

    results = asyncio.run(story())

    plain = HashModel(16)
    for number, ((texts, kind), result) in enumerate(zip(calls, results, strict=True)):
        if number == cancelled:
            assert isinstance(result, asyncio.CancelledError)
        elif bad.isdisjoint(texts):
            assert isinstance(result, np.ndarray), result
            np.testing.assert_array_equal(result, plain.embed(texts, kind))
        else:
            assert isinstance(result, BadDocument), result
            named = int(result.message.split()[1])
            assert texts[named - 1] in bad, "the refusal names a culprit"
            assert (kind, texts[named - 1]) in model.condemned, "nobody is blamed before it failed alone"
    for _, texts in model.calls:
        assert len(texts) <= inputs_max
        assert len(texts) == 1 or sum(map(plain.count_tokens, texts)) <= tokens_max
        assert len(set(texts)) == len(texts)
    assert set(model.paid.values()) <= {1}, "no text is paid for twice, however many wait at the entrance with it"
    wanted = {(kind, text) for number, (texts, kind) in enumerate(calls) if number != cancelled for text in texts}
    assert wanted <= model.paid.keys() | {(kind, text) for kind in ("query", "document") for text in bad}

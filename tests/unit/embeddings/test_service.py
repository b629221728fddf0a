"""The service: one model call per distinct text, one culprit per refusal, bounded patience, bounded queues."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.embeddings.cache import EmbeddingCache, cache_key
from shoal.embeddings.hash_model import HashModel
from shoal.embeddings.limiter import RateLimiter
from shoal.embeddings.purposes import Charge, Purpose
from shoal.embeddings.service import EmbeddingService
from shoal.embeddings.texts import Kind
from shoal.errors import BadDocument, ConfigurationError, DeadReason, TransientError

MIB = 1024 * 1024


class ScriptedModel(HashModel):
    """A hash model that remembers its calls and first does what `script` says: raise, wait or nothing."""

    def __init__(self, script: Callable[[Sequence[str]], None] = lambda texts: None) -> None:
        super().__init__(16)
        self.calls: list[list[str]] = []
        self.script = script
        self.running = self.most_running = 0
        self.is_closed = False
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str], kind: Kind = "document") -> np.ndarray:
        with self._lock:
            self.calls.append(list(texts))
            self.running += 1
            self.most_running = max(self.running, self.most_running)
        try:
            self.script(texts)
            return super().embed(texts, kind)
        finally:
            with self._lock:
                self.running -= 1

    def close(self) -> None:
        self.is_closed = True


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@asynccontextmanager
async def serving(
    model: HashModel, cache: EmbeddingCache | None = None, **options: object
) -> AsyncIterator[EmbeddingService]:
    service = EmbeddingService(model, cache, **{"linger_s": 0.0, **options})  # type: ignore[arg-type]
    try:
        yield service
    finally:
        await service.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def refusing(*bad: str) -> Callable[[Sequence[str]], None]:
    def script(texts: Sequence[str]) -> None:
        if any(text in bad for text in texts):
            raise BadDocument(DeadReason.EMBEDDING_REJECTED, "not that")

    return script


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from([f"text {i}" for i in range(12)]), max_size=30), max_size=8))
async def test_every_caller_gets_the_vectors_of_its_texts_in_order(calls: list[list[str]]) -> None:
    model, plain = ScriptedModel(), HashModel(16)
    cache = EmbeddingCache(None, MIB)
    async with serving(model, cache) as service:
        results = await asyncio.gather(*map(service.embed, calls))
    for texts, vectors in zip(calls, results, strict=True):
        assert vectors.shape == (len(texts), 16)
        assert vectors.dtype == np.float32
        assert np.array_equal(vectors, plain.embed(texts))
    sent = [text for call in model.calls for text in call]
    assert sorted(sent) == sorted({text for texts in calls for text in texts})


async def test_texts_of_many_callers_go_to_the_model_together() -> None:
    gate = threading.Event()
    model = ScriptedModel(lambda texts: gate.wait(60) and None)
    async with serving(model) as service:
        first = asyncio.create_task(service.embed(["the first keeps the model busy"]))
        await until(lambda: len(model.calls) == 1)
        others = [asyncio.create_task(service.embed([f"text {i}"])) for i in range(20)]
        await until(lambda: service.statistics().queued_texts == 21)
        gate.set()
        await asyncio.gather(first, *others)
    assert [len(call) for call in model.calls] == [1, 20]


async def test_batches_keep_to_the_models_bounds() -> None:
    model = ScriptedModel()
    model.batch_inputs_max, model.batch_tokens_max = 5, 30  # type: ignore[misc]
    async with serving(model) as service:
        await service.embed([f"{i} " + "word " * (i % 20) for i in range(50)])
    for call in model.calls:
        assert len(call) <= 5
        assert sum(map(model.count_tokens, call)) <= 30


async def test_a_text_in_the_cache_is_not_sent_again(tmp_path: Path) -> None:
    model = ScriptedModel()
    async with serving(model, EmbeddingCache(tmp_path / "c.sqlite", MIB)) as service:
        first = await service.embed(["a", "b"])
    async with serving(model, EmbeddingCache(tmp_path / "c.sqlite", MIB)) as service:
        again = await service.embed(["b", "c", "a", "b"])
        statistics = service.statistics()
    assert model.calls == [["a", "b"], ["c"]]
    assert np.array_equal(again[[2, 0]], first)
    assert (statistics.texts, statistics.cache_hits, statistics.requests, statistics.tokens) == (4, 3, 1, 1)


async def test_documents_and_queries_are_never_in_one_call() -> None:
    model = ScriptedModel()
    async with serving(model) as service:
        await asyncio.gather(
            *(service.embed([f"{kind} {i}"], kind) for i in range(5) for kind in ("document", "query"))
        )
    assert all(len({text.split()[0] for text in call}) == 1 for call in model.calls)


async def test_a_bad_text_fails_only_its_own_caller() -> None:
    model = ScriptedModel(refusing("poison"))
    async with serving(model) as service:
        calls = [service.embed([f"good {i}", f"fine {i}"]) for i in range(10)]
        calls.insert(4, service.embed(["before", "poison", "after"]))
        results = await asyncio.gather(*calls, return_exceptions=True)
    bad = results.pop(4)
    assert isinstance(bad, BadDocument)
    assert str(bad) == "embedding_rejected: text 2 of 3: not that"
    assert all(isinstance(result, np.ndarray) for result in results)
    assert ["poison"] in model.calls


async def test_the_good_texts_of_a_bad_document_are_not_embedded_twice() -> None:
    model = ScriptedModel(refusing("poison"))
    async with serving(model, EmbeddingCache(None, MIB)) as service:
        with pytest.raises(BadDocument):
            await service.embed(["good", "poison"])
        await until(lambda: service.statistics().queued_texts == 0)
        before = len(model.calls)
        await service.embed(["good"])
    assert len(model.calls) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "blank"), (" \n\t", "blank"), ("\ud800", "surrogates"), ("word " * 257, "257"), ("x" * 300_000, "300000")],
)
async def test_texts_that_no_model_takes_are_refused_before_they_are_queued(text: str, message: str) -> None:
    model = ScriptedModel()
    async with serving(model) as service:
        with pytest.raises(BadDocument, match=message) as caught:
            await service.embed(["fine", text])
        assert caught.value.reason is DeadReason.EMBEDDING_REJECTED
        assert service.statistics().queued_texts == 0
    assert model.calls == []


async def test_a_long_query_is_cut_instead() -> None:
    async with serving(ScriptedModel()) as service:
        assert (await service.embed(["word " * 300_000], "query")).shape == (1, 16)
        assert service.statistics().tokens == 256


async def test_an_outage_is_retried_with_growing_pauses_until_it_is_over() -> None:
    failures = [TransientError("down")] * 4
    clock = Clock()

    def script(texts: Sequence[str]) -> None:
        if failures:
            raise failures.pop()

    async with serving(ScriptedModel(script), clock=clock, sleep=clock.sleep) as service:
        assert (await service.embed(["a"])).shape == (1, 16)
        assert service.statistics().requests == 5
        assert service.statistics().last_error == "down"
    for pause, longest in zip(clock.slept, (0.5, 1, 2, 4), strict=True):
        assert longest / 2 <= pause <= longest


async def test_what_the_provider_asks_for_is_waited() -> None:
    failures = [TransientError("busy", 7.0), TransientError("busy", 0.01)]
    clock = Clock()

    def script(texts: Sequence[str]) -> None:
        if failures:
            raise failures.pop(0)

    async with serving(ScriptedModel(script), clock=clock, sleep=clock.sleep) as service:
        await service.embed(["a"])
    assert clock.slept[0] == 7.0
    assert clock.slept[1] >= 0.5


async def test_an_outage_that_lasts_reaches_the_callers_after_a_minute() -> None:
    clock, model = Clock(), ScriptedModel()
    tried: list[float] = []

    def script(texts: Sequence[str]) -> None:
        if "a" in texts:
            tried.append(clock.now)
        raise TransientError("down")

    model.script = script
    async with serving(model, clock=clock, sleep=clock.sleep) as service:
        with pytest.raises(TransientError, match="down"):
            await service.embed(["a"])
        assert 30 <= tried[-1] - tried[0] <= 60
        results = await asyncio.gather(service.embed(["a"]), service.embed(["a", "b"]), return_exceptions=True)
        assert [str(result) for result in results] == ["down", "down"]
        assert all(isinstance(result, TransientError) for result in results)
        assert results[0] is not results[1]
        model.script = lambda texts: None
        assert (await service.embed(["a", "b"])).shape == (2, 16)


async def test_a_pause_beyond_the_bound_is_not_slept_but_told() -> None:
    clock = Clock()

    def script(texts: Sequence[str]) -> None:
        raise TransientError("busy", 600.0)

    async with serving(ScriptedModel(script), clock=clock, sleep=clock.sleep) as service:
        with pytest.raises(TransientError) as caught:
            await service.embed(["a"])
    assert caught.value.retry_after_s == 600
    assert clock.slept == []


async def test_a_wrong_key_reaches_the_callers_at_once() -> None:
    clock = Clock()

    def script(texts: Sequence[str]) -> None:
        raise ConfigurationError("the key was refused")

    model = ScriptedModel(script)
    async with serving(model, clock=clock, sleep=clock.sleep) as service:
        with pytest.raises(ConfigurationError, match="the key was refused"):
            await service.embed(["a", "b"])
        assert service.statistics().last_error == "the key was refused"
    assert (len(model.calls), clock.slept) == (1, [])


async def test_an_unknown_error_is_the_systems_fault_and_ends_no_worker() -> None:
    model = ScriptedModel()

    def script(texts: Sequence[str]) -> None:
        raise RuntimeError("boom")

    model.script = script
    async with serving(model) as service:
        with pytest.raises(TransientError, match="RuntimeError: boom"):
            await service.embed(["a"])
        model.script = lambda texts: None
        assert (await service.embed(["a"])).shape == (1, 16)


async def test_the_limiter_is_asked_before_every_call() -> None:
    clock, model = Clock(), ScriptedModel()
    model.limiter = RateLimiter(60, 6000, clock.now)  # type: ignore[assignment]
    model.batch_inputs_max = 1  # type: ignore[misc]
    async with serving(model, clock=clock, sleep=clock.sleep) as service:
        await service.embed([f"text {i}" for i in range(16)])
    assert len(model.calls) == 16
    assert clock.now - 1000 == pytest.approx(14, abs=0.3)  # one at once and one that is owed, then one a second


async def test_a_pause_of_the_limiter_beyond_the_bound_is_told() -> None:
    clock, model = Clock(), ScriptedModel()
    model.limiter = RateLimiter(60, 6000, clock.now)  # type: ignore[assignment]
    model.limiter.throttled({}, 300.0, clock.now)
    async with serving(model, clock=clock, sleep=clock.sleep) as service:
        with pytest.raises(TransientError, match="300 s") as caught:
            await service.embed(["a"])
    assert caught.value.retry_after_s == 300
    assert model.calls == []


@pytest.mark.parametrize("bound", [{"queued_texts_max": 8}, {"queued_bytes_max": 56}])
async def test_callers_wait_while_the_queue_is_full(bound: dict[str, int]) -> None:
    gate = threading.Event()
    model = ScriptedModel(lambda texts: gate.wait(60) and None)
    most = 0

    async with serving(model, **bound) as service:
        callers = [
            asyncio.create_task(service.embed([f"text {i:02}" for i in range(n, n + 5)])) for n in range(0, 50, 5)
        ]
        await until(lambda: service.statistics().queued_texts == 8)
        for _ in range(50):
            await asyncio.sleep(0)
            most = max(most, service.statistics().queued_texts)
        gate.set()
        results = await asyncio.gather(*callers)
    assert most == 8
    assert all(result.shape == (5, 16) for result in results)


async def test_a_text_that_two_bring_to_a_full_entrance_is_paid_once() -> None:
    # 1. One text fills the room; two callers, who have both looked for theirs in vain, wait outside with the same one.
    gate = threading.Event()
    model = ScriptedModel(lambda texts: gate.wait(60) and None)
    async with serving(model, EmbeddingCache(None, MIB), queued_texts_max=1) as service:
        inside = asyncio.create_task(service.embed(["inside"]))
        await until(lambda: len(model.calls) == 1)
        outside = [asyncio.create_task(service.embed(["the same"])) for _ in range(2)]
        await until(lambda: len(service._entrances["live"]._line._waiters or ()) == 1)
        # 2. The first of them gets in; when the second does, its text has been embedded and is no longer in flight.
        gate.set()
        results = await asyncio.gather(inside, *outside)
    assert np.array_equal(results[1], results[2])
    assert model.calls == [["inside"], ["the same"]]


async def test_counts_that_the_caller_has_are_not_made_again_unless_they_are_near_the_limit() -> None:
    counted: list[str] = []

    class Counting(ScriptedModel):
        def count_tokens(self, text: str) -> int:
            counted.append(text)
            return super().count_tokens(text)

    model = Counting()
    long = "word " * 240
    async with serving(model) as service:
        await service.embed(["one two", long], token_counts=[2, 238])
        assert service.statistics().tokens == 242
        with pytest.raises(BadDocument, match="text 2 of 2: has 260 tokens; hash:16 takes 256"):
            await service.embed(["fine", "word " * 260], token_counts=[1, 254])
    assert counted == [long, "word " * 260]


async def test_vectors_that_are_known_elsewhere_are_not_paid_again_and_wrong_ones_not_used() -> None:
    model, asked = ScriptedModel(), []
    plain = HashModel(16).embed(["from the table", "nan", "narrow"])
    plain[1, 3] = np.nan

    async def elsewhere(texts: Sequence[str]) -> Mapping[str, np.ndarray]:
        asked.append(list(texts))
        return {"from the table": plain[0], "nan": plain[1], "narrow": plain[2, :8], "never asked for": plain[0]}

    texts = ["from the table", "nan", "narrow", "new"]
    async with serving(model, EmbeddingCache(None, MIB)) as service:
        first = await service.embed(texts, elsewhere=elsewhere)
        again = await service.embed(texts, elsewhere=elsewhere)
        assert service.statistics().reused == 1
    assert asked == [texts]
    assert model.calls == [["nan", "narrow", "new"]]
    assert np.array_equal(first, HashModel(16).embed(texts))
    assert np.array_equal(first, again)


@pytest.mark.parametrize("wrong", ["nan", "long", "short", "narrow"])
async def test_a_wrong_answer_is_never_used_whatever_model_gives_it(wrong: str) -> None:
    class Wrong(ScriptedModel):
        is_wrong = True

        def embed(self, texts: Sequence[str], kind: Kind = "document") -> np.ndarray:
            vectors = super().embed(texts, kind)
            if self.is_wrong:
                match wrong:
                    case "nan":
                        vectors[-1, 0] = np.nan
                    case "long":
                        vectors[-1] *= 2
                    case "short":
                        vectors = vectors[:-1]
                    case _:
                        vectors = vectors[:, :8]
            return vectors

    model, clock, cache = Wrong(), Clock(), EmbeddingCache(None, MIB)
    async with serving(model, cache, clock=clock, sleep=clock.sleep) as service:
        with pytest.raises(TransientError, match="hash:16 gave"):
            await service.embed(["one", "two"])
        model.is_wrong = False
        assert np.array_equal(await service.embed(["one", "two"]), HashModel(16).embed(["one", "two"]))
        assert service.statistics().failed_requests == service.statistics().requests - 1


async def test_a_text_larger_than_the_whole_bound_goes_alone() -> None:
    async with serving(ScriptedModel(), queued_bytes_max=10) as service:
        assert (await service.embed(["much longer than ten bytes", "and another one"])).shape == (2, 16)


async def test_a_cancelled_caller_harms_nobody() -> None:
    # 1. Two callers wait for the same text; the model is busy with it.
    gate = threading.Event()
    model = ScriptedModel(lambda texts: gate.wait(60) and None)
    async with serving(model, EmbeddingCache(None, MIB)) as service:
        first, second = (asyncio.create_task(service.embed(["shared"])) for _ in range(2))
        await until(lambda: len(model.calls) == 1)
        # 2. The one that brought it is cancelled.
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        # 3. The other still gets its vector.
        gate.set()
        assert (await second).shape == (1, 16)
        await until(lambda: service.statistics().queued_texts == 0)
    assert len(model.calls) == 1


async def test_a_caller_cancelled_at_the_entrance_leaves_it_open() -> None:
    gate = threading.Event()
    model = ScriptedModel(lambda texts: gate.wait(60) and None)
    async with serving(model, queued_texts_max=1) as service:
        inside = asyncio.create_task(service.embed(["inside"]))
        await until(lambda: len(model.calls) == 1)
        at_the_entrance = asyncio.create_task(service.embed(["impatient"]))
        behind = asyncio.create_task(service.embed(["patient"]))
        await until(lambda: service._entrances["live"].is_awaited)
        at_the_entrance.cancel()
        with pytest.raises(asyncio.CancelledError):
            await at_the_entrance
        gate.set()
        assert (await inside).shape == (await behind).shape == (1, 16)


async def test_the_model_is_called_no_more_often_at_once_than_it_says() -> None:
    model = ScriptedModel()
    model.concurrency, model.batch_inputs_max = 3, 1  # type: ignore[misc]
    together = threading.Barrier(3)
    model.script = lambda texts: together.wait(60) and None
    async with serving(model) as service:
        await service.embed([f"text {i}" for i in range(12)])
    assert model.most_running == 3


async def test_closing_tells_everyone_who_waits_and_closes_the_model() -> None:
    gate = threading.Event()
    model = ScriptedModel(lambda texts: gate.wait(60) and None)
    service = EmbeddingService(model, EmbeddingCache(None, MIB), queued_texts_max=2)
    callers = [asyncio.create_task(service.embed([f"text {i}"])) for i in range(6)]
    await until(lambda: len(model.calls) == 1 and service._entrances["live"].is_awaited)
    await service.close()
    await service.close()
    gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(result, TransientError) for result in results)
    with pytest.raises(TransientError):
        await service.embed(["late"])
    assert model.is_closed


async def test_closing_reaches_who_waits_for_company_and_who_waits_for_room() -> None:
    service = EmbeddingService(ScriptedModel(), None, linger_s=60, queued_texts_max=1)
    callers = [asyncio.create_task(service.embed([f"text {i}"])) for i in range(2)]
    await until(lambda: service._entrances["live"].is_awaited)
    await service.close()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(result, TransientError) for result in results)


async def test_what_was_embedded_is_cached_also_when_the_service_is_closed_right_then(tmp_path: Path) -> None:
    gate = threading.Event()

    class SlowCache(EmbeddingCache):
        def put_many(self, vectors: Mapping[bytes, np.ndarray]) -> None:
            gate.wait(60)
            super().put_many(vectors)

    # 1. Two texts have been embedded; the first is being written to the cache, the second waits for that.
    model = ScriptedModel()
    model.concurrency, model.batch_inputs_max = 2, 1  # type: ignore[misc]
    service = EmbeddingService(model, SlowCache(tmp_path / "c.sqlite", MIB), linger_s=0)
    await service.embed(["first", "second"])
    # 2. The service is closed; its workers are gone before the cache moves on.
    closing = asyncio.create_task(service.close())
    await until(lambda: all(worker.done() for worker in service._workers))
    gate.set()
    await closing
    # 3. Both are there.
    cache = EmbeddingCache(tmp_path / "c.sqlite", MIB)
    keys = [cache_key("hash:16", 16, "document", text) for text in ("first", "second")]
    assert len(cache.get_many(keys, 16)) == 2
    cache.close()


async def test_each_request_is_charged_to_those_whose_texts_were_in_it() -> None:
    booked: list[list[Charge]] = []
    hiccups = [TransientError("down")]
    clock = Clock()

    def script(texts: Sequence[str]) -> None:
        if hiccups:
            raise hiccups.pop()

    wind, load = Purpose("live", "scraper", "NYISO", "wind"), Purpose("backfill", "scraper", "NYISO", "load")
    service = EmbeddingService(
        ScriptedModel(script), EmbeddingCache(None, MIB), linger_s=0, clock=clock, sleep=clock.sleep,
        on_charges=lambda charges: booked.append(list(charges)),
    )  # fmt: skip
    await service.embed(["one two", "three"], purpose=wind)
    await service.embed(["three", "four five six"], purpose=load)  # one of them is in the cache: nobody pays for it
    statistics = service.statistics()
    await service.close()
    assert booked == [
        [Charge("hash:16", wind, 1, 2, 3, has_failed=True)],
        [Charge("hash:16", wind, 1, 2, 3)],
        [Charge("hash:16", load, 1, 1, 3)],
    ]
    assert sum(charge.requests for charges in booked for charge in charges) == statistics.requests
    assert sum(charge.tokens for charges in booked for charge in charges) == statistics.tokens


async def test_a_request_of_several_payers_is_one_request_in_the_books() -> None:
    booked: list[list[Charge]] = []
    payers = [Purpose(dataset=f"d{i}") for i in range(3)]
    async with serving(ScriptedModel(), linger_s=0.01, on_charges=lambda c: booked.append(list(c))) as service:
        await asyncio.gather(*(service.embed([f"text {p.dataset}"], purpose=p) for p in payers))
    assert [[(c.purpose, c.requests, c.texts, c.tokens) for c in charges] for charges in booked] == [
        [(payer, int(i == 0), 1, 2) for i, payer in enumerate(payers)]
    ]


async def test_who_may_not_spend_is_told_so_and_pays_nothing() -> None:
    asked: list[tuple[Purpose, int]] = []
    poor, rich = Purpose(collection="poor"), Purpose(collection="rich")

    def may_spend(purpose: Purpose, tokens: int) -> ConfigurationError | None:
        asked.append((purpose, tokens))
        return ConfigurationError("the budget of today is spent") if purpose is poor else None

    model = ScriptedModel()
    async with serving(model, EmbeddingCache(None, MIB), may_spend=may_spend) as service:
        with pytest.raises(ConfigurationError, match="budget"):
            await service.embed(["one two"], purpose=poor)
        assert model.calls == []
        await service.embed(["one two"], purpose=rich)
        await service.embed(["one two"], purpose=poor)  # what is in the cache costs nothing
    assert asked == [(poor, 2), (rich, 2)]


async def test_books_that_fail_lose_no_vector() -> None:
    def broken(charges: Sequence[Charge]) -> None:
        raise RuntimeError("disk full")

    async with serving(ScriptedModel(), on_charges=broken) as service:
        assert (await service.embed(["one"])).shape == (1, 16)

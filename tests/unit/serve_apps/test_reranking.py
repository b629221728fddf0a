"""The reranker: bounded in what it is sent and in how long it is waited for; a query never fails by it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from shoal.serve_apps.reranking import (
    CANDIDATES_MAX,
    FAILURES_MAX,
    QUERY_CHARS_MAX,
    REST_S,
    TEXT_CHARS_MAX,
    Reranker,
    SkippedError,
)
from shoal.settings import Settings

SEARCH = "/api/v1/collections/scraper/search"
URL = "http://reranker/rerank"
Answer = Callable[[httpx.Request], Any]


def by_length(request: httpx.Request) -> httpx.Response:
    """Longer texts are better; answered out of order, as TEI does."""
    texts = json.loads(request.content)["texts"]
    return httpx.Response(200, json=[{"index": at, "score": len(text)} for at, text in enumerate(texts)][::-1])


def reranker(answer: Answer, **options: Any) -> Reranker:
    return Reranker(URL, transport=httpx.MockTransport(answer), **options)


async def test_tei_is_asked_within_bounds_and_its_scores_come_back_by_place() -> None:
    asked: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return by_length(request)

    assert await reranker(answer).scores("q" * 9_000, ["aa", "b", "c" * 9_000]) == [2.0, 1.0, TEXT_CHARS_MAX]
    assert len(asked[0]["query"]) == QUERY_CHARS_MAX
    assert asked[0]["truncate"] is True


async def test_cohere_is_asked_with_its_model_and_key() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer secret"
        assert json.loads(request.content) == {"query": "q", "documents": ["a", "b"], "top_n": 2, "model": "m"}
        results = [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]
        return httpx.Response(200, json={"results": results})

    assert await reranker(answer, form="cohere", model="m", key="secret").scores("q", ["a", "b"]) == [0.1, 0.9]


def _fails(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


def _misspelt(request: httpx.Request) -> httpx.Response:
    raise httpx.InvalidURL("port")


BROKEN: dict[str, Answer] = {
    "no such URL": _misspelt,
    "down": _fails,
    "error": lambda _: httpx.Response(500),
    "unauthorised": lambda _: httpx.Response(401, json={"error": "key"}),
    "no json": lambda _: httpx.Response(200, text="<html>"),
    "another shape": lambda _: httpx.Response(200, json={"results": []}),
    "incomplete": lambda _: httpx.Response(200, json=[{"index": 0, "score": 1}]),
    "out of range": lambda _: httpx.Response(200, json=[{"index": at, "score": 1} for at in (0, 7)]),
    "negative": lambda _: httpx.Response(200, json=[{"index": at, "score": 1} for at in (0, -1)]),
    "no number": lambda _: httpx.Response(200, json=[{"index": at, "score": None} for at in (0, 1)]),
    "not finite": lambda _: httpx.Response(200, content=b'[{"index":0,"score":1e999},{"index":1,"score":1}]'),
    "beyond a float": lambda _: httpx.Response(200, text='[{"index":0,"score":1' + "0" * 400 + "}]"),
    "too deep": lambda _: httpx.Response(200, text="[" * 500_000),
    "null": lambda _: httpx.Response(200, json=None),
    "huge": lambda _: httpx.Response(200, content=b" " * 2_000_000),
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
async def test_whatever_it_does_wrong_is_a_note(answer: Answer) -> None:
    with pytest.raises(SkippedError, match="reranker"):
        await reranker(answer).scores("q", ["a", "b"])


async def test_one_that_keeps_failing_is_left_alone_for_a_while() -> None:
    now, calls = 0.0, 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        return httpx.Response(503)

    asked = reranker(answer, clock=lambda: now)
    for _ in range(2 * FAILURES_MAX):
        with pytest.raises(SkippedError):
            await asked.scores("q", ["a"])
    assert calls == FAILURES_MAX
    now = REST_S + 1
    with pytest.raises(SkippedError):
        await asked.scores("q", ["a"])
    assert calls == FAILURES_MAX + 1


# --- in a search ------------------------------------------------------------------------------


@pytest.fixture
def three(stand: Any, ranked: Any) -> None:
    stand.index.hits = tuple(ranked(text) for text in ("short", "a longer text", "the longest text of all"))


@pytest.mark.usefixtures("three")
async def test_the_best_candidates_are_ordered_anew_and_explained(http: Any, stand: Any) -> None:
    stand.reranker = reranker(by_length)
    service = stand.service()
    stand.index.cursor = "more"
    body = await service.collection_search("scraper", {"query": "load", "rerank": True, "limit": 2, "explain": True})
    texts = [result["chunks"][0]["text"] for result in body["results"]]
    assert texts == ["the longest text of all", "a longer text"]
    assert body["results"][0]["explain"]["rerank"] == {"score": 23.0, "rank_before": 3}
    assert (body["count"], body["next_cursor"], body["warnings"]) == (2, None, [])
    assert body["timings_ms"]["rerank"] >= 0
    assert stand.index.requests[0].limit == CANDIDATES_MAX


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("fault", ["down", "hangs", "absent"])
async def test_a_query_is_answered_without_it_and_says_so(stand: Any, fault: str) -> None:
    async def hang(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    stand.reranker = {"down": reranker(_fails), "hangs": reranker(hang, deadline_s=0.01), "absent": None}[fault]
    body = await stand.service().collection_search("scraper", {"query": "load", "rerank": True, "limit": 2})
    assert [result["chunks"][0]["text"] for result in body["results"]] == ["short", "a longer text"]
    assert "not reranked" in body["warnings"][0]


@pytest.mark.usefixtures("three")
async def test_nobody_is_asked_where_rerank_is_not(stand: Any) -> None:
    stand.reranker = reranker(_fails)
    body = await stand.service().collection_search("scraper", {"query": "load"})
    assert body["warnings"] == []


@pytest.mark.parametrize("sent", [{"rerank": True}, {"rerank": True, "query": "load", "cursor": "abc"}])
async def test_rerank_is_for_the_best_of_a_query(http: Any, sent: dict[str, Any]) -> None:
    response = await http.post(SEARCH, json=sent)
    assert (response.status_code, response.json()["parameter"]) == (422, "rerank")


def test_settings_make_the_reranker_or_none() -> None:
    assert Reranker.of(Settings()) is None
    made = Reranker.of(Settings(rerank_url=URL, rerank_form="cohere", rerank_api_key="k", rerank_timeout_s=2))
    assert made is not None
    assert "k" not in repr(Settings(rerank_api_key="secret-k").rerank_api_key)[-3:]

from __future__ import annotations

import inspect
import json
import pickle
from typing import Any

import httpx
import pytest

from shoal.client import AsyncShoal, Shoal
from shoal.client.calls import Calls
from shoal.client.client import RefusedError
from shoal.errors import TransientError


def shoal(answer: Any, seen: list[httpx.Request] | None = None, **more: Any) -> Shoal:
    def handle(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer

    return Shoal("http://shoal:8000/", transport=httpx.MockTransport(handle), **more)


def test_a_search_sends_only_what_was_given_and_the_key() -> None:
    seen: list[httpx.Request] = []
    with shoal(httpx.Response(200, json={"results": []}), seen, key="sk-1") as client:
        assert client.search("load & more", data_source="nyiso", limit=5) == {"results": []}
    assert dict(seen[0].url.params) == {"query": "load & more", "data_source": "nyiso", "limit": "5"}
    assert seen[0].url.path == "/api/v1/scrapes/search"
    assert seen[0].headers["authorization"] == "Bearer sk-1"


def test_search_all_follows_the_cursor_to_its_end() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        page = int(request.url.params.get("cursor", "0"))
        return httpx.Response(200, json={"results": [page], "next_cursor": str(page + 1) if page < 2 else None})

    assert list(shoal(answer).search_all("load")) == [0, 1, 2]


def test_a_hostile_hash_or_job_stays_one_path_segment() -> None:
    seen: list[httpx.Request] = []
    client = shoal(httpx.Response(200, json={"exists": False}), seen)
    client.by_hash("../../ingest?x=1")
    client.job("a/b")
    assert [request.url.raw_path for request in seen] == [
        b"/api/v1/scrapes/..%2F..%2Fingest%3Fx%3D1",
        b"/api/v1/jobs/a%2Fb",
    ]


def test_a_report_carries_its_idempotency_key() -> None:
    seen: list[httpx.Request] = []
    client = shoal(httpx.Response(202, json={"job_id": "j", "status": "accepted"}), seen)
    assert client.report_fix("s", "KeyError", "renamed", "worked", idempotency_key="k")["job_id"] == "j"
    assert seen[0].headers["idempotency-key"] == "k"


def test_a_mark_sends_what_it_says_and_nothing_else() -> None:
    seen: list[httpx.Request] = []
    client = shoal(httpx.Response(202, json={"job_id": "j", "status": "accepted"}), seen)
    client.mark_fix("../0d9c", wrong=False, note="It was right.", idempotency_key="k")
    assert (seen[0].method, seen[0].url.raw_path) == ("PATCH", b"/api/v1/agents/fixes/..%2F0d9c")
    assert json.loads(seen[0].content) == {"wrong": False, "note": "It was right."}
    assert seen[0].headers["idempotency-key"] == "k"


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(503, json={"detail": "no tables yet"}, headers={"Retry-After": "2"}),
        httpx.Response(429, text="busy", headers={"Retry-After": "2"}),
        httpx.Response(500, text="Internal Server Error", headers={"Retry-After": "2"}),
    ],
)
def test_what_may_succeed_later_is_transient_with_the_servers_wait(answer: httpx.Response) -> None:
    with pytest.raises(TransientError) as caught:
        shoal(answer).health()
    assert caught.value.retry_after_s == 2.0


@pytest.mark.parametrize(
    ("status", "says"), [(429, "ask again later"), (500, "before you repeat it"), (502, "no replica"), (504, "died")]
)
def test_what_stands_before_shoal_answers_in_plain_text_and_is_explained(status: int, says: str) -> None:
    with pytest.raises(TransientError, match=says) as caught:
        shoal(httpx.Response(status, text="Request dropped due to backpressure")).search("load")
    assert f"answered {status} to GET /api/v1/scrapes/search" in str(caught.value)


@pytest.mark.parametrize(
    "fault", [httpx.ConnectError("refused"), httpx.ReadTimeout("late"), httpx.RemoteProtocolError("cut")]
)
def test_no_connection_is_transient(fault: Exception) -> None:
    with pytest.raises(TransientError, match="http://shoal:8000"):
        shoal(fault).ingest()


def test_a_refusal_says_what_the_problem_said_and_survives_pickling() -> None:
    problem = {"type": "urn:shoal:problem:invalid-parameter", "detail": "limit: too large", "parameter": "limit"}
    with pytest.raises(RefusedError) as caught:
        shoal(httpx.Response(422, json=problem)).search(limit=1001)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (str(error), error.status, error.problem["parameter"]) == ("limit: too large", 422, "limit")


def test_an_answer_that_is_not_ours_is_refused_by_name() -> None:
    with pytest.raises(RefusedError, match="answered 200"):
        shoal(httpx.Response(200, text="<html>")).health()


def test_similar_apis_and_fix_patterns_are_unwrapped() -> None:
    client = shoal(httpx.Response(200, json={"similar_apis": [{"a": 1}], "fix_patterns": [{"b": 2}]}))
    assert client.similar_apis({"endpoint": "/x"}) == [{"a": 1}]
    assert client.fix_patterns("s", "KeyError") == [{"b": 2}]


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "by_hash": ("a" * 64,), "similar_apis": ({"endpoint": "/load"},), "fix_patterns": ("s",),
    "report_fix": ("s", "KeyError", "renamed", "worked"), "document": ("prod:a:b/c",), "raw": ("prod:a:b/c",),
    "mark_fix": ("0d9c",), "push": (b"x",), "delete": ("prod:a:b/c",), "job": ("j",),
}  # fmt: skip
NAMED: dict[str, dict[str, str]] = {"push": {"dataset": "a", "urn": "b", "data_source": "c", "data_type": "d"}}
METHODS = sorted(name for name, _ in inspect.getmembers(Calls, inspect.isfunction) if not name.startswith("_"))
LISTS = {"similar_apis": "similar_apis", "fix_patterns": "fix_patterns", "collections": "collections"}


@pytest.mark.parametrize("name", METHODS)
async def test_both_clients_send_the_same_and_give_the_same(name: str) -> None:
    seen: list[tuple[str, bytes, bytes, str | None]] = []
    body = {LISTS[name]: [{"a": 1}]} if name in LISTS else {"a": 1}

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append((request.method, request.url.raw_path, request.content, request.headers.get("authorization")))
        return httpx.Response(200, json=body)

    arguments, named = ARGUMENTS.get(name, ()), NAMED.get(name, {})
    with Shoal("http://shoal:8000", "sk-1", transport=httpx.MockTransport(handle)) as client:
        given = getattr(client, name)(*arguments, **named)
    async with AsyncShoal("http://shoal:8000", "sk-1", transport=httpx.MockTransport(handle)) as later:
        assert await getattr(later, name)(*arguments, **named) == given
    assert seen[0] == seen[1]
    assert seen[0][3] == "Bearer sk-1"
    assert given == ([{"a": 1}] if name in LISTS else b'{"a":1}' if name == "raw" else {"a": 1})


async def test_pages_are_followed_in_an_event_loop_too() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        page = int(request.url.params.get("cursor", "0"))
        return httpx.Response(200, json={"results": [page], "next_cursor": str(page + 1) if page < 2 else None})

    async with AsyncShoal(transport=httpx.MockTransport(handle)) as client:
        assert [result async for result in client.search_all("load")] == [0, 1, 2]


async def test_errors_in_an_event_loop_are_the_same() -> None:
    refused = httpx.MockTransport(lambda _: httpx.Response(422, json={"detail": "limit: too large"}))
    async with AsyncShoal(transport=refused) as client:
        with pytest.raises(RefusedError, match="limit: too large"):
            await client.search(limit=9999)

    def cut(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with AsyncShoal("http://shoal:8000", transport=httpx.MockTransport(cut)) as client:
        with pytest.raises(TransientError, match="http://shoal:8000"):
            await client.ingest()


def test_a_key_is_not_sent_where_a_raw_file_is_fetched_from() -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.host == "shoal":
            return httpx.Response(307, headers={"Location": "https://store.example/key?X-Amz-Signature=a"})
        return httpx.Response(200, content=b"bytes")

    with Shoal("http://shoal:8000", "sk-1", transport=httpx.MockTransport(handle)) as client:
        assert client.raw("prod:a:b") == b"bytes"
    assert [request.headers.get("authorization") for request in seen] == ["Bearer sk-1", None]


def test_a_hostile_document_id_climbs_nowhere() -> None:
    seen: list[httpx.Request] = []
    client = shoal(httpx.Response(200, json={}), seen)
    client.document("../../../ingest?x=1#y")
    assert seen[0].url.raw_path.startswith(
        b"/api/v1/collections/scraper/documents/%2E%2E/%2E%2E/%2E%2E/ingest%3Fx%3D1%23y?"
    )

"""The front: what Serve says itself becomes a problem, and bodies are bounded before anybody reads them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import orjson
import pytest
import uvicorn
import uvloop
from starlette.types import Message

from shoal.serve_apps.front import BODY_BYTES_NAME, HELD_BODIES, Front, middlewares

SCOPE: dict[str, Any] = {"type": "http", "path": "/api/v1/x", "headers": [(b"x-request-id", b"abc")]}


def serve_says(status: int, text: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> Any:
    """Serve, which answers itself."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": plain + (headers or [])})
        await send({"type": "http.response.body", "body": text[:5], "more_body": True})
        await send({"type": "http.response.body", "body": text[5:]})

    return app


async def asked(front: Front, bodies: list[bytes] | None = None, **scope: Any) -> tuple[int, dict[str, str], bytes]:
    pieces = list(bodies or [b""])
    sent: list[Message] = []

    async def receive() -> Message:
        body = pieces.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(pieces)}

    async def send(message: Message) -> None:
        sent.append(message)

    await front({**SCOPE, **scope}, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0].get("headers", [])}
    assert [message["type"] for message in sent].count("http.response.start") == 1
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


async def reads_all(_scope: Any, receive: Any, send: Any) -> None:
    """An application that reads its body, and Serve around it, which says so when the client has left."""
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            await serve_says(499, b"Client for request abc disconnected, cancelling request.")(_scope, receive, send)
            return
        size += len(message["body"])
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


@pytest.mark.parametrize(
    ("status", "name"), [(429, "too-many-requests"), (503, "unavailable"), (404, "not-found"), (500, "internal")]
)
async def test_what_serve_says_is_a_problem_with_the_requests_id(status: int, name: str) -> None:
    known = [(b"x-request-id", b"abc"), (b"retry-after", b"7")]
    front = Front(serve_says(status, b"Traceback: /secret/place", known))
    got, headers, body = await asked(front)
    problem = orjson.loads(body)
    assert (got, problem["status"], problem["type"]) == (status, status, f"urn:shoal:problem:{name}")
    assert (headers["content-type"], int(headers["content-length"])) == ("application/problem+json", len(body))
    assert (headers["x-request-id"], headers["retry-after"], problem["request_id"]) == ("abc", "7", "abc")
    assert b"secret" not in body


async def test_without_a_retry_after_whoever_is_told_to_come_back_is_told_when() -> None:
    _, headers, _ = await asked(Front(serve_says(503, b"no replicas")))
    assert headers["retry-after"] == "1"


async def test_answers_of_ours_and_of_serves_own_paths_pass_untouched() -> None:
    assert (await asked(Front(serve_says(200, b"plain text"))))[2] == b"plain text"
    assert (await asked(Front(serve_says(503, b"UNHEALTHY")), path="/-/healthz"))[2] == b"UNHEALTHY"


async def test_a_body_passes_and_one_that_is_too_large_is_refused_while_it_comes() -> None:
    front = Front(reads_all, body_bytes=10)
    assert (await asked(front, [b"12345", b"67890"]))[2] == b"10"
    status, headers, body = await asked(front, [b"12345", b"67890", b"1", b"never read"])
    assert (status, orjson.loads(body)["type"]) == (413, "urn:shoal:problem:too-large")
    assert headers["connection"] == "close"
    assert (await asked(front, [b"1"]))[0] == 200, "what was refused is held no more"


async def test_who_is_answered_before_all_of_the_body_came_is_let_go_of() -> None:
    async def reads_one(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 504, "headers": []})
        await send({"type": "http.response.body", "body": b"late"})

    sized = {"headers": [(b"content-length", b"3")]}
    assert (await asked(Front(reads_one), [b"a", b"b", b"c"], **sized))[1] == {"connection": "close"}
    assert (await asked(Front(reads_one), [b"abc"], **sized))[1] == {}
    assert (await asked(Front(serve_says(200, b"no body was sent"))))[1].keys() == {"content-type", "content-length"}


async def test_bodies_of_many_requests_are_bounded_together() -> None:
    inner: list[tuple[int, dict[str, str], bytes]] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        """Holds its body while others come, each with as much."""
        await receive()
        if len(held) < HELD_BODIES:
            held.append(b"")
            inner.append(await asked(front, [b"0123456789"]))
        await reads_all(scope, receive, send) if not held else await serve_says(200, b"held")(scope, receive, send)

    held: list[bytes] = []
    front = Front(slow, body_bytes=10)
    await asked(front, [b"0123456789"])
    assert sorted(status for status, _, _ in inner) == [200] * (HELD_BODIES - 1) + [503]
    refused = next(one for one in inner if one[0] == 503)
    assert orjson.loads(refused[2])["type"] == "urn:shoal:problem:unavailable"
    held.clear()
    front.app = reads_all
    assert (await asked(front, [b"0123456789"]))[0] == 200, "all of it was given back"


@pytest.mark.parametrize("length", [b"33756", None])
def test_a_head_leaves_with_its_body_where_the_length_is_known(length: bytes | None) -> None:
    """On a socket of its own, by the server and the event loop that a replica has."""
    is_there, may_go_on = asyncio.Event(), asyncio.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        fields = [(b"content-type", b"application/json"), *([(b"content-length", length)] if length else [])]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        is_there.set()
        await may_go_on.wait()
        await send({"type": "http.response.body", "body": b"x" * 33756})

    async def ask() -> tuple[bytes, bytes]:
        """What the client has got before the body was there, and the first piece after."""
        loop = asyncio.get_running_loop()
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(lambda: Front(app), factory=True, lifespan="off", log_config=None))
        serving = loop.create_task(server.serve(sockets=[listening]))
        with socket.create_connection(listening.getsockname()) as client:
            client.setblocking(False)
            await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await is_there.wait()
            before = b""
            with contextlib.suppress(TimeoutError):
                before = await asyncio.wait_for(loop.sock_recv(client, 100_000), 0.1 if length else 30)
            may_go_on.set()
            after = await loop.sock_recv(client, 100_000)
        server.should_exit = True
        await serving
        return before, after

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        before, after = runner.run(ask())
    assert before.startswith(b"HTTP/1.1 200") == (length is None)
    assert after.startswith(b"HTTP/1.1 200") == (length is not None)
    assert after.count(b"x") > 33_000


async def test_what_is_no_request_passes() -> None:
    seen: list[str] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope["type"])

    await Front(app)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen == ["lifespan"]


def test_ray_gets_one_middleware_with_the_limit_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BODY_BYTES_NAME, "4096")
    (one,) = middlewares()
    assert one.kwargs == {"body_bytes": 4096}
    monkeypatch.setenv(BODY_BYTES_NAME, "much")
    assert middlewares()[0].kwargs["body_bytes"] > 4096

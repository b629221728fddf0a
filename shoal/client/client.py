"""`Shoal` and `AsyncShoal`: the REST calls of a running Shoal (calls.py), without retries of their own.

What may succeed later (no connection, 429, 502 to 504, an ingress without replicas) is a `TransientError` with the
server's `Retry-After`; what will not is a `RefusedError`, whose text is the problem's `detail`. Imports no Ray and no
server code.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterator
from types import TracebackType
from typing import Any, Self

import httpx

from shoal.client.calls import Body, Call, Calls, Mode
from shoal.errors import PermanentError, ShoalError, TransientError

__all__ = ["AsyncShoal", "Body", "Mode", "RefusedError", "Shoal"]

_LATER = frozenset({408, 429, 502, 503, 504})


class RefusedError(PermanentError):
    """The server said no. `problem` is its RFC 9457 body ({} where it sent none)."""

    def __init__(self, message: str, status: int, problem: Body) -> None:
        super().__init__(message, status, problem)
        self.message = message
        self.status = status
        self.problem = problem

    def __str__(self) -> str:
        return self.message


class Shoal(Calls[Body, list[Body], bytes]):
    """A client of the Shoal at `url`. A context manager; close it, or let it live as long as the process."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`key`: an API key, sent as a bearer token. `transport`: for tests."""
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, headers=_key(key), timeout=timeout_s, transport=transport)

    def search_all(self, query: str | None = None, **parameters: Any) -> Iterator[Body]:
        """The results of every page; parameters as for `search`."""
        while True:
            page = self.search(query, **parameters)
            yield from page["results"]
            if not page["next_cursor"]:
                return
            parameters["cursor"] = page["next_cursor"]

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _one(self, call: Call) -> Body:
        return _body(self._sent(call), self.url, call)

    def _many(self, call: Call, name: str) -> list[Body]:
        return list(self._one(call)[name])

    def _raw(self, call: Call) -> bytes:
        return _bytes(self._sent(call, follow_redirects=True), self.url, call)

    def _sent(self, call: Call, **more: Any) -> httpx.Response:
        try:
            return self._http.request(call.method, call.path, **_parts(call), **more)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise _ours(error, self.url) from None


class AsyncShoal(Calls[Coroutine[Any, Any, Body], Coroutine[Any, Any, list[Body]], Coroutine[Any, Any, bytes]]):
    """The same for an event loop: `async with AsyncShoal(url) as shoal: await shoal.search("load")`."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout_s: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """As of `Shoal`."""
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(base_url=self.url, headers=_key(key), timeout=timeout_s, transport=transport)

    async def search_all(self, query: str | None = None, **parameters: Any) -> AsyncIterator[Body]:
        """As of `Shoal`: `async for result in shoal.search_all("load")`."""
        while True:
            page = await self.search(query, **parameters)
            for result in page["results"]:
                yield result
            if not page["next_cursor"]:
                return
            parameters["cursor"] = page["next_cursor"]

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _one(self, call: Call) -> Body:
        return _body(await self._sent(call), self.url, call)

    async def _many(self, call: Call, name: str) -> list[Body]:
        return list((await self._one(call))[name])

    async def _raw(self, call: Call) -> bytes:
        return _bytes(await self._sent(call, follow_redirects=True), self.url, call)

    async def _sent(self, call: Call, **more: Any) -> httpx.Response:
        try:
            return await self._http.request(call.method, call.path, **_parts(call), **more)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise _ours(error, self.url) from None


def _key(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _parts(call: Call) -> dict[str, Any]:
    """What httpx wants; an object in the body keeps only what is given."""
    parts: dict[str, Any] = {
        "params": {name: value for name, value in call.params.items() if value is not None},
        "headers": {name: value for name, value in call.headers.items() if value is not None},
        "content": call.content,
    }
    if call.json is not None:
        parts["json"] = {name: value for name, value in call.json.items() if value is not None}
    return parts


def _body(response: httpx.Response, url: str, call: Call) -> Body:
    problem = _object(response)
    if response.is_success and problem is not None:
        return problem
    raise _refusal(response, problem, url, call)


def _bytes(response: httpx.Response, url: str, call: Call) -> bytes:
    if response.is_success:
        return response.content
    raise _refusal(response, _object(response), url, call)


def _refusal(response: httpx.Response, problem: Body | None, url: str, call: Call) -> ShoalError:
    said = (problem or {}).get("detail")
    asked = f"{call.method} {call.path}"
    message = str(said) if said else f"Shoal at {url} answered {response.status_code} to {asked}{_plain(response)}"
    # Without a problem a 500 comes from an ingress that is not set up by Shoal: Ray's rewrites 502 to 504 so.
    if response.status_code in _LATER or (response.status_code == 500 and not said):
        return TransientError(message, _seconds(response.headers.get("Retry-After")))
    return RefusedError(message, response.status_code, problem or {})


def _plain(response: httpx.Response) -> str:
    """What an answer that is no problem means: it comes from whatever stands before Shoal."""
    match response.status_code:
        case 429:
            return ": it is full, or a proxy before it is; ask again later"
        case 500 | 502 | 503 | 504:
            return ": no replica took it, or the one that did died; look what became of a change before you repeat it"
        case 413:
            return ": the body is larger than it, or a proxy before it, takes"
        case _:
            return ""


def _ours(error: Exception, url: str) -> ShoalError:
    if isinstance(error, httpx.TimeoutException):
        return TransientError(f"Shoal at {url} did not answer in time", 1.0)
    if isinstance(error, httpx.InvalidURL):
        return PermanentError(f"{url} is no URL of a Shoal: {error}")
    return TransientError(f"Shoal at {url} can't be reached ({error}): is `shoal up` running?")


def _object(response: httpx.Response) -> Body | None:
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdecimal() else None

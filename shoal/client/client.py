"""`Shoal`: the REST calls of a running Shoal as typed methods; synchronous, without retries of its own.

Answers are the JSON bodies of contracts 3 as dicts. What may succeed later (no connection, 429, 502 to 504, an
ingress without replicas) is a `TransientError` with the server's `Retry-After`; what will not is a
`RefusedError`, whose text is the problem's `detail`. It imports no Ray and no server code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import httpx

from shoal.errors import PermanentError, TransientError

Body = dict[str, Any]
Mode = Literal["vector", "keyword", "hybrid"]

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


class Shoal:
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
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, transport=transport)

    def search(
        self,
        query: str | None = None,
        *,
        data_source: str | None = None,
        data_type: str | None = None,
        dataset: str | None = None,
        environment: str | None = None,
        scraper_name: str | None = None,
        file_format: str | None = None,
        start_date: str | None = None,
        end_date: str | None = None,
        hash: str | None = None,
        mode: Mode | None = None,
        limit: int = 100,
        cursor: str | None = None,
        include_superseded: bool = False,
        wait_token: str | None = None,
        explain: bool = False,
        as_of: str | None = None,
    ) -> Body:
        """One page: {results, count, query_type, next_cursor, took_ms, indexed_through, warnings}.

        `as_of`: a commit sequence or a time; the index as it was, and the answer's `as_of` says which state that is.
        """
        parameters = {
            "query": query, "data_source": data_source, "data_type": data_type, "dataset": dataset,
            "environment": environment, "scraper_name": scraper_name, "file_format": file_format,
            "start_date": start_date, "end_date": end_date, "hash": hash, "mode": mode, "limit": limit,
            "cursor": cursor, "include_superseded": include_superseded or None, "wait_token": wait_token,
            "explain": explain or None, "as_of": as_of,
        }  # fmt: skip
        given = {name: value for name, value in parameters.items() if value is not None}
        return self._ask("GET", "/api/v1/scrapes/search", params=given)

    def search_all(self, query: str | None = None, **parameters: Any) -> Iterator[Body]:
        """The results of every page; parameters as for `search`."""
        while True:
            page = self.search(query, **parameters)
            yield from page["results"]
            if not page["next_cursor"]:
                return
            parameters["cursor"] = page["next_cursor"]

    def search_collection(
        self,
        name: str = "scraper",
        *,
        query: str | None = None,
        mode: Mode | None = None,
        filters: Body | None = None,
        limit: int = 10,
        cursor: str | None = None,
        include_superseded: bool = False,
        facets: Sequence[str] = (),
        highlight: bool = False,
        chunks_per_document: int = 1,
        mmr_lambda: float | None = None,
        boosts: Body | None = None,
        rerank: bool = False,
        as_of: str | None = None,
        wait_token: str | None = None,
        explain: bool = False,
    ) -> Body:
        """The general search, one page: {results: [{document, score, distance, chunks}], count, mode, next_cursor,
        took_ms, freshness, warnings, facets?}. `filters` is a tree: {"and": [{"column": "year", "gte": 2024}]}."""
        body = {
            "query": query, "mode": mode, "filters": filters, "limit": limit, "cursor": cursor,
            "include_superseded": include_superseded or None, "facets": list(facets) or None,
            "highlight": highlight or None, "chunks_per_document": chunks_per_document, "mmr_lambda": mmr_lambda,
            "boosts": boosts, "rerank": rerank or None, "as_of": as_of, "wait_token": wait_token,
            "explain": explain or None,
        }  # fmt: skip
        given = {field: value for field, value in body.items() if value is not None}
        return self._ask("POST", f"/api/v1/collections/{quote(name, safe='')}/search", json=given)

    def collection_index(self, name: str = "scraper") -> Body:
        """{collection, at, ok, indexes, build, requests, freshness, warnings}: what `shoal index status` shows."""
        return self._ask("GET", f"/api/v1/collections/{quote(name, safe='')}/index")

    def by_hash(self, sha256: str) -> Body:
        """{exists: true, data, count} or {exists: false}."""
        return self._ask("GET", f"/api/v1/scrapes/{quote(sha256, safe='')}")

    def similar_apis(self, spec: Body, limit: int = 10) -> list[Body]:
        """Scraped APIs like the described one, the likest first."""
        body = self._ask("POST", "/api/v1/agents/context/similar-apis", params={"limit": limit}, json=spec)
        return list(body["similar_apis"])

    def fix_patterns(
        self, scraper_name: str, error_type: str | None = None, error_message: str | None = None, limit: int = 5
    ) -> list[Body]:
        """[{scraper, fix_history, context}]."""
        asked = {"scraper_name": scraper_name, "error_type": error_type, "error_message": error_message, "limit": limit}
        given = {name: value for name, value in asked.items() if value is not None}
        return list(self._ask("POST", "/api/v1/agents/context/fix-patterns", json=given)["fix_patterns"])

    def report_fix(
        self,
        scraper_name: str,
        error_type: str,
        summary: str,
        outcome: Literal["worked", "failed"],
        *,
        error_message: str | None = None,
        diff: str | None = None,
        reported_by: str | None = None,
        idempotency_key: str | None = None,
    ) -> Body:
        """The job: `status` is `accepted` where it is not in the tables yet (ask `job`)."""
        report = {
            "scraper_name": scraper_name, "error_type": error_type, "summary": summary, "outcome": outcome,
            "error_message": error_message, "diff": diff, "reported_by": reported_by,
        }  # fmt: skip
        given = {name: value for name, value in report.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._ask("POST", "/api/v1/agents/fixes", json=given, headers=headers)

    def job(self, job_id: str) -> Body:
        """What became of a command. Raises RefusedError (status 404) while it is not applied."""
        return self._ask("GET", f"/api/v1/jobs/{quote(job_id, safe='')}")

    def ingest(self) -> Body:
        """{health, reasons, ingest, age_s, tables, feeds, query_embedder, warnings}: `ingest` as the supervisor
        published it, or None."""
        return self._ask("GET", "/api/v1/ingest")

    def health(self) -> Body:
        """{status: ready|degraded, tables, embedder}. Raises TransientError while it starts."""
        return self._ask("GET", "/readyz")

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, method: str, path: str, **parts: Any) -> Body:
        try:
            response = self._http.request(method, path, **parts)
        except httpx.TimeoutException:
            raise TransientError(f"Shoal at {self.url} did not answer in time", 1.0) from None
        except httpx.TransportError as error:
            raise TransientError(f"Shoal at {self.url} can't be reached ({error}): is `shoal up` running?") from None
        except httpx.InvalidURL as error:
            raise PermanentError(f"{self.url} is no URL of a Shoal: {error}") from None
        problem = _object(response)
        if response.is_success and problem is not None:
            return problem
        said = (problem or {}).get("detail")
        message = str(said) if said else f"Shoal at {self.url} answered {response.status_code} to {method} {path}"
        # Without a problem a 500 comes from the ingress: HAProxy rewrites its own 503 so.
        if response.status_code in _LATER or (response.status_code == 500 and not said):
            raise TransientError(message, _seconds(response.headers.get("Retry-After")))
        raise RefusedError(message, response.status_code, problem or {})


def _object(response: httpx.Response) -> Body | None:
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdecimal() else None

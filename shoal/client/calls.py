"""The REST calls of a Shoal as typed methods, written once for the synchronous and the asynchronous client.

A client says how a call is sent; the type parameters are what its methods return: an answer's body, a list out of one,
and a file's bytes, each as it is or as something to await. Bodies are those of contracts 3, as dicts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

Body = dict[str, Any]
Mode = Literal["vector", "keyword", "hybrid"]
One = TypeVar("One")
Many = TypeVar("Many")
Raw = TypeVar("Raw")


@dataclass(frozen=True, slots=True)
class Call:
    """One request. What is None among `params`, `json` and `headers` is left out."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Body | None = None
    content: bytes | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)


class Calls(ABC, Generic[One, Many, Raw]):
    """The calls. Every method raises TransientError or RefusedError (client.py)."""

    @abstractmethod
    def _one(self, call: Call) -> One: ...
    @abstractmethod
    def _many(self, call: Call, name: str) -> Many: ...
    @abstractmethod
    def _raw(self, call: Call) -> Raw: ...

    # --- searching ----------------------------------------------------------------------------

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
    ) -> One:
        """One page: {results, count, query_type, next_cursor, took_ms, indexed_through, warnings}.

        `as_of`: a commit sequence or a time; the index as it was, and the answer's `as_of` says which state that is.
        """
        return self._one(
            Call(
                "GET",
                "/api/v1/scrapes/search",
                {
                    "query": query, "data_source": data_source, "data_type": data_type, "dataset": dataset,
                    "environment": environment, "scraper_name": scraper_name, "file_format": file_format,
                    "start_date": start_date, "end_date": end_date, "hash": hash, "mode": mode, "limit": limit,
                    "cursor": cursor, "include_superseded": include_superseded or None, "wait_token": wait_token,
                    "explain": explain or None, "as_of": as_of,
                },
            )
        )  # fmt: skip

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
    ) -> One:
        """The general search, one page: {results: [{document, score, distance, chunks}], count, mode, next_cursor,
        took_ms, freshness, warnings, facets?}. `filters` is a tree: {"and": [{"column": "year", "gte": 2024}]}."""
        body = {
            "query": query, "mode": mode, "filters": filters, "limit": limit, "cursor": cursor,
            "include_superseded": include_superseded or None, "facets": list(facets) or None,
            "highlight": highlight or None, "chunks_per_document": chunks_per_document, "mmr_lambda": mmr_lambda,
            "boosts": boosts, "rerank": rerank or None, "as_of": as_of, "wait_token": wait_token,
            "explain": explain or None,
        }  # fmt: skip
        return self._one(Call("POST", f"{_collection(name)}/search", json=body))

    def by_hash(self, sha256: str) -> One:
        """{exists: true, data, count} or {exists: false}."""
        return self._one(Call("GET", f"/api/v1/scrapes/{_part(sha256)}"))

    def datasets(
        self,
        *,
        data_source: str | None = None,
        dataset: str | None = None,
        environment: str | None = None,
        overdue: bool | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> One:
        """One page of the catalogue: {datasets, total, overdue, at, next_cursor}."""
        asked = {
            "data_source": data_source, "dataset": dataset, "environment": environment, "overdue": overdue,
            "limit": limit, "cursor": cursor,
        }  # fmt: skip
        return self._one(Call("GET", "/api/v1/scrapes/datasets", asked))

    # --- agents -------------------------------------------------------------------------------

    def similar_apis(self, spec: Body, limit: int = 10) -> Many:
        """Scraped APIs like the described one, the likest first."""
        return self._many(
            Call("POST", "/api/v1/agents/context/similar-apis", {"limit": limit}, json=spec), "similar_apis"
        )

    def fix_patterns(
        self, scraper_name: str, error_type: str | None = None, error_message: str | None = None, limit: int = 5
    ) -> Many:
        """[{scraper, fix_history, context}]."""
        asked = {"scraper_name": scraper_name, "error_type": error_type, "error_message": error_message, "limit": limit}
        return self._many(Call("POST", "/api/v1/agents/context/fix-patterns", json=asked), "fix_patterns")

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
    ) -> One:
        """The job: `status` is `accepted` where it is not in the tables yet (ask `job`)."""
        report = {
            "scraper_name": scraper_name, "error_type": error_type, "summary": summary, "outcome": outcome,
            "error_message": error_message, "diff": diff, "reported_by": reported_by,
        }  # fmt: skip
        headers = {"Idempotency-Key": idempotency_key}
        return self._one(Call("POST", "/api/v1/agents/fixes", json=report, headers=headers))

    def mark_fix(
        self,
        id: str,
        *,
        wrong: bool | None = None,
        outcome: Literal["worked", "failed"] | None = None,
        note: str | None = None,
        idempotency_key: str | None = None,
    ) -> One:
        """The job of marking a fix (`id` as `fix_patterns` shows it) as wrong, or right after all, or of correcting
        what came of it; `status` as of `report_fix`."""
        mark = {"wrong": wrong, "outcome": outcome, "note": note}
        headers = {"Idempotency-Key": idempotency_key}
        return self._one(Call("PATCH", f"/api/v1/agents/fixes/{_part(id)}", json=mark, headers=headers))

    # --- collections and documents ------------------------------------------------------------

    def collections(self) -> Many:
        """[{name, embedding_model, width, documents, chunks, freshness}]."""
        return self._many(Call("GET", "/api/v1/collections"), "collections")

    def collection(self, name: str = "scraper") -> One:
        """One of them."""
        return self._one(Call("GET", _collection(name)))

    def collection_index(self, name: str = "scraper") -> One:
        """{collection, at, ok, indexes, build, requests, freshness, warnings}: what `shoal index status` shows."""
        return self._one(Call("GET", f"{_collection(name)}/index"))

    def document(
        self,
        id: str,
        *,
        version: str | None = None,
        chunks: int = 20,
        first_chunk: int = 0,
        collection: str = "scraper",
    ) -> One:
        """{document, chunks, next_chunk, versions, freshness}."""
        asked = {"version": version, "chunks": chunks, "first_chunk": first_chunk}
        return self._one(Call("GET", _document(collection, id), asked))

    def raw(self, id: str, *, version: str | None = None, collection: str = "scraper") -> Raw:
        """The bytes of the raw file, all in memory."""
        return self._raw(Call("GET", f"{_document(collection, id)}/raw", {"version": version}))

    def push(
        self,
        data: bytes,
        *,
        dataset: str,
        urn: str,
        data_source: str,
        data_type: str,
        environment: str = "prod",
        collected_at: str | None = None,
        source_url: str | None = None,
        content_type: str = "application/octet-stream",
        collection: str = "scraper",
        idempotency_key: str | None = None,
    ) -> One:
        """The job of a pushed file: {job_id, status, document_id, version, sha256_hash}; ask `job`."""
        asked = {
            "dataset": dataset, "urn": urn, "data_source": data_source, "data_type": data_type,
            "environment": environment, "collected_at": collected_at, "source_url": source_url,
        }  # fmt: skip
        headers = {"Idempotency-Key": idempotency_key, "Content-Type": content_type}
        return self._one(Call("POST", f"{_collection(collection)}/documents", asked, content=data, headers=headers))

    def delete(self, id: str, *, collection: str = "scraper") -> One:
        """The job of deleting a document and its history; ask `job`."""
        return self._one(Call("DELETE", _document(collection, id)))

    # --- the flow -----------------------------------------------------------------------------

    def job(self, job_id: str) -> One:
        """What became of a command, a push or a deletion. Raises RefusedError (status 404) while it is not known."""
        return self._one(Call("GET", f"/api/v1/jobs/{_part(job_id)}"))

    def ingest(self) -> One:
        """{health, reasons, ingest, age_s, tables, feeds, query_embedder, warnings}: `ingest` as the supervisor
        published it, or None."""
        return self._one(Call("GET", "/api/v1/ingest"))

    def cost(self, by: str = "day", **filters: str | int) -> One:
        """{rows, total, budget, ...}; filters: since, until, collection, data_source, dataset, model, limit."""
        return self._one(Call("GET", "/api/v1/cost", {"by": by, **filters}))

    def dead_letters(
        self,
        *,
        id: str | None = None,
        reason: str | None = None,
        topic: str | None = None,
        dataset: str | None = None,
        since: str | None = None,
        until: str | None = None,
        handled: bool = False,
        limit: int = 50,
        cursor: str | None = None,
    ) -> One:
        """One page: {dead_letters, matching, handled_left_out, next_cursor}; with `id` that one, whole."""
        asked = {
            "id": id, "reason": reason, "topic": topic, "dataset": dataset, "since": since, "until": until,
            "handled": handled or None, "limit": limit, "cursor": cursor,
        }  # fmt: skip
        return self._one(Call("GET", "/api/v1/dead-letters", asked))

    def replay(
        self,
        *,
        ids: Sequence[str] = (),
        reason: str | None = None,
        topic: str | None = None,
        dataset: str | None = None,
        since: str | None = None,
        until: str | None = None,
        limit: int = 100,
        dry_run: bool = False,
    ) -> One:
        """Send dead letters again: {replayed, replayed_too_often, not_replayable, missing, is_complete, ...}."""
        asked = {
            "ids": list(ids) or None, "reason": reason, "topic": topic, "dataset": dataset, "since": since,
            "until": until, "limit": limit, "dry_run": dry_run or None,
        }  # fmt: skip
        return self._one(Call("POST", "/api/v1/dead-letters/replay", json=asked))

    def health(self) -> One:
        """{status: ready|degraded, tables, embedder}. Raises TransientError while it starts."""
        return self._one(Call("GET", "/readyz"))


def _part(text: str) -> str:
    return quote(text, safe="")


def _collection(name: str) -> str:
    return f"/api/v1/collections/{_part(name)}"


def _document(collection: str, id: str) -> str:
    # Its slashes stay: an ingress may refuse %2F. Nothing in it climbs: a part that is only dots is quoted.
    parts = (quote(part, safe=":") if part.strip(".") else part.replace(".", "%2E") for part in id.split("/"))
    return f"{_collection(collection)}/documents/{'/'.join(parts)}"

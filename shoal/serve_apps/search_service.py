"""The one search service behind REST and MCP: typed requests in, JSON-shaped answers out (contracts 3).

Asynchronous, without Ray and HTTP. It reads the tables through an index that a provider hands out, turns
questions into vectors, and changes things only by commands through the log. Where the query embedder is late
or down a search degrades to keywords and says so in `warnings`; what can't do without a vector fails with
TransientError, as does everything while the tables are not there yet. Wrong parameters are InvalidParameter
(or the store's QueryError), naming what to change. No answer ever holds a vector.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson

from shoal.documents.api_text import describe_api
from shoal.errors import ConfigurationError, ShoalError, TransientError
from shoal.records import SCRAPER_COLLECTION, Vector
from shoal.redaction import redact_json
from shoal.serve_apps import flow
from shoal.serve_apps.collection_models import CollectionSearch
from shoal.serve_apps.collection_search import CollectionSearches, Defaults, cut, traced_search
from shoal.serve_apps.commands import Commands
from shoal.serve_apps.degrading import way_of
from shoal.serve_apps.freshness import Lag, freshness_of
from shoal.serve_apps.models import (
    FixId,
    FixMark,
    FixPatternsQuery,
    FixReport,
    InvalidParameter,
    ScrapeSearch,
    Sha256Query,
    SimilarApisQuery,
)
from shoal.serve_apps.query_vectors import QueryVectors
from shoal.serve_apps.reranking import Reranker
from shoal.serve_apps.scopes import attributed, is_visible
from shoal.serve_apps.stages import ended, searched
from shoal.serve_apps.visible import check_collection
from shoal.sources.commands import command_id
from shoal.store.documents import Documents
from shoal.store.feeds import Catalogue
from shoal.store.filters import And, Equals, Filter, Range
from shoal.store.index_report import IndexReport, report
from shoal.store.reading import Freshness
from shoal.store.requests import QUERY_LENGTH_MAX, Hit, SearchPage, SearchRequest
from shoal.store.schemas import TableKind

SUMMARY_CHARS_MAX = 1000
SPEC_BYTES_MAX = 256 * 1024
"""An API's description that is embedded: only its first few thousand characters can matter."""
SIMILAR_LOOK = 200
"""Documents looked at for similar APIs by words: a busy dataset has many."""
JOB_WAIT_S = 2.0
"""How long a caller of a command waits for its outcome before it gets 202: a commit takes some 0.3 s."""

MEASURED_S = 5.0
"""A scraper gives up after ten seconds, and what a slow store keeps back must not cost it the rest."""

TRAITS = ("api_endpoint", "auth_method", "rate_limit", "data_freshness", "pagination_type")
_CHUNK_FIELDS = ("metadata_id", "content_schema", *TRAITS, "heading", "chunk_index")
_FIX_FIELDS = (
    "id", "error_type", "error_message", "summary", "diff", "outcome", "count", "reported_at", "marked_wrong_by",
    "evidence",
)  # fmt: skip
_CONTEXT_FIELDS = ("id", "dataset", "data_source", "data_type", "file_format", "source_url", "s3_path", "collected_at")


class Index(Protocol):
    """What the service asks of `shoal.store.search.SearchIndex`."""

    @property
    def model(self) -> str: ...
    @property
    def documents(self) -> Documents: ...
    async def search(self, request: SearchRequest) -> SearchPage: ...
    async def by_hash(self, sha256: str) -> list[dict[str, Any]]: ...
    async def similar_apis(self, vector: Vector, limit: int) -> list[Hit]: ...
    async def fixes(
        self, scraper_name: str, error_type: str | None, vector: Vector | None, error_message: str | None, limit: int
    ) -> list[dict[str, Any]]: ...
    async def job(self, command_id: str) -> dict[str, Any] | None: ...
    async def freshness(self) -> Freshness: ...
    async def unindexed_rows(self, kind: TableKind) -> Mapping[str, int | None]: ...
    async def counts(self) -> Mapping[str, int]: ...
    async def feeds(self) -> Catalogue | None: ...


class SearchService:
    """One per replica. `index` returns the open index or raises TransientError while there is none;
    `read_status` and `read_indexes` (blocking) return what the supervisor last published and what the writer says of
    its indexes, or None."""

    def __init__(
        self,
        index: Callable[[], Awaitable[Index]],
        vectors: QueryVectors,
        commands: Commands,
        read_status: Callable[[], Any | None],
        defaults: Defaults | None = None,
        reranker: Reranker | None = None,
        read_indexes: Callable[[], Any | None] = lambda: None,
    ) -> None:
        self._index = index
        self._vectors = vectors
        self._commands = commands
        self._read_status = read_status
        self._read_indexes = read_indexes
        self._lag = Lag(read_status)
        self._defaults = defaults or Defaults()
        self._collections = CollectionSearches(index, vectors, self._lag, self._defaults, reranker)

    @property
    def index(self) -> Callable[[], Awaitable[Any]]:
        """Hands out the open index, or raises TransientError; for the other services of this process."""
        return self._index

    @property
    def lag(self) -> Lag:
        """What is known of the lag."""
        return self._lag

    async def published(self) -> Any | None:
        """What the supervisor last published; None where it can't be read."""
        try:
            return await asyncio.to_thread(self._read_status)
        except ShoalError:
            return None

    async def catalogue(self) -> Catalogue:
        """Every feed. Raises TransientError while the first look at them is under way."""
        found = await (await self._index()).feeds()
        if found is None:
            raise TransientError("the datasets are being counted for the first time: ask again in a moment", 2.0)
        return found

    async def scrapes_search(self, parameters: ScrapeSearch | Mapping[str, Any]) -> dict[str, Any]:
        """One page of documents: by filters alone, or with a query the documents of the best chunks."""
        started = time.perf_counter()
        asked = ScrapeSearch.read(parameters)
        index = await self._index()
        warnings: list[str] = []
        ended("accept")
        way = await way_of(self._vectors, index.model, asked.query, asked.mode or "vector", asked.cursor, warnings)
        page = await traced_search(
            index,
            SearchRequest(
                collection=SCRAPER_COLLECTION,
                mode=way.mode,
                query=asked.query,
                vector=way.vector,
                filters=_filters(asked),
                limit=asked.limit,
                cursor=way.cursor,
                # Who asks for a hash asks whether we have, or had, these bytes.
                include_superseded=asked.include_superseded or (way.mode == "sql" and asked.hash is not None),
                explain=asked.explain,
                fusion=self._defaults.fusion,
                boosts=self._defaults.boosts,
                wait_sequence=int(asked.wait_token) if asked.wait_token else None,
                as_of=asked.state_of,
            ),
        )
        searched(page.timings_ms.get("queued", 0.0))
        return {
            "results": [_result(hit, explain=asked.explain) for hit in page.hits],
            "count": len(page.hits),
            "query_type": page.mode,
            "next_cursor": way.marked(page.next_cursor),
            "took_ms": round(1000 * (time.perf_counter() - started), 1),
            "indexed_through": page.freshness.committed_at,
            "freshness": freshness_of(page.freshness, page.unindexed_rows, await self._lag.now()),
            "warnings": [*warnings, *page.warnings],
            **({"as_of": page.as_of.shown()} if page.as_of else {}),
            **({"explain": page.explain, "timings_ms": page.timings_ms} if asked.explain else {}),
        }

    async def collection_search(self, name: str, parameters: CollectionSearch | Mapping[str, Any]) -> dict[str, Any]:
        """The general search: see collection_search.py."""
        return await self._collections.search(name, parameters)

    async def collection_index(self, name: str) -> dict[str, Any]:
        """What the writer last said of the indexes, as `shoal index status` shows it, and what the version that this
        replica searches has outside of them. Raises UnknownCollectionError, TransientError."""
        check_collection(name)
        found, index = await asyncio.gather(asyncio.to_thread(self._read_indexes), self._index())
        freshness = await index.freshness()
        rows = {**await index.unindexed_rows("vectors"), **await index.unindexed_rows("metadata")}
        described = report(found)
        note = "no writer has described the indexes of these tables yet: start `shoal up`"
        return {
            "collection": name,
            **(described or IndexReport(None, (), None, {})).shown(),
            "freshness": freshness_of(freshness, rows, await self._lag.now()),
            "warnings": [] if described else [note],
        }

    async def by_hash(self, sha256: str) -> dict[str, Any]:
        """Whether a file with these bytes is known, and its newest row."""
        asked = Sha256Query.read({"hash": sha256})
        index = await self._index()
        ended("accept")
        fresh = await self._fresh(index, "metadata", "hash")
        rows = await index.by_hash(asked.hash)
        searched(0.0)
        found = {"exists": True, "data": rows[0], "count": len(rows)} if rows else {"exists": False}
        return {**found, "freshness": fresh}

    async def similar_apis(self, spec: Mapping[str, Any], limit: int = 10) -> dict[str, Any]:
        """The scraped APIs most like the described one; without an embedder, by the words in common."""
        asked = SimilarApisQuery.read({"limit": limit})
        if not any(value not in (None, "", {}, []) for value in spec.values()):
            raise InvalidParameter("body", "describe the API: endpoint, method, auth_required, response fields, ...")
        try:
            size_bytes = len(orjson.dumps(spec))
        except orjson.JSONEncodeError:  # nested beyond what it writes (254), or not JSON (a tool's caller)
            raise InvalidParameter("body", "is nested too deeply, or is not JSON") from None
        if size_bytes > SPEC_BYTES_MAX:
            raise InvalidParameter("body", f"larger than {SPEC_BYTES_MAX} bytes; send the essentials")
        # On a thread: a hostile description may take a while, and the loop also answers health checks.
        text = await asyncio.to_thread(describe_api, spec)
        index = await self._index()
        fresh = await self._fresh(index, "metadata", "schema")
        warnings: list[str] = []
        try:
            vector = await self._vectors.of(index.model, text)
        except (TransientError, ConfigurationError) as error:
            warnings.append(f"{error}: these APIs have words in common, and similarity_score is relative to the first")
            hits = await _similar_by_words(index, text, asked.limit)
        else:
            hits = await index.similar_apis(vector, asked.limit)
        searched(0.0)
        return {"similar_apis": [shown_api(hit) for hit in hits], "freshness": fresh, "warnings": warnings}

    async def fix_patterns(self, parameters: FixPatternsQuery | Mapping[str, Any]) -> dict[str, Any]:
        """Fixes tried for this scraper and error, and for similar errors of scrapers like it; grouped by scraper, best
        first, each with its evidence; those marked wrong last."""
        asked = FixPatternsQuery.read(parameters)
        index = await self._index()
        fresh = await self._fresh(index, "fixes", "error")
        warnings: list[str] = []
        vector: Vector | None = None
        if error := _error_text(asked.error_type, asked.error_message):
            try:
                vector = await self._vectors.of(index.model, error)
            except (TransientError, ConfigurationError) as error:
                warnings.append(f"{error}: similar messages were compared by their words")
        rows = await index.fixes(asked.scraper_name, asked.error_type, vector, asked.error_message, asked.limit)
        scrapers: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            scrapers.setdefault(row["scraper_name"], []).append({name: row.get(name) for name in _FIX_FIELDS})
        patterns = [
            {"scraper": scraper, "fix_history": fixes, "context": await self._context(index, scraper)}
            for scraper, fixes in scrapers.items()
        ]
        return {"fix_patterns": patterns, "freshness": fresh, "warnings": warnings}

    async def report_fix(
        self, report: FixReport | Mapping[str, Any], *, idempotency_key: str | None, actor: str
    ) -> dict[str, Any]:
        """Durable in the log when this returns: `status` is the job's outcome where it came in time, else
        `accepted`. The same key is the same command; from an agent, which sends none, the same report within a
        day is (it may be a retry), while on another day it counts as one more time that it worked."""
        asked = FixReport.read(report)
        now = datetime.now(UTC)
        body = redact_json(asked.model_dump(exclude_none=True))
        if idempotency_key is None and actor == "mcp":
            content = orjson.dumps([now.date(), body], option=orjson.OPT_SORT_KEYS)
            idempotency_key = hashlib.sha256(content).hexdigest()
        actor = attributed(actor)
        identity = command_id(idempotency_key, actor=actor, kind="fix", collection=SCRAPER_COLLECTION)
        await self._commands.submit(identity, "fix", SCRAPER_COLLECTION, body, actor=actor, at=now)
        return await self._outcome(identity)

    async def mark_fix(
        self, fix_id: str, mark: FixMark | Mapping[str, Any], *, idempotency_key: str | None, actor: str
    ) -> dict[str, Any]:
        """Says that a fix is wrong (or right after all), or came out otherwise than reported; a job as of `report_fix`.
        From an agent the same mark is the same command for a day."""
        asked = FixMark.read(mark)
        now = datetime.now(UTC)
        body = redact_json({"id": FixId.read({"id": fix_id}).id, "by": actor, **asked.model_dump(exclude_none=True)})
        if idempotency_key is None and actor == "mcp":
            content = orjson.dumps([now.date(), body], option=orjson.OPT_SORT_KEYS)
            idempotency_key = hashlib.sha256(content).hexdigest()
        identity = command_id(idempotency_key, actor=actor, kind="fix_mark", collection=SCRAPER_COLLECTION)
        await self._commands.submit(identity, "fix_mark", SCRAPER_COLLECTION, body, actor=actor, at=now)
        return await self._outcome(identity)

    async def job(self, identity: str) -> dict[str, Any] | None:
        """The outcome of a command, or None while it is not known (not applied yet, or never sent)."""
        row = await (await self._index()).job(identity)
        if row is None or not is_visible(str(row.get("collection") or SCRAPER_COLLECTION)):
            return None
        result = row.get("result")
        return {
            "job_id": identity,
            "status": row["status"],
            "kind": row.get("kind"),
            "error": row.get("error"),
            "result": orjson.loads(result) if result else None,
            "applied_at": row.get("applied_at"),
            "wait_token": str(row["commit_sequence"]) if row.get("commit_sequence") is not None else None,
        }

    async def ingest_status(self) -> dict[str, Any]:
        """What the supervisor last published and how old that is, judged now, beside what the tables themselves
        say, and the feeds (None while they are not known)."""
        status: Any | None = None
        note: str | None = None
        now = datetime.now(UTC)
        try:
            status = await asyncio.to_thread(self._read_status)
        except TransientError as error:
            note = str(error)
        if status is None:
            note = note or "no ingest status yet: no supervisor has published one beside these tables"
        age_s = flow.age_s(status, now)
        return {
            **flow.judged(status, age_s),
            "ingest": flow.shown(status),
            "age_s": age_s,
            "tables": await self._tables(),
            "feeds": await self._feeds(now),
            "query_embedder": {"last_error": self._vectors.last_error},
            "warnings": [note] if note else [],
        }

    async def measured(self, now: datetime) -> tuple[dict[str, Any] | None, tuple[dict[str, Any], ...]]:
        """For metrics: the feeds (None where not known) and a row per index; without what takes its time."""

        async def indexes() -> tuple[dict[str, Any], ...]:
            try:
                described = report(await asyncio.to_thread(self._read_indexes))
            except ShoalError:
                return ()
            return described.indexes if described else ()

        async def in_time(call: Awaitable[Any], otherwise: Any) -> Any:
            try:
                return await asyncio.wait_for(call, MEASURED_S)
            except TimeoutError:
                return otherwise

        feeds, rows = await asyncio.gather(in_time(self._feeds(now), None), in_time(indexes(), ()))
        return feeds, rows

    async def readiness(self) -> dict[str, Any]:
        """`status`: ready, degraded (queries fall back to keywords) or starting (no tables yet)."""
        try:
            index = await self._index()
        except TransientError as error:
            return {"status": "starting", "tables": str(error), "embedder": None}
        answers = await self._vectors.answers(index.model)
        return {
            "status": "ready" if answers else "degraded",
            "tables": "open",
            "embedder": "ok" if answers else self._vectors.last_error,
        }

    def close(self) -> None:
        self._commands.close()

    async def _fresh(self, index: Index, kind: TableKind, leg: str) -> dict[str, Any]:
        """The freshness of an answer that is read from the table `kind` after this."""
        freshness, unindexed = await index.freshness(), await index.unindexed_rows(kind)
        known = {leg: unindexed[leg]} if leg in unindexed else {}
        return freshness_of(freshness, known, await self._lag.now())

    async def _tables(self) -> dict[str, Any] | None:
        try:
            index = await self._index()
            counts, freshness = await asyncio.gather(index.counts(), index.freshness())
        except TransientError:
            return None
        return {**counts, "commit_sequence": freshness.commit_sequence, "committed_at": freshness.committed_at}

    async def _feeds(self, now: datetime) -> dict[str, Any] | None:
        try:
            catalogue = await (await self._index()).feeds()
        except ShoalError:
            return None
        return None if catalogue is None else await asyncio.to_thread(flow.feeds_of, catalogue, now)

    async def _context(self, index: Index, scraper: str) -> dict[str, Any] | None:
        page = await index.search(SearchRequest(mode="sql", filters=Equals("scraper_name", scraper), limit=1))
        return {name: page.hits[0].metadata.get(name) for name in _CONTEXT_FIELDS} if page.hits else None

    async def _outcome(self, identity: str) -> dict[str, Any]:
        """Polls, since tables are the only thing that query and ingest side share. A failed read is not a failed
        command: it is in the log."""
        deadline = time.monotonic() + JOB_WAIT_S
        while True:
            try:
                if (job := await self.job(identity)) is not None:
                    return job
            except TransientError:
                pass
            if time.monotonic() >= deadline:
                return {"job_id": identity, "status": "accepted"}
            await asyncio.sleep(0.1)


def _filters(asked: ScrapeSearch) -> Filter | None:
    equal = {
        "data_source": asked.data_source and asked.data_source.upper(),
        "data_type": asked.data_type,
        "dataset": asked.dataset,
        "environment": asked.environment,
        "scraper_name": asked.scraper_name,
        "file_format": asked.file_format and asked.file_format.upper(),
        "sha256_hash": asked.hash,
    }
    parts: list[Filter] = [Equals(column, value) for column, value in equal.items() if value is not None]
    until = asked.collected_until
    if asked.collected_from or until:
        high, exclusive = until or (None, False)
        parts.append(Range("collected_at", low=asked.collected_from, high=high, high_inclusive=not exclusive))
    return And(tuple(parts)) if parts else None


def _result(hit: Hit, *, explain: bool) -> dict[str, Any]:
    """All metadata; with a query the best chunk beside it. The document's own `id` wins over the chunk's."""
    result = dict(hit.metadata)
    if hit.chunk is not None:
        result |= {name: hit.chunk.get(name) for name in _CHUNK_FIELDS}
        result["content_summary"] = cut(hit.chunk.get("content_summary"), SUMMARY_CHARS_MAX)
        result |= {"score": hit.score, "_distance": hit.distance}
    if explain:
        result["explain"] = hit.explain
    return result


async def _similar_by_words(index: Index, text: str, limit: int) -> list[Hit]:
    """As `Index.similar_apis`, of the documents with the most of the words of `text`: one for each API."""
    words = text[:QUERY_LENGTH_MAX].replace('"', " ")  # what stands in quotes would have to occur so
    page = await index.search(SearchRequest(mode="keyword", query=words, limit=SIMILAR_LOOK))
    apis: dict[tuple[Any, ...], Hit] = {}
    for hit in page.hits:
        endpoint = (hit.chunk or {}).get("api_endpoint")
        source = hit.metadata.get("data_source")
        apis.setdefault((source, "endpoint", endpoint) if endpoint else (source, hit.metadata.get("dataset")), hit)
    return list(apis.values())[:limit]


def shown_api(hit: Hit) -> dict[str, Any]:
    """A similar API as answers show it."""
    chunk = hit.chunk or {}
    return {
        "data_source": hit.metadata.get("data_source"),
        **{name: chunk.get(name) for name in TRAITS},
        "similarity_score": hit.score if hit.score is not None else 0.0,
        "content_summary": cut(chunk.get("content_summary"), SUMMARY_CHARS_MAX),
        **{name: hit.metadata.get(name) for name in ("id", "dataset", "data_type", "title", "source_url", "s3_path")},
    }


def _error_text(error_type: str | None, message: str | None) -> str:
    """The same words as those by which a reported fix is embedded."""
    return " ".join(filter(None, (error_type, message)))
